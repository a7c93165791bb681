"""The replica's tables: which there are, and how they follow the source's layouts; inside the sink's transaction.

A file may hold a copy beside the live replica, whose tables have other names (`Side`).
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.layout import LayoutChange, layout_change
from walbus.consumers.sinks.sqlite_table import MARK, SEQ, ReplicaTable, declared_type, quoted, table_name
from walbus.schema import TableSchema


@dataclass(frozen=True, slots=True)
class Side:
    """One of the replicas that a file may hold: the live one (no name), or a copy, `new` or `old`.

    Attributes:
        name: of the side.
    """

    name: str = ""

    def own(self, table: str) -> str:
        """What one of the sink's own tables is called."""
        return f"_walbus_{self.name}_{table}" if self.name else f"_walbus_{table}"

    def beside(self, table: str) -> str:
        """What a table of the live replica is called on this side."""
        return f"{table} ({self.name})" if self.name else table

    def live(self, table: str) -> str:
        """What a table of this side is called in the live replica."""
        return table.removesuffix(f" ({self.name})") if self.name else table

    def is_there(self, database: sqlite3.Connection) -> bool:
        """Whether the file has this side."""
        found = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (self.own("checkpoint"),)).fetchone()
        return found is not None

    def make(self, database: sqlite3.Connection) -> None:
        """Makes the sink's own tables where they are missing."""
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {self.own('checkpoint')} "
            "(id INTEGER PRIMARY KEY CHECK (id = 1), checkpoint TEXT NOT NULL)"
        )
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {self.own('tables')} "
            "(oid INTEGER PRIMARY KEY, log_generation INTEGER NOT NULL, name TEXT NOT NULL, layout TEXT NOT NULL)"
        )
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {self.own('incomplete')} (oid INTEGER, key BLOB, PRIMARY KEY (oid, key)) "
            "WITHOUT ROWID"
        )

    def drop(self, database: sqlite3.Connection) -> None:
        """Drops the sink's own tables."""
        for table in ("checkpoint", "tables", "incomplete"):
            database.execute(f"DROP TABLE IF EXISTS {self.own(table)}")

    def checkpoint(self, database: sqlite3.Connection) -> str | None:
        """The stored checkpoint."""
        row = database.execute(f"SELECT checkpoint FROM {self.own('checkpoint')}").fetchone()
        return None if row is None else str(row[0])

    def set_checkpoint(self, database: sqlite3.Connection, text: str) -> None:
        """Stores a checkpoint."""
        database.execute(f"INSERT OR REPLACE INTO {self.own('checkpoint')} VALUES (1, ?)", (text,))

    def set_checkpoint_anew(self, database: sqlite3.Connection, text: str) -> None:
        """Stores a checkpoint that may be stored already: SQLite does not write what is there."""
        database.execute(f"DELETE FROM {self.own('checkpoint')}")
        self.set_checkpoint(database, text)

    def tables(self, database: sqlite3.Connection) -> list[ReplicaTable]:
        """The tables of this side."""
        rows = database.execute(f"SELECT log_generation, name, layout FROM {self.own('tables')}").fetchall()
        return [ReplicaTable(TableSchema.from_dict(json.loads(text)), at, name) for at, name, text in rows]

    def store(self, database: sqlite3.Connection, table: ReplicaTable) -> None:
        """Notes a table."""
        row = (table.oid, table.log_generation, table.name, json.dumps(table.layout.to_dict()))
        database.execute(f"INSERT OR REPLACE INTO {self.own('tables')} VALUES (?, ?, ?, ?)", row)

    def forget(self, database: sqlite3.Connection, table: ReplicaTable) -> None:
        """Notes that a table, and what its rows lack, is there no longer."""
        for own in ("tables", "incomplete"):
            database.execute(f"DELETE FROM {self.own(own)} WHERE oid = ?", (table.oid,))


LIVE = Side()


