"""The seqs that no change has: each new writer of a log begins at the clock, and leaves a gap behind the last seq.

A gap lies before any record, since a writer that follows a clean stop goes on in the same segment, and a copy of a log
has the gaps of its original. The manifest says which seqs and how many bytes a segment has; only where there are more
seqs than its bytes have room for is the segment looked into, by its index, halving the seqs until each gap is found.
That is done once: what was looked at is remembered, and of the active segment only what has been added is looked at.

A log whose changes are compressed to less than they are taken for is read nearly whole by that. So it is done in
portions, one a call, by one caller at a time and without a lock: who comes meanwhile is told what is known by then.

A gap that is smaller than the bytes beside it could hold is not found: one of up to an eighth of a segment's bytes in a
full segment (8 million seqs, which is as many microseconds, with segments of 64 MB), less in what was watched as it
grew. So no change is ever taken for a gap, and of the gaps nearly all are known.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from walbus.errors import DamagedRecord, PositionTrimmed
from walbus.records import Kind
from walbus.relay.fs import Files
from walbus.relay.index import Places
from walbus.relay.index_loader import IndexLoader
from walbus.relay.record_walk import Located, walk
from walbus.relay.segment import HEADER_SIZE, segment_path
from walbus.relay.served import base_of
from walbus.relay.view import LogView

_BYTES_A_CHANGE = 8  # at least; where compression makes them smaller, a segment is looked into in vain, once
_PORTION = 32 << 20  # bytes that are read in one go, about
_A_LOOK = 64 << 10  # bytes that one look by the index counts for, at least
_READ_WHOLE = 1 << 20  # bytes that are not worth being halved


class Gap(NamedTuple):
    """Seqs that no change has: those between the last one `before` and the `first` one behind."""

    before: int
    first: int


class _At(NamedTuple):
    """A place between two records: its offset in the segment, and the last seq given before it."""

    offset: int
    seq: int


class _Known(NamedTuple):
    """What is known of a segment: its gaps up to a place, but for those in stretches that are still to be looked at."""

    upto: _At
    gaps: tuple[Gap, ...]
    left: tuple[tuple[_At, _At], ...] = ()


class SeqGaps:
    """Finds the gaps of one log. Blocking, for some reads; thread-safe.

    Args:
        folder: of the log.
        files: the file operations.
        indexes: of its segments.
    """

    def __init__(self, folder: Path, files: Files, indexes: IndexLoader) -> None:
        self._folder, self._files, self._indexes = folder, files, indexes
        self._lock = threading.Lock()  # of what is known; nothing is read under it
        self._looking = threading.Lock()  # whoever has it looks for more
        self._log_id = ""
        self._known: dict[int, _Known] = {}  # by segment

    def above(self, view: LogView, seq: int) -> list[Gap]:
        """The gaps that end above a seq, as far as they are found; no seq is in two of them.

        Those of the newest segments are looked for first; what is too much for one go is left to the next.
        """
        with self._lock:
            self._forget(view)
        if self._looking.acquire(blocking=False):
            try:
                self._look(view, seq)
            finally:
                self._looking.release()
        with self._lock:
            known = [self._known[number] for number in view.manifest.numbers if number in self._known]
        last = view.mark.tip.last_seq  # others may have looked at a later view
        return [gap for one in known for gap in one.gaps if seq + 1 < gap.first <= last]

    def _forget(self, view: LogView) -> None:
        if view.manifest.log_id != self._log_id:
            self._known.clear()
            self._log_id = view.manifest.log_id
        held = set(view.manifest.numbers)
        for number in [one for one in self._known if one not in held]:
            del self._known[number]

    def _look(self, view: LogView, seq: int) -> None:
        manifest, portion = view.manifest, _PORTION
        for at in range(len(manifest.numbers) - 1, -1, -1):
            if portion <= 0 or (at < len(manifest.sealed) and manifest.sealed[at].last_seq <= seq):
                return
            number = manifest.numbers[at]
            with self._lock:
                known = self._known.get(number)
            try:
                known, read = self._segment(view, at, known, portion)
            except (OSError, DamagedRecord, PositionTrimmed):
                portion -= _A_LOOK  # dropped meanwhile, or damaged: the streams meet it, and tell it
                continue
            portion -= read
            with self._lock:
                if known is not None and self._log_id == manifest.log_id:
                    self._known[number] = known

    def _segment(self, view: LogView, at: int, known: _Known | None, portion: int) -> tuple[_Known | None, int]:
        """What is known of the segment at an index of the manifest's numbers, and how many bytes were read for that."""
        number, offset = view.manifest.numbers[at], view.limit(at)
        if offset <= HEADER_SIZE:
            return known, 0
        seq = view.mark.tip.last_seq if number == view.mark.segment else view.manifest.sealed[at].last_seq
        end = _At(offset, seq)
        if known is None or known.upto.offset > offset:  # an end that was lost, or is not served any more
            known = _Known(_At(HEADER_SIZE, self._base(view, at)), ())
        left = [*known.left, (known.upto, end)] if _is_sparse(known.upto, end) else [*known.left]
        if not left:
            return _Known(end, known.gaps), 0
        found, left, read = self._search(view, at).gaps(left, portion)
        return _Known(end, (*known.gaps, *found), tuple(left)), read

    def _search(self, view: LogView, at: int) -> _Search:
        path = segment_path(self._folder, view.manifest.numbers[at])
        return _Search(self._files, path, self._indexes(view, at))

    def _base(self, view: LogView, at: int) -> int:
        """The last seq given before a segment."""
        return view.manifest.sealed[at - 1].last_seq if at else base_of(self._folder, self._files, view).last_seq


