"""The relay log in the oracle's form, so that `log_transactions(reader) == oracle.transactions()`.

Works on any `LogReader`; `window_changes` gives the changes that a consumer received in the same form.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from support.oracle import OracleChange, OracleTransaction, message_detail, truncate_detail
from walbus.events import Change
from walbus.keys import key_texts
from walbus.log import LogReader, SchemaRegistry
from walbus.position import ORIGIN, Position
from walbus.records import (
    ChangeFlag,
    Flag,
    Kind,
    Op,
    RawChange,
    RecordHeader,
    body_of,
    check_record,
    iter_changes,
    origin_of,
    read_header,
)
from walbus.schema import Column

_COUNTED = {Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE, Op.MESSAGE}


def log_records(reader: LogReader, after: Position = ORIGIN) -> Iterator[tuple[RecordHeader, bytes]]:
    """(header, whole record) of everything durable behind a position; checksums are proved."""
    cursor = reader.cursor(after)
    try:
        while batch := cursor.read(1 << 20):
            for record in batch:
                yield check_record(record), record
    finally:
        cursor.close()


def log_transactions(reader: LogReader, after: Position = ORIGIN, *, messages: bool = False) -> list[OracleTransaction]:
    """Every transaction with a change, in log order; fails where pieces, ordinals or seqs do not run on."""
    transactions: list[OracleTransaction] = []
    changes: list[OracleChange] = []
    last_seq, last_ordinal = 0, 0
    for header, record in log_records(reader, after):
        if header.kind != Kind.TRANSACTION:
            continue
        if header.flags & Flag.BEGIN:
            assert not changes, f"a transaction begins inside another at {header.first}"
            last_ordinal = 0
        for raw in raw_changes(header, record):
            ordinal, seq = header.first_ordinal + raw.ordinal_delta, header.first_seq + raw.seq_delta
            assert (ordinal, seq > last_seq) == (last_ordinal + 1, True), f"order broken at {header.first}"
            last_ordinal, last_seq = ordinal, seq
            changes.append(change_of(raw, reader.schemas))
        if header.flags & Flag.END:
            kept = tuple(c for c in changes if messages or c.op != "message")
            if kept:
                transactions.append(_transaction(header, kept))
            changes = []
    assert not changes, "the log's last transaction has no end"
    return transactions


def window_changes(changes: Iterable[Change]) -> list[OracleChange]:
    """A consumer's changes in the oracle's form."""
    return [_oracle_change(change) for change in changes]


def change_of(raw: RawChange, schemas: SchemaRegistry) -> OracleChange:
    """One change of the log in the oracle's form."""
    schema = schemas.get(raw.schema_id) if raw.schema_id else None
    return _oracle_change(Change(raw, schema, ORIGIN, 0))


def _oracle_change(change: Change) -> OracleChange:
    raw = change.raw
    assert change.op in _COUNTED, f"{change.op!r} has no place in a transaction"
    row = raw.op in {Op.INSERT, Op.UPDATE, Op.DELETE}
    return OracleChange(
        change.op.name.lower(),
        raw.table,
        change.after_texts() if row else None,
        change.unchanged if raw.op == Op.UPDATE else frozenset(),
        key_texts(raw.key) if row and raw.key is not None else None,
        key_texts(raw.old_key) if raw.old_key is not None else None,
        _detail(raw),
    )


def _detail(raw: RawChange) -> str:
    if raw.op == Op.TRUNCATE:
        return truncate_detail(raw.flags & ChangeFlag.RESTART_IDENTITY, raw.flags & ChangeFlag.CASCADE)
    if raw.op == Op.MESSAGE:
        return message_detail((raw.key or b"").decode(), raw.after or b"")
    return ""


def raw_changes(header: RecordHeader, record: bytes) -> Iterator[RawChange]:
    """The changes of a record."""
    return iter_changes(body_of(record, header))


def _transaction(header: RecordHeader, changes: tuple[OracleChange, ...]) -> OracleTransaction:
    time = header.commit_time if header.xid else 0
    return OracleTransaction(header.commit_lsn, header.end_lsn, header.xid & 0xFFFF_FFFF, time, changes)


def same_in_any_run(records: Iterable[bytes], schemas: SchemaRegistry) -> list[tuple[Any, ...]]:
    """The TRANSACTION records but for what two logs of one source may differ in: the first seq, numbers of layouts.

    Fails where seqs do not run on. A message outside transactions has no commit time of its own.
    """
    found: list[tuple[Any, ...]] = []
    last_seq = 0
    for record in records:
        header = check_record(record)
        if header.kind != Kind.TRANSACTION:
            continue
        assert header.first_seq > last_seq, f"seqs do not run on at {header.first}"
        last_seq = header.last_seq
        time = header.commit_time if header.xid else None
        about = header._replace(length=0, first_seq=0, last_seq=last_seq - header.first_seq, commit_time=0)
        found.append((about, time, origin_of(record, header), *_by_layout(header, record, schemas)))
    return found


def same_in_any_life(records: Iterable[bytes], schemas: SchemaRegistry) -> list[tuple[Any, ...]]:
    """As `same_in_any_run`, by transactions: a new connection tells layouts again, which cuts pieces elsewhere."""
    found: list[tuple[Any, ...]] = []
    changes: list[object] = []
    for about, time, origin, *some in same_in_any_run(records, schemas):
        assert about.first_ordinal == len(changes) + 1, f"ordinals do not run on at {about.first}"
        changes += [(change._replace(seq_delta=0, ordinal_delta=0), layout) for change, layout in some]
        if about.flags & Flag.END:
            found.append((about.epoch, about.commit_lsn, about.end_lsn, about.xid, time, origin, *changes))
            changes = []
    return found


def _by_layout(header: RecordHeader, record: bytes, schemas: SchemaRegistry) -> Iterator[tuple[RawChange, object]]:
    for change in raw_changes(header, record):
        layout = dataclasses.replace(schemas.get(change.schema_id), id=0) if change.schema_id else None
        yield change._replace(schema_id=0), layout


def layouts_told(records: Iterable[bytes], schemas: SchemaRegistry) -> dict[int, list[tuple[Column, ...]]]:
    """The layouts of SCHEMA records, by table; one that is told again (as each connection does) counts once.

    That may be under another number, where a layout behind it was registered by a process that was killed before it had
    anything of that on disk.

    Those of changes without events do not count: whether a capture sees such a change lies with when it looks, and it
    names the layout of that moment, which no row of the log may have.
    """
    told: dict[int, list[int]] = {}
    for record in records:
        header = read_header(record)
        if header.kind == Kind.SCHEMA:
            (change,) = iter_changes(body_of(record, header))
            if "reseed" not in json.loads(change.after or b"{}"):
                told.setdefault(change.table, []).append(change.schema_id)
    return {table: [columns for columns, _ in groupby(schemas.get(n).columns for n in told[table])] for table in told}
