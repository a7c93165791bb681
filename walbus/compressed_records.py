"""Whole records, compressed and plain: the same record but for its body's form, length, one flag and the checksum.

Whoever wants changes takes `walbus.records.body_of`, which decompresses by itself. These are for writers, whose
records are not sealed yet, and for code that knows plain records alone.
"""

from __future__ import annotations

import google_crc32c

from walbus.compression import Compressor, claimed_size
from walbus.records import HEADER_SIZE, Flag, body_of, origin_of, read_header

FLAGS_AT = 10  #: where a record's flags lie, of which all that concern compression are in the first byte
_LENGTH_AT = 4


def plain(record: bytes) -> bytes:
    """The same record with its body decompressed; a record that is not compressed as it is.

    Raises:
        DamagedRecord: as `body_of`.
    """
    header = read_header(record)
    if not header.flags & Flag.ZSTD:
        return record
    found = _with_body(record, header.flags & ~Flag.ZSTD, origin_of(record, header), body_of(record, header))
    return int(google_crc32c.value(found[4:])).to_bytes(4, "little") + found[4:]


def plain_length(record: bytes) -> int:
    """The length of a record whose body is decompressed, by what it claims.

    Raises:
        DamagedRecord: as `body_of`.
    """
    if not record[FLAGS_AT] & Flag.ZSTD:
        return len(record)
    begin = HEADER_SIZE + read_header(record).origin_length
    return begin + claimed_size(record[begin:])


def compress_unsealed(records: bytes, compressor: Compressor) -> bytes:
    """Records out of `pack_unsealed` with the bodies compressed that are worth it."""
    parts, offset = [], 0
    while offset < len(records):
        header = read_header(records, offset)
        record = records[offset : offset + header.length]
        offset += header.length
        frame = compressor.compress(body_of(record, header))
        if frame is not None:
            record = _with_body(record, header.flags | Flag.ZSTD, origin_of(record, header), frame)
        parts.append(record)
    return b"".join(parts)


def _with_body(record: bytes, flags: int, origin: bytes, body: bytes) -> bytes:
    """A record with other flags and another body; its checksum is left to the caller."""
    header = bytearray(record[:HEADER_SIZE])
    header[_LENGTH_AT : _LENGTH_AT + 4] = (HEADER_SIZE + len(origin) + len(body)).to_bytes(4, "little")
    header[FLAGS_AT : FLAGS_AT + 2] = int(flags).to_bytes(2, "little")
    return b"".join((header, origin, body))
