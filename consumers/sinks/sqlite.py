"""The SQLite sink: an embedded replica, one table a source table, with proper columns.

Data and checkpoint are one transaction, in a database in WAL mode, so that other processes read whole transactions
of the source while the next ones are written. `synchronous = NORMAL` leaves out a sync a commit: a power failure may
take the last commits, rows and checkpoint together, and the log brings them again.

There are no tombstones, for a late upsert cannot come back here. A window at or below the position last accepted is
dropped; each transaction begins with a look at the stored checkpoint, and stops if another process has moved it; and
in a catch-up, where older windows do come again, they come in order, up to and including the delete. What is newer
than the row's own seq is all that applies.

A file that somebody removes, or puts another one in place of, stays with whoever has it open, and nobody reads it any
more. So a transaction begins with a look at the path too: what is there now is opened then, and filled if it is empty.

An update that leaves a TOASTed value out keeps the stored one. If there is no row to keep it from (a snapshot taken
at several states), the row is written without it and noted; `incomplete` tells the table until a whole row comes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from walbus.consumers.checkpoint import Checkpoint, Marks, dump_checkpoint, last_done_of, load_checkpoint
from walbus.consumers.file_identity import FileIdentity, identity_of
from walbus.consumers.sinks.base import Batching, ChangeTakers, HeldRow, SinkOptions, SinkPlace, no_folder, refused
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.sqlite_errors import told_of
from walbus.consumers.sinks.sqlite_schema import LIVE, ReplicaSchema, Side
from walbus.consumers.sinks.sqlite_table import ReplicaTable, RowForm, SqlValue, table_name
from walbus.consumers.steps import Sweep
from walbus.errors import ConfigError, InvalidText, SinkRefused, SinkUnavailable
from walbus.events import Change, Window
from walbus.position import ORIGIN, Position
from walbus.records import Op
from walbus.schema import TableSchema

_SWAPS = "CREATE TABLE IF NOT EXISTS _walbus_swaps (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL)"
_BUSY_SECONDS = 5.0
_BUSY_LOOK_SECONDS = 0.1
MAX_SEQ = 1 << 53  # above every seq


class SqliteOptions(SinkOptions):
    """Keys of `[consumer.NAME]` with `sink = "sqlite"`."""

    path: Path | None = None  #: the database's file; default: NAME.sqlite in the consumer's folder


class SqliteSink:
    """A replica in one SQLite file; see `walbus.consumers.sinks.base.Sink`.

    Args:
        path: the file.
        place: whose it is.
        side: which of the file's replicas, the live one or a copy beside it.
    """

    def __init__(self, path: Path, place: SinkPlace, side: Side = LIVE) -> None:
        self._path, self._side = path, side
        self._tables_wanted, self._stopping = place.tables, place.stopping
        self._rows: list[Sequence[SqlValue]] = []  # parameters that wait for `_statement`
        self._statement = ""
        self._done: Position = ORIGIN  # everything up to here is accepted
        with self._errors():
            self._open()
        try:
            self.checkpoint()
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        return cls(path_of(options, place), place)

    @property
    def batching(self) -> Batching:
        """A commit costs a tenth of a millisecond: windows wait for no more than they arrive together with."""
        return Batching(linger=0.002, max_changes=5_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        with self._errors():
            if not self._is_there():
                self._database.close()
                self._open()
            self._swaps = self._swap_number()
            self._stored = self._side.checkpoint(self._database)
            self._forget()
        return self._loaded(self._stored)

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._errors():
            self._begin()
            takers = ChangeTakers(
                self._tables_wanted,
                apply=partial(self._apply, marks=marks),
                load=partial(self._load, marks=marks),
                fit=partial(self._fitted, marks=marks),
                apply_some=partial(self._put_some, marks=marks, newer=">"),
                load_some=partial(self._put_some, marks=marks, newer=">="),
            )
            self._done = takers.take(windows, self._done)
            self._flush()

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._errors():
            self._begin()
            table = self._schema.by_name(sweep.table)
            if table is not None:
                self._database.execute(table.sweep(sweep.marks), (sweep.seq,))
                self._delete_lacking(table, sweep.marks)
                self._schema.complete(table)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        text = dump_checkpoint(checkpoint)
        with self._errors():
            self._begin()
            self._side.set_checkpoint(self._database, text)
            self._database.execute("COMMIT")
        self._stored, self._done = text, last_done_of(checkpoint)

    def settle(self) -> None:
        """See `SettlingSink.settle`: the checkpoint is written once more, and the WAL synced up to there."""
        with self._errors():
            self._database.execute("PRAGMA synchronous = FULL")
            try:
                self._begin()
                if self._stored is not None:
                    self._side.set_checkpoint_anew(self._database, self._stored)
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                self._database.execute("PRAGMA synchronous = NORMAL")

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            self._forget()
        except (sqlite3.Error, SinkRefused):
            return  # the next `checkpoint()` tells what is wrong

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        return self._schema.incomplete()

    def held(self, table: str) -> Iterator[HeldRow]:
        """See `ReadableSink.held`."""
        with self._errors():
            known = self._schema.by_name(table)
            if known is not None:
                for *values, seq in self._database.execute(known.select_all):
                    yield known.told(values, seq)

    def as_held(self, change: Change) -> HeldRow:
        """See `ReadableSink.as_held`."""
        layout = change.schema
        if layout is None:
            raise refused("a row has no layout", change, "check the bootstrap's store")
        table = self._schema.by_oid(layout.oid) or ReplicaTable(layout, 0, table_name(layout))
        return table.told(self._form(layout, table).values(_payload(change)), change.seq)

    def close(self) -> None:
        """See `Sink.close`."""
        self.rollback()
        self._database.close()

    @contextmanager
    def file(self) -> Iterator[sqlite3.Connection]:
        """The database, between two commits, for what concerns the whole file; errors are told as the sink's."""
        with self._errors():
            yield self._database

    # The file

    def _open(self) -> None:
        self._opened: FileIdentity | None = None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_SECONDS)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_SWAPS)
            self._side.make(self._database)
            self._opened = identity_of(self._path)
        except BaseException:
            self._database.close()
            raise

    def _is_there(self) -> bool:
        """Whether the file that is open is the one that readers find."""
        return self._opened is not None and identity_of(self._path) == self._opened

    # Transactions

    def _forget(self) -> None:
        """What is known of the tables comes from the database alone."""
        self._rows, self._statement = [], ""
        self._schema = ReplicaSchema(self._database, self._side)
        self._forms: dict[tuple[int, int, int], RowForm] = {}
        self._done = last_done_of(self._loaded(self._stored))

    def _swap_number(self) -> int:
        row = self._database.execute("SELECT number FROM _walbus_swaps").fetchone()
        return 0 if row is None else int(row[0])

    def _loaded(self, text: str | None) -> Checkpoint | None:
        try:
            return None if text is None else load_checkpoint(text)
        except InvalidText as error:
            raise SinkRefused(error.what, where=str(self._path), mend=error.mend) from None

    def _begin(self) -> None:
        if self._database.in_transaction:
            return
        if not self._is_there():
            what = "the database is not where it was, or is another one; what is there now is gone on with, or filled"
            raise SinkUnavailable(what, where=str(self._path))
        self.lock()
        swapped = self._swap_number() != self._swaps
        if not swapped and self._side.checkpoint(self._database) == self._stored:
            return
        self._database.execute("ROLLBACK")
        if swapped:
            raise SinkSwapped("a rebuilt copy has taken the replica's place", where=str(self._path))
        raise SinkRefused(
            "another consumer has written this database",
            where=str(self._path),
            mend="let one consumer write it, or give each its own path",
        )

    def lock(self) -> None:
        """Begins a transaction that writes, once nobody else does: in short waits, so that a stop is seen."""
        deadline = time.monotonic() + _BUSY_SECONDS
        self._database.execute(f"PRAGMA busy_timeout = {_BUSY_LOOK_SECONDS * 1000:.0f}")
        try:
            while True:
                try:
                    self._database.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    is_busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                    if not is_busy or self._stopping() or time.monotonic() >= deadline:
                        raise
                else:
                    return
        finally:
            self._database.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000:.0f}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise no_folder(error, self._path) from None
        except sqlite3.Error as error:
            raise told_of(error, self._path) from None

    # Changes

    def _apply(self, change: Change, marks: Marks) -> None:
        raw = change.raw
        match raw.op:
            case Op.INSERT | Op.UPDATE if raw.key is None:
                self._append(change, marks)
            case Op.INSERT | Op.UPDATE if raw.old_key is None and not raw.unchanged:
                self._put_whole(change, marks, ">")
            case Op.INSERT | Op.UPDATE:
                self._update(change, marks)
            case Op.DELETE if raw.key is None:
                self._delete_equal(change, marks)
            case Op.DELETE:
                self._delete(change, raw.key, marks)
            case Op.TRUNCATE:
                self._truncate(change, marks)

    def _load(self, change: Change, marks: Marks) -> None:
        """A snapshot's row; it replaces a row that lacks a value whatever its version: the log brings it forward."""
        table, form = self._target(change, marks)
        if change.raw.key is not None and self._schema.lacks(table, change.raw.key):
            self._execute(table.delete(marks), [*form.key(change.raw.key), MAX_SEQ])
        self._put_whole(change, marks, ">=")

    def _put_some(self, changes: Sequence[Change], at: int, *, marks: Marks, newer: str) -> int:
        """Takes the whole rows that come next, together; how many. Rows that complete others are taken one by one."""
        if self._schema.has_incomplete or changes[at].schema is None:
            return 0
        table, form = self._target(changes[at], marks)
        rows = form.whole_puts(changes, at, marks)
        if rows:
            self._execute_each(table.upsert(marks, newer), rows)
        return len(rows)

    def _put_whole(self, change: Change, marks: Marks, newer: str) -> None:
        table, form = self._target(change, marks)
        after = _payload(change)
        self._execute(table.upsert(marks, newer), [*form.values(after), change.seq, marks.generation])
        self._schema.complete_row(table, change.raw.key)

    def _update(self, change: Change, marks: Marks) -> None:
        """An update that moves its row, or leaves values out, or both."""
        self._flush()
        table, form = self._target(change, marks)
        old, new = change.raw.old_key, change.raw.key
        values, sent = form.values(_payload(change)), form.sent(change.raw.unchanged)
        left_out = set(range(len(values))).difference(sent)
        stored = self._older(table, form.key(old), change, marks) if old and left_out else None
        if stored is not None and not self._schema.lacks(table, old):
            values = [stored[index] if index in left_out else value for index, value in enumerate(values)]
            left_out = set()
        if old is not None:
            self._delete(change, old, marks)
        self._flush()
        if not left_out:
            self._execute(table.upsert(marks, ">"), [*values, change.seq, marks.generation])
            self._schema.complete_row(table, new)
        elif new is not None:
            version = [change.seq, marks.generation]
            if self._database.execute(table.select, form.key(new)).fetchone() is None:
                self._execute(table.upsert(marks, ">"), [*values, *version])
                self._schema.note_incomplete(table, new)
            else:
                some = [values[index] for index in sent]
                self._execute(table.update(sent, marks), [*some, *version, *form.key(new), change.seq])

    def _older(self, table: ReplicaTable, key: list[SqlValue], change: Change, marks: Marks) -> list[SqlValue] | None:
        """The row as it was before the change; None if there is none, or if a later row has taken its key."""
        row = self._database.execute(table.select, key).fetchone()
        if row is None:
            return None
        *values, seq, mark = row
        return values if seq < change.seq or mark < marks.log_generation else None

    def _delete(self, change: Change, key: bytes | None, marks: Marks) -> None:
        table, form = self._target(change, marks)
        if key is not None:
            self._execute(table.delete(marks), [*form.key(key), change.seq])
            self._schema.complete_row(table, key)

    def _delete_lacking(self, table: ReplicaTable, marks: Marks) -> None:
        """Rows that lack a value and that the snapshot did not bring: the replay behind it writes them anew, whole."""
        form = RowForm(table.layout, table.layout)
        for key in self._schema.lacking_of(table):
            self._database.execute(table.delete(marks), [*form.key(key), MAX_SEQ])

    def _append(self, change: Change, marks: Marks) -> None:
        if change.op is Op.UPDATE:
            self._delete_equal(change, marks)
        table, form = self._target(change, marks)
        values = form.values(_payload(change))
        if change.raw.unchanged and change.raw.before is not None:
            before, sent = form.values(change.raw.before), form.sent(change.raw.unchanged)
            values = [value if index in sent else before[index] for index, value in enumerate(values)]
        self._execute(table.upsert(marks, ">"), [*values, change.seq, marks.generation])

    def _delete_equal(self, change: Change, marks: Marks) -> None:
        if change.raw.before is None:
            raise refused("a row of a table without a key changed", change, "give the table a primary key")
        table, form = self._target(change, marks)
        self._execute(table.delete_equal(), form.values(change.raw.before))

    def _truncate(self, change: Change, marks: Marks) -> None:
        table = self._schema.by_oid(change.raw.table)
        if table is not None:
            self._execute(table.truncate(marks), (change.seq,))
            self._flush()
            self._schema.complete(table)

    # Tables

    def _target(self, change: Change, marks: Marks) -> tuple[ReplicaTable, RowForm]:
        layout = change.schema
        if layout is None:
            raise refused("a row has no layout", change, "check the relay's log")
        table = self._fitted(layout, marks)
        return table, self._form(layout, table)

    def _form(self, layout: TableSchema, table: ReplicaTable) -> RowForm:
        key = (layout.id, table.layout.id, table.log_generation)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = RowForm(layout, table.layout)
        return form

    def _fitted(self, layout: TableSchema, marks: Marks) -> ReplicaTable:
        table = self._schema.by_oid(layout.oid)
        if table is None or not table.supersedes(layout, marks):
            self._flush()
            table = self._schema.fit(layout, marks)
        return table

    # Runs of one statement are one call

    def _execute(self, statement: str, parameters: Sequence[SqlValue]) -> None:
        self._execute_each(statement, [parameters])

    def _execute_each(self, statement: str, parameters: Sequence[Sequence[SqlValue]]) -> None:
        if statement != self._statement:
            self._flush()
            self._statement = statement
        self._rows += parameters

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            self._database.executemany(self._statement, rows)


def path_of(options: Mapping[str, Any], place: SinkPlace) -> Path:
    """The database's file.

    Raises:
        ConfigError: a key is unknown or wrong.
    """
    path = SqliteOptions.read(options, place).path
    if path is not None and path.is_dir():
        where = f"key consumer.{place.consumer}.path"
        raise ConfigError(f"{str(path)!r} is a folder", where=where, mend="write the path of the database's file")
    return path or place.folder / f"{place.consumer}.sqlite"


def _payload(change: Change) -> bytes:
    if change.raw.after is None:
        raise refused("a change has no row", change, "check the relay's log")
    return change.raw.after


__all__ = ["SqliteOptions", "SqliteSink", "path_of"]
