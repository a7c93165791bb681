"""Rows as Redis holds them: the keys they lie under, and the three forms they have. No connection.

`hash`: one field a column, PostgreSQL's canonical text; NULL is no field. `json`: one text, the row as JSON. `string`:
one text that a template makes of columns' texts, which are kept beside it: an update that leaves values out needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from walbus.consumers.sinks.layout import LayoutChange, fitted
from walbus.consumers.sinks.redis_scripts import VERSION_FIELD
from walbus.consumers.sinks.taken_names import configured_as
from walbus.keys import key_texts
from walbus.schema import TableSchema
from walbus.values import row_json, row_texts

Form: TypeAlias = Literal["hash", "json", "string"]
Verb: TypeAlias = Literal["u", "s", "f", "d", "w"]
Parts: TypeAlias = list[bytes]
Columns: TypeAlias = Mapping[str, bytes]  # by name, each in the bytes of the form

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_APART = re.compile(r"[^\w.$ -]")
_GLOB = re.compile(r"([*?\[\]\\^])")
_NULL = b"null"
_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
_texts = msgspec.json.Decoder(dict[str, str])
_json_columns = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Entry:
    """One write: what to do (see `redis_scripts.APPLY`) with the row under a key.

    Attributes:
        key, verb, seq, parts: of the write.
        of: relation and key of the change that it is of; None: it is of no row's change.
    """

    key: str
    verb: Verb
    seq: int
    parts: Parts = field(default_factory=list)
    of: tuple[int, bytes | None] | None = None


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
        self._around: dict[str, tuple[str, str]] = {}  # by table: what stands before a key, and behind it

    def row_key(self, table: str, key: bytes) -> str:
        """The key of a row. Several key columns are joined by colons, colons inside them being written as %3A."""
        return self.key_of(table, key_texts(key))

    def key_of(self, table: str, texts: tuple[str, ...]) -> str:
        """The key of a row by the values of its key."""
        before, after = self.around(table)
        return f"{before}{_joined(texts)}{after}"

    def texts(self, row_key: str, table: str, columns: int) -> tuple[str, ...]:
        """The values of a row's key, of so many columns; all of it as one text if it is no such key."""
        before, after = self.around(table)
        within = row_key[len(before) : len(row_key) - len(after)]
        texts = tuple(map(unescaped, within.split(":")))
        return texts if 1 < columns == len(texts) and _joined(texts) == within else (within,)

    def pattern(self, table: str) -> str:
        """A pattern for SCAN that matches every row of a table (and perhaps others')."""
        before, after = map(globbed, self.around(table))
        return f"{before}*{after}"

    def any_pattern(self) -> str:
        """A pattern for SCAN that matches every row of every table (and perhaps others')."""
        return self._filled("\0", "\0").replace("\0", "*")

    def table_of(self, key: str) -> str | None:
        """The table that a row's key names; None if it has another form."""
        before, first, between, _, after = _PLACEHOLDER.split(self._template)
        if not (key.startswith(before) and key.endswith(after)):
            return None
        filled = key[len(before) : len(key) - len(after)]
        table, found, rest = filled.partition(between) if first == "table" else filled.rpartition(between)
        return (table if first == "table" else rest) if found else None

    def moved(self, key: str, before: str, now: str) -> str:
        """The key of a row once its table is called otherwise."""
        start, end = self.around(before)
        return self._filled(now, key[len(start) : len(key) - len(end)])

    def around(self, table: str) -> tuple[str, str]:
        """What stands before the key of a table's row, and behind it."""
        known = self._around.get(table)
        if known is None:
            before, _, after = self._filled(table, "\0").partition("\0")
            known = self._around[table] = before, after
        return known

    def _filled(self, table: str, key: str) -> str:
        return _PLACEHOLDER.sub(lambda match: table if match[1] == "table" else key, self._template)


def _joined(texts: tuple[str, ...]) -> str:
    if len(texts) == 1:
        return texts[0]
    return ":".join(map(escaped, texts))


def escaped(text: str) -> str:
    """A text without a colon."""
    return text.replace("%", "%25").replace(":", "%3A")


def unescaped(text: str) -> str:
    """The inverse of `escaped`."""
    return text.replace("%3A", ":").replace("%25", "%")


def globbed(text: str) -> str:
    """A pattern for SCAN that matches this text."""
    return _GLOB.sub(r"\\\1", text)


class ValueTemplate:
    """The text of a row, as `{first_name} {last_name}`: columns in braces; braces themselves are written twice.

    Raises:
        ValueError: a brace stands alone, or no column is named.
    """

    def __init__(self, template: str) -> None:
        self._parts = list(_parts_of(template))
        self.columns = tuple(dict.fromkeys(part for part, is_column in self._parts if is_column))
        if not self.columns:
            raise ValueError("a value needs a column in braces, such as {name}")
        self.is_one_column = len(self._parts) == 1

    def text(self, columns: Columns) -> bytes:
        """The text of a row; NULL is empty."""
        return b"".join([columns.get(part, b"") if is_column else part.encode() for part, is_column in self._parts])


