"""The replica's tables in PostgreSQL: which there are, and how they follow the source's layouts.

What the sink knows of the target stands in the target, in the schema `_walbus`, for each consumer:

    checkpoints   the checkpoint, whose row is the lock as well
    tables        the tables that the sink made, with the layout that each has
    lacking       rows that lack a value
    swaps         how many rebuilt copies have taken the replica's place (`postgres_copy`)

A table that is there already, and is not among these, is somebody else's and never touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import psycopg

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.layout import layout_change
from walbus.consumers.sinks.postgres_session import PostgresSession, is_of_a_row
from walbus.consumers.sinks.postgres_table import MARK, SEQ, ReplicaTable, quoted
from walbus.consumers.sinks.postgres_types import PORTABLE
from walbus.errors import SinkRefused
from walbus.schema import TableSchema

_META = """
CREATE SCHEMA IF NOT EXISTS _walbus;
CREATE TABLE IF NOT EXISTS _walbus.checkpoints (consumer text PRIMARY KEY, checkpoint text);
CREATE TABLE IF NOT EXISTS _walbus.tables (
    consumer text, oid int8, log_generation int8 NOT NULL, namespace text NOT NULL, name text NOT NULL,
    types text[] NOT NULL, seq text NOT NULL, mark text NOT NULL, layout text NOT NULL,
    PRIMARY KEY (consumer, oid), UNIQUE (namespace, name));
CREATE TABLE IF NOT EXISTS _walbus.lacking (consumer text, oid int8, key bytea, PRIMARY KEY (consumer, oid, key));
CREATE TABLE IF NOT EXISTS _walbus.swaps (consumer text PRIMARY KEY, number int8 NOT NULL);
"""
_META_LOCK = 0x77616C627573  # of the advisory locks: two consumers may start at once
_LONGEST_NAME = 63
_STORE = """
INSERT INTO _walbus.tables VALUES ($1, $2::int8, $3::int8, $4, $5, $6::text[], $7, $8, $9)
ON CONFLICT (consumer, oid) DO UPDATE SET log_generation = excluded.log_generation, namespace = excluded.namespace,
    name = excluded.name, types = excluded.types, seq = excluded.seq, mark = excluded.mark, layout = excluded.layout
"""
_KNOWN = """
SELECT log_generation, namespace, name, types, seq, mark, layout FROM _walbus.tables WHERE consumer = $1 ORDER BY oid
"""
_COLUMNS = """
SELECT n.nspname::text, c.relname::text, array_agg(a.attname::text)
FROM _walbus.tables t
JOIN pg_catalog.pg_namespace n ON n.nspname = t.namespace
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE t.consumer = $1 GROUP BY 1, 2
"""
_TYPES = """
SELECT w.n, pg_catalog.format_type(t.oid, w.typmod)
FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS w (oid, typmod, n)
JOIN pg_catalog.pg_type t ON t.oid = w.oid
WHERE t.oid = ANY ($3::oid[]) OR (t.typcategory = 'A' AND t.typelem = ANY ($3::oid[]))
"""
#: Whether the target is the database that the changes come from: it has the very table, and a slot of a change feed.
_IS_THE_SOURCE = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = $1::oid AND n.nspname = $2 AND c.relname = $3
) AND EXISTS (
    SELECT FROM pg_catalog.pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput'
)
"""


def prepare(session: PostgresSession, consumer: str) -> None:
    """Makes what the sink keeps in the target, where it is missing.

    Raises:
        psycopg.Error
    """
    there = session.run("SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = '_walbus'")
    if int(str(there[0][0])) < _META.count("CREATE TABLE"):
        session.run("BEGIN")
        session.run("SELECT pg_advisory_xact_lock($1::int8)", [_META_LOCK])
        for statement in _META.split(";\n"):
            if statement.strip():
                session.run(statement)
        session.run("COMMIT")
    if not session.run("SELECT 1 FROM _walbus.checkpoints WHERE consumer = $1", [consumer]):
        session.run("INSERT INTO _walbus.checkpoints VALUES ($1, NULL) ON CONFLICT DO NOTHING", [consumer])


def stored_tables(session: PostgresSession, consumer: str) -> list[ReplicaTable]:
    """The tables of a consumer's replica, as the target says.

    Raises:
        psycopg.Error
    """
    found = []
    for generation, schema, name, types, seq, mark, layout in session.run(_KNOWN, [consumer]):
        document = TableSchema.from_dict(json.loads(str(layout)))
        known = ReplicaTable(document, int(str(generation)), str(schema), str(name), (), str(seq), str(mark))
        found.append(replace(known, types=tuple(types)))  # type: ignore[arg-type]
    return found


