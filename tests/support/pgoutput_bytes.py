"""Writes pgoutput messages of protocols 1 to 4, for tests of the decoders, the intake and the assembler."""

from __future__ import annotations

import struct
from collections.abc import Sequence

POSTGRES_EPOCH = 946_684_800_000_000

UNCHANGED = object()  #: stands for a TOASTed value that was not sent
Value = bytes | str | None | object


def begin(commit_lsn: int, xid: int, commit_time: int = POSTGRES_EPOCH) -> bytes:
    return b"B" + struct.pack(">QqI", commit_lsn, commit_time - POSTGRES_EPOCH, xid)


def commit(commit_lsn: int, end_lsn: int | None = None, commit_time: int = POSTGRES_EPOCH) -> bytes:
    end = commit_lsn + 48 if end_lsn is None else end_lsn
    return b"C" + struct.pack(">BQQq", 0, commit_lsn, end, commit_time - POSTGRES_EPOCH)


def origin(name: str, lsn: int = 0) -> bytes:
    return b"O" + struct.pack(">Q", lsn) + _text(name)


def relation(oid: int, table: str, columns: Sequence[tuple[str, int, int]], identity: str = "d") -> bytes:
    """Columns are (name, type OID, flags)."""
    namespace, _, name = table.partition(".")
    parts = [bytes([flags]) + _text(column) + struct.pack(">Ii", type_oid, -1) for column, type_oid, flags in columns]
    head = struct.pack(">I", oid) + _text(namespace) + _text(name) + identity.encode()
    return b"R" + head + struct.pack(">H", len(columns)) + b"".join(parts)


def type_(oid: int, namespace: str, name: str) -> bytes:
    return b"Y" + struct.pack(">I", oid) + _text(namespace) + _text(name)


def row(*values: Value) -> bytes:
    return struct.pack(">H", len(values)) + b"".join(map(_value, values))


def insert(oid: int, *new: Value) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + row(*new)


def update(oid: int, new: Sequence[Value], *, key: Sequence[Value] = (), old: Sequence[Value] = ()) -> bytes:
    before = b"K" + row(*key) if key else b"O" + row(*old) if old else b""
    return b"U" + struct.pack(">I", oid) + before + b"N" + row(*new)


def delete(oid: int, *, key: Sequence[Value] = (), old: Sequence[Value] = ()) -> bytes:
    return b"D" + struct.pack(">I", oid) + (b"K" + row(*key) if key else b"O" + row(*old))


def truncate(*oids: int, cascade: bool = False, restart: bool = False) -> bytes:
    return b"T" + struct.pack(f">IB{len(oids)}I", len(oids), cascade | restart << 1, *oids)


def message(lsn: int, prefix: str, content: bytes, *, transactional: bool) -> bytes:
    return b"M" + struct.pack(">BQ", transactional, lsn) + _text(prefix) + struct.pack(">I", len(content)) + content


def in_block(xid: int, plain: bytes) -> bytes:
    """A message of protocol 1 as it stands in a block of a streamed transaction."""
    return plain[:1] + struct.pack(">I", xid) + plain[1:]


def stream_start(xid: int, *, first: bool) -> bytes:
    return b"S" + struct.pack(">IB", xid, first)


def stream_stop() -> bytes:
    return b"E"


def stream_commit(xid: int, commit_lsn: int, end_lsn: int | None = None, commit_time: int = POSTGRES_EPOCH) -> bytes:
    return b"c" + struct.pack(">I", xid) + commit(commit_lsn, end_lsn, commit_time)[1:]


def stream_abort(xid: int, subxid: int, info: tuple[int, int] | None = None) -> bytes:
    """With `info`, (LSN, Unix microseconds), as under parallel streaming."""
    more = struct.pack(">Qq", info[0], info[1] - POSTGRES_EPOCH) if info else b""
    return b"A" + struct.pack(">II", xid, subxid) + more


def begin_prepare(xid: int, gid: str, lsn: int, time: int = POSTGRES_EPOCH) -> bytes:
    return b"b" + struct.pack(">QQqI", lsn, lsn + 48, time - POSTGRES_EPOCH, xid) + _text(gid)


def prepare(xid: int, gid: str, lsn: int, time: int = POSTGRES_EPOCH, *, kind: bytes = b"P") -> bytes:
    return kind + struct.pack(">BQQqI", 0, lsn, lsn + 48, time - POSTGRES_EPOCH, xid) + _text(gid)


def stream_prepare(xid: int, gid: str, lsn: int, time: int = POSTGRES_EPOCH) -> bytes:
    return prepare(xid, gid, lsn, time, kind=b"p")


def commit_prepared(xid: int, gid: str, lsn: int, time: int = POSTGRES_EPOCH) -> bytes:
    return prepare(xid, gid, lsn, time, kind=b"K")


def rollback_prepared(xid: int, gid: str, lsn: int) -> bytes:
    return b"r" + struct.pack(">BQQqqI", 0, 1, lsn, 0, 0, xid) + _text(gid)


def _value(value: Value) -> bytes:
    if value is None:
        return b"n"
    if value is UNCHANGED:
        return b"u"
    data = value.encode() if isinstance(value, str) else value
    assert isinstance(data, bytes)
    return b"t" + struct.pack(">I", len(data)) + data


def _text(text: str) -> bytes:
    return text.encode() + b"\0"
