"""Writes pgoutput messages of protocol 1, for tests of the decoder and of the assembler."""

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
