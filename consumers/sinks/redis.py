"""The Redis sink: rows under keys of templates, as hashes, as JSON texts, or as texts of a template.

Writes gather here until `commit`, which sends them as one MULTI with the checkpoint last: readers see whole
transactions of the source. A transaction of more than `_GATHERED` changes, or of large ones, is sent in parts as it
comes, under the checkpoint before it; after a crash it comes again from its beginning, and is compared by version.

Every script first compares the stored checkpoint with the one that this sink stored last. A server that came back
empty is noticed by that, and filled from a snapshot; so is another process that writes under the same name, and the
sink stops. A Redis that may evict keys is refused: a cache with holes in it is no copy.

A table may have a time to live (`ttl`): its rows are those of a cache then. One that has expired is not missed: an
update that leaves values out, and does not find the row that has them, leaves it away.

With a `pointer`, `walbus rebuild` fills the next generation of the rows beside the live one (`redis_copy`). Then rows
lie below a prefix that is known when the checkpoint is read.

A Redis Cluster is found by itself. It has no MULTI over all of its masters: rows are on one before they are on another.

    redis_options       the sink's keys
    redis_keys          where rows lie, by the template for all tables or by a table's own
    redis_rows          forms of rows, and that template; redis_stored reads and writes rows
    redis_ahead         rows that are read before they are asked for
    redis_lacking       which of them lack a value
    redis_rearranging   brings them to another layout; taken_names: where another table takes a table's name
    redis_parts         whose rows are whose, where those of a group's parts lie together
    redis_store         where they lie, and the consumer's own keys there: redis_server or redis_cluster
    redis_slots         what the masters of a cluster still hold, by their checkpoints
    redis_generations   which rows are live, and where each generation lies
    redis_scripts       the Lua
    redis_errors        what goes wrong with a Redis
    redis_invalidation  the other sink: keys that changed, for caches that others fill
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from walbus.consumers.checkpoint import Checkpoint, Marks, Part, dump_checkpoint, last_done_of
from walbus.consumers.partitions import GroupPart
from walbus.consumers.sinks.base import Batching, ChangeTakers, HeldRow, Sink, SinkPlace, refused
from walbus.consumers.sinks.layout import layout_change
from walbus.consumers.sinks.redis_ahead import RowsAhead
from walbus.consumers.sinks.redis_cluster import open_store
from walbus.consumers.sinks.redis_invalidation import RedisInvalidation
from walbus.consumers.sinks.redis_keys import OWN_KEY, RowKeys
from walbus.consumers.sinks.redis_lacking import LackingRows
from walbus.consumers.sinks.redis_layouts import StoredLayouts
from walbus.consumers.sinks.redis_options import RedisOptions
from walbus.consumers.sinks.redis_parts import RowsOfPart
from walbus.consumers.sinks.redis_rearranging import Rearranging
from walbus.consumers.sinks.redis_rows import (
    Columns,
    Entry,
    HashForm,
    JsonForm,
    StoredRow,
    StringForm,
    ValueTemplate,
    Verb,
)
from walbus.consumers.sinks.redis_store import RedisStore, Shape
from walbus.consumers.sinks.redis_stored import RedisRows, RowForm
from walbus.consumers.sinks.taken_names import configured_as, is_parked, parked
from walbus.consumers.sinks.taking_over import parse_stored
from walbus.consumers.steps import Sweep
from walbus.errors import InvalidText, SinkRefused
from walbus.events import Change, Window
from walbus.keys import key_texts
from walbus.position import ORIGIN, Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema

_GATHERED = 20_000
_ANY_SEQ = 1 << 53  # above every seq
_GATHERED_BYTES = 32 << 20  # a server closes a connection that sends it a gigabyte at once


class RedisSink:
    """Rows in a Redis; see `walbus.consumers.sinks.base.Sink`.

    Args:
        options: of the sink.
        tables: patterns of the tables that it is sent.
        server: that has the rows, or a cluster.
        part: of a group, that it holds.
    """

    def __init__(
        self, options: RedisOptions, tables: tuple[str, ...], server: RedisStore, part: GroupPart | None = None
    ) -> None:
        self._options, self._tables_wanted, self._server = options, tables, server
        self._part = RowsOfPart(part) if part is not None and part.together else None
        self._form = _form_of(options)
        texts, pointer = options.values, options.pointer or ""
        self._shape = Shape(options.key, options.format, texts, pointer, options.keys, tuple(sorted(options.ttl)))
        self._ttl = options.ttl
        self._layouts = StoredLayouts(self._server)
        self._lacking = LackingRows(self._server)
        self._lie_below(server.generation.rows)
        self._done: Position = ORIGIN  # everything up to here is accepted
        self._marks = Marks(0, 0)
        self._forget_gathered()

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Sink:
        """See `SinkType.open`."""
        read = RedisOptions.read(options, place)
        store = open_store(read.url.get_secret_value(), place.consumer, read.pointer or "", place.stopping)
        sink: Sink
        try:
            if read.invalidate is None:
                sink = cls(read, place.tables, store, place.part)
            else:
                sink = RedisInvalidation(read, read.invalidate, place, store)
            if place.part is None:  # who gets a part takes it over before anything is noted
                sink.checkpoint()
        except BaseException:
            store.close()
            raise
        return sink

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`."""
        return Batching(linger=0.002, max_changes=2_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        with self._server.errors():
            return self._begun(self._server.begin())

    def take_over(self, part: Part, lease_seconds: float) -> Checkpoint | None:
        """See `FencedSink.take_over`; nobody stands still in the middle of a MULTI."""
        del lease_seconds
        with self._server.errors():
            return self._begun(self._server.take_over(part))

    def _begun(self, text: str) -> Checkpoint | None:
        try:
            checkpoint = parse_stored(text).checkpoint
        except InvalidText as error:
            raise SinkRefused(error.what, where=self._server.where, mend=error.mend) from None
        self._lie_below(self._server.generation.rows)
        self._layouts.load()
        self._server.check_shape(self._shape, [layout.table for layout in self._layouts.all()])
        for layout in self._layouts.all():
            self._keys.know(layout)
        self._lacking.load()
        self._forget_gathered()
        self._done = last_done_of(checkpoint)
        return checkpoint

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._server.errors():
            self._mark_with(marks)
            self._stored.expect(self._left_out(windows))
            self._done = ChangeTakers(self._tables_wanted, self._take, self._load, self._fit).take(windows, self._done)
            self._send_if_many()

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._server.errors():
            self._mark_with(sweep.marks)
            self._send()
            self._server.shut_out()
            for key in self._rows.keys_of(sweep.table):
                self._gather(sweep.table, Entry(key, "w", sweep.seq))
                self._send_if_many()
            self._send()
            if lacking := self.lacking_keys(sweep.table):
                self._server.show_ahead(sweep.seq)
            for key in lacking:  # the replay behind the snapshot writes them anew, whole
                self._rows.forget(key)
            self._lacking.remove_table(sweep.table)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        with self._server.errors():
            self._rows.send(self._gathered, self._marks, dump_checkpoint(checkpoint))
            self._lacking.written()
        self._forget_gathered()
        self._done = last_done_of(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`. What was sent in parts stays, and is compared by version when it comes again."""
        self._lacking.not_written()
        self._forget_gathered()

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        return tuple(table for table in self._lacking.tables() if not is_parked(table))

    def settle(self) -> None:
        """See `SettlingSink.settle`."""
        with self._server.errors():
            self._server.settle()

    def held(self, table: str) -> Iterator[HeldRow]:
        """See `ReadableSink.held`."""
        layout = self._layouts.named(table)
        if layout is not None:
            with self._server.errors():
                yield from self._rows.held(table, layout)

    def as_held(self, change: Change) -> HeldRow:
        """See `ReadableSink.as_held`."""
        layout = None if change.schema is None else self._layouts.get(change.schema.oid) or change.schema
        if layout is None or change.raw.key is None:
            raise refused("a row has no layout or no key", change, "check the bootstrap's store")
        self._see_that_it_fits(layout, layout)
        parts = self._encode(change, layout, {})
        return self._rows.told(layout.table, key_texts(change.raw.key), change.seq, parts)

    def layouts(self) -> list[TableSchema]:
        """Those of the tables whose rows are there; may raise what `RedisStore.errors` translates, as the next two."""
        self._layouts.load()
        return self._layouts.all()

    def keys_of(self, table: str) -> Iterator[str]:
        """The keys of a table's rows; some may come twice."""
        return self._rows.keys_of(table)

    def lacking_keys(self, table: str) -> list[str]:
        """The keys of a table's rows that lack a value."""
        return self._lacking.keys_of(table)

    def expires(self, table: str) -> bool:
        """See `ExpiringSink.expires`."""
        return configured_as(table, self._ttl) in self._ttl

    def close(self) -> None:
        """See `Sink.close`."""
        self._forget_gathered()
        self._server.close()

    def _lie_below(self, prefix: str) -> None:
        self._keys = RowKeys(self._options.key, self._options.keys, prefix)
        tombstone_ms = self._options.tombstone_seconds * 1000
        self._rows = RedisRows(self._server, self._keys, self._form, tombstone_ms, self._ttl, self._part)
        self._stored = RowsAhead(self._rows)
        self._rearranging = Rearranging(self._rows, self._keys, self._form, self._lacking, self._ttl)

    # What is gathered

    def _forget_gathered(self) -> None:
        self._gathered: list[tuple[str, Entry]] = []  # (table, write), to be sent
        self._gathered_bytes = 0
        self._latest: dict[str, Entry] = {}  # the last of them for each key
        self._stored.forget()

    def _send(self) -> None:
        if self._gathered:
            self._server.show_ahead(max(entry.seq for _, entry in self._gathered))
            self._rows.send(self._gathered, self._marks, None)
            self._lacking.written()
            self._forget_gathered()

    def _send_if_many(self) -> None:
        if len(self._gathered) >= _GATHERED or self._gathered_bytes >= _GATHERED_BYTES:
            self._send()

    def _mark_with(self, marks: Marks) -> None:
        if marks != self._marks:
            self._send()
            self._marks = marks

    def _gather(self, table: str, entry: Entry) -> None:
        self._gathered.append((table, entry))
        self._gathered_bytes += sum(map(len, entry.parts))
        self._latest[entry.key] = entry
        if entry.verb != "w":
            self._lacking.remove(table, entry.key)

    # Changes

    def _take(self, change: Change) -> None:
        if self._options.keys and not self._tells_its_key(change):
            return
        match change.op:
            case Op.INSERT | Op.UPDATE:
                self._upsert(change)
            case Op.DELETE:
                table = self._table(change).table
                key = self._row_key(change, table, change.raw.key)
                self._gather(table, Entry(key, "d", change.seq, of=_of(change)))
            case Op.TRUNCATE:
                self._truncate(change)
        self._send_if_many()  # rows that are put together are larger than what came

    def _load(self, change: Change) -> None:
        """A snapshot's row; it replaces a row that lacks a value whatever its version: the log brings it forward."""
        layout = self._table(change)
        if self._options.keys and not self._tells_its_key(change):
            return
        key = self._row_key(change, layout.table, change.raw.key)
        verb: Verb = "f" if (layout.table, key) in self._lacking else "s"
        self._gather(layout.table, Entry(key, verb, change.seq, self._encode(change, layout, {}), _of(change)))

    def _upsert(self, change: Change) -> None:
        layout, raw = self._table(change), change.raw
        key = self._row_key(change, layout.table, raw.key)
        old_key = raw.old_key if self._has(raw.old_key) else None
        old = key if old_key is None else self._row_key(change, layout.table, old_key)
        if raw.unchanged:
            self._merge(change, layout, old, key)
        else:
            self._gather(layout.table, Entry(key, "u", change.seq, self._encode(change, layout, {}), _of(change)))
        if old != key:
            self._gather(layout.table, Entry(old, "d", change.seq, of=_of(change)))

    def _merge(self, change: Change, layout: TableSchema, old: str, key: str) -> None:
        """An update that leaves values out: they come from the row as it is now."""
        table = layout.table
        present = self._present(table, key)
        if present is not None and present.seq >= change.seq:
            return
        moved = self._present(table, old) if old != key else None
        stored = moved if moved is not None and moved.seq < change.seq else present  # a later row may have its key
        if stored is None and self.expires(table):  # it has expired: a cache need not have it
            self._gather(layout.table, Entry(key, "d", change.seq, of=_of(change)))
            return
        lacks = stored is None or (layout.table, old) in self._lacking
        columns = {} if stored is None else stored.columns
        self._gather(layout.table, Entry(key, "u", change.seq, self._encode(change, layout, columns), _of(change)))
        if lacks:
            self._lacking.add(layout.table, key)

    def _truncate(self, change: Change) -> None:
        layout = change.schema or self._layouts.get(change.raw.table)
        if layout is None:
            return
        self._send()
        self._server.shut_out()  # a delta does not bring what came before its TRUNCATE, so it may not come late either
        for key in self._rows.keys_of(layout.table):
            self._gather(layout.table, Entry(key, "d", change.seq))
            self._send_if_many()
        self._send()
        self._rows.raise_floor(layout.table, change.seq, self._marks)
        self._lacking.remove_table(layout.table)

    def _encode(self, change: Change, layout: TableSchema, stored: Columns) -> list[bytes]:
        if change.raw.after is None or change.schema is None:
            raise refused("a change has no row", change, "check the relay's log")
        if not change.raw.unchanged and change.schema.id == layout.id:
            whole = self._form.whole(layout, change.raw.after)
            if whole is not None:
                return whole
        columns = self._form.decode(change.schema, change.raw.after, change.raw.unchanged)
        if change.schema.id != layout.id:
            columns = self._form.rearranged(columns, layout_change(change.schema, layout))
        if change.raw.unchanged:
            columns = self._form.completed(columns, stored, change.unchanged, layout)
        return self._form.parts(columns, layout.table)

    def _has(self, key: bytes | None) -> bool:
        """Whether a key is of this part: the row that leaves a part is deleted, and known, by that part's own sink."""
        return key is not None and (self._part is None or self._part.has(key))

    def _tells_its_key(self, change: Change) -> bool:
        """Whether it does; one of before the table had its present key, which comes again, need not."""
        return change.op == Op.TRUNCATE or self._keys.tells(self._table(change).table, change.schema)

    def _row_key(self, change: Change, table: str, key: bytes | None) -> str:
        if key is None:
            raise refused(
                "a row has no key to lie under",
                change,
                "give the table a primary key, or leave it out of the consumer's tables",
            )
        row_key = self._keys.row_key(table, key, change.schema)
        if self._keys.is_a_sinks_own(row_key):
            raise refused(OWN_KEY[0], change, OWN_KEY[1])
        return row_key

    # Rows as they are now, gathered or stored

    def _present(self, table: str, key: str) -> StoredRow | None:
        stored, latest = self._stored.row(table, key, self._marks), self._latest.get(key)
        if latest is None or (stored is not None and stored.seq > latest.seq):
            return stored
        if not latest.parts:
            return None
        return StoredRow(latest.seq, self._marks.generation, self._form.columns(latest.parts, table))

    def _left_out(self, windows: Sequence[Window]) -> Iterator[tuple[str, str]]:
        """Table and key of the rows that these windows' changes leave values out of."""
        for window in windows:
            for change in window.changes if window.kind == Kind.TRANSACTION else ():
                if change.raw.unchanged and self._keys.tells(change.table, change.schema):
                    for key in (change.raw.key, change.raw.old_key):
                        if key is not None and self._has(key):
                            yield change.table, self._keys.row_key(change.table, key, change.schema)

    # Layouts

    def _table(self, change: Change) -> TableSchema:
        if change.schema is None:
            raise refused("a row has no layout", change, "check the relay's log")
        return self._fit(change.schema)

    def _fit(self, layout: TableSchema) -> TableSchema:
        """The table's present layout, once its rows have been brought to `layout` if that is newer."""
        present = self._layouts.present(layout, self._marks.log_generation)
        if present is not None:
            if not self._keys.knows(present.table):  # its rows were carried over into this copy
                self._keys.know(present)
            return present
        known = self._layouts.get(layout.oid)
        self._see_that_it_fits(layout, known)
        for other in self._layouts.called(layout, self._marks.log_generation):
            self._rearrange(other, parked(other))
            self._layouts.store(parked(other), self._marks.log_generation)
        if known is not None and not known.same_layout(layout):
            self._rearrange(known, layout)
        self._keys.know(layout)
        self._layouts.store(layout, self._marks.log_generation)
        return layout

    def _see_that_it_fits(self, layout: TableSchema, known: TableSchema | None) -> None:
        others = [other.table for other in self._layouts.all()]
        misfit = self._keys.misfit(layout, known, others)
        if misfit is None and isinstance(self._form, HashForm):
            misfit = self._form.misfit(layout, known)
        if misfit is not None:
            raise SinkRefused(misfit[0], where=layout.table, mend=misfit[1])
        if known is not None and self.expires(known.table) and layout.table not in self._ttl:
            what = f"{known.table}, whose rows have a time to live, is called {layout.table} now"
            raise SinkRefused(what, where=layout.table, mend="name it so in ttl")

    def _rearrange(self, before: TableSchema, now: TableSchema) -> None:
        """Brings a table's rows to a new layout: columns by their new names, and keys by the table's own."""
        self._send()
        self._server.show_ahead(_ANY_SEQ)
        self._rearranging.bring(before, now, self._marks)
        self._stored.forget()


def _form_of(options: RedisOptions) -> RowForm:
    if options.format == "string":
        return StringForm({table: ValueTemplate(text) for table, text in options.values.items()})
    return HashForm() if options.format == "hash" else JsonForm()


def _of(change: Change) -> tuple[int, bytes | None]:
    return change.raw.table, change.raw.key


__all__ = ["RedisSink"]
