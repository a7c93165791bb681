"""The active segment's file, as the writer sees it: a buffer of records before an offset-addressed file.

Records are gathered and written together. A write that finds no room keeps its records in the buffer, cuts what it
left behind, and is done again at the same offset by the next flush: nothing is lost and nothing is doubled.
"""

from __future__ import annotations

import contextlib

from walbus.errors import LogFull
from walbus.relay.fs import Files, write_at
from walbus.relay.segment import HEADER_SIZE, parse_segment_header


class SegmentFile:
    """One open segment.

    Args:
        files: the file operations.
        fd: the file, open for writing.
        number: of the segment.
        offset: where the next record goes.
    """

    def __init__(self, files: Files, fd: int, number: int, offset: int) -> None:
        self.number = number
        self.size = offset  #: offset behind the last record, buffered ones included
        self._files = files
        self._fd = fd
        self._written = offset  # offset behind the last record in the file
        self._buffer: list[bytes] = []

    @property
    def buffered(self) -> int:
        """Bytes that are not in the file yet."""
        return self.size - self._written

    def created(self) -> float:
        """When the file was made, Unix seconds, by its header."""
        head = self._files.pread(self._fd, HEADER_SIZE, 0)
        return parse_segment_header(head, f"segment {self.number}").created / 1e6

    def append(self, record: bytes) -> None:
        """Takes a record behind all earlier ones; writes nothing."""
        self._buffer.append(record)
        self.size += len(record)

    def flush(self) -> None:
        """Writes the buffer to the file.

        Raises:
            LogFull: no room; the records stay in the buffer.
        """
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        try:
            write_at(self._files, self._fd, data, self._written)
        except LogFull:
            self._buffer = [data]
            with contextlib.suppress(OSError):  # only gives the part that was written back to others
                self._files.truncate(self._fd, self._written)
            raise
        self._buffer = []
        self._written = self.size

    def sync(self) -> None:
        """Makes what is in the file durable; raises OSError if the disk failed."""
        self._files.fdatasync(self._fd)

    def cut(self, offset: int) -> None:
        """Forgets all records at and behind an offset, in the buffer and in the file."""
        kept = b"".join(self._buffer)[: max(offset - self._written, 0)]
        self._buffer = [kept] if kept else []
        if offset < self._written:
            self._files.truncate(self._fd, offset)
            self._written = offset
        self.size = offset

    def close(self) -> None:
        """Closes the file; what is buffered is lost."""
        self._files.close(self._fd)
