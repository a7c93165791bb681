"""The PostgreSQL sink: a replica in another database, one table a source table, with its types.

Data and checkpoint are one transaction, so readers see whole transactions of the source, however large. It begins with
the checkpoint's row, locked: a second process under the same name waits, and stops when it finds that the checkpoint
moved. Within it changes gather by table and key (`postgres_pending`) and go as a few statements with an array for each
column (`postgres_table`).

There are no tombstones, for a late upsert cannot come back here. A window at or below the position last accepted is
dropped, and in a catch-up, where older windows do come again, they come in order, up to and including the delete.

An update that leaves a TOASTed value out writes the columns that it carries. If there is no row to write them to, the
row is written without the others and noted; `incomplete` tells the table until a whole row comes.

A target that lost the checkpoint (a database made anew) is filled from a snapshot. A table that the sink did not make,
one that others changed, and a target that is the source's own database are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import psycopg
from pydantic import Field, SecretStr, field_validator

from walbus.consumers.checkpoint import Checkpoint, Marks, Part, dump_checkpoint, last_done_of
from walbus.consumers.sinks.base import Batching, ChangeTakers, HeldRow, SinkOptions, SinkPlace, refused
from walbus.consumers.sinks.postgres_checkpoint import CheckpointRow
from walbus.consumers.sinks.postgres_deferred import Watched
from walbus.consumers.sinks.postgres_pending import Gone, Pending, Put
from walbus.consumers.sinks.postgres_reading import as_held, held_rows
from walbus.consumers.sinks.postgres_schema import TargetSchema, prepare
from walbus.consumers.sinks.postgres_session import PostgresSession, is_of_a_row, refuses_a_row
from walbus.consumers.sinks.postgres_table import ReplicaTable, RowForm, key_values
from walbus.consumers.steps import Sweep
from walbus.errors import SinkRefused
from walbus.events import Change, Window
from walbus.position import ORIGIN, Position
from walbus.records import Op
from walbus.schema import TableSchema

_WRITES = frozenset({int(Op.INSERT), int(Op.UPDATE)})
MAX_SEQ = 1 << 53  # above every seq
_SCHEMA = "{schema}"


class PostgresOptions(SinkOptions):
    """Keys of `[consumer.NAME]` with `sink = "postgres"`."""

    dsn: SecretStr  #: of the database that holds the replica
    into: str = _SCHEMA  #: the schema that a table lies in; `{schema}` stands for the source's
    statement_seconds: float = Field(120.0, ge=1.0)  #: how long a statement may take; of a whole table 30 times

    @field_validator("into")
    @classmethod
    def _names_the_source(cls, into: str) -> str:
        if into.count(_SCHEMA) != 1:
            raise ValueError("should contain {schema} once, so that no two tables meet")
        if into.startswith("pg_"):
            raise ValueError("should not begin with pg_, which PostgreSQL keeps for itself")
        return into


class PostgresSink:
    """A replica in one PostgreSQL database; see `walbus.consumers.sinks.base.Sink`.

    Args:
        options: the sink's keys.
        place: whose it is.
        side: empty for the replica itself; of a copy beside it, what its schemas and its checkpoint have behind their
            names.
    """

    def __init__(self, options: PostgresOptions, place: SinkPlace, side: str = "") -> None:
        self._consumer, self._tables_wanted = place.consumer + side, place.tables
        self._namespace = options.into + side
        self._session = PostgresSession(options.dsn, place.consumer, options.statement_seconds, place.stopping)
        self._row = CheckpointRow(self._session, self._consumer)
        self._done: Position = ORIGIN  # everything up to here is accepted
        self._watched: Watched | None = None
        try:
            self.checkpoint()
        except BaseException:
            self._session.close()
            raise

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        return cls(PostgresOptions.read(options, place), place)

    @property
    def batching(self) -> Batching:
        """A commit takes the target a sync of its disk: windows wait a moment for others."""
        return Batching(linger=0.005, max_changes=10_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        self._session.forget_transaction()
        self._session.connect()
        with self._session.errors():
            prepare(self._session, self._consumer)
            checkpoint = self._row.read()
            self._forget()
        return checkpoint

    def take_over(self, part: Part, lease_seconds: float) -> Checkpoint | None:
        """See `FencedSink.take_over`."""
        self._session.forget_transaction()
        self._session.connect()
        with self._session.errors():
            self._session.let_stand_still(lease_seconds)
            prepare(self._session, self._consumer)
            self._row.take_over(part)
            self._forget()
        return self._row.known

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._session.errors():
            self._begin()
            takers = ChangeTakers(
                self._tables_wanted,
                apply=partial(self._apply, marks=marks),
                load=partial(self._load, marks=marks),
                fit=partial(self._fitted, marks=marks),
            )
            self._done = takers.take(windows, self._done)
            self._flush_all(marks)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._session.errors(f"sweeping {sweep.table}"):
            self._begin()
            table = self._schema.by_name(sweep.table)
            if table is not None:
                with self._session.patiently():
                    self._session.run(table.sweep(sweep.marks), [sweep.seq])
                    self._delete_lacking(table, sweep.marks)
                self._schema.complete(table)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        text = dump_checkpoint(checkpoint)
        with self._session.errors():
            self._begin()
            if self._watched is not None:
                self._watched.require_kept(self._schema.by_place)
            self._row.commit(text)
        self._done = last_done_of(checkpoint)
        if self._watched is not None and self._watched.has_any:
            self._watched = None

    def watch(self) -> bool:
        """See `WatchfulSink.watch`."""
        if self._watched is not None:
            return False
        self._watched = Watched(self._session)
        return True

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        self._pending.clear()
        try:
            if self._session.in_transaction:
                self._session.forget_transaction()
                self._forget()
        except (psycopg.Error, SinkRefused):
            return  # the next `checkpoint()` tells what is wrong

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        return self._schema.incomplete()

    def held(self, table: str) -> Iterator[HeldRow]:
        """See `ReadableSink.held`."""
        known = self._schema.by_name(table)
        if known is not None:
            with self._session.errors(f"reading {table}"):
                yield from held_rows(self._session, known)

    def as_held(self, change: Change) -> HeldRow:
        """See `ReadableSink.as_held`."""
        return as_held(change, self._schema.by_oid(change.raw.table))

    def close(self) -> None:
        """See `Sink.close`."""
        self._session.forget_transaction()
        self._session.close()

    # Transactions

    def _forget(self) -> None:
        """What is known of the tables comes from the database alone."""
        self._pending: dict[int, Pending] = {}
        self._targets: dict[tuple[int, int], tuple[ReplicaTable, RowForm]] = {}  # by layout and log
        self._schema = TargetSchema(self._session, self._consumer, self._namespace)
        self._done = last_done_of(self._row.known)
        if self._watched is not None:
            self._watched.forget()

    def _begin(self) -> None:
        if not self._session.in_transaction:
            self._row.begin()

    # Changes

    def _apply(self, change: Change, marks: Marks) -> None:
        raw = change.raw
        if self._watched is not None:
            self._watched.note(change)
        if raw.op in _WRITES and raw.key is not None and raw.old_key is None:  # nearly all of them
            self._put(change, marks)
            return
        match raw.op:
            case Op.INSERT | Op.UPDATE if raw.key is None:
                self._append(change, marks)
            case Op.INSERT | Op.UPDATE if raw.old_key is not None and raw.unchanged:
                self._move(change, raw.old_key, marks)
            case Op.INSERT | Op.UPDATE:
                self._delete(change, raw.old_key, marks)
                self._put(change, marks)
            case Op.DELETE if raw.key is None:
                self._delete_equal(change, marks)
            case Op.DELETE:
                self._delete(change, raw.key, marks)
            case Op.TRUNCATE:
                self._truncate(change, marks)

    def _load(self, change: Change, marks: Marks) -> None:
        """A snapshot's row; it replaces a row that lacks a value whatever its version: the log brings it forward."""
        if self._watched is not None:
            self._watched.note(change)
        table, _ = self._target(change, marks)
        if self._schema.lacks(table, change.raw.key):
            self._flush(table, marks)
            self._delete_whatever(table, [change.raw.key or b""], marks)
        self._put(change, marks, or_equal=True)

    def _put(self, change: Change, marks: Marks, *, or_equal: bool = False) -> None:
        table, form = self._target(change, marks)
        raw, sent = change.raw, None
        if raw.unchanged and len(sent := form.sent(raw.unchanged)) == len(table.columns):
            sent = None
        row = Put(form.values(_payload(change)), change.seq, change.position, or_equal, sent)
        if not self._can_be(table, form, row, marks):
            return
        self._take(table, marks, change.seq.to_bytes(8, "big") if raw.key is None else raw.key, row)
        if sent is None:
            self._schema.complete_row(table, raw.key)

    def _delete(self, change: Change, key: bytes | None, marks: Marks) -> None:
        table, form = self._target(change, marks)
        if key is not None and (not form.rekeyed or self._is_key(table, key_values(key), marks)):
            self._take(table, marks, key, Gone(key_values(key), change.seq))
            self._schema.complete_row(table, key)

    def _move(self, change: Change, old: bytes, marks: Marks) -> None:
        """An update that moves its row and leaves values out: they come from the row at its old place."""
        table, form = self._target(change, marks)
        self._flush(table, marks)
        sent = form.sent(change.raw.unchanged)
        row = Put(form.values(_payload(change)), change.seq, change.position, sent=sent)
        if form.rekeyed:
            self._delete(change, old, marks)
            self._put(change, marks)
            return
        stored = self._older(table, old, change, marks)
        if stored is not None and not self._schema.lacks(table, old):
            row = row.over(Put([*stored], 0, change.position))
        self._delete(change, old, marks)
        self._flush(table, marks)
        if change.raw.key is not None:
            self._take(table, marks, change.raw.key, row)
            if row.sent is None:
                self._schema.complete_row(table, change.raw.key)

    def _older(self, table: ReplicaTable, key: bytes, change: Change, marks: Marks) -> list[str | None] | None:
        """The row as it was before the change; None if there is none, or if a later row has taken its key."""
        found = self._session.run(table.select, table.keys([Gone(key_values(key), 0)]))
        if not found:
            return None
        *values, seq, mark = found[0]
        older = int(str(seq)) < change.seq or int(str(mark)) < marks.log_generation
        return [None if value is None else str(value) for value in values] if older else None

    def _append(self, change: Change, marks: Marks) -> None:
        raw = change.raw
        if change.op is Op.UPDATE:
            self._delete_equal(change, marks)
        table, form = self._target(change, marks)
        row = Put(form.values(_payload(change)), change.seq, change.position)
        if not self._can_be(table, form, row, marks):
            return
        if raw.unchanged and raw.before is not None:
            partial = Put(row.values, row.seq, row.position, sent=form.sent(raw.unchanged))
            row = partial.over(Put(form.values(raw.before), 0, change.position))
        self._take(table, marks, change.seq.to_bytes(8, "big"), row)

    def _delete_equal(self, change: Change, marks: Marks) -> None:
        if change.raw.before is None:
            raise refused("a row of a table without a key changed", change, "give the table a primary key")
        table, form = self._target(change, marks)
        self._flush(table, marks)
        self._session.run(table.delete_equal, form.texts(change.raw.before))

    def _can_be(self, table: ReplicaTable, form: RowForm, row: Put, marks: Marks) -> bool:
        """Whether there can be such a row, of whatever layout, under the key that the table has now."""
        key = [row.values[index] for index in table.layout.key_indexes]
        if None in key:
            return False
        return not form.rekeyed or self._is_key(table, [str(value) for value in key], marks)

    def _is_key(self, table: ReplicaTable, key: Sequence[str | None], marks: Marks) -> bool:
        """Whether the key's types have these values. What waits is sent: two texts may be one key, and meet there."""
        self._flush(table, marks)
        self._session.run("SAVEPOINT _walbus_key")
        try:
            self._session.run(table.select, table.keys([Gone([*key], 0)]))
        except psycopg.Error as error:
            if not is_of_a_row(error):
                raise
            self._session.run("ROLLBACK TO SAVEPOINT _walbus_key")
            return False
        self._session.run("RELEASE SAVEPOINT _walbus_key")
        return True

    def _truncate(self, change: Change, marks: Marks) -> None:
        table = self._schema.by_oid(change.raw.table)
        if table is not None:
            self._flush(table, marks)
            with self._session.patiently():
                self._session.run(table.truncate(marks), [change.seq])
            self._schema.complete(table)

    def _delete_lacking(self, table: ReplicaTable, marks: Marks) -> None:
        """Rows that lack a value and that the snapshot did not bring: the replay behind it writes them anew, whole."""
        if lacking := self._schema.lacking_of(table):
            self._delete_whatever(table, lacking, marks)

    def _delete_whatever(self, table: ReplicaTable, keys: Sequence[bytes], marks: Marks) -> None:
        self._session.run(table.delete(marks), table.keys([Gone(key_values(key), MAX_SEQ) for key in keys]))

    # Tables

    def _target(self, change: Change, marks: Marks) -> tuple[ReplicaTable, RowForm]:
        layout = change.schema
        if layout is None:
            raise refused("a row has no layout", change, "check the relay's log")
        target = self._targets.get((layout.id, marks.log_generation))
        if target is None:
            table = self._fitted(layout, marks)
            target = self._targets[layout.id, marks.log_generation] = table, RowForm(layout, table)
        return target

    def _fitted(self, layout: TableSchema, marks: Marks) -> ReplicaTable:
        table = self._schema.by_oid(layout.oid)
        if table is None or not table.supersedes(layout, marks):
            self._flush_all(marks)
            self._targets.clear()
            making = f"making {layout.table} as it is in the source"
            with self._session.errors(making, of_rows=False), self._session.patiently():
                table = self._schema.fit(layout, marks)
        return table

    # What waits, and goes together

    def _take(self, table: ReplicaTable, marks: Marks, key: bytes, change: Put | Gone) -> None:
        pending = self._pending.get(table.oid)
        if pending is None:
            pending = self._pending[table.oid] = Pending()
        if not pending.take(key, change):
            self._flush(table, marks)
            self._pending[table.oid] = Pending({key: change})

    def _flush_all(self, marks: Marks) -> None:
        for oid in list(self._pending):
            table = self._schema.by_oid(oid)
            if table is not None:
                self._flush(table, marks)

    def _flush(self, table: ReplicaTable, marks: Marks) -> None:
        pending = self._pending.pop(table.oid, None)
        if pending is None:
            return
        if deletes := pending.deletes():
            self._session.run(table.delete(marks), table.keys(deletes))
        rows = pending.rows()
        for or_equal in (False, True):
            self._upsert(
                table, [r for r in rows if r.sent is None and r.or_equal == or_equal], marks, or_equal=or_equal
            )
        partial: dict[tuple[int, ...], dict[bytes, Put]] = {}
        for key, change in pending.changes.items():
            if isinstance(change, Put) and change.sent is not None:
                partial.setdefault(tuple(sorted(change.sent)), {})[key] = change
        for sent, some in partial.items():
            self._update(table, sent, some, marks)

    def _upsert(self, table: ReplicaTable, rows: Sequence[Put], marks: Marks, *, or_equal: bool = False) -> None:
        if rows:
            columns = range(len(table.columns))
            with self._naming(table, rows):
                self._session.run(table.upsert(marks, or_equal=or_equal), table.puts(rows, columns))

    def _update(self, table: ReplicaTable, sent: Sequence[int], rows: Mapping[bytes, Put], marks: Marks) -> None:
        """Rows that lack the same values: those that are there keep theirs, the others are written without."""
        key_indexes = table.layout.key_indexes
        with self._naming(table, [*rows.values()]):
            columns = sorted({*sent, *key_indexes})
            self._session.run(table.update(sent, marks), table.puts([*rows.values()], columns))
        absent = {seq for (seq,) in self._session.run(table.absent, table.puts([*rows.values()], key_indexes))}
        alone = {key: row for key, row in rows.items() if row.seq in absent}
        self._upsert(table, [*alone.values()], marks)
        for key in alone:
            self._schema.note_incomplete(table, key)

    @contextmanager
    def _naming(self, table: ReplicaTable, rows: Sequence[Put]) -> Iterator[None]:
        """An error of a row names the table, and between which positions the row is."""
        try:
            yield
        except psycopg.Error as error:
            if not refuses_a_row(error):
                raise
            first, last = min(row.position for row in rows), max(row.position for row in rows)
            at = f"at {first}" if first == last else f"between {first} and {last}"
            with self._session.errors(f"{table.layout.table} {at}"):
                raise


def _payload(change: Change) -> bytes:
    if change.raw.after is None:
        raise refused("a change has no row", change, "check the relay's log")
    return change.raw.after


__all__ = ["PostgresOptions", "PostgresSink"]
