"""Knowing a transaction again that the source sends a second time.

After a restart the source sends again what it was not told to be durable, in commit order; the log is asked for each
place. The finder keeps its place, so that ascending questions cost one pass over the records in question.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from walbus.errors import PositionTrimmed
from walbus.log import Bounds, Held, LogCursor
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader, read_header

_BLOCK = 256 << 10


class Seeking(LogCursor, Protocol):
    """A cursor that can be sent elsewhere."""

    def seek(self, after: Position) -> None:
        """Stands before the first record that is not done at a "last done" position, as `LogReader.cursor` does."""


class TransactionFinder:
    """Finds durable transactions by epoch and commit LSN.

    Args:
        cursor: makes a cursor on the log's durable records.
        bounds: of what is durable now.
    """

    def __init__(self, cursor: Callable[[], Seeking], bounds: Callable[[], Bounds]) -> None:
        self._cursor, self._bounds = cursor, bounds
        self._walks: dict[int, _Walk] = {}

    def find(self, epoch: int, commit_lsn: int) -> Held | None:
        """The durable transaction at this place."""
        if Position(epoch, commit_lsn, 0) > self._bounds().end:
            return None
        walk = self._walks.get(epoch)
        if walk is None:
            walk = self._walks[epoch] = _Walk(epoch, self._cursor(), self._bounds)
        return walk.find(commit_lsn)

    def records_after(self, after: Position) -> Iterator[bytes]:
        """The durable records behind a position; see `walbus.log.LogWriter.records_after`."""
        cursor = self._cursor()
        try:
            cursor.seek(after)
            while records := cursor.read(_BLOCK):
                yield from records
        finally:
            cursor.close()

    def close(self) -> None:
        """Frees files."""
        for walk in self._walks.values():
            walk.close()
        self._walks = {}


class _Walk:
    """A place that moves forward over the ends of one epoch's transactions."""

    def __init__(self, epoch: int, cursor: Seeking, bounds: Callable[[], Bounds]) -> None:
        self._epoch = epoch
        self._cursor = cursor
        self._bounds = bounds
        self._ends: deque[RecordHeader] = deque()  # behind the place, in order
        self._asked = 1 << 64  # the last commit LSN that was asked for

    def find(self, commit_lsn: int) -> Held | None:
        if commit_lsn < self._asked and not self._seek(commit_lsn):
            return None
        self._asked = commit_lsn
        while self._ends or self._read():
            head = self._ends[0]
            if (head.epoch, head.commit_lsn) > (self._epoch, commit_lsn):
                return None
            if (head.epoch, head.commit_lsn) == (self._epoch, commit_lsn):
                return Held(head.commit_lsn, head.end_lsn, head.xid, head.commit_time)
            self._ends.popleft()
        return None

    def close(self) -> None:
        self._cursor.close()

    def _seek(self, commit_lsn: int) -> bool:
        self._ends.clear()
        try:
            self._cursor.seek(max(Position(self._epoch, commit_lsn, 0), self._bounds().trimmed))
        except PositionTrimmed:
            return False
        return True

    def _read(self) -> bool:
        """Takes the next ends; False at the durable end."""
        while records := self._cursor.read(_BLOCK):
            headers = (read_header(record) for record in records)
            self._ends.extend(h for h in headers if h.kind == Kind.TRANSACTION and h.flags & Flag.END)
            if self._ends:
                return True
        return False
