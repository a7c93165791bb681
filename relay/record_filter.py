"""Leaves out the changes that a stream does not want, and keeps the records' meaning. Bytes in, bytes out.

A record of which everything passes is passed on as the bytes that it is. Otherwise it is packed again with the changes
that pass, under `Flag.FILTERED`; positions and seqs still tell the whole record's range. Transaction bounds are kept:

- a transaction of which nothing passes leaves nothing (the server reports progress behind it);
- the first piece of which something passes carries BEGIN, whichever piece that is;
- pieces of which nothing passes are left out, but the one with END is sent, empty, if BEGIN was.

A compressed record is decompressed only if the table bits of its header do not rule it out.

So a client that saw BEGIN always sees END.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from walbus.errors import DamagedRecord
from walbus.records import CHANGE_HEADER_SIZE, Flag, Kind, RecordHeader, body_of, origin_of, pack_record
from walbus.relay.projection import Projection
from walbus.relay.table_filter import TableFilter

_CHANGE_START = struct.Struct("<IBBHII")  # length, op, flags, bitmap's length, table, schema id
# as plain integers: arithmetic on enum members costs as much as the rest of a small record
_BEGIN, _END, _FILTERED, _ZSTD = int(Flag.BEGIN), int(Flag.END), int(Flag.FILTERED), int(Flag.ZSTD)
_TRANSACTION = int(Kind.TRANSACTION)


class _Kept(NamedTuple):
    body: bytes
    changes: int
    tables: int


class RecordFilter:
    """Filters the records of one stream, in their order.

    Args:
        tables: what passes.
        projection: which columns of it.
    """

    def __init__(self, tables: TableFilter, projection: Projection) -> None:
        self._tables = tables
        self._projection = projection
        self.in_window = False  #: whether BEGIN was sent and END was not

    def filter(self, header: RecordHeader, record: bytes) -> bytes:
        """What is to be sent of a record; empty if nothing.

        Raises:
            DamagedRecord: the record's body makes no sense.
        """
        if header.kind == _TRANSACTION:
            return self._transaction(header, record)
        if header.kind == Kind.SCHEMA:
            self._tables.learn()
        if header.kind in (Kind.PROGRESS, Kind.EPOCH) or self._keep(header, record).changes:
            return record
        return b""

    def _transaction(self, header: RecordHeader, record: bytes) -> bytes:
        kept = self._keep(header, record) if header.tables & self._tables.bits else _Kept(b"", 0, 0)
        ends = header.flags & _END
        if not kept.changes and not (ends and self.in_window):
            return b""
        flags = header.flags & ~_BEGIN | (0 if self.in_window else _BEGIN)
        self.in_window = not ends
        if kept.changes == header.count and flags == header.flags and self._projection.everything:
            return record
        return _pack(header, flags & ~_ZSTD | _FILTERED, origin_of(record, header), kept)

    def _keep(self, header: RecordHeader, record: bytes) -> _Kept:
        """The changes that pass, as they lie in the record."""
        body = body_of(record, header)
        parts, bits, offset = [], 0, 0
        wants, project, unpack = self._tables.wants_change, self._projection.project, _CHANGE_START.unpack_from
        while offset < len(body):
            if len(body) - offset < CHANGE_HEADER_SIZE:
                raise DamagedRecord("a change's header is cut short", where=f"body offset {offset}")
            length, op, _, _, table, schema_id = unpack(body, offset)
            if not CHANGE_HEADER_SIZE <= length <= len(body) - offset:
                raise DamagedRecord("a change's length is impossible", where=f"body offset {offset}")
            if wants(op, table, schema_id):
                parts.append(project(body[offset : offset + length], op, schema_id))
                bits |= 1 << table % 64
            offset += length
        return _Kept(b"".join(parts), len(parts), bits)


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
