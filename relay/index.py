"""The sparse index of a segment: where to begin reading for a position, a seq or a time.

One entry for about every 64 KiB of records says what is known before the record at its offset. The index only saves
time: each entry has its own checksum, a sealed segment's index knows how many entries it must have, and one that is
missing, short or damaged is built again from the segment itself. It is never synced.

    header (48 bytes): magic "WALBUSIX", version, zero, segment, writer epoch, entries (0 while the segment is active),
                       zero, CRC32C
    entry  (48 bytes): offset, epoch, ordinal, commit LSN, last seq, largest commit time before, zero, CRC32C
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import google_crc32c

from walbus.errors import LogFull
from walbus.position import Position
from walbus.relay.fs import Files, write_at

INTERVAL = 64 << 10  #: bytes between two entries, at least
_MAGIC = b"WALBUSIX"
_HEADER = struct.Struct("<8sIIQQQI")
_ENTRY = struct.Struct("<QIIQQqI")
_SIZE = 48
ENTRY_SIZE = _SIZE  #: bytes of an entry, and of the header before the first one
assert _HEADER.size == _ENTRY.size == _SIZE - 4  # noqa: S101  # a mistake here must not survive the import


class Entry(NamedTuple):
    """An entry; the attributes are those of `SegmentIndex`."""

    offset: int
    before: Position
    seq: int
    time: int


class Places(Protocol):
    """Where to begin looking in a segment: an offset, and what is done there; None: at the segment's start."""

    def place_for_position(self, after: Position) -> tuple[int, Position] | None:
        """For the first record that is not done at `after`."""

    def place_for_seq(self, seq: int) -> tuple[int, Position] | None:
        """For the first record that ends with a seq of `seq` or above."""

    def place_for_time(self, time: int) -> tuple[int, Position] | None:
        """For the first record with a commit time of `time` or later."""


@dataclass
class SegmentIndex:
    """The entries of one segment, in order of their offsets.

    Attributes:
        offsets: where a record begins.
        before: "last done" before that record.
        seqs: the last seq given before it.
        times: the largest commit time in the segment before it, Unix microseconds.
    """

    offsets: list[int] = field(default_factory=list)
    before: list[Position] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, offset: int, before: Position, seq: int, time: int) -> None:
        """Takes the entry of a record behind all earlier ones."""
        self.offsets.append(offset)
        self.before.append(before)
        self.seqs.append(seq)
        self.times.append(time)

    def wants(self, offset: int) -> bool:
        """Whether a record at this offset is far enough behind the last entry to get one."""
        return not self.offsets or offset - self.offsets[-1] >= INTERVAL

    def cut(self, length: int) -> None:
        """Forgets the entries of records at and behind an offset."""
        keep = bisect_left(self.offsets, length)
        for column in (self.offsets, self.before, self.seqs, self.times):
            del column[keep:]

    def place_for_position(self, after: Position) -> tuple[int, Position] | None:
        """See `Places`."""
        return self._place(bisect_left(self.before, after))

    def place_for_seq(self, seq: int) -> tuple[int, Position] | None:
        """See `Places`."""
        return self._place(bisect_left(self.seqs, seq))

    def place_for_time(self, time: int) -> tuple[int, Position] | None:
        """See `Places`."""
        return self._place(bisect_left(self.times, time))

    def _place(self, found: int) -> tuple[int, Position] | None:
        return (self.offsets[found - 1], self.before[found - 1]) if found else None

    def pack_entries(self, first: int) -> bytes:
        """The entries from number `first` on, as they lie in the file."""
        return b"".join(self._pack(i) for i in range(first, len(self.offsets)))

    def _pack(self, i: int) -> bytes:
        epoch, lsn, ordinal = self.before[i]
        return _summed(_ENTRY.pack(self.offsets[i], epoch, ordinal, lsn, self.seqs[i], self.times[i], 0))


