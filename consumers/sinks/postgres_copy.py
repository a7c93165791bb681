"""A replica in PostgreSQL that is filled beside the live one, and takes its place.

The copy is a replica like any other, of a consumer called `NAME~new` and in schemas called `public~new`; both names
are such as no consumer has. Its tables, and the indexes on them, are therefore called as the live ones are, and a swap
is `ALTER TABLE … SET SCHEMA`: of the live ones to `public~old`, and of the copy's to where those were. That is the
copy's last transaction, together with the windows that it still had to take, and with the checkpoint:

    lock the copy's row ──► lock the live row ──► windows up to the live checkpoint ──► lock tables ──► move, commit

From the second lock on the live replica's writer waits, so nothing is written to it that the copy does not have. Behind
the commit it finds a checkpoint that is not its own, and a swap that it did not know of.

Readers wait for the tables' locks, and are waited for: not long, since those who come behind a waiting lock wait with
it. A lock that is not had in a moment is given up, with everything since the first lock, and tried again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import psycopg

from walbus.consumers.checkpoint import Checkpoint, dump_checkpoint, last_done_of
from walbus.consumers.sinks.base import SinkPlace
from walbus.consumers.sinks.postgres import PostgresOptions, PostgresSink
from walbus.consumers.sinks.postgres_checkpoint import CheckpointRow
from walbus.consumers.sinks.postgres_furniture import bind_views, furnish, require_movable, views_on
from walbus.consumers.sinks.postgres_schema import prepare, stored_tables
from walbus.consumers.sinks.postgres_session import PostgresSession
from walbus.consumers.sinks.postgres_table import ReplicaTable, quoted

#: Behind the names of a copy's schemas, and of its consumer; and of what it has replaced.
NEW: Final = "~new"
OLD: Final = "~old"

#: Milliseconds that a swap waits for a table's readers, and those behind it with it.
_LOCK_MILLISECONDS: Final = 400
#: The live row itself stays, for its writer may be waiting for its lock.
_KEPT = "INSERT INTO _walbus.checkpoints SELECT $2, checkpoint FROM _walbus.checkpoints WHERE consumer = $1"
_LACKING = "UPDATE _walbus.lacking SET consumer = $2 WHERE consumer = $1"
_MOVED = "UPDATE _walbus.tables SET consumer = $2, namespace = $3 WHERE consumer = $1 AND oid = $4::int8"
_COUNTED = """
INSERT INTO _walbus.swaps AS s VALUES ($1, 1) ON CONFLICT (consumer) DO UPDATE SET number = s.number + 1
"""
_EMPTY_SCHEMAS = """
SELECT n.nspname::text FROM pg_catalog.pg_namespace n WHERE n.nspname = ANY ($1::text[])
AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid)
"""


class PostgresCopy(PostgresSink):
    """See `walbus.consumers.sinks.copies.SinkCopy`."""

    shows_uncommitted = False

    def __init__(self, options: PostgresOptions, place: SinkPlace) -> None:
        self._live = place.consumer
        super().__init__(options, place, NEW)

    def furnish(self) -> None:
        """See `SinkCopy.furnish`."""
        with self._session.errors("adding what the live tables have to the copy", of_rows=False):
            self._begin()
            with self._session.patiently():
                for live, copy in self._pairs():
                    with self._session.errors(f"adding what the table {live.sql} has to its copy", of_rows=False):
                        furnish(self._session, live, copy)
                for copy in stored_tables(self._session, self._consumer):
                    self._session.run(f"ANALYZE {copy.sql}")
            self._session.run("COMMIT")

    def hold(self) -> Checkpoint | None:
        """See `SinkCopy.hold`."""
        with self._session.errors():
            self._begin()
            return self._row.of(self._live)

    def swap(self, checkpoint: Checkpoint) -> None:
        """See `SinkCopy.swap`."""
        with self._session.errors("swapping the copy and the replica", of_rows=False):
            self._begin()
            pairs = self._pairs()
            moved = [live for live, _ in pairs]
            views = views_on(self._session, moved)
            self._session.run(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
            bind_views(self._session, views)  # as they are, for their locks: a reader has that before the table's
            for live in moved:
                self._session.run(f"LOCK TABLE {live.sql} IN ACCESS EXCLUSIVE MODE")
            self._session.run(_KEPT, [self._live, self._live + OLD])
            for live in moved:
                self._place(live, self._live, self._live + OLD, live.namespace + OLD)
            copies = stored_tables(self._session, self._consumer)
            for copy in copies:
                self._place(copy, self._consumer, self._live, copy.namespace.removesuffix(NEW))
            bind_views(self._session, views)
            self._session.run("DELETE FROM _walbus.lacking WHERE consumer = $1", [self._live])
            self._session.run(_LACKING, [self._consumer, self._live])
            self._session.run("DELETE FROM _walbus.checkpoints WHERE consumer = $1", [self._consumer])
            self._session.run(_COUNTED, [self._live])
            self._session.run(
                "UPDATE _walbus.checkpoints SET checkpoint = $2 WHERE consumer = $1",
                [self._live, dump_checkpoint(checkpoint)],
            )
            self._session.run("COMMIT")
        self._done = last_done_of(checkpoint)
        drop_empty_schemas(self._session, sorted({copy.namespace for copy in copies}))

    def _pairs(self) -> list[tuple[ReplicaTable, ReplicaTable]]:
        """Each live table whose place one of the copy takes: the same relation's, or one of the same name."""
        copies = stored_tables(self._session, self._consumer)
        of_oid = {copy.oid: copy for copy in copies}
        of_place = {(copy.namespace.removesuffix(NEW), copy.name): copy for copy in copies}
        found = []
        for live in stored_tables(self._session, self._live):
            copy = of_place.get((live.namespace, live.name)) or of_oid.get(live.oid)
            if copy is not None:
                found.append((live, copy))
        return found

    def _place(self, table: ReplicaTable, consumer: str, to: str, namespace: str) -> None:
        there = self._session.run("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", [namespace])
        if not there:
            self._session.run(f"CREATE SCHEMA {quoted(namespace)}")
        self._session.run(f"ALTER TABLE {table.sql} SET SCHEMA {quoted(namespace)}")
        self._session.run(_MOVED, [consumer, to, namespace, table.oid])