class ReplicaSchema:
    """The tables of one replica, and the rows that lack values.

    Args:
        database: whoever owns it begins and ends transactions, and makes a new `ReplicaSchema` after a rollback.
        side: which of the file's replicas.
    """

    def __init__(self, database: sqlite3.Connection, side: Side) -> None:
        self._database, self._side = database, side
        self._tables = {table.oid: table for table in side.tables(database)}
        self._incomplete = side.own("incomplete")
        lacking = database.execute(f"SELECT oid, key FROM {self._incomplete}")
        self._lacking: set[tuple[int, bytes]] = set(lacking)

    def by_oid(self, oid: int) -> ReplicaTable | None:
        """The table of a relation."""
        return self._tables.get(oid)

    def by_name(self, table: str) -> ReplicaTable | None:
        """The table of a relation known by `namespace.name`; the latest, if one was dropped and made again."""
        found = [known for known in self._tables.values() if known.layout.table == table]
        return max(found, key=lambda known: (known.log_generation, known.layout.id), default=None)

    def fit(self, layout: TableSchema, marks: Marks) -> ReplicaTable:
        """Makes or changes the table so that it has this layout."""
        now = ReplicaTable(layout, marks.log_generation, self._called(layout))
        before = self._tables.get(layout.oid)
        self._make_way(now)
        if before is None:
            self._database.execute(now.create)
        elif before.name != now.name or not before.layout.same_layout(layout):
            self._alter(before, now)
        self._store(now)
        return now

    def _called(self, layout: TableSchema) -> str:
        return self._side.beside(table_name(layout))

    def _make_way(self, now: ReplicaTable) -> None:
        """Another relation had the name. In another log it is gone; in this one it may tell a new name yet."""
        for other in list(self._tables.values()):
            if other.oid == now.oid or other.name != now.name:
                continue
            if other.log_generation < now.log_generation:
                self._drop(other)
            else:
                parked = replace(other, name=self._side.beside(f"{self._side.live(other.name)} ({other.oid})"))
                self._database.execute(f"ALTER TABLE {other.sql} RENAME TO {parked.sql}")
                self._store(parked)

    def _drop(self, table: ReplicaTable) -> None:
        self._database.execute(f"DROP TABLE {table.sql}")
        self._side.forget(self._database, table)
        self._lacking = {entry for entry in self._lacking if entry[0] != table.oid}
        del self._tables[table.oid]

    def _store(self, table: ReplicaTable) -> None:
        self._side.store(self._database, table)
        self._tables[table.oid] = table

    def _alter(self, before: ReplicaTable, now: ReplicaTable) -> None:
        change = layout_change(before.layout, now.layout)
        if before.name != now.name:
            self._database.execute(f"ALTER TABLE {before.sql} RENAME TO {now.sql}")
        if change.rekeyed or change.retyped:
            self._rebuild(before, now, change)
            return
        for old, new in change.renamed:
            self._database.execute(f"ALTER TABLE {now.sql} RENAME COLUMN {quoted(old)} TO {quoted(new)}")
        for name in change.dropped:
            self._database.execute(f"ALTER TABLE {now.sql} DROP COLUMN {quoted(name)}")
        for column in change.added:
            self._database.execute(f"ALTER TABLE {now.sql} ADD COLUMN {quoted(column.name)} {declared_type(column)}")

    def _rebuild(self, before: ReplicaTable, now: ReplicaTable, change: LayoutChange) -> None:
        """SQLite changes neither a column's type nor a primary key in place."""
        names = {new: old for old, new in change.renamed}
        added = {column.name for column in change.added}
        kept = [column.name for column in now.layout.columns if column.name not in added]
        target = ", ".join([*map(quoted, kept), SEQ, MARK])
        source = ", ".join([*(quoted(names.get(name, name)) for name in kept), *_versions(now)])
        fresh = quoted(f"_walbus_new_{now.oid}")
        self._database.execute(now.create_as(fresh))
        # Under a new key, two rows may be one: the later wins, and the source's own rows settle it.
        self._database.execute(
            f"INSERT OR REPLACE INTO {fresh} ({target}) SELECT {source} FROM {now.sql} ORDER BY {SEQ}"
        )
        self._database.execute(f"DROP TABLE {now.sql}")
        self._database.execute(f"ALTER TABLE {fresh} RENAME TO {now.sql}")

    # Rows that lack values

    def incomplete(self) -> tuple[str, ...]:
        """Tables with such rows; one whose name another table has by now counts again when it tells its own."""
        found = (self._tables[oid] for oid, _ in self._lacking if oid in self._tables)
        return tuple(sorted({one.layout.table for one in found if one.name == self._called(one.layout)}))

    @property
    def has_incomplete(self) -> bool:
        """Whether any row lacks a value."""
        return bool(self._lacking)

    def lacking_of(self, table: ReplicaTable) -> list[bytes]:
        """The keys of the table's rows that lack a value."""
        return [key for oid, key in self._lacking if oid == table.oid]

    def lacks(self, table: ReplicaTable, key: bytes | None) -> bool:
        """Whether the row lacks a value."""
        return (table.oid, key) in self._lacking

    def note_incomplete(self, table: ReplicaTable, key: bytes) -> None:
        """The row was written without a value."""
        self._lacking.add((table.oid, key))
        self._database.execute(f"INSERT OR IGNORE INTO {self._incomplete} VALUES (?, ?)", (table.oid, key))

    def complete_row(self, table: ReplicaTable, key: bytes | None) -> None:
        """The row was written whole, or deleted."""
        if self._lacking and key is not None and (table.oid, key) in self._lacking:
            self._lacking.discard((table.oid, key))
            self._database.execute(f"DELETE FROM {self._incomplete} WHERE oid = ? AND key = ?", (table.oid, key))

    def complete(self, table: ReplicaTable) -> None:
        """All rows of the table were deleted, or are marked by a snapshot."""
        if any(oid == table.oid for oid, _ in self._lacking):
            self._lacking = {entry for entry in self._lacking if entry[0] != table.oid}
            self._database.execute(f"DELETE FROM {self._incomplete} WHERE oid = ?", (table.oid,))


def _versions(table: ReplicaTable) -> tuple[str, str]:
    """A row's own columns as a rebuilt table has them.

    Without a key a row is known by its seq, which all rows of a seeding share: twins get numbers below all.
    """
    if table.layout.key_indexes:
        return SEQ, MARK
    first = f"row_number() OVER (PARTITION BY {SEQ}) = 1"
    below = f"min(0, (SELECT min({SEQ}) FROM {table.sql})) - row_number() OVER ()"
    return f"CASE WHEN {first} THEN {SEQ} ELSE {below} END", MARK
