"""The rows of one consumer in Redis: written by version, and read as they are.

What lies under a row's key may be by others: it has no version then. Somebody may also have written into a row of ours,
so that it is none of the form any more. It counts as not there where values are taken from it; it keeps its version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import msgspec
import redis

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.base import HeldRow
from walbus.consumers.sinks.redis_keys import RowKeys
from walbus.consumers.sinks.redis_parts import RowsOfPart, part_told
from walbus.consumers.sinks.redis_rows import (
    Columns,
    Entry,
    HashForm,
    JsonForm,
    StoredRow,
    StringForm,
    arguments,
)
from walbus.consumers.sinks.redis_scripts import VERSION_FIELD
from walbus.consumers.sinks.redis_store import Call, Reads, RedisStore
from walbus.consumers.sinks.taken_names import configured_as
from walbus.schema import TableSchema

SCRIPT_ENTRIES = 500  # one script blocks the server; this many rows take it a few milliseconds
READ_AT_ONCE = 50  # rows that are read back in a round trip: one may have a megabyte
_VERSION = re.compile(rb"(-?\d+):(\d+)")  # as the scripts read one

RowForm: TypeAlias = HashForm | JsonForm | StringForm
_Answer: TypeAlias = Any  # redis-py types the answers of a pipeline so, whatever the command


class _Found(NamedTuple):
    """What lies under a row's key.

    Attributes:
        version: its seq and mark; None: it is not ours.
        parts: of the row, with an empty one where nothing is kept beside a text; None: it is of another type than rows.
        is_of_a_part: whether it tells that another part of the group wrote it.
    """

    version: tuple[int, int] | None
    parts: list[bytes] | None
    is_of_a_part: bool = False


class RedisRows:
    """Rows under keys of templates. Methods may raise what `RedisStore.errors` translates.

    Args:
        store: that has them.
        keys: that they have.
        form: of the rows.
        tombstone_ms: how long a deleted row's version is kept.
        ttl: by table, seconds that a row stays behind its last write; for ever where a table has none.
        part: whose rows these are, where those of all parts lie under such keys.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # what a row has
        self,
        store: RedisStore,
        keys: RowKeys,
        form: RowForm,
        tombstone_ms: int,
        ttl: Mapping[str, int],
        part: RowsOfPart | None = None,
    ) -> None:
        self._store, self._keys, self._form, self._part = store, keys, form, part
        self._word = "" if part is None else part.word
        self._tombstone_ms, self._ttl = tombstone_ms, ttl
        self._is_hash = not isinstance(form, JsonForm | StringForm)

    def send(self, gathered: Sequence[tuple[str, Entry]], marks: Marks, checkpoint: str | None) -> None:
        """Writes of (table, entry); with the checkpoint last, if one is given. Raises as `RedisStore.send`."""
        calls = (self._call(table, entries, marks) for table, entries in self._runs(gathered))
        beside = self._store.beside
        self._store.send(calls, checkpoint, ((table, beside(one.key), one.seq, one.of) for table, one in gathered))

    def raise_floor(self, table: str, seq: int, marks: Marks) -> None:
        """From now on, no change of the table with a seq at or below this one applies."""
        self._store.raise_floor(table, marks.log_generation, seq)

    def forget(self, key: str) -> None:
        """Deletes a row whose table is called otherwise now."""
        self._store.remove(key, self._store.beside(key))

    def _call(self, table: str, entries: Sequence[Entry], marks: Marks) -> Call:
        keys = self._store.floor(table, marks.log_generation)
        for entry in entries:
            keys += (entry.key, self._store.beside(entry.key))
        form = "hash" if self._is_hash else "text"
        head = (
            marks.log_generation,
            self._tombstone_ms,
            self._ttl.get(configured_as(table, self._ttl), 0) * 1000,
            form,
            self._word,
        )
        return self._store.apply, keys, (*head, *arguments(entries, marks.generation))

    def rows(self, table: str, keys: Sequence[str], marks: Marks) -> list[StoredRow | None]:
        """Rows as they are stored, in one round trip; None where there is none of ours."""
        return [None if found is None else self._row(table, found, marks) for found in self._found(keys)]

    def keys_of(self, table: str) -> Iterator[str]:
        """The keys of a table's rows: versions tell them from others' that look alike. Some may come twice."""
        for keys in some(self._store.scan(self._keys.pattern(table)), SCRIPT_ENTRIES):
            with self._store.pipeline() as pipeline:
                for key in keys:
                    if self._is_hash:
                        pipeline.hget(key, VERSION_FIELD)
                    else:
                        pipeline.exists(key)
                        pipeline.get(self._store.beside(key))
                answers = _answers(pipeline)
            versions = answers if self._is_hash else [beside if there else None for there, beside in _pairs(answers)]
            yield from (key for key, version in zip(keys, versions, strict=True) if self._version(version) is not None)

    def held(self, table: str, layout: TableSchema) -> Iterator[HeldRow]:
        """What lies under the keys of a table, of this layout; without a version where it is others'.

        Where those of all parts lie there, what another one wrote is left out, and so is what nobody wrote at a key of
        another one's.
        """
        for keys in some(self._store.scan(self._keys.pattern(table)), READ_AT_ONCE):
            for key, found in zip(keys, self._found(keys), strict=True):
                if found is None:  # expired since
                    continue
                texts = self._keys.texts(key, table, len(layout.key_indexes))
                if found.version is None and not self._may_be_own(key, found, texts, layout):
                    continue
                seq = None if found.version is None else found.version[0]
                values = None if seq is None or found.parts is None else self._values(table, found.parts)
                yield HeldRow(texts, seq, values or ())

    def _may_be_own(self, key: str, found: _Found, texts: tuple[str, ...], layout: TableSchema) -> bool:
        """Whether what has no version of this part's belongs to it all the same: by its key, if no part wrote it."""
        if self._part is None:
            return True
        is_of_a_part = found.is_of_a_part or self._part.is_note(key, self._store.generation.own)
        return not is_of_a_part and self._part.has_row(texts, layout)

    def told(self, table: str, key: tuple[str, ...], seq: int, parts: Sequence[bytes]) -> HeldRow:
        """A row of these parts as it is held."""
        return HeldRow(key, seq, self._values(table, list(parts)) or ())

    def _found(self, keys: Sequence[str]) -> list[_Found | None]:
        """What lies under keys, in one round trip; None: nothing."""
        with self._store.pipeline() as pipeline:
            for key in keys:
                if self._is_hash:
                    pipeline.hgetall(key)
                else:
                    pipeline.get(key)
                    pipeline.get(self._store.beside(key))
            answers = _answers(pipeline)
        if self._is_hash:
            return [self._found_hash(fields) for fields in answers]
        return [_found_text(text, beside) for text, beside in _pairs(answers)]

    def _found_hash(self, fields: _Answer) -> _Found | None:
        if isinstance(fields, redis.RedisError):
            return _Found(None, None)
        version = fields.pop(VERSION_FIELD.encode(), None)
        own = self._version(version)
        parts = [part for pair in fields.items() for part in pair]
        of_another = own is None and self._part is not None and self._part.is_of_another(version)
        return _Found(own, parts, of_another) if parts or version else None

    def _version(self, text: _Answer) -> tuple[int, int] | None:
        """Seq and mark of a version; None: it is none, or that of a row of another part's."""
        if self._is_hash and isinstance(text, bytes) and part_told(text) != self._word:
            return None
        return _version(text)

    def _row(self, table: str, found: _Found, marks: Marks) -> StoredRow | None:
        columns = None if found.parts is None else self._columns(table, found.parts)
        if found.version is None or columns is None:
            return None
        seq, mark = found.version
        return StoredRow(seq if mark >= marks.log_generation else -1, mark, columns)

    def _values(self, table: str, parts: list[bytes]) -> tuple[object, ...] | None:
        columns = self._columns(table, parts)
        if columns is None:
            return None
        text = parts[:1] if isinstance(self._form, StringForm) else []
        return (*text, *sorted(columns.items()))

    def _columns(self, table: str, parts: list[bytes]) -> Columns | None:
        """None: they are none of a row of this form."""
        try:
            return self._form.columns(parts, table)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _runs(self, gathered: Sequence[tuple[str, Entry]]) -> Iterator[tuple[str, list[Entry]]]:
        """The writes by table and slot, each in its order; rows of two tables never share a key."""
        apart: dict[tuple[int, str], list[Entry]] = {}
        for table, entry in gathered:
            apart.setdefault((self._store.slot(entry.key), table), []).append(entry)
        for (_, table), entries in apart.items():
            for start in range(0, len(entries), SCRIPT_ENTRIES):
                yield table, entries[start : start + SCRIPT_ENTRIES]


def some(keys: Iterable[str], count: int) -> Iterator[list[str]]:
    """So many at a time."""
    left = iter(keys)
    while some := list(islice(left, count)):
        yield some


def _pairs(answers: list[_Answer]) -> Iterator[tuple[_Answer, _Answer]]:
    return zip(answers[::2], answers[1::2], strict=True)


def _answers(pipeline: Reads) -> list[_Answer]:
    """Those of a pipeline; an error instead of one where a key is of another type."""
    answers = pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, redis.RedisError) and not str(answer).startswith("WRONGTYPE"):
            raise answer
    return answers


def _found_text(text: _Answer, beside: _Answer) -> _Found | None:
    if text is None:
        return None
    kept = beside.partition(b"\n")[2] if isinstance(beside, bytes) else b""
    return _Found(_version(beside), [text, kept] if isinstance(text, bytes) else None)


def _version(text: _Answer) -> tuple[int, int] | None:
    """Seq and mark of a version; None: it is none."""
    found = _VERSION.match(text) if isinstance(text, bytes) else None
    return None if found is None else (int(found[1]), int(found[2]))
