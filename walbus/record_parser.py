"""Records out of bytes that arrive in any portions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from walbus.errors import DamagedRecord
from walbus.records import HEADER_SIZE, MAX_RECORD_SIZE, RecordHeader, check_sum, read_header

T = TypeVar("T")


class RecordParser:
    """Splits a byte stream into checked records.

    Feed it whatever the network gave; `records()` yields the whole records so far, and keeps an incomplete one.
    Memory is bounded by `max_size` and one record.
    """

    def __init__(self, max_size: int = MAX_RECORD_SIZE) -> None:
        self._fed = bytearray()  # behind `_whole`
        self._whole, self._at = b"", 0  # what is looked at, and where its next record begins
        self._max_size = max_size
        self._needed = HEADER_SIZE  # bytes that must be fed before looking again is worth it

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the stream."""
        self._fed += data

    @property
    def pending(self) -> int:
        """Bytes that are held: of an incomplete record, once all whole ones were taken."""
        return len(self._whole) - self._at + len(self._fed)

    def records(self) -> Iterator[tuple[RecordHeader, bytes]]:
        """Yields (header, whole record) for each complete record, and forgets them.

        Raises:
            DamagedRecord: checksum, version or length is wrong.
        """
        while (found := self.next()) is not None:
            yield found

    def next(self) -> tuple[RecordHeader, bytes] | None:
        """The next record; None while it is not all there. Raises as `records`."""
        if not self._looks():
            return None
        left = len(self._whole) - self._at
        if left < HEADER_SIZE:
            self._keep(HEADER_SIZE)
            return None
        header = read_header(self._whole, self._at)
        if header.length > self._max_size:
            raise DamagedRecord(f"a record of {header.length} bytes exceeds the bound of {self._max_size}")
        if left < header.length:
            self._keep(header.length)
            return None
        record = self._whole[self._at : self._at + header.length]
        check_sum(record)
        self._at += header.length
        return header, record

    def take(self, read: Callable[[bytes, int], tuple[T, int]]) -> T | None:
        """What a function makes of the records that are there; None if there are none.

        Args:
            read: gets bytes, and where the next record begins, and gives where the one behind those that it took does.
        """
        if not self._looks():
            return None
        made, self._at = read(self._whole, self._at)
        return made

    def _looks(self) -> bool:
        """Whether there is something at `_at` that was not found too short."""
        if self._at == len(self._whole):
            if len(self._fed) < self._needed:
                return False
            self._whole, self._at = bytes(self._fed), 0
            self._fed.clear()
            self._needed = HEADER_SIZE
        return True

    def _keep(self, needed: int) -> None:
        """The record at `_at` is not all there: what there is of it waits for the rest."""
        self._fed[:0] = self._whole[self._at :]
        self._whole, self._at = b"", 0
        self._needed = needed
