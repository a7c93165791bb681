"""What the log tells of net differences, and of rows, with them in it.

told(folder)                 the `difference` documents, in the log's order
net_changes(folder)          (op, table, key's texts) of every change of a difference
assert_log_tells(...)        the log, folded from its beginning as a sink does it, equals the source
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from support.bootstrap_rig import source_rows
from support.database import Database
from support.log_view import log_records, raw_changes
from walbus.events import Change
from walbus.keys import key_texts
from walbus.position import ORIGIN
from walbus.records import Flag, Kind, Op, RecordHeader
from walbus.relay import open_reader

Row = dict[str, str | None]


def _changes(folder: Path) -> Iterator[tuple[RecordHeader, Change]]:
    with closing(open_reader(folder)) as reader:
        for header, record in log_records(reader, ORIGIN):
            for raw in raw_changes(header, record):
                schema = reader.schemas.get(raw.schema_id) if raw.schema_id else None
                yield header, Change(raw, schema, header.first, header.first_seq + raw.seq_delta)


def told(folder: Path) -> list[dict[str, Any]]:
    """The `difference` documents with their table's name under `table`."""
    found = []
    for header, change in _changes(folder):
        if header.kind == Kind.SCHEMA:
            document = json.loads(change.raw.after or b"{}")
            if "difference" in document:
                found.append({**document["difference"], "table": change.table})
    return found


def net_changes(folder: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """(op, table, key) of every change of every difference."""
    return [
        (change.op.name.lower(), change.table, key_texts(change.raw.key or b""))
        for header, change in _changes(folder)
        if header.kind == Kind.TRANSACTION and header.flags & Flag.NET
    ]


def rows_told(folder: Path, table: str) -> list[Row]:
    """A table's rows as a sink has them that was told everything: it writes what it is sent, wherever it stands."""
    rows: dict[bytes, Row] = {}
    for header, change in _changes(folder):
        if header.kind != Kind.TRANSACTION or change.table != table:
            continue
        if change.op == Op.TRUNCATE:
            rows.clear()
            continue
        assert change.raw.key is not None
        old = rows.pop(change.raw.old_key or change.raw.key, {})
        if change.op != Op.DELETE:
            kept = {name: old.get(name) for name in change.unchanged}
            rows[change.raw.key] = {**kept, **(change.after_texts() or {})}
    return list(rows.values())


def assert_log_tells(folder: Path, database: Database, table: str) -> None:
    """The rows that the log tells are the source's; a column that a row was never sent with is NULL."""
    theirs = source_rows(database, table)
    names = list(theirs[0]) if theirs else []
    mine = [{name: row.get(name) for name in names} for row in rows_told(folder, table)]
    key = lambda row: sorted((name, text or "") for name, text in row.items())  # noqa: E731
    mine, theirs = sorted(mine, key=key), sorted(theirs, key=key)
    assert len(mine) == len(theirs), f"{table}: {len(mine)} rows instead of {len(theirs)}"
    different = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
    assert not different, f"{table}: {len(different)} rows differ, first {str(different[0])[:600]}"
