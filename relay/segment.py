"""A segment: one file of records, and the header that says which file it is.

A segment holds whole transactions only, so a large transaction makes a large segment, and dropping a segment never
cuts a transaction. Numbers rise for ever and are never used again. The header repeats what the manifest knows, so
that a file put in a wrong place is noticed.

    offset  size
         0     8  magic "WALBUSEG"
         8     4  format version (1)
        12     4  epoch of the base position
        16     8  number of the segment
        24     8  writer epoch that made the file
        32    32  log_id (hexadecimal)
        64     8  commit LSN of the base position
        72     4  ordinal of the base position
        76     4  zero
        80     8  last seq given before the first record
        88     8  time of creation, Unix microseconds
        96    28  zero
       124     4  CRC32C of bytes 0 to 123
       128        records
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from walbus.errors import DamagedRecord, UnknownFormat
from walbus.position import Position

SEGMENT_VERSION = 1
HEADER_SIZE = 128
_MAGIC = b"WALBUSEG"
_HEADER = struct.Struct("<8sIIQQ32sQIIQq28x")
assert _HEADER.size == HEADER_SIZE - 4  # noqa: S101  # a mistake here must not survive the import


class SegmentHeader(NamedTuple):
    """What a segment's file says of itself.

    Attributes:
        number: of the segment, from 1.
        writer_epoch: of the writer that made the file.
        log_id: 32 hexadecimal digits.
        base: "last done" before the first record.
        base_seq: the last seq given before the first record.
        created: Unix microseconds.
    """

    number: int
    writer_epoch: int
    log_id: str
    base: Position
    base_seq: int
    created: int

    def pack(self) -> bytes:
        """The header's 128 bytes."""
        head = _HEADER.pack(
            _MAGIC, SEGMENT_VERSION, self.base.epoch, self.number, self.writer_epoch, self.log_id.encode(),
            self.base.commit_lsn, self.base.ordinal, 0, self.base_seq, self.created,
        )  # fmt: skip
        return head + int(google_crc32c.value(head)).to_bytes(4, "little")


def parse_segment_header(data: bytes, where: str) -> SegmentHeader:
    """The header of a segment's file.

    Args:
        data: at least the first 128 bytes.
        where: name of the file, for the error.

    Raises:
        DamagedRecord: these bytes are no header, or one of another format version.
    """
    head = data[: _HEADER.size]
    if len(data) < HEADER_SIZE or google_crc32c.value(head) != int.from_bytes(
        data[_HEADER.size : HEADER_SIZE], "little"
    ):
        raise DamagedRecord("a segment's header is damaged", where=f"{where}, offset 0", mend="restore the file")
    magic, version, epoch, number, writer_epoch, log_id, lsn, ordinal, _, base_seq, created = _HEADER.unpack(head)
    if magic != _MAGIC or version != SEGMENT_VERSION:
        raise UnknownFormat(
            f"segment format {version} is not {SEGMENT_VERSION}",
            where=f"{where}, offset 8",
            mend="read it with the Walbus that wrote it",
        )
    return SegmentHeader(number, writer_epoch, log_id.decode(), Position(epoch, lsn, ordinal), base_seq, created)


def segments_folder(folder: Path) -> Path:
    """Where a log keeps its segments."""
    return folder / "segments"


def segment_path(folder: Path, number: int) -> Path:
    """The file of a segment."""
    return segments_folder(folder) / f"{number:016d}.seg"


def index_path(folder: Path, number: int) -> Path:
    """The file of a segment's index."""
    return segments_folder(folder) / f"{number:016d}.idx"
