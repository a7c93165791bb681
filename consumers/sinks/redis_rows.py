"""Rows as Redis holds them: the keys they lie under, and the two forms they have. No connection.

`hash`: one field a column, PostgreSQL's canonical text; NULL is no field. `json`: one text, the row as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from walbus.consumers.sinks.layout import LayoutChange
from walbus.keys import key_texts
from walbus.schema import TableSchema
from walbus.values import row_json, row_texts

Form: TypeAlias = Literal["hash", "json"]
Verb: TypeAlias = Literal["u", "s", "f", "d", "w"]
Parts: TypeAlias = list[bytes]

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_GLOB = re.compile(r"([*?\[\]\\^])")
_NULL = msgspec.Raw(b"null")
_json_columns = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Entry:
    """One write: what to do (see `redis_scripts.APPLY`) with the row under a key."""

    key: str
    verb: Verb
    seq: int
    parts: Parts = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it is now: its version, and its columns as the form has them."""

    seq: int
    mark: int
    columns: Mapping[bytes, bytes]


class KeyTemplate:
    """Where rows lie, as `{table}:{key}`.

    Raises:
        ValueError: a placeholder is missing, or is another one.
    """

    def __init__(self, template: str) -> None:
        if sorted(_PLACEHOLDER.findall(template)) != ["key", "table"]:
            raise ValueError("the key needs {table} and {key}, each once, and nothing else in braces")
        self._template = template

    def row_key(self, table: str, key: bytes) -> str:
        """The key of a row. Several key columns are joined by colons, colons inside them being written as %3A."""
        texts = key_texts(key)
        if len(texts) > 1:
            texts = tuple(text.replace("%", "%25").replace(":", "%3A") for text in texts)
        return self._filled(table, ":".join(texts))

    def pattern(self, table: str) -> str:
        """A pattern for SCAN that matches every row of a table (and perhaps others')."""
        before, after = (_GLOB.sub(r"\\\1", part) for part in self._filled(table, "\0").split("\0"))
        return f"{before}*{after}"

    def moved(self, key: str, before: str, now: str) -> str:
        """The key of a row once its table is called otherwise."""
        start, end = self._filled(before, "\0").split("\0")
        return self._filled(now, key[len(start) : len(key) - len(end)])

    def _filled(self, table: str, key: str) -> str:
        return _PLACEHOLDER.sub(lambda match: table if match[1] == "table" else key, self._template)


class HashForm:
    """A row as the fields and values of a hash."""

    def encode(self, layout: TableSchema, payload: bytes, unchanged: bytes, stored: Mapping[bytes, bytes]) -> Parts:
        """The row; columns that were left out come from the stored row's fields."""
        bits = int.from_bytes(unchanged, "little")
        parts: Parts = []
        for index, (column, text) in enumerate(zip(layout.columns, row_texts(layout, payload), strict=True)):
            name = column.name.encode()
            value = stored.get(name) if bits >> index & 1 else None if text is None else text.encode()
            if value is not None:
                parts += (name, value)
        return parts

    def columns(self, parts: Parts) -> Mapping[bytes, bytes]:
        """The columns of a row, each as text."""
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def rearranged(self, columns: Mapping[bytes, bytes], change: LayoutChange) -> Parts:
        """The row after a change of layout."""
        renamed = {old.encode(): new.encode() for old, new in change.renamed}
        dropped = {name.encode() for name in change.dropped}
        kept = ((renamed.get(name, name), value) for name, value in columns.items() if name not in dropped)
        return [part for pair in kept for part in pair]


class JsonForm:
    """A row as one text of JSON."""

    def encode(self, layout: TableSchema, payload: bytes, unchanged: bytes, stored: Mapping[bytes, bytes]) -> Parts:
        """The row; columns that were left out come from the stored row, and are null where it has none."""
        row = row_json(layout, payload, unchanged)
        if unchanged:
            before = {name.decode(): msgspec.Raw(value) for name, value in stored.items()}
            row = {c.name: row.get(c.name, before.get(c.name, _NULL)) for c in layout.columns}
        return [msgspec.json.encode(row)]

    def columns(self, parts: Parts) -> Mapping[bytes, bytes]:
        """The columns of a row, each as the JSON that it is."""
        return {name.encode(): bytes(value) for name, value in _json_columns.decode(parts[0]).items()}

    def rearranged(self, columns: Mapping[bytes, bytes], change: LayoutChange) -> Parts:
        """The row after a change of layout."""
        renamed, dropped = dict(change.renamed), set(change.dropped)
        names = {name.decode(): msgspec.Raw(value) for name, value in columns.items()}
        row = {renamed.get(name, name): value for name, value in names.items() if name not in dropped}
        return [msgspec.json.encode(row | {column.name: _NULL for column in change.added})]


def arguments(entries: Sequence[Entry], mark: int) -> list[bytes | str | int]:
    """The arguments of `APPLY` for some writes."""
    flat: list[bytes | str | int] = []
    for entry in entries:
        flat += (entry.verb, entry.seq, mark, len(entry.parts), *entry.parts)
    return flat
