"""Keys of rows: bytes that sort as the values do (`walbus.values.key_codec`), and their typed reading.

A key says nothing about its columns; the table's layout does, which each change names.
"""

from __future__ import annotations

from typing import Any

from walbus.errors import DamagedRecord
from walbus.schema import TableSchema
from walbus.values.json_form import json_of_text
from walbus.values.key_codec import encode_key, split_key
from walbus.values.types import parse_text


def decode_key(schema: TableSchema, key: bytes) -> tuple[Any, ...]:
    """The Python values of a key's columns, in column order, as `walbus.values.decode_row` would give them.

    Raises:
        DamagedRecord: the bytes are no key of this table.
    """
    return tuple([part if type(part) is int else parse_text(oid, str(part)) for oid, part in _typed_parts(schema, key)])


def key_texts(key: bytes) -> tuple[str, ...]:
    """The canonical text of a key's columns.

    Raises:
        DamagedRecord: the bytes are no key.
    """
    return tuple([str(part) for part in split_key(key)])


def key_json(schema: TableSchema, key: bytes) -> dict[str, object]:
    """A key for `msgspec.json.encode`, by column name, each value as in `walbus.values.row_json`.

    Raises:
        DamagedRecord: the bytes are no key of this table.
    """
    names = [schema.columns[i].name for i in schema.key_indexes]
    values = [part if type(part) is int else json_of_text(oid, str(part)) for oid, part in _typed_parts(schema, key)]
    return dict(zip(names, values, strict=True))


def _typed_parts(schema: TableSchema, key: bytes) -> list[tuple[int, int | str]]:
    parts = split_key(key)
    indexes = schema.key_indexes
    if len(parts) != len(indexes):
        raise DamagedRecord(f"a key has {len(parts)} parts instead of {len(indexes)}", where=schema.table)
    return [(schema.columns[i].type_oid, part) for i, part in zip(indexes, parts, strict=True)]


__all__ = ["decode_key", "encode_key", "key_json", "key_texts"]
