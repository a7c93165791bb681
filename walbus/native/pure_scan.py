"""Records framed and checked where they lie, in Python. Pure; `scanning.pxi` is its twin in C."""

from __future__ import annotations

import struct

import google_crc32c

from walbus.records import HEADER_SIZE

_PREFIX = struct.Struct("<II")  # checksum and length of a record


def good_records(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """The whole, good records at the start of a block: how many bytes they take, and where the last one begins.

    (0, 0) if the first one is damaged or not whole. What follows the good ones is not told apart: the caller meets it
    as the first record of its next block.
    """
    at, last, size = 0, 0, len(data)
    while size - at >= HEADER_SIZE:
        checksum, length = _PREFIX.unpack_from(data, at)
        if not HEADER_SIZE <= length <= size - at:
            break
        if google_crc32c.value(bytes(data[at + 4 : at + length])) != checksum:
            break
        last = at
        at += length
    return at, last