def _summed(body: bytes) -> bytes:
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def _is_whole(block: bytes) -> bool:
    return int(google_crc32c.value(block[:-4])) == int.from_bytes(block[-4:], "little")


def pack_index_header(segment: int, writer_epoch: int, entries: int) -> bytes:
    """The header of an index file; `entries` is 0 while the segment is active."""
    return _summed(_HEADER.pack(_MAGIC, 1, 0, segment, writer_epoch, entries, 0))


def parse_index_header(header: bytes, segment: int) -> int | None:
    """The number of entries that an index file's first bytes tell; None if they are none, or of another segment."""
    if len(header) < _SIZE or not _is_whole(header):
        return None
    magic, version, _, number, _, entries, _ = _HEADER.unpack(header[:-4])
    return int(entries) if (magic, version, number) == (_MAGIC, 1, segment) else None


def parse_entry(block: bytes) -> Entry | None:
    """An entry's bytes; None if they are not whole."""
    if len(block) < _SIZE or not _is_whole(block):
        return None
    offset, epoch, ordinal, lsn, seq, time, _ = _ENTRY.unpack(block[:-4])
    return Entry(offset, Position(epoch, lsn, ordinal), seq, time)


def parse_index(data: bytes, segment: int, *, sealed: bool) -> SegmentIndex | None:
    """The index in a file's bytes; None if it is damaged, of another segment, or not complete though sealed."""
    entries = parse_index_header(data[:_SIZE], segment)
    if entries is None:
        return None
    index = SegmentIndex()
    for at in range(_SIZE, len(data) - _SIZE + 1, _SIZE):
        entry = parse_entry(data[at : at + _SIZE])
        if entry is None or (index.offsets and entry.offset <= index.offsets[-1]):
            return None
        index.add(*entry)
    if sealed and len(index) < max(entries, 1):
        return None
    return index


def index_health(files: Files, path: Path, segment: int, *, sealed: bool) -> str:
    """`whole`, `missing`, `damaged` or `short`, by the header of an index file and its size."""
    try:
        fd = files.open_for_reading(path)
    except FileNotFoundError:
        return "missing"
    try:
        header, size = files.pread(fd, _SIZE, 0), files.size(fd)
    finally:
        files.close(fd)
    entries = parse_index_header(header, segment)
    if entries is None:
        return "damaged"
    return "short" if sealed and size < _SIZE * (1 + max(entries, 1)) else "whole"


class IndexFile:
    """The writer's index of the active segment: entries reach the file as the records become durable.

    A disk without room only delays them.

    Args:
        files: the file operations.
        path: the file, which is made anew.
        segment: number of the segment.
        writer_epoch: of the writer.
        index: entries that are known already.
    """

    def __init__(self, files: Files, path: Path, segment: int, writer_epoch: int, index: SegmentIndex) -> None:
        self.index = index
        self._files = files
        self._segment, self._writer_epoch = segment, writer_epoch
        self._written = 0  # entries in the file
        files.unlink(path)
        self._fd = files.create(path)
        self._write(pack_index_header(segment, writer_epoch, 0), 0)

    def flush(self) -> None:
        """Writes the entries that the file does not have yet."""
        if self._written == len(self.index):
            return
        if self._write(self.index.pack_entries(self._written), _SIZE * (1 + self._written)):
            self._written = len(self.index)

    def cut(self, length: int) -> None:
        """Forgets the entries at and behind an offset."""
        self.index.cut(length)
        self._written = min(self._written, len(self.index))
        self._files.truncate(self._fd, _SIZE * (1 + self._written))

    def seal(self) -> None:
        """Writes what is missing and the final number of entries, and closes the file."""
        self.flush()
        if self._written == len(self.index):
            self._write(pack_index_header(self._segment, self._writer_epoch, self._written), 0)
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._files.close(self._fd)

    def _write(self, data: bytes, offset: int) -> bool:
        try:
            write_at(self._files, self._fd, data, offset)
        except LogFull:
            return False
        return True