def _is_sparse(begin: _At, end: _At) -> bool:
    """Whether there are more seqs than changes have room."""
    return (end.seq - begin.seq) * _BYTES_A_CHANGE > end.offset - begin.offset


class _Search:
    """Looks for gaps in one segment."""

    def __init__(self, files: Files, path: Path, index: Places) -> None:
        self._files, self._path, self._index = files, path, index

    def gaps(self, rest: list[tuple[_At, _At]], portion: int) -> tuple[list[Gap], list[tuple[_At, _At]], int]:
        """Those between pairs of places, as far as a portion of bytes goes; what is left then, and the bytes read."""
        found: list[Gap] = []
        read = 0
        fd = self._files.open_for_reading(self._path)
        try:
            while rest and read < portion:
                low, high = rest.pop()
                if not _is_sparse(low, high):
                    continue
                if high.offset - low.offset <= _READ_WHOLE:
                    found += self._all(fd, low, high)
                    read += high.offset - low.offset
                    continue
                middle = (low.seq + high.seq + 1) // 2
                before, record = self._reaching(fd, middle, low, high)
                found += _gap(before.seq, record)
                behind = _At(record.offset + record.header.length, record.header.last_seq)
                rest += [(low, before), (behind, high)]
                read += max(_A_LOOK, record.header.length)
        finally:
            self._files.close(fd)
        return found, rest, read

    def _all(self, fd: int, low: _At, high: _At) -> list[Gap]:
        found: list[Gap] = []
        before = low.seq
        for record in walk(self._files, fd, low.offset, high.offset):
            found += _gap(before, record)
            before = record.header.last_seq
        return found

    def _reaching(self, fd: int, seq: int, low: _At, high: _At) -> tuple[_At, Located]:
        """The first record with a last seq of at least `seq`, and the place before it."""
        place = self._index.place_for_seq(seq)
        if place is not None:  # a record earlier, for the seq before the first one
            place = self._index.place_for_position(place[1])
        start = low.offset if place is None else max(place[0], low.offset)
        before = low.seq
        for record in walk(self._files, fd, start, high.offset):
            if record.header.last_seq >= seq:
                return _At(record.offset, before), record
            before = record.header.last_seq
        raise DamagedRecord(f"no record has seq {seq}", where=str(self._path), mend="restore the file")


def _gap(before: int, record: Located) -> list[Gap]:
    """The gap between a seq and a record, if there is one."""
    first = record.header.first_seq
    return [Gap(before, first)] if record.header.kind == Kind.TRANSACTION and first > before + 1 else []
