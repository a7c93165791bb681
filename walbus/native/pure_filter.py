"""The filter of records in Python. Bytes in, bytes out; `walbus.native.reading` says what it does.

Always importable, and in use where the native one was not built or `WALBUS_PURE=1` is set. Its bytes and its errors are
the native one's: both are tested by one suite, and against each other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import google_crc32c

from walbus.errors import DamagedRecord
from walbus.native.reading import ALL_TABLES, WHOLE, Choice, Columns, Partition
from walbus.records import (
    CHANGE_HEADER_SIZE,
    ChangeFlag,
    Flag,
    Kind,
    Op,
    RecordHeader,
    body_of,
    key_hash,
    origin_of,
    pack_record,
    read_header,
)
from walbus.schema import TableSchema
from walbus.values.merge import split_row

_CHANGE = struct.Struct("<IBBHIIQIIIIII")  # as in `walbus.records`
# as plain integers: arithmetic on enum members costs as much as the rest of a small record
_BEGIN, _END, _FILTERED, _ZSTD = int(Flag.BEGIN), int(Flag.END), int(Flag.FILTERED), int(Flag.ZSTD)
_TRANSACTION = int(Kind.TRANSACTION)
_UPDATE, _DELETE, _MESSAGE = int(Op.UPDATE), int(Op.DELETE), int(Op.MESSAGE)
_ROWS = frozenset((int(Op.INSERT), _UPDATE, _DELETE))
_HASHED = _ROWS | {_MESSAGE}
_KEY, _OLD_KEY, _AFTER, _BEFORE = (int(ChangeFlag[name]) for name in ("KEY", "OLD_KEY", "AFTER", "BEFORE"))
_PROJECTED = int(ChangeFlag.PROJECTED)
_NULL = b"\0"


class _Kept(NamedTuple):
    body: bytes
    changes: int
    tables: int
    same: bool  # whether it is the body that there was


class _Head(NamedTuple):
    """A change's header, as it lies there."""

    length: int
    op: int
    flags: int
    unchanged_length: int
    table: int
    schema_id: int
    seq_delta: int
    ordinal_delta: int
    key_hash: int
    key_length: int
    old_key_length: int
    after_length: int
    before_length: int


class RecordFilter:
    """See `walbus.native.reading.NewFilter` and `RecordFilter`."""

    def __init__(self, choice: Choice, columns: Columns, partition: Partition = WHOLE) -> None:
        self._index, self._count = partition
        if not 0 <= self._index < self._count <= 0xFFFFFFFF:
            raise ValueError(f"there is no partition {self._index} of {self._count}")
        self._choice = choice
        self._columns = columns
        self._whole_rows = columns.everything
        self.in_window = False

    def __copy__(self) -> RecordFilter:
        twin = RecordFilter(copy(self._choice), self._columns, Partition(self._index, self._count))
        twin.in_window = self.in_window
        return twin

    def scan(self, records: Sequence[bytes]) -> list[bytes]:
        """See the interface."""
        return [self.filter(read_header(record), record) for record in records]

    def filter(self, header: RecordHeader, record: bytes) -> bytes:
        """See the interface."""
        if header.length != len(record):
            raise DamagedRecord(f"a record of {header.length} bytes lies in {len(record)} bytes")
        if header.kind == _TRANSACTION:
            return self._transaction(header, record)
        if header.kind == Kind.SCHEMA:
            self._choice.learn()
        if header.kind in (Kind.PROGRESS, Kind.EPOCH) or self._keep(header, record).changes:
            return record
        return b""

    def _transaction(self, header: RecordHeader, record: bytes) -> bytes:
        bits = self._choice.bits
        wanted = bits == ALL_TABLES or header.tables & bits
        kept = self._keep(header, record) if wanted else _Kept(b"", 0, 0, same=not header.count)
        ends = header.flags & _END
        if not kept.changes and not (ends and self.in_window):
            return b""
        flags = header.flags & ~_BEGIN | (0 if self.in_window else _BEGIN)
        self.in_window = not ends
        if kept.same and flags == header.flags:
            return record
        return _pack(header, flags & ~_ZSTD | _FILTERED, origin_of(record, header), kept)

    def _keep(self, header: RecordHeader, record: bytes) -> _Kept:
        """The changes that pass, in the form in which they do."""
        body = body_of(record, header)
        parts, bits, offset, count, same = [], 0, 0, 0, True
        while offset < len(body):
            head = _head(body, offset)
            change = body[offset : offset + head.length]
            passed = self._passed(head, change)
            if passed is not None:
                parts.append(passed)
                bits |= 1 << head.table % 64
            same = same and passed is change
            offset += head.length
            count += 1
        if count != header.count:
            raise DamagedRecord(f"a record of {header.count} changes holds {count}")
        return _Kept(b"".join(parts), len(parts), bits, same)

    def _passed(self, head: _Head, change: bytes) -> bytes | None:
        """The change as it passes: itself where nothing is altered, None where it does not."""
        op, leaves = head.op, False
        if self._count > 1 and op in _HASHED and head.key_hash % self._count != self._index:
            leaves = op == _UPDATE and bool(head.flags & _OLD_KEY) and self._had(head, change)
            if not leaves:
                return None
            op = _DELETE
        if not self._choice.wants_change(op, head.table, head.schema_id):
            return None
        if self._whole_rows or op not in _ROWS or not head.schema_id:
            return _packed(head, change, _DELETE) if leaves else change
        schema, mask = self._columns.left_out(head.schema_id)
        alters = leaves or (mask and head.flags & (_AFTER | _BEFORE))
        return _packed(head, change, op, schema, mask) if alters else change

    def _had(self, head: _Head, change: bytes) -> bool:
        """Whether the row of an update that carries an old key was in this partition."""
        old_key = change[CHANGE_HEADER_SIZE + head.key_length :][: head.old_key_length]
        return key_hash(old_key) % self._count == self._index