class PostgresCopies:
    """See `walbus.consumers.sinks.copies.SinkCopies`."""

    def __init__(self, options: PostgresOptions, place: SinkPlace) -> None:
        self._options, self._place = options, place
        self._session = PostgresSession(options.dsn, place.consumer, options.statement_seconds, place.stopping)

    @classmethod
    def copies(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SwappableSinkType.copies`."""
        return cls(PostgresOptions.read(options, place), place)

    def live(self) -> Checkpoint | None:
        """See `SinkCopies.live`."""
        self._connect()
        with self._session.errors():
            return CheckpointRow(self._session, self._place.consumer).read()

    def kept(self) -> bool:
        """See `SinkCopies.kept`."""
        return self._has(OLD)

    def beside(self) -> PostgresCopy:
        """See `SinkCopies.beside`."""
        self._connect()
        with self._session.errors():
            for table in stored_tables(self._session, self._place.consumer):
                require_movable(self._session, table)
        return PostgresCopy(self._options, self._place)

    def discard(self) -> bool:
        """See `SinkCopies.discard`."""
        return self._drop(NEW)

    def drop_kept(self) -> bool:
        """See `SinkCopies.drop_kept`."""
        return self._drop(OLD)

    def close(self) -> None:
        """See `SinkCopies.close`."""
        self._session.forget_transaction()
        self._session.close()

    def _connect(self) -> None:
        self._session.forget_transaction()
        self._session.connect()
        with self._session.errors():
            prepare(self._session, self._place.consumer)

    def _has(self, side: str) -> bool:
        self._connect()
        with self._session.errors():
            row = [self._place.consumer + side]
            return bool(self._session.run("SELECT 1 FROM _walbus.checkpoints WHERE consumer = $1", row))

    def _drop(self, side: str) -> bool:
        if not self._has(side):
            return False
        consumer = self._place.consumer + side
        with self._session.errors(f"dropping the tables of {consumer}", of_rows=False):
            self._session.run("BEGIN")
            locked = "SELECT 1 FROM _walbus.checkpoints WHERE consumer = $1 FOR UPDATE"
            self._session.wait_for_turn(locked, [consumer])
            tables = stored_tables(self._session, consumer)
            for table in tables:
                self._session.wait_for_turn(f"DROP TABLE {table.sql}")
            for kept in ("tables", "lacking", "checkpoints"):
                self._session.run(f"DELETE FROM _walbus.{kept} WHERE consumer = $1", [consumer])
            self._session.run("COMMIT")
        drop_empty_schemas(self._session, sorted({table.namespace for table in tables}))
        return True


def drop_empty_schemas(session: PostgresSession, namespaces: list[str]) -> None:
    """Schemas of copies that hold nothing any more; one that another consumer begins to use meanwhile stays."""
    try:
        for (name,) in session.run(_EMPTY_SCHEMAS, [namespaces]):
            session.run(f"DROP SCHEMA {quoted(str(name))}")
    except psycopg.Error:
        session.forget_transaction()


__all__ = ["PostgresCopies", "PostgresCopy"]
