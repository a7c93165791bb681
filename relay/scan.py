"""Framing over bytes: splitting blocks into checked records, and finding the last whole transaction.

No I/O: bytes and offsets in, records and places out. Two users with different needs share it. Readers split blocks
below the durable end, where everything has to be good. Recovery walks the bytes behind that end, where the first
thing that is not good is where the log ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import google_crc32c

from walbus.errors import DamagedRecord
from walbus.position import Position
from walbus.records import HEADER_SIZE, Flag, Kind, RecordHeader, body_of, check_record, iter_changes, read_header
from walbus.relay.tip import Tip, end_behind

_PREFIX = struct.Struct("<II")  # checksum and length of a record


def record_length(data: bytes, offset: int = 0) -> int:
    """The length that the record at an offset claims; at least 8 bytes have to be there."""
    return int(_PREFIX.unpack_from(data, offset)[1])


def split_records(data: bytes) -> tuple[list[bytes], int]:
    """The whole, good records at the start of a block, and how many bytes they take.

    Raises:
        DamagedRecord: the first record's length or checksum is wrong. (That of a later one ends the list: the caller
            meets it as the first one of its next block.)
    """
    records: list[bytes] = []
    offset, end = 0, len(data)
    unpack, crc = _PREFIX.unpack_from, google_crc32c.value
    while end - offset >= 8:
        checksum, length = unpack(data, offset)
        stop = offset + length
        if stop > end and length >= HEADER_SIZE:
            break
        record = data[offset:stop]
        if length < HEADER_SIZE or crc(record[4:]) != checksum:
            if records:
                break
            raise DamagedRecord("a record's length or checksum is wrong")
        records.append(record)
        offset = stop
    return records, offset


def place_of_seq(header: RecordHeader, seq: int, done: Position) -> Position:
    """The position before the change of a seq ("last done"), in the first record with a change of it or a later one.

    Args:
        header: of the record.
        seq: of the change.
        done: position of the record before it.
    """
    if seq <= header.first_seq:
        return done
    return header.first._replace(ordinal=header.first_ordinal + seq - header.first_seq - 1)


def announced(record: bytes, header: RecordHeader) -> int:
    """The schema id that a SCHEMA record announces; 0 for every other record."""
    if header.kind != Kind.SCHEMA:
        return 0
    return max((change.schema_id for change in iter_changes(body_of(record, header))), default=0)


def advance(tip: Tip, header: RecordHeader, schema_id: int) -> Tip:
    """What is known behind one more record."""
    return Tip(
        header.last,
        end_behind(tip, header.kind, header.commit_lsn, header.end_lsn),
        header.last_seq,
        header.commit_time,
        max(tip.announced_schema, schema_id),
    )


def order_fault(tip: Tip, under_way: tuple[int, int] | None, header: RecordHeader) -> str | None:
    """Why a good record cannot follow what is known at a place; None if it can.

    Args:
        tip: at the place.
        under_way: xid and commit LSN of the transaction that has not ended there.
        header: of the record.
    """
    if header.last < tip.position or header.last_seq < tip.last_seq:
        return "a record's position or seq goes backward"
    if header.kind != Kind.TRANSACTION:
        return None
    begins, belongs = bool(header.flags & Flag.BEGIN), under_way == (header.xid, header.commit_lsn)
    if begins == (under_way is not None) or not (begins or belongs):
        return "a piece does not belong to the transaction before it"
    return None


class RecordOrder:
    """What may follow in the log, and what is known behind the last record that was taken.

    Args:
        tip: what is known where the records begin, which is behind a whole transaction.
    """

    def __init__(self, tip: Tip) -> None:
        self.tip = tip  #: behind the last record
        self.max_time = 0  #: the largest commit time of the records
        self._open: tuple[int, int] | None = None  # xid and commit LSN of the transaction under way
        self._lost = False

    def lose_track(self) -> None:
        """Something that cannot be read comes next: the record behind it may be any."""
        self._lost = True

    @property
    def whole(self) -> bool:
        """Whether no transaction is under way."""
        return self._open is None

    def fault(self, header: RecordHeader) -> str | None:
        """Why a good record cannot follow the one before it; None if it can."""
        if self._lost:
            return None
        return order_fault(self.tip, self._open, header)

    def take(self, header: RecordHeader, schema_id: int) -> None:
        """The record follows; `schema_id` is what it announces."""
        self.tip = advance(self.tip, header, schema_id)
        if header.kind == Kind.TRANSACTION:
            self._lost = False
            self._open = None if header.flags & Flag.END else (header.xid, header.commit_lsn)
        self.max_time = max(self.max_time, header.commit_time)


class TailScanner:
    """Walks records and knows where the last whole transaction ends.

    Feed it blocks in order; once `problem` is set, nothing behind that place counts.

    Args:
        tip: what is known where the scan starts, which is behind a whole transaction.
        offset: of that place in the file.
    """

    def __init__(self, tip: Tip, offset: int) -> None:
        self.tip = tip  #: behind the last whole transaction
        self.good = offset  #: offset behind the last whole transaction
        self.max_time = 0  #: the largest commit time of the whole transactions
        self.problem: str | None = None  #: why the scan ended before the bytes did
        self._rest = b""  # of an incomplete record
        self._at = offset  # of the first byte of `_rest`
        self._order = RecordOrder(tip)

    @property
    def wanted(self) -> int:
        """How many bytes the next block should have at least, so that it completes a large record at once."""
        if len(self._rest) < HEADER_SIZE:
            return HEADER_SIZE
        return max(read_header(self._rest).length - len(self._rest), HEADER_SIZE)

    def feed(self, data: bytes) -> Iterator[tuple[int, RecordHeader]]:
        """Takes the next bytes; yields (offset, header) of each good record, whether its transaction ends or not."""
        if self.problem is not None:
            return
        data = self._rest + data
        done = 0
        while self.problem is None and len(data) - done >= HEADER_SIZE:
            header = self._next(data, done)
            if header is None:
                break
            yield self._at, header
            done += header.length
            self._at += header.length
            if self._order.whole:
                self.tip, self.good, self.max_time = self._order.tip, self._at, self._order.max_time
        self._rest = data[done:]

    def _next(self, data: bytes, offset: int) -> RecordHeader | None:
        """The good record at an offset; None if it is incomplete, or the end of what is good."""
        try:
            header = read_header(data, offset)
            record = data[offset : offset + header.length]
            if len(record) < header.length:
                return None
            check_record(record)
            fault = self._order.fault(header)
            schema_id = announced(record, header)
        except DamagedRecord as error:
            fault = error.what
        if fault is not None:
            self.problem = fault
            return None
        self._order.take(header, schema_id)
        return header


def is_done(position: Position, header: RecordHeader) -> bool:
    """Whether a reader that has done `position` has done this record as well.

    A SCHEMA or EPOCH record stands at the position of the change before it, so one at exactly `position` may not have
    been seen yet: it counts as not done.
    """
    if header.kind in (Kind.SCHEMA, Kind.EPOCH):
        return header.last < position
    return header.last <= position
