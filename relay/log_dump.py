"""What `walbus log dump` reads: a range of a log's records, each with its file's number and its offset.

It reads only (no index is built or stored), never past the durable end, and can be taken up behind a damaged record.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from walbus.errors import DamagedRecord, UsageError
from walbus.position import Position
from walbus.records import Kind, RecordHeader
from walbus.relay.fs import Files
from walbus.relay.index import SegmentIndex, parse_index
from walbus.relay.record_walk import Damaged, Located, walk
from walbus.relay.segment import HEADER_SIZE, index_path, parse_segment_header, segment_path
from walbus.relay.view import LogView, ViewFiles


@dataclass(frozen=True, slots=True)
class AtPosition:
    """A bound: the change at this position."""

    position: Position


@dataclass(frozen=True, slots=True)
class AtTime:
    """A bound: what is committed at this time, Unix microseconds."""

    microseconds: int


@dataclass(frozen=True, slots=True)
class AtSeq:
    """A bound: the change with this seq."""

    seq: int


Bound = AtPosition | AtTime | AtSeq


@dataclass(frozen=True, slots=True)
class Range:
    """Which records.

    Attributes:
        first: the first one holds this, or comes behind it; None: the log's first.
        last: the last one holds this, or comes before it; None: the log's last.
        segment: only those of the segment with this number; None: of all.
        offset: the first one begins here, in that segment; None: it is found by `first`.
    """

    first: Bound | None = None
    last: Bound | None = None
    segment: int | None = None
    offset: int | None = None


class Dumped(NamedTuple):
    """A record, and the number of its segment."""

    segment: int
    located: Located


def dump(folder: Path, wanted: Range, files: Files | None = None) -> Iterator[Dumped]:
    """The records of a range, in order.

    Raises:
        LogMissing: there is no log in the folder.
        UsageError: the log does not have that segment, or the offset lies outside it.
        DamagedRecord: names file and offset, and how to go on behind it.
    """
    files = files or Files()
    views = ViewFiles(folder, files)
    try:
        view = views.view()
        for at in _segments(view, wanted):
            number = view.manifest.numbers[at]
            for located in _records(folder, files, view, at, wanted):
                if wanted.last is not None and _is_past(wanted.last, located.header):
                    return
                yield Dumped(number, located)
    finally:
        views.close()


def _segments(view: LogView, wanted: Range) -> range:
    """Indexes of the manifest's numbers."""
    manifest = view.manifest
    if wanted.segment is not None:
        if wanted.segment not in manifest.numbers:
            held = f"{manifest.numbers[0]} to {manifest.numbers[-1]}"
            raise UsageError(f"the log has no segment {wanted.segment}", where="--segment", mend=f"it holds {held}")
        at = manifest.numbers.index(wanted.segment)
        return range(at, at + 1)
    first = 0
    match wanted.first:
        case AtPosition(position):
            first = max(bisect_left(manifest.bases, position) - 1, 0)
        case AtTime(microseconds):
            first = bisect_left(manifest.latest_times, microseconds)
        case AtSeq(seq):
            first = bisect_left(manifest.last_seqs, seq)
    return range(first, len(manifest.numbers))


def _records(folder: Path, files: Files, view: LogView, at: int, wanted: Range) -> Iterator[Located]:
    number, limit = view.manifest.numbers[at], view.limit(at)
    if not limit:
        return  # rolled just now, and nothing of it is durable
    path = segment_path(folder, number)
    try:
        fd = files.open_for_reading(path)
    except FileNotFoundError:
        raise DamagedRecord("a segment's file is missing", where=str(path), mend="restore the file") from None
    try:
        if wanted.offset is None:
            parse_segment_header(files.pread(fd, HEADER_SIZE, 0), str(path))
        passing = wanted.offset is not None
        for located in walk(files, fd, _start(folder, number, limit, wanted), limit):
            passing = passing or wanted.first is None or not _is_before(wanted.first, located.header)
            if passing:
                yield located
    except Damaged as damage:
        mend = f"`walbus log check` tells all damage; behind it go on with --segment {number} --from-offset N"
        raise DamagedRecord(damage.what, where=f"{path}, offset {damage.offset}", mend=mend) from None
    finally:
        files.close(fd)


def _start(folder: Path, number: int, limit: int, wanted: Range) -> int:
    if wanted.offset is not None:
        if not HEADER_SIZE <= wanted.offset <= limit:
            what = f"segment {number} has its records at the offsets {HEADER_SIZE} to {limit}"
            raise UsageError(what, where="--from-offset")
        return wanted.offset
    try:
        index = parse_index(index_path(folder, number).read_bytes(), number, sealed=False) or SegmentIndex()
    except FileNotFoundError:
        index = SegmentIndex()
    index.cut(limit)
    place = None
    match wanted.first:
        case AtPosition(position):
            place = index.place_for_position(position)
        case AtTime(microseconds):
            place = index.place_for_time(microseconds)
        case AtSeq(seq):
            place = index.place_for_seq(seq)
    return HEADER_SIZE if place is None else place[0]


def _is_before(bound: Bound, header: RecordHeader) -> bool:
    """Whether a record ends before the bound."""
    match bound:
        case AtPosition(position):
            return header.last < position
        case AtTime(microseconds):
            return header.commit_time < microseconds
        case AtSeq(seq):
            return header.last_seq < seq


def _is_past(bound: Bound, header: RecordHeader) -> bool:
    """Whether a record begins behind the bound."""
    match bound:
        case AtPosition(position):
            return header.first > position
        case AtTime(microseconds):
            return header.commit_time > microseconds
        case AtSeq(seq):
            return header.kind == Kind.TRANSACTION and header.first_seq > seq
