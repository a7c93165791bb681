"""The tantivy sink: an embedded search index, one document a row (fields: see `tantivy_index`).

Rows and checkpoint are one commit, so searchers see whole transactions of the source. A commit costs milliseconds
whatever is in it, hence a few a second at most: windows wait for it up to `commit_seconds`.

The index has one writer, by tantivy's own lock, and windows at or below the position last accepted are dropped, so
that no late upsert can come back: there are no tombstones. Besides, each change is compared with the version of the
document that is there, accepted or committed, unless it is newer than all of them.

Rows accepted since the last commit are remembered, because tantivy shows them only after it. A transaction of more than
`_REMEMBERED` rows, or of large ones, is therefore committed in parts, still under the checkpoint before it: searchers
see a part of such a transaction early, and after a crash it comes again from its beginning, and is compared by version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self

import msgspec

from walbus.consumers.checkpoint import Checkpoint, Marks, last_done_of
from walbus.consumers.sinks.base import Batching, ChangeTakers, HeldRow, SinkPlace, refused
from walbus.consumers.sinks.layout import LayoutChange, fitted, layout_change
from walbus.consumers.sinks.taken_names import is_parked, parked
from walbus.consumers.sinks.tantivy_documents import (
    IndexedRow,
    columns_of,
    document_id,
    document_ids,
    indexed_row,
    is_row,
    keyless_id,
    renamed_id,
    table_of,
)
from walbus.consumers.sinks.tantivy_errors import require_undamaged
from walbus.consumers.sinks.tantivy_held import held_of, told
from walbus.consumers.sinks.tantivy_index import RowIndex
from walbus.consumers.sinks.tantivy_live import LiveIndex, OpenedIndex
from walbus.consumers.sinks.tantivy_options import TantivyOptions, path_of
from walbus.consumers.sinks.tantivy_reading import StoredDocument
from walbus.consumers.sinks.tantivy_state import put_layouts, put_state, read_state
from walbus.consumers.steps import Sweep
from walbus.errors import SinkError, SinkRefused
from walbus.events import Change, Window
from walbus.keys import key_texts
from walbus.position import ORIGIN, Position
from walbus.records import Op
from walbus.schema import TableSchema
from walbus.values import json_puts, row_json

_REMEMBERED = 50_000
_REMEMBERED_BYTES = 64 << 20
_PUTS = frozenset((int(Op.INSERT), int(Op.UPDATE)))
_NULL = msgspec.Raw(b"null")


class TantivySink:
    """A search index; see `walbus.consumers.sinks.base.Sink`.

    Args:
        opened: the index.
        options: the sink's.
        place: whose it is.
    """

    def __init__(self, opened: OpenedIndex, options: TantivyOptions, place: SinkPlace) -> None:
        self._opened = opened
        self._batching = Batching(linger=options.commit_seconds, max_changes=5_000)
        self._tables_wanted = place.tables
        self._accepted_bytes = 0  # of rows in `_accepted`, those replaced included
        self._accepted: dict[str, IndexedRow | None] = {}  # by document id, since the last commit; None: deleted
        self._checkpoint: Checkpoint | None = None
        self._done: Position = ORIGIN  # everything up to here is accepted
        self._layouts: dict[int, TableSchema] = {}  # by OID
        self._log_generation = 0  # that the layouts' numbers belong to
        self._layouts_stored = True
        self._lacking: set[str] = set()  # documents that lack a value
        self._carried: set[str] = set()  # tables whose rows a rebuild did not read, but found here
        self._checked: set[str] = set()  # files of the index that were read and found whole
        self._highest = 0  # no document has a seq above this: what is newer needs no look at the one that is there
        try:
            self._forget()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        chosen = TantivyOptions.read(options, place)
        return cls(LiveIndex(path_of(chosen, place), chosen.heap_bytes, place.stopping), chosen, place)

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`."""
        return self._batching

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`. It is that of a copy from here on, if one has taken the index's place."""
        self._opened.turn_to_live()
        self._forget()
        return self._checkpoint

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._errors():
            self._opened.require_mine()
            takers = ChangeTakers(
                self._tables_wanted,
                apply=partial(self._apply, marks=marks),
                load=partial(self._load, marks=marks),
                fit=partial(self._fit, marks=marks),
                apply_some=partial(self._put_some, marks=marks, replaces_equal=0),
                load_some=partial(self._put_some, marks=marks, replaces_equal=1),
            )
            self._done = takers.take(windows, self._done)
            self._index.flush()
            if len(self._accepted) > _REMEMBERED or self._accepted_bytes > _REMEMBERED_BYTES:
                self._commit()

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._errors():
            self._opened.require_mine()
            self._index.sweep(sweep.table, sweep.seq, sweep.marks)
            marks = sweep.marks
            for row_id, row in self._accepted_of(sweep.table):
                if row.mark < marks.generation and (row.seq <= sweep.seq or row.mark < marks.log_generation):
                    self._accepted[row_id] = None
            self._delete_lacking(sweep.table)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        self._checkpoint = checkpoint
        with self._errors():
            self._commit()
        self._done = last_done_of(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        try:
            self._opened.require_mine()
            with self._errors():
                self._index.rollback()
            self._forget()
        except (AttributeError, SinkError):  # AttributeError: closed already, the writer is gone
            return  # the next `checkpoint()` tells what is wrong

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        tables = {table_of(row_id) for row_id in self._lacking} if self._lacking else ()
        return tuple(sorted(table for table in tables if not is_parked(table)))

    def held(self, table: str) -> Iterator[HeldRow]:
        """See `ReadableSink.held`."""
        require_undamaged(self._opened.folder, self._checked)
        layout = next((one for one in self._layouts.values() if one.table == table), None)
        with self._errors():
            for together in self._index.documents_of(table):
                yield held_of(together, table, 1 if layout is None else len(layout.key_indexes))

    def as_held(self, change: Change) -> HeldRow:
        """See `ReadableSink.as_held`."""
        layout = None if change.schema is None else self._layouts.get(change.schema.oid) or change.schema
        if layout is None or change.raw.key is None:
            raise refused("a row has no layout or no key", change, "check the bootstrap's store")
        source = msgspec.json.encode(self._columns(change, layout))
        return told(key_texts(change.raw.key), change.seq, layout.table, source)

    def close(self) -> None:
        """See `Sink.close`."""
        self._opened.close()

    # State

    def _forget(self) -> None:
        """What is known comes from the index alone."""
        self._accepted.clear()
        self._accepted_bytes = 0
        with self._errors():
            state = read_state(self._index, self._opened.folder)
            self._highest = self._index.highest_seq()
        self._checkpoint, self._lacking, self._carried = state.checkpoint, state.lacking, state.carried
        self._done = last_done_of(self._checkpoint)
        self._layouts, self._log_generation = state.layouts, state.log_generation
        self._layouts_stored = True

    def _commit(self) -> None:
        with self._opened.while_mine():
            put_state(self._index, self._checkpoint, self._lacking, self._carried)
            if not self._layouts_stored:
                put_layouts(self._index, self._layouts, self._log_generation)
            self._index.commit()
        self._layouts_stored = True
        self._accepted.clear()
        self._accepted_bytes = 0

    def _errors(self) -> AbstractContextManager[None]:
        return self._opened.errors()

    @property
    def _index(self) -> RowIndex:
        return self._opened.rows

    # Changes

    def _apply(self, change: Change, marks: Marks) -> None:
        key = change.raw.key
        match change.op:
            case Op.INSERT | Op.UPDATE if key is None:
                self._append(change, marks)
            case Op.INSERT | Op.UPDATE if key is not None:
                self._upsert(change, key, marks)
            case Op.DELETE if key is None:
                raise _keyless(change)
            case Op.DELETE if key is not None:
                self._delete(document_id(self._layout(change, marks).table, key), change.seq, marks)
            case Op.TRUNCATE:
                self._truncate(change, marks)

    def _load(self, change: Change, marks: Marks) -> None:
        """A snapshot's row; it replaces a row that lacks a value whatever its version: the log brings it forward."""
        layout = self._layout(change, marks)
        table, key = layout.table, change.raw.key
        row_id = keyless_id(table, change.seq) if key is None else document_id(table, key)
        if row_id in self._lacking or self._is_older(row_id, change.seq + 1, marks):
            self._put(row_id, change, layout, marks)

    def _put_some(self, changes: Sequence[Change], at: int, *, marks: Marks, replaces_equal: int) -> int:
        """Takes the whole rows that come next, of one layout, together; how many. Where rows lack a value it is none.

        `replaces_equal` is 1 where a row replaces one of its own version too, else 0.
        """
        layout, raw = changes[at].schema, changes[at].raw
        if layout is None or raw.key is None or raw.op not in _PUTS:
            return 0
        known = self._layout(changes[at], marks)
        if known.id != layout.id or self._lacking:
            return 0
        rows = json_puts(layout, changes, at)
        some = changes[at : at + len(rows)]
        row_ids = document_ids(known.table, [change.raw.key or b"" for change in some])
        put: dict[str, IndexedRow] = {}
        for row_id, change, columns in zip(row_ids, some, rows, strict=True):
            if row_id in put:
                self._put_all(put)
                put = {}
            seq = change.seq
            if seq + replaces_equal > self._highest or self._is_older(row_id, seq + replaces_equal, marks):
                put[row_id] = indexed_row(row_id, known.table, seq, marks.generation, columns)
        self._put_all(put)
        return len(rows)

    def _append(self, change: Change, marks: Marks) -> None:
        if change.op is Op.UPDATE:
            raise _keyless(change)
        layout = self._layout(change, marks)
        self._put(keyless_id(layout.table, change.seq), change, layout, marks)

    def _upsert(self, change: Change, key: bytes, marks: Marks) -> None:
        layout, raw = self._layout(change, marks), change.raw
        table = layout.table
        row_id = document_id(table, key)
        old_id = row_id if raw.old_key is None else document_id(table, raw.old_key)
        stored = self._before(change, (old_id, row_id), marks) if raw.unchanged else None
        lacks = raw.unchanged and (stored is None or old_id in self._lacking)
        if old_id != row_id:
            self._delete(old_id, change.seq, marks)
        if not self._is_older(row_id, change.seq, marks):
            return
        self._put(row_id, change, layout, marks, stored)
        if lacks:
            self._lacking.add(row_id)

    def _delete(self, row_id: str, seq: int, marks: Marks) -> None:
        if self._is_older(row_id, seq, marks):
            self._index.delete(row_id)
            self._accepted[row_id] = None
            self._lacking.discard(row_id)

    def _delete_lacking(self, table: str) -> None:
        """Rows that lack a value and that the snapshot did not bring: the replay behind it writes them anew, whole."""
        for row_id in [row_id for row_id in self._lacking if table_of(row_id) == table]:
            self._index.delete(row_id)
            self._accepted[row_id] = None
            self._lacking.discard(row_id)

    def _truncate(self, change: Change, marks: Marks) -> None:
        layout = change.schema or self._layouts.get(change.raw.table)
        if layout is None:
            return
        self._index.truncate(layout.table, change.seq, marks)
        for row_id, row in self._accepted_of(layout.table):
            if row.seq < change.seq or row.mark < marks.log_generation:
                self._accepted[row_id] = None
        self._lacking -= {row_id for row_id in self._lacking if table_of(row_id) == layout.table}

    def _put(
        self, row_id: str, change: Change, layout: TableSchema, marks: Marks, stored: IndexedRow | None = None
    ) -> None:
        columns = self._columns(change, layout, stored)
        self._put_all({row_id: indexed_row(row_id, layout.table, change.seq, marks.generation, columns)})

    def _put_all(self, rows: Mapping[str, IndexedRow]) -> None:
        """Takes rows by the names of their documents."""
        self._accepted.update(rows)
        self._index.put_all(rows)
        self._accepted_bytes += sum([len(row.source) for row in rows.values()])
        self._highest = max([self._highest, *[row.seq for row in rows.values()]])
        self._lacking.difference_update(rows)

    # Rows as they are now, accepted or committed

    def _row(self, row_id: str) -> IndexedRow | None:
        return self._accepted[row_id] if row_id in self._accepted else self._index.find(row_id)

    def _before(self, change: Change, row_ids: tuple[str, ...], marks: Marks) -> IndexedRow | None:
        """The row as it was before the change, under the first of these names that has one; later rows are not it."""
        rows = (row for row in map(self._row, row_ids) if row and row.is_readable)
        return next((row for row in rows if row.seq < change.seq or row.mark < marks.log_generation), None)

    def _is_older(self, row_id: str, seq: int, marks: Marks) -> bool:
        """Whether there is no row of this name with this seq or a later one."""
        if seq > self._highest:
            return True
        if row_id in self._accepted:
            row = self._accepted[row_id]
            version = None if row is None else (row.seq, row.mark)
        else:
            version = self._index.version(row_id)
        return version is None or version[0] < seq or version[1] < marks.log_generation

    def _accepted_of(self, table: str) -> list[tuple[str, IndexedRow]]:
        return [(row_id, row) for row_id, row in self._accepted.items() if row is not None and row.table == table]

    def _columns(self, change: Change, table: TableSchema, stored: IndexedRow | None = None) -> Mapping[str, object]:
        """The row in JSON; columns that were left out come from the stored row, and are null where that has none."""
        raw, layout = change.raw, change.schema
        if raw.after is None or layout is None:
            raise refused("a change has no row", change, "check the relay's log")
        row = row_json(layout, raw.after, raw.unchanged)
        if layout.id != table.id:
            row = _rearranged(row, layout_change(layout, table))
        if raw.unchanged:
            before = {} if stored is None else stored.columns()
            row = {column.name: row.get(column.name, before.get(column.name, _NULL)) for column in table.columns}
        return row

    # Layouts

    def _layout(self, change: Change, marks: Marks) -> TableSchema:
        if change.schema is None:
            raise refused("a row has no layout", change, "check the relay's log")
        return self._fit(change.schema, marks)

    def _fit(self, layout: TableSchema, marks: Marks) -> TableSchema:
        """The table's present layout, once its documents have been brought to `layout` if that is newer."""
        known = self._layouts.get(layout.oid)
        newer_log = marks.log_generation > self._log_generation
        if known is not None and known.id >= layout.id and not newer_log:
            return known
        others = () if newer_log else [one for one in self._layouts.values() if one.oid != layout.oid]
        taken_from = [other for other in others if other.table == layout.table]
        changed = known is not None and not known.same_layout(layout)
        if (changed or taken_from) and self._accepted:
            self._commit()  # under the layouts that it is of
        if newer_log:
            self._log_generation = marks.log_generation
            self._layouts = {oid: table for oid, table in self._layouts.items() if oid == layout.oid}
        for other in taken_from:
            self._rewrite(other, parked(other))
        if known is not None and changed:
            self._rewrite(known, layout)
        self._layouts[layout.oid], self._layouts_stored = layout, False
        return layout

    def _rewrite(self, before: TableSchema, now: TableSchema) -> None:
        """Brings a table's documents to a new layout: columns by their new names, and the table by its own.

        All in one commit, without a word of each in memory: tantivy remembers every deletion until then, so the rows
        are deleted by one for all of them, and added again.
        """
        self._layouts[now.oid], self._layouts_stored = now, False
        change = layout_change(before, now)
        free = before.table == now.table or not self._index.has(now.table)
        self._index.delete_rows(before.table)
        for together in self._index.documents_of(before.table):
            self._move(together, before.table, now, change, free=free)
        self._commit()

    def _move(
        self, together: Sequence[StoredDocument], before: str, now: TableSchema, change: LayoutChange, *, free: bool
    ) -> None:
        """Brings the newest of the documents with one name to a new layout; one that somebody garbled is read again.

        Args:
            together: the documents.
            before: what the table was called.
            now: its new layout.
            change: the way there.
            free: whether no other document can have its new name.
        """
        newest = max(together, key=lambda one: one.seq or 0)
        if not newest.name or newest.seq is None or newest.mark is None:
            return  # it is not ours
        new_id, columns = renamed_id(newest.name, now.table), columns_of(newest.source)
        lacks = columns is None or newest.name in self._lacking
        if not all(is_row(one, before) for one in together):
            self._index.delete(newest.name)
        self._lacking.discard(newest.name)
        if columns is not None:
            fitting = _rearranged(columns, change)
            row = indexed_row(new_id, now.table, newest.seq, newest.mark, fitting)
            (self._index.add if free else self._index.put)(row)
        if lacks:
            self._lacking.add(new_id)


def _rearranged(row: Mapping[str, object], change: LayoutChange) -> dict[str, object]:
    return fitted(row, change) | {column.name: _NULL for column in change.added}


def _keyless(change: Change) -> SinkRefused:
    return refused(
        "a row of a table without a key changed, and its document cannot be told from others",
        change,
        "give the table a primary key, or leave it out of the consumer's tables",
    )


__all__ = ["TantivySink"]
