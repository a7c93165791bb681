"""The seqs that no change has: each new writer of a log begins at the clock, and leaves a gap behind the last seq.

A gap lies before any record, since a writer that follows a clean stop goes on in the same segment, and a copy of a log
has the gaps of its original. The manifest says which seqs and how many bytes a segment has; only where there are more
seqs than its bytes have room for is the segment looked into, by its index, halving the seqs until each gap is found.
That is done once: what was looked at is remembered, and of the active segment only what has been added is looked at.

A gap that is smaller than the bytes beside it could hold is not found: some seconds in a full segment, less in what
was watched as it grew. So no change is ever taken for a gap, and of the gaps nearly all are known.
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
_LOOKED_INTO = 16  # segments in one go
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
    """What is known of a segment: its gaps up to a place."""

    upto: _At
    gaps: tuple[Gap, ...]


class SeqGaps:
    """Finds the gaps of one log. Blocking, for some reads; thread-safe.

    Args:
        folder: of the log.
        files: the file operations.
        indexes: of its segments.
    """

    def __init__(self, folder: Path, files: Files, indexes: IndexLoader) -> None:
        self._folder, self._files, self._indexes = folder, files, indexes
        self._lock = threading.Lock()
        self._log_id = ""
        self._known: dict[int, _Known] = {}  # by segment

    def above(self, view: LogView, seq: int) -> list[Gap]:
        """The gaps that end above a seq, as far as they are found; no seq is in two of them.

        Those of the newest segments are looked for first; what is too much for one go is left to the next.
        """
        with self._lock:
            self._forget(view)
            found: list[Gap] = []
            looks = _LOOKED_INTO
            manifest = view.manifest
            for at in range(len(manifest.numbers) - 1, -1, -1):
                if at < len(manifest.sealed) and manifest.sealed[at].last_seq <= seq:
                    break
                known, looked = self._segment(view, at, may_look=looks > 0)
                looks -= looked
                found += [gap for gap in known if gap.first > seq + 1]
            return found

    def _forget(self, view: LogView) -> None:
        if view.manifest.log_id != self._log_id:
            self._known.clear()
            self._log_id = view.manifest.log_id
        held = set(view.manifest.numbers)
        for number in [one for one in self._known if one not in held]:
            del self._known[number]

    def _segment(self, view: LogView, at: int, *, may_look: bool) -> tuple[tuple[Gap, ...], bool]:
        """The gaps of the segment at an index of the manifest's numbers; whether it was looked into."""
        number, offset = view.manifest.numbers[at], view.limit(at)
        if offset <= HEADER_SIZE:
            return (), False
        seq = view.mark.tip.last_seq if number == view.mark.segment else view.manifest.sealed[at].last_seq
        end, known = _At(offset, seq), self._known.get(number)
        try:
            if known is None or known.upto.offset > offset:  # an end that was lost, or is not served any more
                known = _Known(_At(HEADER_SIZE, self._base(view, at)), ())
            looks = _is_sparse(known.upto, end)
            if looks and not may_look:
                return known.gaps, False
            found = self._search(view, at).gaps(known.upto, end) if looks else []
        except (OSError, DamagedRecord, PositionTrimmed):
            return (), True  # dropped meanwhile, or damaged: the streams meet it, and tell it
        self._known[number] = known = _Known(end, (*known.gaps, *found))
        return known.gaps, looks

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

    def gaps(self, begin: _At, end: _At) -> list[Gap]:
        """Those between two places."""
        found: list[Gap] = []
        fd = self._files.open_for_reading(self._path)
        try:
            rest = [(begin, end)]
            while rest:
                low, high = rest.pop()
                if not _is_sparse(low, high):
                    continue
                if high.offset - low.offset <= _READ_WHOLE:
                    found += self._all(fd, low, high)
                    continue
                middle = (low.seq + high.seq + 1) // 2
                before, record = self._reaching(fd, middle, low, high)
                found += _gap(before.seq, record)
                behind = _At(record.offset + record.header.length, record.header.last_seq)
                rest += [(low, before), (behind, high)]
        finally:
            self._files.close(fd)
        return found

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
