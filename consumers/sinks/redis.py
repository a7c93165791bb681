"""The Redis sink: rows under keys of a template, as hashes or as JSON texts.

Writes gather here until `commit`, which sends them as one MULTI with the checkpoint last: readers see whole
transactions of the source. A transaction of more than `_GATHERED` changes is sent in parts as it comes, still under
the checkpoint before it; after a crash it comes again from its beginning, and is compared by version.

Every script first compares the stored checkpoint with the one that this sink stored last. A server that came back
empty is noticed by that, and filled from a snapshot; so is another process that writes under the same name, and the
sink stops. A Redis that may evict keys is refused: a cache with holes in it is no copy.

Redis Cluster is not supported yet: a row and its version must lie on one node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import msgspec
import redis
from pydantic import Field, SecretStr, field_validator
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from walbus.consumers.checkpoint import Checkpoint, Marks, dump_checkpoint, last_done_of, load_checkpoint
from walbus.consumers.machine import Sweep
from walbus.consumers.sinks.base import Batching, SinkOptions, SinkPlace, refused
from walbus.consumers.sinks.layout import layout_change
from walbus.consumers.sinks.redis_rows import Entry, Form, HashForm, JsonForm, KeyTemplate, StoredRow, Verb, arguments
from walbus.consumers.sinks.redis_scripts import APPLY, COMMIT, RAISE_FLOOR, VERSION_FIELD
from walbus.consumers.tables import matching
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable
from walbus.events import Change, Window
from walbus.position import ORIGIN, Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema

_GATHERED = 20_000
_SCRIPT_ENTRIES = 500  # one script blocks the server; this many rows take it a few milliseconds
_TIMEOUT_SECONDS = 5.0
_AWAY = ("OOM", "READONLY", "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOSCRIPT", "TRYAGAIN")


class RedisOptions(SinkOptions):
    """Keys of `[consumer.NAME]` with `sink = "redis"`."""

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    key: str = "{table}:{key}"  #: where a row lies
    format: Form = "hash"
    tombstone_seconds: int = Field(3600, ge=60)  #: how long a deleted row is remembered against late writers

    @field_validator("key")
    @classmethod
    def _is_template(cls, key: str) -> str:
        KeyTemplate(key)
        return key


class RedisSink:
    """Rows in one Redis; see `walbus.consumers.sinks.base.Sink`."""

    def __init__(self, options: RedisOptions, place: SinkPlace) -> None:
        self._options = options
        self._tables_wanted = place.tables
        self._prefix = f"walbus:{place.consumer}:"
        self._template = KeyTemplate(options.key)
        self._form: HashForm | JsonForm = HashForm() if options.format == "hash" else JsonForm()
        # A retry behind our back would meet a checkpoint that its own first attempt has moved.
        self._redis = redis.Redis.from_url(
            options.url.get_secret_value(), socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0),
        )  # fmt: skip
        address = self._redis.connection_pool.connection_kwargs
        self._where = f"redis {address.get('host', address.get('path', ''))}:{address.get('port', '')}"
        self._stored = ""  # the checkpoint that the server has, as far as this sink knows
        self._done: Position = ORIGIN  # everything up to here is accepted
        self._gathered: list[tuple[str, Entry]] = []  # (table, write), to be sent
        self._latest: dict[str, Entry] = {}  # the last of them for each key
        self._marks = Marks(0, 0)
        self._layouts: dict[int, TableSchema] = {}
        self._layouts_log = 0  # log_generation that the layouts' numbers belong to
        self._lacking: set[str] = set()  # "table\0row key" of rows that lack a value

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        sink = cls(RedisOptions.read(options, place), place)
        sink.checkpoint()
        return sink

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`."""
        return Batching(linger=0.002, max_changes=2_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        with self._errors():
            self._refuse_eviction()
            self._apply = self._redis.script_load(APPLY)
            self._raise_floor = self._redis.script_load(RAISE_FLOOR)
            self._set_checkpoint = self._redis.script_load(COMMIT)
            self._stored = (self._get(self._name("checkpoint")) or b"").decode()
            layouts = msgspec.json.decode(self._get(self._name("layouts")) or b"{}", type=dict[str, Any])
            lacking = cast(set[bytes], self._redis.smembers(self._name("lacking")))
        self._forget_gathered()
        self._lacking = {member.decode() for member in lacking}
        known = (TableSchema.from_dict(document) for document in layouts.get("layouts", []))
        self._layouts = {layout.oid: layout for layout in known}
        self._layouts_log = layouts.get("log_generation", 0)
        try:
            checkpoint = load_checkpoint(self._stored) if self._stored else None
        except InvalidText as error:
            raise SinkRefused(error.what, where=self._name("checkpoint"), mend=error.mend) from None
        self._done = last_done_of(checkpoint)
        return checkpoint

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._errors():
            self._mark_with(marks)
            for window in windows:
                self._write(window)
            if len(self._gathered) >= _GATHERED:
                self._send(None)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._errors():
            self._mark_with(sweep.marks)
            self._send(None)
            for key in self._keys_of(sweep.table):
                self._gather(sweep.table, Entry(key, "w", sweep.seq))
            self._complete_table(sweep.table)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        with self._errors():
            self._send(dump_checkpoint(checkpoint))
        self._done = last_done_of(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`. What was sent in parts stays, and is compared by version when it comes again."""
        self._forget_gathered()

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        return tuple(sorted({member.partition("\0")[0] for member in self._lacking})) if self._lacking else ()

    def close(self) -> None:
        """See `Sink.close`."""
        self._forget_gathered()
        self._redis.close()

    # The server

    def _name(self, what: str) -> str:
        return self._prefix + what

    def _get(self, key: str) -> bytes | None:
        return cast("bytes | None", self._redis.get(key))

    def _refuse_eviction(self) -> None:
        memory = self._redis.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise SinkRefused(
                f"this Redis may evict keys (maxmemory-policy {policy}), and rows would be missing",
                where=self._where,
                mend="set maxmemory-policy to noeviction, or use another Redis",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise SinkUnavailable(f"Redis does not answer ({type(error).__name__})", where=self._where) from None
        except redis.RedisError as error:
            word = str(error).partition(" ")[0]
            if word.startswith(_AWAY):
                raise SinkUnavailable(f"Redis cannot write now ({word})", where=self._where) from None
            raise SinkRefused(f"Redis refuses ({word})", where=self._where) from None

    def _forget_gathered(self) -> None:
        self._gathered, self._latest = [], {}

    def _mark_with(self, marks: Marks) -> None:
        if marks != self._marks:
            self._send(None)
            self._marks = marks

    def _floor(self, table: str) -> str:
        return self._name(f"floor:{self._marks.log_generation}:{table}")

    def _send(self, checkpoint: str | None) -> None:
        """All that was gathered, in one MULTI; with the checkpoint last, if one is given."""
        if not self._gathered and checkpoint in (None, self._stored):
            return
        with self._redis.pipeline(transaction=True) as pipeline:
            for table, entries in self._runs():
                self._send_run(pipeline, table, entries)
            if checkpoint is not None:
                pipeline.evalsha(self._set_checkpoint, 1, self._name("checkpoint"), self._stored, checkpoint)
            if -1 in pipeline.execute():
                self._fenced()
        self._forget_gathered()
        self._stored = self._stored if checkpoint is None else checkpoint

    def _send_run(self, pipeline: Pipeline, table: str, entries: Sequence[Entry]) -> None:
        keys = [self._name("checkpoint"), self._floor(table)]
        for entry in entries:
            keys += (entry.key, self._name(f"v:{entry.key}"))
        head = (self._stored, self._marks.log_generation, self._options.tombstone_seconds * 1000)
        pipeline.evalsha(self._apply, len(keys), *keys, *head, *arguments(entries, self._marks.generation))

    def _runs(self) -> Iterator[tuple[str, list[Entry]]]:
        """The writes by table, each in its order; rows of two tables never share a key."""
        by_table: dict[str, list[Entry]] = {}
        for table, entry in self._gathered:
            by_table.setdefault(table, []).append(entry)
        for table, entries in by_table.items():
            for start in range(0, len(entries), _SCRIPT_ENTRIES):
                yield table, entries[start : start + _SCRIPT_ENTRIES]

    def _fenced(self) -> None:
        if self._get(self._name("checkpoint")) is None:
            raise SinkUnavailable("this Redis came back empty; it is filled from a snapshot", where=self._where)
        raise SinkRefused(
            "another consumer writes this Redis under the same name",
            where=self._where,
            mend="let one process run the consumer, or give each its own name and key",
        )

    # Changes

    def _write(self, window: Window) -> None:
        match window.kind:
            case Kind.TRANSACTION if window.last > self._done:
                for change in window.changes:
                    self._take(change)
                if window.ends:
                    self._done = window.last
            case Kind.SNAPSHOT:
                for change in window.changes:
                    self._load(change)
            case Kind.SCHEMA:
                for change in window.changes:
                    if change.schema is not None and matching([change.schema.table], self._tables_wanted):
                        self._fit(change.schema)

    def _take(self, change: Change) -> None:
        match change.op:
            case Op.INSERT | Op.UPDATE:
                self._upsert(change)
            case Op.DELETE:
                table = self._table(change)
                self._gather(table, Entry(self._row_key(change, table, change.raw.key), "d", change.seq))
            case Op.TRUNCATE:
                self._truncate(change)

    def _load(self, change: Change) -> None:
        """A snapshot's row; it replaces a row that lacks a value whatever its version: the log brings it forward."""
        table = self._table(change)
        key = self._row_key(change, table, change.raw.key)
        verb: Verb = "f" if _member(table, key) in self._lacking else "s"
        self._gather(table, Entry(key, verb, change.seq, self._encode(change, {})))

    def _upsert(self, change: Change) -> None:
        table, raw = self._table(change), change.raw
        key = self._row_key(change, table, raw.key)
        old = key if raw.old_key is None else self._row_key(change, table, raw.old_key)
        if raw.unchanged:
            self._merge(change, table, old, key)
        else:
            self._gather(table, Entry(key, "u", change.seq, self._encode(change, {})))
        if old != key:
            self._gather(table, Entry(old, "d", change.seq))

    def _merge(self, change: Change, table: str, old: str, key: str) -> None:
        """An update that leaves values out: they come from the row as it is now."""
        present = self._present(key)
        if present is not None and present.seq >= change.seq:
            return
        before = self._present(old) if old != key else present
        stored = before or present
        lacks = stored is None or _member(table, old) in self._lacking
        columns = {} if stored is None else stored.columns
        self._gather(table, Entry(key, "u", change.seq, self._encode(change, columns)))
        if lacks:
            self._lacking.add(_member(table, key))
            self._redis.sadd(self._name("lacking"), _member(table, key))

    def _truncate(self, change: Change) -> None:
        layout = change.schema or self._layouts.get(change.raw.table)
        if layout is None:
            return
        self._send(None)
        for key in self._keys_of(layout.table):
            self._gather(layout.table, Entry(key, "d", change.seq))
        self._send(None)
        floor = self._floor(layout.table)
        if self._redis.evalsha(self._raise_floor, 2, self._name("checkpoint"), floor, self._stored, change.seq) == -1:
            self._fenced()
        self._complete_table(layout.table)

    def _gather(self, table: str, entry: Entry) -> None:
        self._gathered.append((table, entry))
        self._latest[entry.key] = entry
        if self._lacking and _member(table, entry.key) in self._lacking:
            self._complete([_member(table, entry.key)])

    def _encode(self, change: Change, stored: Mapping[bytes, bytes]) -> list[bytes]:
        if change.raw.after is None or change.schema is None:
            raise refused("a change has no row", change, "check the relay's log")
        return self._form.encode(change.schema, change.raw.after, change.raw.unchanged, stored)

    def _present(self, key: str) -> StoredRow | None:
        """The row as it is now, gathered or stored; None if there is none."""
        stored = self._stored_row(key)
        latest = self._latest.get(key)
        if latest is None or (stored is not None and stored.seq > latest.seq):
            return stored
        return StoredRow(latest.seq, self._marks.generation, self._form.columns(latest.parts)) if latest.parts else None

    def _stored_row(self, key: str) -> StoredRow | None:
        if isinstance(self._form, HashForm):
            fields = cast(dict[bytes, bytes], self._redis.hgetall(key))
            version = fields.pop(VERSION_FIELD.encode(), None)
            parts = [part for pair in fields.items() for part in pair]
        else:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.get(key)
                pipeline.get(self._name(f"v:{key}"))
                text, version = pipeline.execute()
            parts = [] if text is None else [text]
        if version is None or not parts:
            return None
        seq, mark = map(int, version.split(b":"))
        return StoredRow(seq if mark >= self._marks.log_generation else -1, mark, self._form.columns(parts))

    def _row_key(self, change: Change, table: str, key: bytes | None) -> str:
        if key is None:
            raise refused(
                "a row has no key to lie under",
                change,
                "give the table a primary key, or leave it out of the consumer's tables",
            )
        return self._template.row_key(table, key)

    def _keys_of(self, table: str) -> list[str]:
        """The keys of a table's rows, and perhaps others' that look alike: versions tell them apart."""
        found = (key.decode() for key in self._redis.scan_iter(match=self._template.pattern(table), count=1000))
        return [key for key in found if not key.startswith(self._prefix) and self._stored_row(key) is not None]

    def _complete(self, members: list[str]) -> None:
        if members:
            self._lacking.difference_update(members)
            self._redis.srem(self._name("lacking"), *members)

    def _complete_table(self, table: str) -> None:
        self._complete([member for member in self._lacking if member.startswith(f"{table}\0")])

    # Layouts

    def _table(self, change: Change) -> str:
        if change.schema is None:
            raise refused("a row has no layout", change, "check the relay's log")
        return self._fit(change.schema)

    def _fit(self, layout: TableSchema) -> str:
        """The table's present name, once its rows have been brought to `layout` if that is newer."""
        known = self._layouts.get(layout.oid)
        newer_log = self._marks.log_generation > self._layouts_log
        if known is not None and known.id >= layout.id and not newer_log:
            return known.table
        if newer_log:
            self._layouts_log = self._marks.log_generation
            self._layouts = {}
        self._layouts[layout.oid] = layout
        if known is not None and not known.same_layout(layout):
            self._rewrite(known, layout)
        documents = [table.to_dict() for table in self._layouts.values()]
        content = msgspec.json.encode({"log_generation": self._layouts_log, "layouts": documents})
        self._redis.set(self._name("layouts"), content)
        return layout.table

    def _rewrite(self, before: TableSchema, now: TableSchema) -> None:
        """Brings a table's rows to a new layout: columns by their new names, and keys by the table's own."""
        self._send(None)
        change, marks = layout_change(before, now), self._marks
        for key in self._keys_of(before.table):
            row = self._stored_row(key)
            if row is None:
                continue
            moved = self._template.moved(key, before.table, now.table)
            parts = self._form.rearranged(row.columns, change)
            self._marks = Marks(row.mark, marks.log_generation)
            self._gather(now.table, Entry(moved, "f", row.seq, parts))
            self._send(None)
            if moved != key:
                self._redis.delete(key, self._name(f"v:{key}"))
        self._marks = marks


def _member(table: str, key: str) -> str:
    return f"{table}\0{key}"


__all__ = ["RedisOptions", "RedisSink"]
