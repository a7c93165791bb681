"""Checks one segment: every byte that counts, against itself and against what the manifest and the index say of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from walbus.errors import DamagedRecord
from walbus.position import Position
from walbus.relay.body_check import body_fault
from walbus.relay.fs import Files
from walbus.relay.index import SegmentIndex, parse_index
from walbus.relay.record_walk import Damaged, Located, resume, walk
from walbus.relay.scan import RecordOrder, announced
from walbus.relay.segment import HEADER_SIZE, SegmentHeader, index_path, parse_segment_header, segment_path
from walbus.relay.tip import EMPTY_TIP, Tip
from walbus.relay.view import LogView

_TOLD_BYTES = 1 << 20  # between two words about the progress


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it has to be.

    Attributes:
        what: is wrong.
        file: that holds it.
        segment: number of the segment; None where it is none.
        offset: in the file, in bytes; None where no place in it is meant.
    """

    what: str
    file: str
    segment: int | None = None
    offset: int | None = None


class SegmentCheck:
    """The check of one segment.

    Args:
        folder: of the log.
        files: the file operations.
        view: the log when the check began.
        at: index of the segment in the manifest's numbers.
        schemas: the numbers of all layouts.
    """

    def __init__(self, folder: Path, files: Files, view: LogView, at: int, schemas: Collection[int]) -> None:
        self._folder, self._files, self._view, self._at, self._schemas = folder, files, view, at, schemas
        self._number, self._limit = view.manifest.numbers[at], view.limit(at)
        self._path = segment_path(folder, self._number)
        self._sealed = at < len(view.manifest.sealed)
        self._order = RecordOrder(EMPTY_TIP)
        self._entries: dict[
            int, tuple[Position, int, int]
        ] = {}  # of the index, by offset; those that were met are gone
        self.records = 0  #: good ones so far
        self.tip: Tip | None = None  #: behind the last record; None if not every record was good
        self.max_time = 0  #: the largest commit time

    def findings(self, progress: Callable[[int], None]) -> Iterator[Finding]:
        """Reads the segment once.

        Args:
            progress: told the bytes that were read since it was told last.

        Raises:
            FileNotFoundError: its file is not there; the caller knows whether it may be missing.
        """
        fd = self._files.open_for_reading(self._path)
        try:
            yield from self._file_findings(fd, progress)
        finally:
            self._files.close(fd)

    def _finding(self, what: str, offset: int | None = None) -> Finding:
        return Finding(what, str(self._path), self._number, offset)

    def _file_findings(self, fd: int, progress: Callable[[int], None]) -> Iterator[Finding]:
        try:
            header = parse_segment_header(self._files.pread(fd, HEADER_SIZE, 0), str(self._path))
        except DamagedRecord as error:
            yield self._finding(error.what, 0)
            return
        yield from self._header_findings(header)
        size = self._files.size(fd)
        if size < self._limit:
            yield self._finding(f"the file has {size} bytes, and {self._limit} are durable", size)
        index, fault = self._index()
        if fault is not None:
            yield Finding(fault, str(index_path(self._folder, self._number)), self._number)
        order = RecordOrder(self._base(header))
        self._order, self._entries = order, dict(_entries(index))
        yield from self._records(fd, progress)
        if self.tip is not None:
            yield from self._end_findings()

    def _base(self, header: SegmentHeader) -> Tip:
        if self._sealed:
            return Tip(header.base, 0, header.base_seq, 0, 0)
        return self._view.manifest.active.base

    def _header_findings(self, header: SegmentHeader) -> Iterator[Finding]:
        manifest = self._view.manifest
        for what, said, known in (
            ("log_id", header.log_id, manifest.log_id),
            ("number", header.number, self._number),
            ("base", header.base, manifest.bases[self._at]),
        ):
            if said != known:
                yield self._finding(f"the file's header says {what} {said}, and the manifest {known}", 0)
        before = manifest.sealed[self._at - 1].end if self._at else manifest.trimmed
        if manifest.bases[self._at] != before:
            yield self._finding(f"it begins at {manifest.bases[self._at]}, and what comes before it ends at {before}")

    def _index(self) -> tuple[SegmentIndex, str | None]:
        try:
            data = index_path(self._folder, self._number).read_bytes()
        except FileNotFoundError:
            return SegmentIndex(), "the index is missing; it is built again when it is needed"
        index = parse_index(data, self._number, sealed=self._sealed)
        if index is None:
            return SegmentIndex(), "the index is damaged; it is built again when it is needed"
        index.cut(max(self._limit, HEADER_SIZE))
        return index, None

    def _records(self, fd: int, progress: Callable[[int], None]) -> Iterator[Finding]:
        """The findings of every record; `tip` is set if all of them were good."""
        at, good, told = HEADER_SIZE, True, HEADER_SIZE
        while at < self._limit:
            try:
                for located in walk(self._files, fd, at, self._limit):
                    yield from self._record_findings(located)
                    at = located.offset + located.header.length
                    if at - told >= _TOLD_BYTES:
                        progress(at - told)
                        told = at
            except Damaged as damage:
                good = False
                yield self._finding(damage.what, damage.offset)
                behind = resume(self._files, fd, damage.offset, self._limit)
                if behind is None:
                    yield self._finding("what comes behind it cannot be told apart, and was not checked", damage.offset)
                    break
                at = behind
                self._entries.clear()
                self._order.lose_track()
        progress(self._limit - told)
        if good:
            self.tip, self.max_time = self._order.tip, self._order.max_time
            for offset in self._entries:
                yield self._index_finding(f"an entry names offset {offset}, where no record begins")

    def _record_findings(self, located: Located) -> Iterator[Finding]:
        offset, header, record = located
        order, entry = self._order, self._entries.pop(offset, None)
        if entry is not None and entry != (order.tip.position, order.tip.last_seq, order.max_time):
            yield self._index_finding(f"the entry of offset {offset} does not say what comes before it")
        fault = order.fault(header) or body_fault(header, record, self._schemas)
        if fault is not None:
            yield self._finding(fault, offset)
        order.take(header, 0 if fault else announced(record, header))
        self.records += 1

    def _index_finding(self, what: str) -> Finding:
        return Finding(what, str(index_path(self._folder, self._number)), self._number)

    def _end_findings(self) -> Iterator[Finding]:
        order = self._order
        if not order.whole:
            yield self._finding("it ends inside a transaction", self._limit)
        if not self._sealed:
            return
        known = self._view.manifest.sealed[self._at]
        if order.tip.position != known.end:
            yield self._finding(f"its last record is at {order.tip.position}, and the manifest says {known.end}")
        if order.tip.last_seq > known.last_seq:
            yield self._finding(f"its last seq is {order.tip.last_seq}, and the manifest says {known.last_seq}")
        if order.max_time != known.max_time:
            yield self._finding("its largest commit time is not the manifest's")


def _entries(index: SegmentIndex) -> Iterator[tuple[int, tuple[Position, int, int]]]:
    for offset, before, seq, time in zip(index.offsets, index.before, index.seqs, index.times, strict=True):
        yield offset, (before, seq, time)