def _parts_of(template: str) -> Iterator[tuple[str, bool]]:
    """Texts, and names of columns (True)."""
    at = 0
    for found in _TEMPLATE.finditer(template):
        if found[0] in ("{", "}"):
            raise ValueError("a brace that is no column's is written twice: {{ or }}")
        if found.start() > at:
            yield template[at : found.start()], False
        yield (found[1], True) if found[1] else (found[0][0], False)
        at = found.end()
    if at < len(template):
        yield template[at:], False


class HashForm:
    """A row as the fields and values of a hash."""

    def whole(self, layout: TableSchema, payload: bytes) -> Parts | None:
        """What `parts` makes of a row that carries all of its columns, in less time; None: it has no such way."""
        pairs = zip(layout.columns, row_texts(layout, payload), strict=True)
        return [part.encode() for column, text in pairs if text is not None for part in (column.name, text)]

    def misfit(self, layout: TableSchema, known: TableSchema | None) -> tuple[str, str] | None:
        """Why rows of a layout cannot have this form, and how to mend it; None if they can.

        Args:
            layout: that they have from now on.
            known: that those that are stored have.
        """
        if VERSION_FIELD not in {column.name for column in layout.columns}:
            return None
        what = f"this table has a column {VERSION_FIELD}, as the field of a hash is called that holds a row's version"
        return what, 'write format = "json", or call it otherwise by the consumer\'s mapping'

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

    def parts(self, columns: Columns, _: str) -> Parts:
        """The fields and values."""
        return [part for name, value in columns.items() for part in (name.encode(), value)]

    def columns(self, parts: Parts, _: str) -> Columns:
        """The inverse of `parts`."""
        return {name.decode(): value for name, value in zip(parts[::2], parts[1::2], strict=True)}


class JsonForm:
    """A row as one text of JSON."""

    def whole(self, layout: TableSchema, payload: bytes) -> Parts | None:
        """See `HashForm.whole`."""
        return [msgspec.json.encode(row_json(layout, payload))]

    def decode(self, layout: TableSchema, payload: bytes, unchanged: bytes) -> Columns:
        """The columns that the row carries, each as the JSON that it is."""
        row = row_json(layout, payload, unchanged)
        return {name: msgspec.json.encode(value) for name, value in row.items()}

    def completed(self, columns: Columns, stored: Columns, left_out: frozenset[str], layout: TableSchema) -> Columns:
        """All columns; those that were left out come from the stored row, and are null where it has none."""
        known = {**columns, **{name: value for name, value in stored.items() if name in left_out}}
        return {column.name: known.get(column.name, _NULL) for column in layout.columns}

    def rearranged(self, columns: Columns, change: LayoutChange) -> Columns:
        """The columns after a change of layout; those of a row that had it already stay as they are."""
        now = fitted(columns, change)
        return now | {column.name: _NULL for column in change.added if column.name not in now}

    def parts(self, columns: Columns, _: str) -> Parts:
        """The one text."""
        return [msgspec.json.encode({name: msgspec.Raw(value) for name, value in columns.items()})]

    def columns(self, parts: Parts, _: str) -> Columns:
        """The inverse of `parts`."""
        return {name: bytes(value) for name, value in _json_columns.decode(parts[0]).items()}


class StringForm(HashForm):
    """A row as the text that its table's template makes of it.

    Args:
        templates: by table.
    """

    def __init__(self, templates: Mapping[str, ValueTemplate]) -> None:
        self._templates = templates

    def whole(self, *_: object) -> Parts | None:
        """See `HashForm.whole`: the columns that a template names are kept one by one."""
        return None

    def misfit(self, layout: TableSchema, known: TableSchema | None) -> tuple[str, str] | None:
        """See `HashForm.misfit`."""
        template = self._templates.get(layout.table)
        if template is None:
            return "there is no template for this table's values", "add one to values, or leave out the table"
        if known is not None and configured_as(known.table, self._templates) not in self._templates:
            return "this table had another name, whose template is gone", f"keep {known.table} in values beside it"
        gone = [name for name in template.columns if name not in {column.name for column in layout.columns}]
        if gone:
            what = f"the template of this table's values names {', '.join(gone)}, which is no column of it (any more)"
            return what, "correct it in values; let a consumer with another name and another key begin with it"
        return None

    def parts(self, columns: Columns, table: str) -> Parts:
        """The text, and the columns that it was made of if it does not tell them."""
        template = self._template(table)
        text = template.text(columns)
        if template.is_one_column:
            return [text]
        kept = {name: columns[name].decode() for name in template.columns if name in columns}
        return [text, msgspec.json.encode(kept)]

    def columns(self, parts: Parts, table: str) -> Columns:
        """The columns that `parts` had."""
        template = self._template(table)
        if template.is_one_column:
            return {template.columns[0]: parts[0]}
        return {name: text.encode() for name, text in _texts.decode(parts[1] or b"{}").items()}

    def _template(self, table: str) -> ValueTemplate:
        return self._templates[configured_as(table, self._templates)]


def arguments(entries: Sequence[Entry], mark: int) -> list[bytes | str | int]:
    """The arguments of `APPLY` for some writes."""
    flat: list[bytes | str | int] = []
    for entry in entries:
        flat += (entry.verb, entry.seq, mark, len(entry.parts), *entry.parts)
    return flat
