"""The OpenSearch and Elasticsearch sink: one index a table, one document a row, the row's seq as external version.

Writes gather here until `commit`, which sends them in bulks, several at a time, and then the checkpoint. The server
compares each with the version that it has, deleted documents included, so that neither the order of the bulks nor what
comes again or late matters. A server has no transactions: searches may see a part of one, as shards and refreshes have
it, and after a crash what the checkpoint does not tell comes again.

A deleted document's version is remembered for `tombstone_seconds` (`index.gc_deletes`), which is longer than any
request may take. TRUNCATE and the sweep look documents up and delete each by version, since a delete by query would
take along what is newer.

    opensearch_options    the sink's keys
    opensearch_documents  what documents, fields and indices are called, and what their mapping is
    opensearch_table_index  one table's index, and the aliases that it is read and written by
    opensearch_indices    the tables' indices: made, found, brought to another layout
    opensearch_state      the checkpoint, which is the fence too
    opensearch_reading    documents as they are read, whoever wrote them; opensearch_held compares them
    opensearch_gathered   writes on their way, and rows as they are with them
    opensearch_server     requests and errors; opensearch_bulks what goes into a bulk, and what comes back
    opensearch_copy       a copy that is filled beside the live indices; opensearch_swaps which one is live
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, Self

import msgspec
import structlog

from walbus.consumers.checkpoint import Checkpoint, Marks, dump_checkpoint, last_done_of
from walbus.consumers.sinks.base import Batching, ChangeTakers, HeldRow, SinkPlace, refused
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.layout import layout_change
from walbus.consumers.sinks.opensearch_bulks import Place, Write
from walbus.consumers.sinks.opensearch_documents import (
    LACKS,
    MARK,
    RowForm,
    document_id,
    field_name,
    fitting_row,
    routing_of,
    version_of,
)
from walbus.consumers.sinks.opensearch_gathered import GatheredRows, PresentRow
from walbus.consumers.sinks.opensearch_held import held_row, held_rows
from walbus.consumers.sinks.opensearch_indices import TableIndices
from walbus.consumers.sinks.opensearch_options import OpenSearchOptions
from walbus.consumers.sinks.opensearch_reading import found_by
from walbus.consumers.sinks.opensearch_server import IndexGone, OpenSearchServer
from walbus.consumers.sinks.opensearch_state import ConsumerState
from walbus.consumers.sinks.opensearch_swaps import Swaps
from walbus.consumers.sinks.opensearch_table_index import LIVE, TableIndex
from walbus.consumers.steps import Sweep
from walbus.events import Change, Window
from walbus.keys import key_texts
from walbus.position import ORIGIN, Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema
from walbus.values import row_json

_log = structlog.get_logger(__name__)

_WITHOUT_MARK = {"bool": {"must_not": {"exists": {"field": MARK}}}}  # by somebody else's hand


class OpenSearchSink:
    """Documents in one OpenSearch or Elasticsearch; see `walbus.consumers.sinks.base.Sink`."""

    def __init__(self, options: OpenSearchOptions, place: SinkPlace, side: str = LIVE) -> None:
        self._tables_wanted = place.tables
        self._batching = Batching(linger=options.commit_seconds, max_changes=2_000)
        self._refreshes = options.refresh == "commit"
        self._server = OpenSearchServer(options.access(place))
        self._rows = GatheredRows(self._server)
        self._swaps = Swaps(self._server, options.state_index, place.consumer, place.stopping)
        self._state = ConsumerState(self._server, options.state_index, self._swaps, beside=side != LIVE)
        changing = self._state.require_unheld
        self._indices = TableIndices(self._server, place.consumer, options.choice(), self._rows, side, changing)
        self._forms: dict[tuple[int, int], RowForm] = {}  # by log_generation and number of the layout
        self._done: Position = ORIGIN  # everything up to here is accepted
        self._marks = Marks(0, 0)
        self._outranked: set[str] = set()  # aliases of indices that were so by themselves
        self._touched: set[str] = set()  # aliases of indices that were written to since the last refresh

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        sink = cls(OpenSearchOptions.read(options, place), place)
        try:
            sink._server.check()
            sink.checkpoint()
        except BaseException:
            sink.close()
            raise
        return sink

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`."""
        return self._batching

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`. Without the index of a table it is worth nothing: all are read anew.

        Raises:
            SinkSwapped: a rebuilt copy has taken this one's place since the last time.
        """
        self.rollback()
        checkpoint = self._state.begin()
        if not self._indices.load(self._state.aliases) and checkpoint is not None:
            _log.warning("consumer.index_missing", where=self._server.where, note="all tables are read again")
            self._state.drop()
            checkpoint = None
        self._rows.find_lacking([index.name for index in self._indices.all()])
        self._done = last_done_of(checkpoint)
        return checkpoint

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._unless_swapped():
            self._mark_with(marks)
            self._fetch(windows)
            self._done = ChangeTakers(self._tables_wanted, self._take, self._load, self._fit).take(windows, self._done)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._unless_swapped():
            self._mark_with(sweep.marks)
            index = self._indices.named(sweep.table)
            if index is None:
                return
            self._flush()
            version = version_of(index.number, sweep.seq)
            older = [{"range": {MARK: {"lt": sweep.marks.generation}}}, _WITHOUT_MARK]
            rows = self._rows.contested(index.name)
            spared = self._delete_found(index, {"bool": {"should": older}}, version, even=True, rows=rows)
            if index.number:  # then rows with later marks have it: others are from elsewhere, as in a copied document
                later = {"range": {MARK: {"gt": sweep.marks.generation}}}
                self._delete_found(index, later, version_of(index.number, 0) - 1, even=True)
            self._indices.read_again(index, again=bool(spared) and self._outranks(index))
            if not spared and self._rows.lacks_still(index.name) and not self._outranks(index):
                self._rows.give_up(index.name)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        with self._unless_swapped():
            self._flush()
            if self._refreshes:
                self._server.refresh(sorted(self._touched.intersection(self._indices.aliases)))
                self._touched.clear()
            self._state.set_aliases(self._indices.aliases)
            self._state.store(dump_checkpoint(checkpoint))
        self._done = last_done_of(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`. What was sent in parts stays, and is compared by version when it comes again."""
        self._rows.forget()

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        return tuple(self._indices.incomplete(self._rows.lacking))

    def held(self, table: str) -> Iterator[HeldRow]:
        """See `ReadableSink.held`."""
        index = self._indices.named(table)
        return iter(()) if index is None else held_rows(self._server, index)

    def as_held(self, change: Change) -> HeldRow:
        """See `ReadableSink.as_held`."""
        index, key = self._indices.known(change.raw.table), change.raw.key
        if change.schema is None or key is None:
            raise refused("a row has no layout, or no key", change, "check the bootstrap's store")
        row = self._row(change, change.schema if index is None else index.layout)
        place = Place("", document_id(key)) if index is None else self._place(index, change, key)
        return held_row(len(key_texts(key)), place, change.seq, row)

    def outrank(self, table: str) -> None:
        """See `OutrankingSink.outrank`: versions are those of a number above, as of another log.

        Nobody comes in between: a consumer of before that writes late has the number of before, and an ordinary write
        of somebody's is one version above the document that it meets, and so the next repair's. What was deleted under
        a version of somebody's choice is not seen here; it is told as left for as long as a server remembers it.
        """
        index = self._indices.named(table)
        if index is not None:
            self._server.refresh([index.name])
            pages = found_by(self._server, index.name, {"match_all": {}})
            self._indices.outrank(index, max((found.version for page in pages for found in page), default=0))

    def close(self) -> None:
        """See `Sink.close`."""
        self.rollback()
        self._server.close()

    def _outranks(self, index: TableIndex) -> bool:
        """Has a table's rows outrank what they did not replace when they were read, once; tells whether it was so."""
        first = index.alias not in self._outranked
        mended = "all its rows are written again under a higher version"
        left = "they are left as they are: `walbus verify --sink` tells which"
        where = f"{self._server.where}, {index.alias}"
        _log.warning("consumer.documents_by_another_hand", where=where, note=mended if first else left)
        if first:
            self._outranked.add(index.alias)
            self.outrank(index.layout.table)
        return first

    @contextmanager
    def _unless_swapped(self) -> Iterator[None]:
        """Where an index or its alias is not there, a rebuilt copy may have taken this one's place."""
        try:
            yield
        except IndexGone:
            written_by = [index.writer for index in self._indices.all()]
            if self._state.is_swapped():
                self._server.clear(written_by)  # a delete that came late has made an index of that name
                raise SinkSwapped("a rebuilt copy has taken the sink's place", where=self._server.where) from None
            raise

    # What is gathered

    def _mark_with(self, marks: Marks) -> None:
        if marks != self._marks:
            self._flush()
            self._marks = marks

    def _gather(self, index: TableIndex, write: Write) -> None:
        self._touched.add(index.alias)
        self._rows.gather(write)

    def _flush(self) -> None:
        self._rows.flush()

    # Changes

    def _take(self, change: Change) -> None:
        match change.op:
            case Op.INSERT | Op.UPDATE:
                self._upsert(change)
            case Op.DELETE:
                index = self._index(change)
                if change.seq > index.floor:
                    self._gather(index, self._deleted(index, change, change.raw.key))
            case Op.TRUNCATE:
                self._truncate(change)

    def _load(self, change: Change) -> None:
        index = self._index(change)
        if change.seq > index.floor:  # a snapshot may be older than a TRUNCATE that was applied since
            self._gather(index, self._write_of(index, change, self._row(change, index.layout), even=True))

    def _upsert(self, change: Change) -> None:
        index, raw = self._index(change), change.raw
        if change.seq <= index.floor:
            return
        if raw.unchanged:
            self._merge(index, change)
        else:
            self._gather(index, self._write_of(index, change, self._row(change, index.layout)))
        if raw.old_key is not None and raw.old_key != raw.key:
            self._gather(index, self._deleted(index, change, raw.old_key))

    def _merge(self, index: TableIndex, change: Change) -> None:
        """An update that leaves values out: they come from the row as it is now.

        A row that lacked them may find them when the log is replayed behind a snapshot: hence at its own version too.
        """
        raw, version = change.raw, version_of(index.number, change.seq)
        present = self._present(index, change, raw.key)
        if present is not None and (present.version > version or (present.version == version and not present.lacks)):
            return
        stored = present
        if raw.old_key is not None and raw.old_key != raw.key:
            moved = self._present(index, change, raw.old_key)
            if moved is not None and moved.version < version:  # a later row may have its key
                stored = moved
        columns = stored.source if stored is not None and stored.source is not None else {}
        left_out = {field_name(name) for name in change.unchanged}
        lacks = stored is None or stored.lacks or not left_out <= columns.keys()
        row = self._row(change, index.layout)
        row |= {name: value for name, value in columns.items() if name in left_out}
        write = self._write_of(index, change, row, even=present is not None and present.version == version, lacks=lacks)
        self._gather(index, write)

    def _truncate(self, change: Change) -> None:
        index = self._index(change) if change.schema is not None else self._indices.known(change.raw.table)
        if index is None or change.seq <= index.floor:
            return
        self._flush()
        self._delete_found(index, {"match_all": {}}, version_of(index.number, change.seq), even=False)
        self._indices.emptied(index, change.seq)

    def _delete_found(
        self, index: TableIndex, query: object, version: int, *, even: bool, rows: Set[Place] = frozenset()
    ) -> int:
        """Deletes what a search finds, where it is not newer by now, and no row is to be; how many of those there were.

        A row that was read and lay behind what is stored, though that is no newer than all rows that were read, lies
        under a version that somebody raised: were it deleted, the row could not come back.
        """
        spared = 0
        self._server.refresh([index.alias])
        for page in found_by(self._server, index.alias, query):
            self._touched.add(index.alias)
            older = [Place(index.name, found.id, found.routing) for found in page if found.version <= version]
            gone = [place for place in older if place not in rows]
            spared += len(older) - len(gone)
            self._rows.send([Write(place, index.writer, version, None, even=even) for place in gone])
        self._flush()
        return spared

    # One document

    def _write_of(
        self, index: TableIndex, change: Change, row: dict[str, Any], *, even: bool = False, lacks: bool = False
    ) -> Write:
        row[MARK] = self._marks.generation
        if lacks:
            row[LACKS] = True
        place, version = self._place(index, change, change.raw.key), version_of(index.number, change.seq)
        return Write(place, index.writer, version, msgspec.json.encode(row), even=even, lacks=lacks, change=change)

    def _deleted(self, index: TableIndex, change: Change, key: bytes | None) -> Write:
        version = version_of(index.number, change.seq)
        return Write(self._place(index, change, key), index.writer, version, None, change=change)

    def _row(self, change: Change, layout: TableSchema) -> dict[str, Any]:
        """The fields that the change carries."""
        raw, own = change.raw, change.schema
        if raw.after is None or own is None:
            raise refused("a change has no row", change, "check the relay's log")
        row = row_json(own, raw.after, raw.unchanged)
        if own.id != layout.id:
            row = fitting_row(row, layout_change(own, layout))
        return self._form(layout).fields(row)

    def _form(self, layout: TableSchema) -> RowForm:
        place = (self._marks.log_generation, layout.id)
        if place not in self._forms:
            self._forms[place] = RowForm(layout)
        return self._forms[place]

    def _id(self, change: Change, key: bytes | None) -> str:
        if key is None:
            raise refused(
                "a row has no key to lie under",
                change,
                "give the table a primary key, or leave it out of the consumer's tables",
            )
        return document_id(key)

    def _routed(self, index: TableIndex, change: Change, key: bytes | None) -> str | None:
        column = index.routing
        if column is None or key is None:
            return None
        own, renamed = change.schema or index.layout, {}
        if own.id != index.layout.id:
            renamed = dict(layout_change(own, index.layout).renamed)
        names = [renamed.get(own.columns[number].name, own.columns[number].name) for number in own.key_indexes]
        if column not in names:
            what = (
                f"documents cannot be routed by {column}, which is no column of the key: a delete would not find them"
            )
            raise refused(what, change, f"route by one of {', '.join(names)}, or leave routing out")
        return routing_of(key_texts(key)[names.index(column)])

    def _present(self, index: TableIndex, change: Change, key: bytes | None) -> PresentRow | None:
        return self._rows.present(self._place(index, change, key))

    def _place(self, index: TableIndex, change: Change, key: bytes | None) -> Place:
        return Place(index.name, self._id(change, key), self._routed(index, change, key))

    def _fetch(self, windows: Sequence[Window]) -> None:
        """Reads at once the rows that these windows' changes leave values out of."""
        places: list[Place] = []
        for window in windows:
            if window.kind != Kind.TRANSACTION or window.last <= self._done:
                continue
            for change in window.changes:
                index = self._indices.known(change.raw.table) if change.raw.unchanged else None
                if index is None or change.schema is None or change.schema.id > index.layout.id:
                    continue  # not there yet, or copied before it is read
                keys = (change.raw.key, change.raw.old_key)
                places += [self._place(index, change, key) for key in keys if key is not None]
        if places:
            self._rows.fetch(places)

    def _index(self, change: Change) -> TableIndex:
        if change.schema is None:
            raise refused("a row has no layout", change, "check the relay's log")
        return self._fit(change.schema)

    def _fit(self, layout: TableSchema) -> TableIndex:
        """The table's index; its name is noted at once: who is killed before the commit looks for the indices by it."""
        before, index = self._indices.known(layout.oid), self._indices.fitting(layout, self._marks)
        if index is not before:
            self._state.set_aliases(self._indices.aliases)
        return index


__all__ = ["OpenSearchSink"]
