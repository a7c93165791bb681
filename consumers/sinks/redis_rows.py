"""Rows as Redis holds them: the keys they lie under, and the two forms they have. No connection.

`hash`: one field a column, PostgreSQL's canonical text; NULL is no field. `json`: one text, the row as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from walbus.consumers.sinks.layout import LayoutChange, fitted
from walbus.keys import key_texts
from walbus.schema import TableSchema
from walbus.values import row_json, row_texts

Form: TypeAlias = Literal["hash", "json"]
Verb: TypeAlias = Literal["u", "s", "f", "d", "w"]
Parts: TypeAlias = list[bytes]
Columns: TypeAlias = Mapping[str, bytes]  # by name, each in the bytes of the form

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_APART = re.compile(r"[^\w.$ -]")
_GLOB = re.compile(r"([*?\[\]\\^])")
_NULL = b"null"
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
    columns: Columns


class KeyTemplate:
    """Where rows lie, as `{table}:{key}`.

    Between the two stands a sign that no ordinary name has, or rows of `order` and of `order_lines` would be looked for
    by the same pattern, and swept together.

    Raises:
        ValueError: a placeholder is missing, or is another one, or nothing keeps the two apart.
    """

    def __init__(self, template: str) -> None:
        if sorted(_PLACEHOLDER.findall(template)) != ["key", "table"]:
            raise ValueError("the key needs {table} and {key}, each once, and nothing else in braces")
        if not _APART.search(_PLACEHOLDER.split(template)[2]):
            raise ValueError("between {table} and {key} the key needs a sign that is in no name, such as a colon")
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

    def decode(self, layout: TableSchema, payload: bytes, unchanged: bytes) -> Columns:
        """The columns that the row carries and that are not NULL, each as text."""
        bits = int.from_bytes(unchanged, "little")
        texts = zip(layout.columns, row_texts(layout, payload), strict=True)
        sent = ((c.name, text) for index, (c, text) in enumerate(texts) if not bits >> index & 1)
        return {name: text.encode() for name, text in sent if text is not None}

    def completed(self, columns: Columns, stored: Columns, left_out: frozenset[str], _: TableSchema) -> Columns:
        """The columns with those that were left out taken from the stored row."""
        return {**columns, **{name: value for name, value in stored.items() if name in left_out}}

    def rearranged(self, columns: Columns, change: LayoutChange) -> Columns:
        """The columns after a change of layout; a new one is NULL, which is no field."""
        return fitted(columns, change)

    def parts(self, columns: Columns) -> Parts:
        """The fields and values."""
        return [part for name, value in columns.items() for part in (name.encode(), value)]

    def columns(self, parts: Parts) -> Columns:
        """The inverse of `parts`."""
        return {name.decode(): value for name, value in zip(parts[::2], parts[1::2], strict=True)}


class JsonForm:
    """A row as one text of JSON."""

    def decode(self, layout: TableSchema, payload: bytes, unchanged: bytes) -> Columns:
        """The columns that the row carries, each as the JSON that it is."""
        row = row_json(layout, payload, unchanged)
        return {name: msgspec.json.encode(value) for name, value in row.items()}

    def completed(self, columns: Columns, stored: Columns, left_out: frozenset[str], layout: TableSchema) -> Columns:
        """All columns; those that were left out come from the stored row, and are null where it has none."""
        known = {**columns, **{name: value for name, value in stored.items() if name in left_out}}
        return {column.name: known.get(column.name, _NULL) for column in layout.columns}

    def rearranged(self, columns: Columns, change: LayoutChange) -> Columns:
        """The columns after a change of layout."""
        return fitted(columns, change) | {column.name: _NULL for column in change.added}

    def parts(self, columns: Columns) -> Parts:
        """The one text."""
        return [msgspec.json.encode({name: msgspec.Raw(value) for name, value in columns.items()})]

    def columns(self, parts: Parts) -> Columns:
        """The inverse of `parts`."""
        return {name: bytes(value) for name, value in _json_columns.decode(parts[0]).items()}


def arguments(entries: Sequence[Entry], mark: int) -> list[bytes | str | int]:
    """The arguments of `APPLY` for some writes."""
    flat: list[bytes | str | int] = []
    for entry in entries:
        flat += (entry.verb, entry.seq, mark, len(entry.parts), *entry.parts)
    return flat
