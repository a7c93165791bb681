"""The Redis sink for caches that others fill: the keys that changed are deleted, published, or both, and no value is.

Deleted: a key goes, and leaves its version beside it for `tombstone_seconds`. A program that fills the cache may hold a
value that it read before the change, and store it behind the delete: so it looks at the version and at the epoch before
it reads the source, and lets `redis_scripts.FILL` store the value only if both are still the same. That holds as long
as the version outlives the reading, and as the source is read where the log comes from, or not behind it.

On a cluster a key, its version and its epoch lie in one slot, and so each slot has an epoch. What was deleted is in the
place of rows there: a checkpoint of each master vouches for it (`redis_slots`). Nothing is published: nodes pass
messages on to each other, and one that is lost on its way is missed by nobody.

Published: one message for the keys of a table that a commit brings, `{"table": …, "keys": […], "seq": …}`; `keys` is
null where all of the table changed, `table` too where all of them did. Redis keeps no messages: who was not connected
forgets everything it has.

What cannot be told by keys moves the epoch, and is looked up by the template's pattern: a TRUNCATE, the sweep behind a
snapshot (whose rows say nothing else here), another layout, and the very first checkpoint, before which nobody told
what changed. A Redis that evicts does no harm: a lost checkpoint is a new beginning, and all cached values go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from walbus.consumers.checkpoint import Checkpoint, Marks, dump_checkpoint, last_done_of, load_checkpoint
from walbus.consumers.sinks.base import Batching, ChangeTakers, SinkPlace, refused
from walbus.consumers.sinks.redis_keys import OWN_KEY, RowKeys
from walbus.consumers.sinks.redis_layouts import StoredLayouts
from walbus.consumers.sinks.redis_options import Invalidation, RedisOptions
from walbus.consumers.sinks.redis_server import RedisServer
from walbus.consumers.sinks.redis_store import Call, RedisStore, Shape, Written
from walbus.consumers.sinks.redis_stored import SCRIPT_ENTRIES, some
from walbus.consumers.steps import Sweep
from walbus.consumers.tables import matching
from walbus.errors import InvalidText, SinkRefused
from walbus.events import Change, Window
from walbus.position import ORIGIN, Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema

_GATHERED = 20_000
_UNLINKED = 2_000  # cached keys that are looked for, and deleted then

_Changed: TypeAlias = tuple[int, tuple[int, bytes]]  # its seq; relation and key


class RedisInvalidation:
    """Keys that changed; see `walbus.consumers.sinks.base.Sink`.

    Raises:
        SinkRefused: messages are to be published, and the Redis is a cluster.
    """

    def __init__(self, options: RedisOptions, invalidation: Invalidation, place: SinkPlace, store: RedisStore) -> None:
        if invalidation != "delete" and not isinstance(store, RedisServer):
            raise SinkRefused(
                "nodes of a cluster pass messages on and may lose some, which no program that listens would notice",
                where=store.where,
                mend='write invalidate = "delete", or use a Redis without cluster mode',
            )
        self._tables_wanted = place.tables
        self._keys = RowKeys(options.key, options.keys)
        self._shape = Shape(options.key, "keys", keys=options.keys)
        self._deletes = invalidation in ("delete", "both")
        self._server = store
        self._channel = options.channel or self._server.name("changed") if invalidation != "delete" else ""
        self._tombstone_ms = options.tombstone_seconds * 1000
        self._done: Position = ORIGIN  # everything up to here is accepted
        self._marks = Marks(0, 0)
        self._layouts = StoredLayouts(self._server)
        self._gathered: dict[str, dict[str, _Changed]] = {}  # by table: keys, and the last change of each
        self._count = 0
        self._begun = False  # whether there is a checkpoint

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`."""
        return Batching(linger=0.002, max_changes=2_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        self._forget()
        with self._server.errors():
            text = self._server.begin(may_evict=True)
            self._layouts.load()
            self._server.check_shape(self._shape, [layout.table for layout in self._layouts.all()])
            for layout in self._layouts.all():
                self._keys.know(layout)
        try:
            checkpoint = load_checkpoint(text) if text else None
        except InvalidText as error:
            raise SinkRefused(error.what, where=self._server.where, mend=error.mend) from None
        self._done = last_done_of(checkpoint)
        self._begun = checkpoint is not None
        return checkpoint

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._server.errors():
            if marks != self._marks:
                self._send(None)
                self._marks = marks
            told = [
                window for window in windows if window.kind is not Kind.SNAPSHOT
            ]  # a row that is read changed nothing
            self._done = ChangeTakers(self._tables_wanted, self._take, self._take, self._fit).take(told, self._done)
            if self._count >= _GATHERED:
                self._send(None)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`. What the cache holds of the table may be older than the snapshot."""
        with self._server.errors():
            self._empty(sweep.table)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        with self._server.errors():
            if not self._begun:
                self._empty(None)
            self._send(dump_checkpoint(checkpoint))
        self._begun = True
        self._done = last_done_of(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`. What was told already was no lie: the log has it."""
        self._forget()

    @property
    def has_no_rows_by(self) -> str:
        """See `RowlessSink.has_no_rows_by`."""
        return "invalidate"

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`: there are no rows."""
        return ()

    def close(self) -> None:
        """See `Sink.close`."""
        self._forget()
        self._server.close()

    # Changes

    def _take(self, change: Change) -> None:
        if change.op == Op.TRUNCATE:
            layout = change.schema or self._layouts.get(change.raw.table)
            if layout is not None:
                self._empty(layout.table)
            return
        if change.schema is None:
            raise refused("a row has no layout", change, "check the relay's log")
        table = self._fit(change.schema).table
        if change.raw.key is None:
            mend = "give the table a primary key, or leave it out of the consumer's tables"
            raise refused("a row has no key to be cached by", change, mend)
        if not self._keys.tells(table, change.schema):
            return
        changed = change.seq, (change.raw.table, change.raw.key)
        keys = [key for key in (change.raw.key, change.raw.old_key) if key is not None]
        for number, row_key in enumerate(self._keys.row_key(table, key, change.schema) for key in keys):
            if not number and self._keys.is_a_sinks_own(row_key):
                raise refused(OWN_KEY[0], change, OWN_KEY[1])
            self._gathered.setdefault(table, {})[row_key] = changed
            self._count += 1

    def _fit(self, layout: TableSchema) -> TableSchema:
        """The table's present layout; with another one than before, what is cached of the table is of another form."""
        present = self._layouts.present(layout, self._marks.log_generation)
        if present is not None:
            return present
        known = self._layouts.get(layout.oid)
        others = [other.table for other in self._layouts.all() if other.oid != layout.oid]
        misfit = self._keys.misfit(layout, known, others)
        if misfit is not None:
            raise SinkRefused(misfit[0], where=layout.table, mend=misfit[1])
        self._keys.know(layout)
        if known is not None and not known.same_layout(layout):
            self._empty(known.table)
        if layout.table in others or (known is not None and known.table != layout.table):  # another had its name
            self._empty(layout.table)
        self._layouts.store(layout, self._marks.log_generation)
        return layout

    # What is told

    def _forget(self) -> None:
        self._gathered = {}
        self._count = 0

    def _send(self, checkpoint: str | None) -> None:
        if self._gathered or checkpoint is not None:
            self._server.send(self._calls(), checkpoint, self._written() if self._deletes else ())
            self._forget()

    def _written(self) -> Iterator[Written]:
        for table, changed in self._gathered.items():
            for key, (seq, of) in changed.items():
                yield table, self._server.beside(key), seq, of

    def _calls(self) -> Iterator[Call]:
        for table, changed in self._gathered.items():
            for some_keys in self._together(changed):
                keys = [name for key in some_keys for name in (key, self._server.beside(key))] if self._deletes else []
                seqs = [changed[key][0] for key in some_keys]
                message = self._message(table, some_keys, max(seqs))
                head = (self._marks.log_generation, self._tombstone_ms, self._marks.generation)
                yield self._server.invalidate, keys, (*head, self._channel, message, *(seqs if self._deletes else ()))

    def _together(self, keys: Iterable[str]) -> Iterator[list[str]]:
        """Keys that one script may take."""
        by_slot: dict[int, list[str]] = {}
        for key in keys:
            by_slot.setdefault(self._server.slot(key), []).append(key)
        for together in by_slot.values():
            yield from some(together, SCRIPT_ENTRIES)

    def _empty(self, table: str | None) -> None:
        """All that is cached of a table, or of all tables, is forgotten."""
        self._send(None)
        self._server.move_epoch(self._channel, self._message(table, None, None))
        for found in some(self._cached(table) if self._deletes else (), _UNLINKED):
            calls: Iterator[Call] = ((self._server.unlink, keys, ()) for keys in self._together(found))
            self._server.send(calls, None, ())

    def _cached(self, table: str | None) -> Iterator[str]:
        """The keys that are cached of a table (and perhaps of another whose name begins so), or of all tables."""
        for name in self._tables_wanted if table is None else (table,):
            if "*" not in name:
                yield from self._server.scan(self._keys.pattern(name))
        if table is None and any("*" in name for name in self._tables_wanted):
            for own in self._keys.own:
                yield from self._server.scan(self._keys.pattern(own))
            for key in self._server.scan(self._keys.any_pattern()):
                named = self._keys.table_of(key)
                if named is not None and "." in named and matching([named], self._tables_wanted):
                    yield key

    def _message(self, table: str | None, keys: Sequence[str] | None, seq: int | None) -> str:
        if not self._channel:
            return ""
        return msgspec.json.encode({"table": table, "keys": keys, "seq": seq}).decode()


__all__ = ["RedisInvalidation"]