def _head(body: bytes, offset: int) -> _Head:
    if len(body) - offset < CHANGE_HEADER_SIZE:
        raise DamagedRecord("a change's header is cut short", where=f"body offset {offset}")
    head = _Head(*_CHANGE.unpack_from(body, offset))
    parts = head.key_length + head.old_key_length + head.unchanged_length + head.after_length + head.before_length
    if head.length != CHANGE_HEADER_SIZE + parts or head.length > len(body) - offset:
        raise DamagedRecord("a change's lengths do not add up", where=f"body offset {offset}")
    return head


def _packed(head: _Head, change: bytes, op: int, schema: TableSchema | None = None, mask: int = 0) -> bytes:
    """The change without the masked columns; as the delete of its old key, if the operation is another than its own."""
    old_at = CHANGE_HEADER_SIZE + head.key_length
    unchanged_at = old_at + head.old_key_length
    after_at = unchanged_at + head.unchanged_length
    before_at = after_at + head.after_length
    key, old_key = change[CHANGE_HEADER_SIZE:old_at], change[old_at:unchanged_at]
    unchanged, after, before = change[unchanged_at:after_at], change[after_at:before_at], change[before_at:]
    flags, hashed = head.flags, head.key_hash
    if op != head.op:
        key, old_key, unchanged, after = old_key, b"", b"", b""
        flags, hashed = flags & ~(_OLD_KEY | _AFTER) | _KEY, int(google_crc32c.value(key)) if key else 0
    if schema is not None and mask and flags & (_AFTER | _BEFORE):
        size, sent = (len(schema.columns) + 7) // 8, int.from_bytes(unchanged, "little")
        # bits behind the last column, which nobody reads, would lie in the second bitmap
        unsent = (sent & ((1 << len(schema.columns)) - 1) if flags & _AFTER else 0) | mask
        unchanged = unsent.to_bytes(size, "little") + mask.to_bytes(size, "little")
        after = _without(schema, after, mask) if flags & _AFTER else after
        before = _without(schema, before, mask) if flags & _BEFORE else before
        flags |= _PROJECTED
    length = CHANGE_HEADER_SIZE + len(key) + len(old_key) + len(unchanged) + len(after) + len(before)
    start = _CHANGE.pack(
        length, op, flags, len(unchanged), head.table, head.schema_id, head.seq_delta, head.ordinal_delta, hashed,
        len(key), len(old_key), len(after), len(before),
    )  # fmt: skip
    return b"".join((start, key, old_key, unchanged, after, before))


def _without(schema: TableSchema, row: bytes, mask: int) -> bytes:
    return b"".join([_NULL if mask >> i & 1 else part for i, part in enumerate(split_row(schema, row))])


def _pack(header: RecordHeader, flags: int, origin: bytes, kept: _Kept) -> bytes:
    return pack_record(
        header.kind,
        flags=flags,
        epoch=header.epoch,
        commit_lsn=header.commit_lsn,
        end_lsn=header.end_lsn,
        first_ordinal=header.first_ordinal,
        last_ordinal=header.last_ordinal,
        first_seq=header.first_seq,
        last_seq=header.last_seq,
        xid=header.xid,
        commit_time=header.commit_time,
        count=kept.changes,
        origin=origin,
        tables=kept.tables,
        body=kept.body,
    )
