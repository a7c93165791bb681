"""The log folded row by row equals the source's tables: what the oracle's slot cannot see, this does.

The oracle's slot and the log could agree on a change that neither was sent. Here every change is applied to what the
changes before it left, as a follower would do it: an update must find its row, a delete too, and values out of line
that were not sent come from the row as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg

from support.log_view import log_records, raw_changes
from walbus.events import Change
from walbus.position import ORIGIN
from walbus.records import Kind, Op
from walbus.relay import open_reader
from walbus.session import settings_sql
from walbus.values import row_texts

_Row = dict[str, str | None]


class FoldedTable:
    """One table's rows: by key, and counted where there is none."""

    def __init__(self) -> None:
        self.keyed: dict[bytes, _Row] = {}
        self.loose: Counter[frozenset[tuple[str, str | None]]] = Counter()

    def rows(self) -> Counter[frozenset[tuple[str, str | None]]]:
        """All rows, as many times as each is there."""
        return self.loose + Counter(frozenset(row.items()) for row in self.keyed.values())

    def apply(self, change: Change) -> None:
        """Applies a change of this table; fails where it does not fit."""
        if change.op == Op.TRUNCATE:
            self.keyed.clear()
            self.loose.clear()
        elif change.raw.key is None:
            self._apply_loose(change)
        else:
            self._apply_keyed(change, change.raw.key)

    def _apply_keyed(self, change: Change, key: bytes) -> None:
        if change.op == Op.INSERT:
            assert key not in self.keyed, f"inserted twice at {change.position}"
            self.keyed[key] = change.after_texts() or {}
            return
        old = self.keyed.pop(change.raw.old_key or key, None)
        assert old is not None, f"{change.op.name} of a row that is not there at {change.position}"
        if change.op == Op.UPDATE:
            assert key not in self.keyed, f"a key twice at {change.position}"
            self.keyed[key] = {**{name: old[name] for name in change.unchanged}, **(change.after_texts() or {})}

    def _apply_loose(self, change: Change) -> None:
        if change.op != Op.INSERT:
            assert change.schema is not None and change.raw.before is not None
            texts = row_texts(change.schema, change.raw.before)
            old = frozenset((c.name, text) for c, text in zip(change.schema.columns, texts, strict=True))
            assert self.loose[old] > 0, f"{change.op.name} of a row that is not there at {change.position}"
            self.loose[old] -= 1
        if change.op != Op.DELETE:
            assert not change.unchanged
            self.loose[frozenset((change.after_texts() or {}).items())] += 1


def folded(folder: Path) -> dict[int, FoldedTable]:
    """Every table of a log of the file engine, by relation OID."""
    tables: dict[int, FoldedTable] = {}
    for change in _changes(folder):
        if change.op != Op.MESSAGE:
            tables.setdefault(change.raw.table, FoldedTable()).apply(change)
    return tables


def assert_folds_to_source(folder: Path, dsn: str) -> None:
    """The folded log equals every ordinary table of schema public, text for text."""
    tables = folded(folder)
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(settings_sql())
        query = (
            "SELECT oid::int8, oid::regclass::text FROM pg_catalog.pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        for oid, name in session.execute(query).fetchall():
            _assert_equal(session, name, tables.get(oid, FoldedTable()))


def assert_root_folds_to_source(folder: Path, dsn: str, root: str) -> None:
    """The folded log of a partitioned table that is published as itself equals it, text for text."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(settings_sql())
        row = session.execute("SELECT oid::int8 FROM pg_catalog.pg_class WHERE relname = %s", [root]).fetchone()
        assert row is not None
        _assert_equal(session, f"public.{root}", folded(folder).get(row[0], FoldedTable()))


def _assert_equal(session: psycopg.Connection, name: str, table: FoldedTable) -> None:
    expected, found = _source_rows(session, name), table.rows()
    assert found == expected, (
        f"{name}: {(found - expected).total()} rows of the log are not in the table, "
        f"{(expected - found).total()} rows of the table are not in the log: "
        f"{[sorted(row) for row in [*list(found - expected)[:2], *list(expected - found)[:2]]]}"
    )


def _source_rows(session: psycopg.Connection, table: str) -> Counter[frozenset[tuple[str, str | None]]]:
    query = (
        "SELECT attname::text FROM pg_catalog.pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    names = [name for (name,) in session.execute(query, [table])]
    columns = ", ".join(f'"{name}"::text' for name in names)
    rows = session.execute(f"SELECT {columns} FROM {table}".encode()).fetchall()
    return Counter(frozenset(zip(names, row, strict=True)) for row in rows)


def _changes(folder: Path) -> Iterator[Change]:
    with closing(open_reader(folder)) as reader:
        for header, record in log_records(reader, ORIGIN):
            if header.kind == Kind.TRANSACTION:
                for raw in raw_changes(header, record):
                    schema = reader.schemas.get(raw.schema_id) if raw.schema_id else None
                    yield Change(raw, schema, header.first, header.first_seq + raw.seq_delta)
