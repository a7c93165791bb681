"""The rows of one consumer in one Redis: written by version, and read as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import redis

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.redis_rows import Entry, HashForm, JsonForm, KeyTemplate, StoredRow, StringForm, arguments
from walbus.consumers.sinks.redis_scripts import APPLY, RAISE_FLOOR, VERSION_FIELD
from walbus.consumers.sinks.redis_server import Call, RedisServer

SCRIPT_ENTRIES = 500  # one script blocks the server; this many rows take it a few milliseconds

RowForm: TypeAlias = HashForm | JsonForm | StringForm
_Answer: TypeAlias = Any  # redis-py types the answers of a pipeline so, whatever the command


class RedisRows:
    """Rows under keys of a template. Methods may raise what `RedisServer.errors` translates.

    Args:
        server: that has them.
        template: of their keys.
        form: of the rows.
        tombstone_ms: how long a deleted row's version is kept.
        ttl: by table, seconds that a row stays behind its last write; for ever where a table has none.
    """

    def __init__(
        self, server: RedisServer, template: KeyTemplate, form: RowForm, tombstone_ms: int, ttl: Mapping[str, int]
    ) -> None:
        self._server, self._template, self._form = server, template, form
        self._tombstone_ms, self._ttl = tombstone_ms, ttl
        self._is_hash = not isinstance(form, JsonForm | StringForm)

    def send(self, gathered: Sequence[tuple[str, Entry]], marks: Marks, checkpoint: str | None) -> None:
        """Writes of (table, entry); with the checkpoint last, if one is given. Raises as `RedisServer.send`."""
        calls = (self._call(table, entries, marks) for table, entries in _runs(gathered))
        self._server.send(
            calls, checkpoint, ((table, self._beside(one.key), one.seq, one.of) for table, one in gathered)
        )

    def raise_floor(self, table: str, seq: int, marks: Marks) -> None:
        """From now on, no change of the table with a seq at or below this one applies."""
        self._server.call(RAISE_FLOOR, self._floor(table, marks), seq)

    def forget(self, key: str) -> None:
        """Deletes a row whose table is called otherwise now."""
        self._server.remove(key, self._beside(key))

    def _call(self, table: str, entries: Sequence[Entry], marks: Marks) -> Call:
        keys = [self._floor(table, marks)]
        for entry in entries:
            keys += (entry.key, self._beside(entry.key))
        form = "hash" if self._is_hash else "text"
        head = (marks.log_generation, self._tombstone_ms, self._ttl.get(table, 0) * 1000, form)
        return APPLY, keys, (*head, *arguments(entries, marks.generation))

    def rows(self, table: str, keys: Sequence[str], marks: Marks) -> list[StoredRow | None]:
        """Rows as they are stored, in one round trip; None where there is none of ours."""
        with self._server.pipeline() as pipeline:
            for key in keys:
                if self._is_hash:
                    pipeline.hgetall(key)
                else:
                    pipeline.get(key)
                    pipeline.get(self._beside(key))
            answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, redis.RedisError) and not str(answer).startswith("WRONGTYPE"):
                raise answer
        if self._is_hash:
            return [self._from_hash(table, fields, marks) for fields in answers]
        return [self._from_text(table, *pair, marks) for pair in zip(answers[::2], answers[1::2], strict=True)]

    def keys_of(self, table: str, marks: Marks) -> list[str]:
        """The keys of a table's rows: versions tell them from others' that look alike."""
        found = list(self._server.scan(self._template.pattern(table)))
        ours: list[str] = []
        for start in range(0, len(found), SCRIPT_ENTRIES):
            keys = found[start : start + SCRIPT_ENTRIES]
            ours += [key for key, row in zip(keys, self.rows(table, keys, marks), strict=True) if row is not None]
        return ours

    def _from_hash(self, table: str, fields: _Answer, marks: Marks) -> StoredRow | None:
        if isinstance(fields, redis.RedisError):  # a key of another type
            return None
        version = fields.pop(VERSION_FIELD.encode(), None)
        parts = [part for pair in fields.items() for part in pair]
        return self._row(table, version, parts, marks) if version else None

    def _from_text(self, table: str, text: _Answer, beside: _Answer, marks: Marks) -> StoredRow | None:
        if not isinstance(text, bytes) or not isinstance(beside, bytes):
            return None
        version, _, kept = beside.partition(b"\n")
        return self._row(table, version, [text, kept], marks)

    def _row(self, table: str, version: bytes, parts: list[bytes], marks: Marks) -> StoredRow:
        seq, mark = map(int, version.split(b":"))
        columns = self._form.columns(parts, table)
        return StoredRow(seq if mark >= marks.log_generation else -1, mark, columns)

    def _beside(self, key: str) -> str:
        return self._server.name(f"v:{key}")

    def _floor(self, table: str, marks: Marks) -> str:
        return self._server.name(f"floor:{marks.log_generation}:{table}")


def _runs(gathered: Sequence[tuple[str, Entry]]) -> Iterator[tuple[str, list[Entry]]]:
    """The writes by table, each in its order; rows of two tables never share a key."""
    by_table: dict[str, list[Entry]] = {}
    for table, entry in gathered:
        by_table.setdefault(table, []).append(entry)
    for table, entries in by_table.items():
        for start in range(0, len(entries), SCRIPT_ENTRIES):
            yield table, entries[start : start + SCRIPT_ENTRIES]
