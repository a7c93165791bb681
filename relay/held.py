"""Knowing a transaction again that the source sends a second time.

After a restart the source sends again what it was not told to be durable, in commit order; the log is asked for each
place. The finder keeps its place, so that ascending questions cost one pass over the records in question.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from walbus.errors import PositionTrimmed
from walbus.log import Held
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader, read_header
from walbus.relay.cursor import FileCursor
from walbus.relay.fs import Files
from walbus.relay.index_loader import IndexLoader
from walbus.relay.view import LogView

_BLOCK = 256 << 10


class TransactionFinder:
    """Finds durable transactions by epoch and commit LSN.

    Args:
        folder: of the log.
        files: the file operations.
        view: gives the log as it is now.
    """

    def __init__(self, folder: Path, files: Files, view: Callable[[], LogView]) -> None:
        self._view = view
        self._folder, self._files = folder, files
        self._indexes = IndexLoader(folder, files)
        self._walks: dict[int, _Walk] = {}

    def find(self, epoch: int, commit_lsn: int) -> Held | None:
        """The durable transaction at this place."""
        if Position(epoch, commit_lsn, 0) > self._view().mark.tip.position:
            return None
        walk = self._walks.get(epoch)
        if walk is None:
            walk = self._walks[epoch] = _Walk(epoch, self._cursor(), self._view)
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

    def _cursor(self) -> FileCursor:
        return FileCursor(self._folder, self._files, self._view, self._indexes)

    def close(self) -> None:
        """Frees files."""
        for walk in self._walks.values():
            walk.close()
        self._walks = {}


class _Walk:
    """A place that moves forward over the ends of one epoch's transactions."""

    def __init__(self, epoch: int, cursor: FileCursor, view: Callable[[], LogView]) -> None:
        self._epoch = epoch
        self._cursor = cursor
        self._view = view
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
            self._cursor.seek(max(Position(self._epoch, commit_lsn, 0), self._view().manifest.trimmed))
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
