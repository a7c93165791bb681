"""Rows of the PostgreSQL replica as they are stored, and as they should be: both as the texts that PostgreSQL prints.

A cast to text is not what a type prints (`boolean`, `char`, `inet`), so each value goes through its own output.
"""

from __future__ import annotations

from collections.abc import Iterator

from walbus.consumers.sinks.base import HeldRow, refused
from walbus.consumers.sinks.postgres_session import PostgresSession
from walbus.consumers.sinks.postgres_table import ReplicaTable, RowForm, quoted
from walbus.events import Change

_FETCHED = 200  # rows at a time: one may have a megabyte and more


def held_rows(session: PostgresSession, table: ReplicaTable) -> Iterator[HeldRow]:
    """The rows of a table, in a transaction of their own.

    Raises:
        psycopg.Error: translated by `PostgresSession.errors`.
    """
    printed = [f"CASE WHEN {name} IS NOT NULL THEN format('%s', {name}) END" for name in table.columns]
    rows = f"SELECT {', '.join([*printed, f'{quoted(table.seq)}::text'])} FROM {table.sql}"
    session.run("BEGIN READ ONLY")
    try:
        session.run(f"DECLARE _walbus_held NO SCROLL CURSOR FOR {rows}")
        while found := session.run(f"FETCH {_FETCHED} FROM _walbus_held"):
            for *values, seq in found:
                yield _row(table, tuple(values), int(str(seq)))
    finally:
        session.forget_transaction()


def as_held(change: Change, table: ReplicaTable | None) -> HeldRow:
    """What a table should hold of a snapshot's row; None: there is no such table."""
    layout, payload = change.schema, change.raw.after
    if layout is None or payload is None:
        raise refused("a change has no row", change, "check the bootstrap's store")
    into = table or ReplicaTable(layout, 0, layout.namespace, layout.name, ("text",) * len(layout.columns))
    return _row(into, tuple(RowForm(layout, into).texts(payload)), change.seq)


def _row(table: ReplicaTable, values: tuple[object, ...], seq: int) -> HeldRow:
    return HeldRow(tuple(str(values[index]) for index in table.layout.key_indexes), seq, values)
