"""Documents of a tantivy index: what a row is there, and what it is called. Pure.

A document's name is `schema.table/key`, the key's columns separated by `/`; a row without a key has `#` and its seq.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from walbus.consumers.sinks.tantivy_reading import StoredDocument
from walbus.values.key_codec import split_key

#: No row has a seq or a mark from here on.
MAX_VERSION = (1 << 63) - 1
_Columns = dict[str, msgspec.Raw]
_columns = msgspec.json.Decoder(_Columns)
_encode = msgspec.json.Encoder().encode


class IndexedRow(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={"name": "_id", "table": "_table", "seq": "_seq", "mark": "_mark", "source": "_source"},
):
    """A row's document: its fields as they are called in the index (`tantivy_index`); `source` as Base64, in JSON.

    One that was read back has no `text`, which is not stored.
    """

    name: str
    table: str
    seq: int
    mark: int
    source: bytes
    row: msgspec.Raw
    text: tuple[str, ...]

    def columns(self) -> _Columns:
        """The row's columns, each as the JSON that it is."""
        return _columns.decode(self.source)

    @property
    def is_readable(self) -> bool:
        """Whether its columns are there: somebody may have written the document."""
        return columns_of(self.source) is not None


def indexed_row(name: str, table: str, seq: int, mark: int, columns: Mapping[str, object]) -> IndexedRow:
    """The document of a row.

    Args:
        name: of the document.
        table: of the row.
        seq: its version.
        mark: the generation that writes it.
        columns: for `msgspec.json.encode`.
    """
    source = _encode(columns)
    return IndexedRow(name, table, seq, mark, source, msgspec.Raw(source), tuple(texts_of(columns)))


def columns_of(source: bytes) -> _Columns | None:
    """The columns that a document's `_source` has; None if it is none of a row."""
    try:
        return _columns.decode(source)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def is_row(document: StoredDocument, table: str) -> bool:
    """Whether `RowIndex.delete_rows` deletes it, as all that the sink has written of a table."""
    if not document.name or document.tables != (table,):
        return False
    return all(version is not None and version < MAX_VERSION for version in (document.seq, document.mark))


def texts_of(columns: Mapping[str, object]) -> list[str]:
    """The values of a row that are texts, which a search without a field looks in."""
    values = columns.values()
    if msgspec.Raw in map(type, values):
        plain = [msgspec.json.decode(v) if type(v) is msgspec.Raw and _is_text(v) else v for v in values]
        return [value for value in plain if type(value) is str]
    return [value for value in values if type(value) is str]


def _is_text(json: msgspec.Raw) -> bool:
    return bytes(json).lstrip(b" \t\r\n").startswith(b'"')


def document_id(table: str, key: bytes) -> str:
    """The name of a row's document."""
    return _named(id_prefix(table), key)


def document_ids(table: str, keys: Iterable[bytes]) -> list[str]:
    """The names of many."""
    prefix = id_prefix(table)
    return [_named(prefix, key) for key in keys]


def _named(prefix: str, key: bytes) -> str:
    parts = split_key(key)
    if len(parts) == 1 and type(parts[0]) is int:  # nearly all of them
        return f"{prefix}{parts[0]}"
    return prefix + "/".join([_escaped(str(part)) for part in parts])


def keyless_id(table: str, seq: int) -> str:
    """The name of the document of a row without a key: it is only ever added."""
    return f"{id_prefix(table)}#{seq}"


def table_of(row_id: str) -> str:
    """The table of a document by its name."""
    return _unescaped(row_id.partition("/")[0])


def renamed_id(row_id: str, table: str) -> str:
    """The name that a document has once its table is called otherwise."""
    return id_prefix(table) + row_id.partition("/")[2]


@lru_cache(1_000)
def id_prefix(table: str) -> str:
    """What the names of a table's documents begin with."""
    return f"{_escaped(table)}/"


def key_of(row_id: str, table: str) -> tuple[str, ...] | None:
    """The key's texts in the name of a table's document; None if it is no such name."""
    head, *parts = row_id.split("/")
    key = tuple(map(_unescaped, parts))
    return key if key and head == _escaped(table) and "/".join(map(_escaped, (table, *key))) == row_id else None


def _escaped(part: str) -> str:
    if "/" not in part and "%" not in part:
        return part
    return part.replace("%", "%25").replace("/", "%2F")


def _unescaped(part: str) -> str:
    return part.replace("%2F", "/").replace("%25", "%")


__all__ = [
    "MAX_VERSION",
    "IndexedRow",
    "columns_of",
    "document_id",
    "document_ids",
    "id_prefix",
    "indexed_row",
    "is_row",
    "key_of",
    "keyless_id",
    "renamed_id",
    "table_of",
    "texts_of",
]
