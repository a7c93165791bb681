"""The index of a huge segment, looked up where it lies: some twenty reads of an entry, whatever its size.

A transaction of tens of gigabytes lies in one segment, whose index has a million entries: to read and check all of them
takes seconds, and memory for as long as it is kept. An entry has its own checksum, and entries rise by every column, so
a place is found by halving. An entry that is damaged has the index of a sealed segment built again; the active one's is
still written, and counts as far as it is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from walbus.position import Position
from walbus.relay.fs import Files
from walbus.relay.index import ENTRY_SIZE, Entry, Places, parse_entry, parse_index_header

#: Bytes of the largest index that is better read whole, and kept.
WHOLE_BYTES = 256 << 10


class StoredIndex:
    """See `walbus.relay.index.Places`.

    Args:
        files: the file operations.
        path: of the index.
        entries: how many it has.
        limit: entries of records at and behind this offset do not count.
        rebuilt: builds the index again; None where what is damaged only ends it.
    """

    def __init__(
        self, files: Files, path: Path, entries: int, limit: int, rebuilt: Callable[[], Places] | None
    ) -> None:
        self._files = files
        self._path = path
        self._entries = entries
        self._limit = limit
        self._rebuilt = rebuilt

    def place_for_position(self, after: Position) -> tuple[int, Position] | None:
        """See the interface."""
        try:
            return self._last(lambda entry: entry.before < after)
        except _DamagedEntry as damaged:
            return damaged.rebuilt().place_for_position(after)

    def place_for_seq(self, seq: int) -> tuple[int, Position] | None:
        """See the interface."""
        try:
            return self._last(lambda entry: entry.seq < seq)
        except _DamagedEntry as damaged:
            return damaged.rebuilt().place_for_seq(seq)

    def place_for_time(self, time: int) -> tuple[int, Position] | None:
        """See the interface."""
        try:
            return self._last(lambda entry: entry.time < time)
        except _DamagedEntry as damaged:
            return damaged.rebuilt().place_for_time(time)

    def _last(self, lies_before: Callable[[Entry], bool]) -> tuple[int, Position] | None:
        """The place of the last entry that lies before what is looked for."""
        fd = self._files.open_for_reading(self._path)
        found: Entry | None = None
        try:
            low, high = 0, self._entries
            while low < high:
                middle = (low + high) // 2
                entry = self._entry(fd, middle)
                if entry is not None and entry.offset < self._limit and lies_before(entry):
                    found, low = entry, middle + 1
                else:
                    high = middle
        finally:
            self._files.close(fd)
        return None if found is None else (found.offset, found.before)

    def _entry(self, fd: int, number: int) -> Entry | None:
        entry = parse_entry(self._files.pread(fd, ENTRY_SIZE, ENTRY_SIZE * (1 + number)))
        if entry is None and self._rebuilt is not None:
            raise _DamagedEntry(self._rebuilt)
        return entry


class _DamagedEntry(Exception):  # noqa: N818  # named after the condition
    """An entry of a sealed segment's index is not whole."""

    def __init__(self, rebuilt: Callable[[], Places]) -> None:
        self.rebuilt = rebuilt


def stored_entries(files: Files, path: Path, segment: int, *, sealed: bool) -> int | None:
    """How many entries an index has that is too large to be read whole; None where it is to be read, or built again."""
    try:
        fd = files.open_for_reading(path)
    except OSError:
        return None
    try:
        size = files.size(fd)
        if size <= WHOLE_BYTES:
            return None
        entries = parse_index_header(files.pread(fd, ENTRY_SIZE, 0), segment)
    finally:
        files.close(fd)
    there = size // ENTRY_SIZE - 1
    if entries is None or (sealed and entries > there):
        return None
    return entries or there
