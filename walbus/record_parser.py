"""Records out of bytes that arrive in any portions. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from walbus.errors import DamagedRecord
from walbus.records import HEADER_SIZE, MAX_RECORD_SIZE, RecordHeader, check_sum, read_header


class RecordParser:
    """Splits a byte stream into checked records.

    Feed it whatever the network gave; `records()` yields the whole records so far, and keeps an incomplete one.
    Memory is bounded by `max_size` and one record.
    """

    def __init__(self, max_size: int = MAX_RECORD_SIZE) -> None:
        self._buffer = bytearray()
        self._max_size = max_size
        self._needed = HEADER_SIZE  # bytes that must be there before looking again is worth it

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the stream."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """Bytes of an incomplete record that are held."""
        return len(self._buffer)

    def records(self) -> Iterator[tuple[RecordHeader, bytes]]:
        """Yields (header, whole record) for each complete record, and forgets them.

        Raises:
            DamagedRecord: checksum, version or length is wrong.
        """
        if len(self._buffer) < self._needed:
            return
        data = bytes(self._buffer)
        offset = 0
        self._needed = HEADER_SIZE
        try:
            while len(data) - offset >= HEADER_SIZE:
                header = read_header(data, offset)
                if header.length > self._max_size:
                    raise DamagedRecord(f"a record of {header.length} bytes exceeds the bound of {self._max_size}")
                if len(data) - offset < header.length:
                    self._needed = header.length
                    break
                record = data[offset : offset + header.length]
                check_sum(record)
                offset += header.length
                yield header, record
        finally:
            del self._buffer[:offset]
