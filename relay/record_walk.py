"""Walks the records of one segment with their offsets, for those who look at a log rather than follow it.

Unlike a cursor, a walk can be taken up at any offset, also behind a damaged record, and never leaves its segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from walbus.errors import DamagedRecord
from walbus.records import HEADER_SIZE, RecordHeader, check_record
from walbus.relay.fs import Files
from walbus.relay.scan import record_length

_BLOCK = 1 << 20


class Located(NamedTuple):
    """A good record: where it begins in its file, its header, its bytes."""

    offset: int
    header: RecordHeader
    record: bytes


class Damaged(DamagedRecord):
    """What is no good record.

    Args:
        what: is wrong with it.
        offset: where it begins in its file.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, where=f"offset {offset}")
        self.offset = offset


def walk(files: Files, fd: int, start: int, limit: int) -> Iterator[Located]:
    """The records from one offset to another.

    Args:
        files: the file operations.
        fd: the segment.
        start: where a record begins.
        limit: where the last one ends.

    Raises:
        Damaged: the bytes that come next are no good record.
    """
    rest, at = b"", start  # `rest` are the bytes at `at` that were read already
    while at < limit:
        wanted = max(_needed(rest) - len(rest), _BLOCK)
        more = files.pread(fd, min(wanted, limit - at - len(rest)), at + len(rest))
        if not more:
            raise Damaged("the file ends inside a record", at)
        block, done = rest + more, 0
        while len(block) - done >= HEADER_SIZE and len(block) - done >= _needed(block, done):
            found = _record(block, done, at + done)
            yield found
            done += found.header.length
        rest, at = block[done:], at + done
        if at + _needed(rest) > limit > at:
            raise Damaged("a record reaches past the end of its segment", at)


def resume(files: Files, fd: int, damaged: int, limit: int) -> int | None:
    """Where to go on behind a damaged record: where its length says that the next one begins, if a good one is there.

    None: there is no telling where the next record begins.
    """
    head = files.pread(fd, HEADER_SIZE, damaged)
    behind = damaged + _needed(head)
    if len(head) < HEADER_SIZE or behind > limit:
        return None
    try:
        next(walk(files, fd, behind, limit), None)
    except Damaged:
        return None
    return behind


def _needed(data: bytes, offset: int = 0) -> int:
    """Bytes of the record at an offset, as far as its beginning tells."""
    return max(record_length(data, offset), HEADER_SIZE) if len(data) - offset >= 8 else HEADER_SIZE


def _record(block: bytes, start: int, offset: int) -> Located:
    record = block[start : start + _needed(block, start)]
    try:
        return Located(offset, check_record(record), record)
    except DamagedRecord as error:
        raise Damaged(error.what, offset) from None
