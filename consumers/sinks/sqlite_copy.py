"""A replica in SQLite that is filled beside the live one, in the same file, and takes its place.

The copy of `orders` is the table `orders (new)`, and what it replaces is kept as `orders (old)`; each side has its own
checkpoint and list of tables (`Side`). A swap renames the tables in the copy's last transaction, together with the
windows that it still had to take, and with the checkpoint. A file has one writer, so from the beginning of that
transaction nothing is written to the live replica; readers in other processes see all of it, or nothing.

Views and the programs of readers name tables, so they find the new ones. Indexes and triggers belong to a table, and
are made on the new one by the statement that made them on the old one, which loses them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from walbus.consumers.checkpoint import Checkpoint, dump_checkpoint, last_done_of
from walbus.consumers.sinks.base import SinkPlace
from walbus.consumers.sinks.sqlite import SqliteSink, path_of
from walbus.consumers.sinks.sqlite_schema import LIVE, Side
from walbus.consumers.sinks.sqlite_table import MARK, SEQ, ReplicaTable, quoted
from walbus.errors import SinkRefused

NEW: Final = Side("new")
OLD: Final = Side("old")

_ADDED = (
    "SELECT type, name, sql FROM sqlite_master WHERE tbl_name = ? AND type IN ('index', 'trigger') AND sql IS NOT NULL"
)
_COUNTED = "INSERT INTO _walbus_swaps VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET number = number + 1"


class SqliteCopy(SqliteSink):
    """See `walbus.consumers.sinks.copies.SinkCopy`."""

    shows_uncommitted = False

    def __init__(self, path: Path, place: SinkPlace) -> None:
        super().__init__(path, place, NEW)

    def _open(self) -> None:
        super()._open()
        self._database.execute("PRAGMA legacy_alter_table = ON")  # views go on naming what they name

    def furnish(self) -> None:
        """See `SinkCopy.furnish`; here that is a part of the swap, for the names of indexes are those of the file."""

    def hold(self) -> Checkpoint | None:
        """See `SinkCopy.hold`."""
        with self._errors():
            self._begin()
            return self._loaded(LIVE.checkpoint(self._database))

    def swap(self, checkpoint: Checkpoint) -> None:
        """See `SinkCopy.swap`."""
        with self._errors():
            self._begin()
            self._flush()
            OLD.make(self._database)
            copies = NEW.tables(self._database)
            added = [statement for live in self._replaced(copies) for statement in self._put_aside(live)]
            for copy in copies:
                self._rename(copy, NEW, LIVE)
            for statement in added:
                self._database.execute(statement)
            for table in ("checkpoint", "incomplete"):
                source, target = (LIVE, OLD) if table == "checkpoint" else (NEW, LIVE)
                self._database.execute(f"INSERT INTO {target.own(table)} SELECT * FROM {source.own(table)}")
            NEW.drop(self._database)
            LIVE.set_checkpoint(self._database, dump_checkpoint(checkpoint))
            self._database.execute(_COUNTED)
            self._database.execute("COMMIT")
        self._done = last_done_of(checkpoint)

    def _replaced(self, copies: list[ReplicaTable]) -> list[ReplicaTable]:
        """The live tables whose place one of the copy takes: the same relation's, or one of the same name."""
        oids, names = {copy.oid for copy in copies}, {NEW.live(copy.name) for copy in copies}
        return [live for live in LIVE.tables(self._database) if live.oid in oids or live.name in names]

    def _put_aside(self, live: ReplicaTable) -> list[str]:
        """Makes it one of the old side; gives what others added to it, in SQL."""
        added = self._database.execute(_ADDED, (live.name,)).fetchall()
        for kind, name, _ in added:
            self._database.execute(f"DROP {kind} {quoted(name)}")
        self._rename(live, LIVE, OLD)
        return [str(sql) for _, _, sql in sorted(added)]

    def _rename(self, table: ReplicaTable, side: Side, to: Side) -> None:
        renamed = ReplicaTable(table.layout, table.log_generation, to.beside(side.live(table.name)))
        self._database.execute(f"ALTER TABLE {table.sql} RENAME TO {renamed.sql}")
        if side is LIVE:
            side.forget(self._database, table)
        to.store(self._database, renamed)


class SqliteCopies:
    """See `walbus.consumers.sinks.copies.SinkCopies`."""

    def __init__(self, path: Path, place: SinkPlace) -> None:
        self._path, self._place = path, place
        self._live = SqliteSink(path, place)

    @classmethod
    def copies(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SwappableSinkType.copies`."""
        return cls(path_of(options, place), place)

    def live(self) -> Checkpoint | None:
        """See `SinkCopies.live`."""
        return self._live.checkpoint()

    def kept(self) -> bool:
        """See `SinkCopies.kept`."""
        with self._live.file() as database:
            return OLD.is_there(database)

    def beside(self) -> SqliteCopy:
        """See `SinkCopies.beside`."""
        with self._live.file() as database:
            for table in LIVE.tables(database):
                self._require_movable(database, table)
        return SqliteCopy(self._path, self._place)

    def discard(self) -> bool:
        """See `SinkCopies.discard`."""
        return self._drop(NEW)

    def drop_kept(self) -> bool:
        """See `SinkCopies.drop_kept`."""
        return self._drop(OLD)

    def close(self) -> None:
        """See `SinkCopies.close`."""
        self._live.close()

    def _require_movable(self, database: sqlite3.Connection, table: ReplicaTable) -> None:
        own = {*(column.name for column in table.layout.columns), SEQ, MARK}
        columns = [row[1] for row in database.execute(f"PRAGMA table_xinfo({table.sql})")]
        if others := [name for name in columns if name not in own]:
            raise SinkRefused(
                f"the table has what a rebuilt one would not have: column {others[0]}",
                where=f"table {table.sql}, {self._path}",
                mend="drop it before the rebuild, and make it again behind the swap",
            )

    def _drop(self, side: Side) -> bool:
        with self._live.file() as database:
            self._live.lock()
            if not side.is_there(database):
                database.execute("ROLLBACK")
                return False
            side.make(database)
            for table in side.tables(database):
                database.execute(f"DROP TABLE {table.sql}")
            side.drop(database)
            database.execute("COMMIT")
        return True


__all__ = ["SqliteCopies", "SqliteCopy"]
