"""Changes to records: what becomes of a table's topic with each of them, and of the copy of its rows.

A change applies if it is newer than the row that the copy has, as in every sink. What an update left out comes from
the old row, which the change has or the copy; a row of which a value is in neither is held back, in the copy alone,
and its table is told as incomplete: no record ever has a null in the place of a value.

A key that is deleted has a record without a value where it stood. Its bytes are those that the copy remembers, so it
goes also if the key's columns have had another type since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from walbus.consumers.checkpoint import Marks, last_done_of
from walbus.consumers.sinks.base import refused
from walbus.consumers.sinks.kafka_ids import LayoutIds
from walbus.consumers.sinks.kafka_options import HEADROOM
from walbus.consumers.sinks.kafka_outbox import Outbox
from walbus.consumers.sinks.kafka_rows import HeldRow, RowCopy
from walbus.consumers.sinks.kafka_state import KnownLayout, SinkState, SinkTable
from walbus.consumers.sinks.kafka_topics import SinkTopics, TopicFacts
from walbus.consumers.sinks.layout import layout_change
from walbus.consumers.sinks.taken_names import parked
from walbus.consumers.steps import Sweep
from walbus.errors import SinkRefused
from walbus.events import Change, Window
from walbus.position import ORIGIN, Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema
from walbus.topics import Cause, RecordMaker, TopicRecord
from walbus.topics.debezium_rows import NoFormError
from walbus.topics.records import Headers, Row
from walbus.values import merge_unchanged

_ROWS: Final = frozenset((Op.INSERT, Op.UPDATE))
_OF_TRANSACTIONS: Final = frozenset(("insert", "update", "delete", "truncate"))


class WriterParts(NamedTuple):
    """What a writer works with.

    Attributes:
        state: what is known of tables and layouts; it is changed.
        copy: the last rows.
        topics: makes and checks topics.
        outbox: where records go.
        maker: of the records.
        ids: of schemas.
        largest: bytes of a record.
    """

    state: SinkState
    copy: RowCopy
    topics: SinkTopics
    outbox: Outbox
    maker: RecordMaker
    ids: LayoutIds
    largest: int


class TopicWriter:
    """See the module; for the changes between two commits.

    Args:
        parts: what it works with.
    """

    def __init__(self, parts: WriterParts) -> None:
        self._state, self._copy, self._topics, self._outbox, self._maker, self._ids, self._largest = parts
        self._marks = Marks(0, 0)
        self._window: Window | None = None

    def begin(self, window: Window, marks: Marks) -> None:
        """The next changes are of this window."""
        self._window, self._marks = window, marks
        if any(known.log_generation < marks.log_generation for known in self._state.layouts.values()):
            self._ids.forget()  # they were of another log, whose numbers say nothing here
        self._outbox.begin(window)

    def end(self, window: Window) -> None:
        """All changes of the window were taken."""
        self._outbox.end(window)

    # Changes

    def apply(self, change: Change) -> None:
        """Takes a change of the log, and a delta's deletes and truncates.

        Raises:
            RowRefused, SinkRefused, SinkUnavailable
        """
        raw = change.raw
        if raw.op == Op.TRUNCATE:
            self._truncate(change)
        elif raw.op in _ROWS:
            self._put(change, self._table_of(change), *_completed(change))
        elif raw.op == Op.DELETE:
            table, key = self._table_of(change), raw.key or b""
            stored = self._copy.get(table.oid, key)
            if stored is not None and self._is_older(stored, change.seq):
                self._delete(table, stored, self._cause(change, deletes=True))

    def load(self, change: Change) -> None:
        """Takes a row as it is: a snapshot's, and a delta's inserts. One that lacks a value is replaced in any case."""
        table, key = self._table_of(change), change.raw.key or b""
        row, missing = _completed(change)
        if any(missing):
            raise refused("a snapshot's row lacks a value", change, "check the bootstrap's store")
        stored = self._copy.get(table.oid, key)
        if stored is None or stored.lacks or self._is_older(stored, change.seq + 1):
            self._put_row(change, table, row, stored)

    def fit(self, layout: TableSchema) -> None:
        """Takes a layout that is told by itself."""
        self._fitted(layout)

    def sweep(self, sweep: Sweep) -> None:
        """Deletes a table's ghosts, others' records, and the rows that lack values: the replay writes those anew."""
        table = self._state.by_name(sweep.table)
        if table is None:
            return
        generation, log_generation = sweep.marks
        cause = Cause(last_done_of(sweep.checkpoint), sweep.seq, 0, "sweep", 0)
        for row in self._copy.ghosts(table.oid, sweep.seq, generation, log_generation):
            self._delete(table, row, cause)
        for row in self._copy.lacking(table.oid):
            self._delete(table, row, cause)
        for stray in self._copy.strays(table.oid, table.partitions):
            self._outbox.bury(table.topic, stray, cause)
        self._copy.forget_strays(table.oid)
        self._keep(replace(table, unknown=False))

    def carry(self, table: SinkTable, layouts: Mapping[int, KnownLayout], marks: Marks, at: Position) -> None:
        """Sends the rows that the copy has of a table in other topics, marked as if they came now.

        Args:
            table: as it is there.
            layouts: that its rows name; a row of another log goes.
            marks: of now.
            at: the position that is told.
        """
        self._marks = marks
        now = self._keep(self._placed(table.layout, self._topics.of_table(table.layout.namespace, table.layout.name)))
        for row in self._copy.all(table.oid):
            known = layouts.get(row.layout)
            if known is None or not row.row:
                self._copy.delete(table.oid, row.key)
                continue
            layout, cause = self._known(known.layout), Cause(at, row.seq, 0, "move", 0)
            told = self._told(row.key, marks.generation, layout)
            try:
                record = self._maker.written(now.topic, row.key, Row(layout, row.row), None, cause, told)
            except NoFormError as error:
                what = f"Debezium's types have no form for a value of column {error}"
                raise SinkRefused(what, where=table.layout.table, mend="leave the table out") from None
            self._outbox.put(record, now.partitions, counts=False)
            self._copy.put(now.oid, row._replace(mark=marks.generation, topic_key=record.key))

    def _truncate(self, change: Change) -> None:
        table = self._state.tables.get(change.raw.table)
        if table is None:
            return
        cause = self._cause(change, deletes=True)
        for row in self._copy.older(table.oid, change.seq, self._marks.log_generation):
            self._delete(table, row, cause)
        self._keep(replace(table, unknown=False))

    def _put(self, change: Change, table: SinkTable, row: bytes, missing: bytes) -> None:
        raw, oid = change.raw, table.oid
        moved = None if raw.old_key is None else self._copy.get(oid, raw.old_key)
        if moved is not None and self._is_older(moved, change.seq):
            row, missing = self._merged(change, row, missing, moved)
            self._delete(table, moved, self._cause(change, deletes=True))
        key = raw.key or b""
        stored = self._copy.get(oid, key)
        if stored is not None and not self._is_older(stored, change.seq):
            return
        if raw.old_key is None and stored is not None:
            row, missing = self._merged(change, row, missing, stored)
        if not any(missing):
            self._put_row(change, table, row, stored)
            return
        if raw.old_key is not None and stored is not None:  # another row's, whose end is not known
            self._delete(table, stored, self._cause(change, deletes=True))
            stored = None
        layout, topic_key = self._known(change.schema), None if stored is None else stored.topic_key
        held = HeldRow(key, change.seq, self._marks.generation, layout.id, row, missing, topic_key)
        self._copy.put(oid, held)

    def _merged(self, change: Change, row: bytes, missing: bytes, stored: HeldRow) -> tuple[bytes, bytes]:
        """The row with what it lacks taken from a row of the copy."""
        layout, known = change.schema, self._state.layouts.get(stored.layout)
        if layout is None or known is None or not any(missing) or stored.mark < self._marks.log_generation:
            return row, missing
        before = _under_names_of(known.layout, layout)
        return merge_unchanged(layout, row, missing, before, stored.row, stored.lacks)

    def _is_older(self, stored: HeldRow, seq: int) -> bool:
        return stored.seq < seq or stored.mark < self._marks.log_generation

    # Records

    def _put_row(self, change: Change, table: SinkTable, row: bytes, stored: HeldRow | None) -> None:
        layout, key = self._known(change.schema), change.raw.key or b""
        cause = self._cause(change, deletes=False)
        before = None if stored is None or change.raw.old_key is not None else self._known_row(stored)
        told = self._told(key, self._marks.generation, layout)
        try:
            record = self._maker.written(table.topic, key, Row(layout, row), before, cause, told)
        except NoFormError as error:
            what = f"Debezium's types have no form for a value of column {error}"
            raise refused(
                what, change, 'leave the table out, or write it with format = "rows" under another prefix'
            ) from None
        if _size(record) > self._largest - HEADROOM:
            raise refused(
                f"a row of {_size(record)} bytes is larger than max_message_bytes allows",
                change,
                f"raise max_message_bytes of the sink, and max.message.bytes of the topic {table.topic} with it",
            )
        if stored is not None and stored.topic_key not in {None, record.key}:
            self._bury(table, stored, cause)  # its key has another schema since
        self._outbox.put(record, table.partitions, counts=cause.op in _OF_TRANSACTIONS)
        held = HeldRow(key, change.seq, self._marks.generation, layout.id, row, b"", record.key)
        self._copy.put(table.oid, held)

    def _delete(self, table: SinkTable, row: HeldRow, cause: Cause) -> None:
        self._bury(table, row, cause)
        self._copy.delete(table.oid, row.key)

    def _bury(self, table: SinkTable, row: HeldRow, cause: Cause) -> None:
        """A record without a value, if the key has one with a value."""
        if row.topic_key is None:
            return
        more = (("walbus.key", row.key),)
        for record in self._maker.deleted(table.topic, row.key, row.topic_key, self._known_row(row), cause, more):
            self._outbox.put(record, table.partitions, counts=cause.op in _OF_TRANSACTIONS)

    def _known_row(self, stored: HeldRow) -> Row | None:
        """What is under a key, if all of it is known and it is of this log."""
        known = self._state.layouts.get(stored.layout)
        if known is None or stored.lacks or stored.mark < self._marks.log_generation:
            return None
        return Row(known.layout, stored.row)

    def _cause(self, change: Change, *, deletes: bool) -> Cause:
        window = self._now()
        cause = Cause.of(window, change)
        if window.kind is Kind.TRANSACTION:
            return cause
        return cause._replace(op="sweep" if deletes else "read")

    def _now(self) -> Window:
        if self._window is None:
            raise ValueError("no window has begun")
        return self._window

    @staticmethod
    def _told(key: bytes, generation: int, layout: TableSchema) -> Headers:
        """The headers by which the copy is made of the topics."""
        return (
            ("walbus.key", key),
            ("walbus.generation", b"%d" % generation),
            ("walbus.layout", b"%d" % layout.id),
        )

    # Tables

    def _table_of(self, change: Change) -> SinkTable:
        layout = change.schema
        if layout is None:
            raise refused("a row has no layout", change, "check the relay's log")
        table = self._fitted(layout)
        if table is None or not layout.key_indexes or change.raw.key is None:
            mend = "give the table a primary key, or leave it out of the consumer's tables"
            raise refused("a table without a key has no topic: rows there are known by their keys", change, mend)
        return table

    def _known(self, layout: TableSchema | None) -> TableSchema:
        """The layout, with ids of its schemas."""
        if layout is None:
            raise ValueError("a row without a layout")
        if layout.id not in self._state.layouts:
            self._ids.add(layout, self._marks.log_generation)
        return layout

    def _fitted(self, layout: TableSchema) -> SinkTable | None:
        before = self._state.tables.get(layout.oid)
        here = self._marks.log_generation
        if before is not None and (here, layout.id) <= (before.log_generation, before.layout.id):
            return before
        if before is None and not layout.key_indexes:
            return None
        topic = self._topics.of_table(layout.namespace, layout.name)
        for other in list(self._state.tables.values()):
            if other.topic == topic and other.oid != layout.oid:
                self._make_way(other)
        now = self._placed(layout, topic)
        if before is not None and before.topic != topic:
            self._move(before, now)
        return self._keep(now)

    def _make_way(self, other: SinkTable) -> None:
        """Another relation had the name. In another log it is gone; in this one it may tell a new name yet."""
        if other.log_generation < self._marks.log_generation:
            for row in self._copy.all(other.oid):
                self._delete(other, row, self._moving(row))
            self._copy.forget(other.oid)
            del self._state.tables[other.oid]
            return
        aside = parked(other.layout)
        topic = self._topics.of_table(aside.namespace, aside.name)
        now = replace(self._placed(other.layout, topic), parked=True, unknown=other.unknown)
        self._move(other, now)
        self._keep(now)

    def _placed(self, layout: TableSchema, topic: str) -> SinkTable:
        """The table with this layout in this topic, which is made if it is missing."""
        before = self._state.tables.get(layout.oid)
        if before is not None and before.topic == topic:
            return replace(before, layout=layout, log_generation=self._marks.log_generation)
        facts = self._topics.ensure([topic])[topic]
        if self._state.topics.get(topic) != facts.id:
            self._refuse_anothers(topic, facts)
            self._state.topics[topic] = facts.id
        self._copy.has_topic(layout.oid, topic, facts.id)
        unknown = before is not None and before.unknown
        return SinkTable(layout, self._marks.log_generation, topic, facts.id, facts.partitions, unknown=unknown)

    def _refuse_anothers(self, topic: str, facts: TopicFacts) -> None:
        if not facts.made and self._topics.has_records(topic, facts.partitions):
            raise SinkRefused(
                f"topic {topic} has records that this consumer did not write",
                where=self._now().changes[0].table if self._now().changes else None,
                mend="give the sink another prefix, or delete the topic if nobody needs it",
            )

    def _move(self, before: SinkTable, now: SinkTable) -> None:
        """Brings the rows from one topic to another; those of another log go: they come anew."""
        for row in self._copy.all(before.oid):
            cause = self._moving(row)
            if row.mark < self._marks.log_generation or row.layout not in self._state.layouts:
                self._delete(before, row, cause)
                continue
            self._bury(before, row, cause)
            if row.lacks:
                self._copy.put(now.oid, row._replace(topic_key=None))
                continue
            layout = self._known(_fitting(self._state.layouts[row.layout].layout, now.layout))
            told = self._told(row.key, row.mark, layout)
            record = self._maker.written(now.topic, row.key, Row(layout, row.row), None, cause, told)
            self._outbox.put(record, now.partitions, counts=False)
            self._copy.put(now.oid, row._replace(layout=layout.id, topic_key=record.key))

    def _moving(self, row: HeldRow) -> Cause:
        last = self._window.last if self._window is not None else ORIGIN
        return Cause(last, row.seq, 0, "move", 0)

    def _keep(self, table: SinkTable) -> SinkTable:
        self._state.tables[table.oid] = table
        return table


def _completed(change: Change) -> tuple[bytes, bytes]:
    """The row, and the bitmap of the columns that it still lacks when its old row was asked."""
    raw, layout = change.raw, change.schema
    if raw.after is None or layout is None:
        raise refused("a change has no row", change, "check the relay's log")
    if raw.before is not None and any(raw.unchanged):
        return merge_unchanged(layout, raw.after, raw.unchanged, layout, raw.before)
    return raw.after, raw.unchanged if any(raw.unchanged) else b""


def _under_names_of(stored: TableSchema, now: TableSchema) -> TableSchema:
    """A layout with the names that its columns have in a later one."""
    if stored.id == now.id:
        return stored
    names = dict(layout_change(stored, now).renamed)
    columns = (replace(column, name=names.get(column.name, column.name)) for column in stored.columns)
    return replace(stored, columns=tuple(columns))


def _fitting(stored: TableSchema, now: TableSchema) -> TableSchema:
    """The layout that a row is told in under a table's new name: the table's, if it has the same columns."""
    return now if stored.columns == now.columns else stored


def _size(record: TopicRecord) -> int:
    headers = sum(len(name) + len(value) + 4 for name, value in record.headers)
    return len(record.key) + len(record.value or b"") + headers


def lacking_tables(state: SinkState, copy: RowCopy) -> Iterator[str]:
    """Names of tables whose rows must be had again; one whose name another table has counts when it tells its own."""
    lacking = copy.tables_that_lack()
    for table in state.tables.values():
        if (table.unknown or table.oid in lacking) and not table.parked:
            yield table.layout.table