class TargetSchema:
    """The tables of one consumer's replica, and the rows that lack values.

    Args:
        session: whoever owns it begins and ends transactions, and makes a new `TargetSchema` after a rollback.
        consumer: whose.
        namespace: the schema of a table in the target, with `{schema}` for that in the source.

    Raises:
        psycopg.Error, SinkRefused: a table of the replica was changed by others.
    """

    def __init__(self, session: PostgresSession, consumer: str, namespace: str) -> None:
        self._session, self._consumer, self._namespace = session, consumer, namespace
        self._tables = {table.oid: table for table in self._stored()}
        lacking = session.run("SELECT oid, key FROM _walbus.lacking WHERE consumer = $1", [consumer])
        self._lacking: set[tuple[int, bytes]] = {(int(str(oid)), bytes(key)) for oid, key in lacking}  # type: ignore[call-overload]

    def _stored(self) -> list[ReplicaTable]:
        """The tables of the replica, whose columns are there; a rebuild may swap them just while they are read."""
        stored = stored_tables(self._session, self._consumer)
        while (wrong := self._changed_by_others(stored)) is not None:
            before, stored = stored, stored_tables(self._session, self._consumer)
            if stored == before:
                raise wrong
        return stored

    def _changed_by_others(self, stored: Iterable[ReplicaTable]) -> SinkRefused | None:
        found = {
            (namespace, name): set(columns)  # type: ignore[call-overload]
            for namespace, name, columns in self._session.run(_COLUMNS, [self._consumer])
        }
        for table in stored:
            columns = found.get((table.namespace, table.name))
            if columns is None:
                return self._changed(table, "is gone")
            if missing := set(table.names) - columns:
                return self._changed(table, f"has lost columns: {', '.join(sorted(missing))}")
        return None

    def _changed(self, table: ReplicaTable, what: str) -> SinkRefused:
        mend = (
            "to fill the replica anew, drop its tables, and delete the consumer's rows from _walbus.checkpoints and "
            "_walbus.tables"
        )
        where = f"table {table.sql}, {self._session.where}"
        return SinkRefused(f"a table of the replica {what}", where=where, mend=mend)

    def by_oid(self, oid: int) -> ReplicaTable | None:
        """The table of a relation."""
        return self._tables.get(oid)

    def by_name(self, table: str) -> ReplicaTable | None:
        """The table of a relation known by `namespace.name`; the latest, if one was dropped and made again."""
        found = [known for known in self._tables.values() if known.layout.table == table]
        return max(found, key=lambda known: (known.log_generation, known.layout.id), default=None)

    def by_place(self, namespace: str, name: str) -> ReplicaTable | None:
        """The table that is called so in the target."""
        return next((one for one in self._tables.values() if (one.namespace, one.name) == (namespace, name)), None)

    # Layouts

    def fit(self, layout: TableSchema, marks: Marks) -> ReplicaTable:
        """Makes or changes the table so that it has this layout.

        Raises:
            psycopg.Error
            SinkRefused: there is a table of that name which the sink has not made.
        """
        before = self._tables.get(layout.oid)
        own = (SEQ, MARK) if before is None else (before.seq, before.mark)
        namespace = self._namespace.replace("{schema}", layout.namespace)
        now = ReplicaTable(layout, marks.log_generation, namespace, layout.name, self._types(layout), *own)
        now = now.with_own_names(set() if before is None else {column.name for column in before.layout.columns})
        if len(namespace.encode()) > _LONGEST_NAME:
            mend = "shorten the consumer's key into"
            raise SinkRefused(f"the schema's name {namespace} is too long", where=layout.table, mend=mend)
        if before is None or (before.namespace, before.name) != (now.namespace, now.name):
            self._make_way(now)
        if before is None:
            self._session.run(now.create)
        elif (before.namespace, before.name, before.types) != (now.namespace, now.name, now.types) or not (
            before.layout.same_layout(layout)
        ):
            self._alter(before, now)
        self._store(now)
        return now

    def _types(self, layout: TableSchema) -> tuple[str, ...]:
        oids, modifiers = [c.type_oid for c in layout.columns], [c.typmod for c in layout.columns]
        found = self._session.run(_TYPES, [oids, modifiers, sorted(PORTABLE)])
        declared = {int(str(number)) - 1: str(name) for number, name in found}
        return tuple(declared.get(index, "text") for index in range(len(layout.columns)))

    def _make_way(self, now: ReplicaTable) -> None:
        """The name is to be free: another relation of the source may have had it, or it is somebody else's."""
        for other in list(self._tables.values()):
            if (other.namespace, other.name) != (now.namespace, now.name) or other.oid == now.oid:
                continue
            if other.log_generation < now.log_generation:  # in another log: it is gone
                self._drop(other)
            else:  # in this one it may tell a new name yet
                parked = replace(other, name=f"_walbus_parked_{other.oid}")
                self._session.run(f"ALTER TABLE {other.sql} RENAME TO {quoted(parked.name)}")
                self._store(parked)
        self._check_free(now)
        if not self._session.run("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", [now.namespace]):
            self._session.run(f"CREATE SCHEMA {quoted(now.namespace)}")

    def _check_free(self, now: ReplicaTable) -> None:
        layout, where = now.layout, f"table {now.sql}, {self._session.where}"
        source = [layout.oid, layout.namespace, layout.name]
        if self._session.run(_IS_THE_SOURCE, source)[0][0]:
            what = f"the target is the database that {layout.table} comes from"
            raise SinkRefused(what, where=where, mend=f"name another database in consumer.{self._consumer}.dsn")
        taken = self._session.run(
            "SELECT t.consumer FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " LEFT JOIN _walbus.tables t ON t.namespace = n.nspname AND t.name = c.relname"
            " WHERE n.nspname = $1 AND c.relname = $2",
            [now.namespace, now.name],
        )
        if taken:
            whose = taken[0][0]
            what = "the table exists already, and this sink has not made it"
            if whose is not None:
                what = f"the table belongs to the consumer {whose}"
            mend = f'drop or rename it, or give consumer.{self._consumer} its own place: into = "replica_{{schema}}"'
            raise SinkRefused(what, where=where, mend=mend)

    def _drop(self, table: ReplicaTable) -> None:
        self._session.run(f"DROP TABLE {table.sql}")
        self._session.run("DELETE FROM _walbus.tables WHERE consumer = $1 AND oid = $2", [self._consumer, table.oid])
        self.complete(table)
        del self._tables[table.oid]

    def _store(self, table: ReplicaTable) -> None:
        names = [table.namespace, table.name, list(table.types), table.seq, table.mark]
        document = json.dumps(table.layout.to_dict())
        self._session.run(_STORE, [self._consumer, table.oid, table.log_generation, *names, document])
        self._tables[table.oid] = table

    def _alter(self, before: ReplicaTable, now: ReplicaTable) -> None:
        change = layout_change(before.layout, now.layout)
        if before.namespace != now.namespace:
            self._session.run(f"ALTER TABLE {before.sql} SET SCHEMA {quoted(now.namespace)}")
        if before.name != now.name:
            at = replace(before, namespace=now.namespace)
            self._session.run(f"ALTER TABLE {at.sql} RENAME TO {quoted(now.name)}")
        for old, new in [(before.seq, now.seq), (before.mark, now.mark), *change.renamed]:
            if old != new:
                self._session.run(f"ALTER TABLE {now.sql} RENAME COLUMN {quoted(old)} TO {quoted(new)}")
        if change.rekeyed:
            self._unkey(now)
        for name in change.dropped:
            self._session.run(f"ALTER TABLE {now.sql} DROP COLUMN {quoted(name)}")
        names = {new: old for old, new in change.renamed}
        had = dict(zip((c.name for c in before.layout.columns), before.types, strict=True))
        for column, declared in zip(now.layout.columns, now.types, strict=True):
            known = had.get(names.get(column.name, column.name))
            if known is None:
                self._session.run(f"ALTER TABLE {now.sql} ADD COLUMN {quoted(column.name)} {declared}")
            elif known != declared:
                self._retype(now, column.name, declared)
        if change.rekeyed:
            self._key_anew(now)

    def _retype(self, table: ReplicaTable, column: str, declared: str) -> None:
        """Values that the new type does not take become NULL; what the source made of them comes by the log."""
        alter = f"ALTER TABLE {table.sql} ALTER COLUMN {quoted(column)} TYPE {declared} USING"
        self._session.run("SAVEPOINT _walbus_retype")
        try:
            self._session.run(f"{alter} {quoted(column)}::text::{declared}")
        except psycopg.Error as error:
            if not is_of_a_row(error):
                raise
            self._session.run("ROLLBACK TO SAVEPOINT _walbus_retype")
            in_key = any(c.in_key and c.name == column for c in table.layout.columns)
            if in_key:  # rows that nobody can find again
                self._session.run(f"DELETE FROM {table.sql}")
            self._session.run(f"{alter} NULL::{declared}")
        self._session.run("RELEASE SAVEPOINT _walbus_retype")

    def _unkey(self, table: ReplicaTable) -> None:
        named = self._session.run(
            "SELECT conname FROM pg_catalog.pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'p'",
            [table.sql],
        )
        for (constraint,) in named:
            self._session.run(f"ALTER TABLE {table.sql} DROP CONSTRAINT {quoted(str(constraint))}")
        needed = self._session.run(
            "SELECT attname::text FROM pg_catalog.pg_attribute"
            " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attnotnull",
            [table.sql],
        )
        for (column,) in needed:
            if column not in (table.seq, table.mark):
                self._session.run(f"ALTER TABLE {table.sql} ALTER COLUMN {quoted(str(column))} DROP NOT NULL")

    def _key_anew(self, table: ReplicaTable) -> None:
        """Under a new key, two rows may be one: the later stays, and the source's own rows settle it."""
        keys = ", ".join(table.key)
        if not table.keyed:
            self._number_twins(table)
        without = " OR ".join(f"{name} IS NULL" for name in table.key)
        numbered = f"SELECT ctid, row_number() OVER (PARTITION BY {keys} ORDER BY {quoted(table.seq)} DESC) AS n"
        self._session.run(f"DELETE FROM {table.sql} WHERE {without}")
        self._session.run(
            f"DELETE FROM {table.sql} WHERE ctid = ANY (ARRAY("
            f"SELECT ctid FROM ({numbered} FROM {table.sql}) AS every WHERE n > 1))"
        )
        self._session.run(f"ALTER TABLE {table.sql} ADD PRIMARY KEY ({keys})")

    def _number_twins(self, table: ReplicaTable) -> None:
        """Without a key a row is known by its seq, which all rows of a seeding share: twins get numbers below all."""
        seq = quoted(table.seq)
        twins = f"SELECT ctid, row_number() OVER (PARTITION BY {seq}) AS n FROM {table.sql}"
        self._session.run(
            f"UPDATE {table.sql} AS t SET {seq} = least(0, (SELECT min({seq}) FROM {table.sql})) - twin.number "
            f"FROM (SELECT ctid, row_number() OVER () AS number FROM ({twins}) AS every WHERE n > 1) AS twin "
            f"WHERE t.ctid = twin.ctid"
        )

    # Rows that lack values

    def incomplete(self) -> tuple[str, ...]:
        """Tables with such rows; one whose name another table has by now counts again when it tells its own."""
        found = (self._tables[oid] for oid, _ in self._lacking if oid in self._tables)
        return tuple(sorted({one.layout.table for one in found if one.name == one.layout.name}))

    def lacking_of(self, table: ReplicaTable) -> list[bytes]:
        """The keys of the table's rows that lack a value."""
        return [key for oid, key in self._lacking if oid == table.oid]

    def lacks(self, table: ReplicaTable, key: bytes | None) -> bool:
        """Whether the row lacks a value."""
        return (table.oid, key) in self._lacking

    def note_incomplete(self, table: ReplicaTable, key: bytes) -> None:
        """The row was written without a value."""
        self._lacking.add((table.oid, key))
        self._session.run(
            "INSERT INTO _walbus.lacking VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", [self._consumer, table.oid, key]
        )

    def complete_row(self, table: ReplicaTable, key: bytes | None) -> None:
        """The row was written whole, or deleted."""
        if key is not None and (table.oid, key) in self._lacking:
            self._lacking.discard((table.oid, key))
            row = [self._consumer, table.oid, key]
            self._session.run("DELETE FROM _walbus.lacking WHERE consumer = $1 AND oid = $2 AND key = $3", row)

    def complete(self, table: ReplicaTable) -> None:
        """All rows of the table were deleted, or are marked by a snapshot."""
        if any(oid == table.oid for oid, _ in self._lacking):
            self._lacking = {entry for entry in self._lacking if entry[0] != table.oid}
            row = [self._consumer, table.oid]
            self._session.run("DELETE FROM _walbus.lacking WHERE consumer = $1 AND oid = $2", row)


__all__ = ["TargetSchema", "prepare", "stored_tables"]
