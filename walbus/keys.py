"""Keys of rows: bytes that sort as the values do (`walbus.values.key_codec`), and their typed reading.

A key says nothing about its columns; the table's layout does, which each change names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from walbus.errors import DamagedRecord
from walbus.schema import TableSchema
from walbus.values.json_form import json_of_text
from walbus.values.key_codec import encode_key, split_key
from walbus.values.layouts import PerLayout
from walbus.values.types import parse_text


class _KeyColumns:
    """Names and types of a layout's key columns."""

    def __init__(self, schema: TableSchema) -> None:
        columns = [schema.columns[index] for index in schema.key_indexes]
        self.names = [column.name for column in columns]
        self._oids = [column.type_oid for column in columns]
        self._table = schema.table

    def read(self, key: bytes, value_of: Callable[[int, str], object]) -> list[object]:
        """The values of a key: integers as they are, texts by a function of type OID and text."""
        parts = split_key(key)
        if len(parts) != len(self._oids):
            raise DamagedRecord(f"a key has {len(parts)} parts instead of {len(self._oids)}", where=self._table)
        return [
            value_of(oid, part) if isinstance(part, str) else part for oid, part in zip(self._oids, parts, strict=True)
        ]


_columns_of = PerLayout(_KeyColumns)


def decode_key(schema: TableSchema, key: bytes) -> tuple[Any, ...]:
    """The Python values of a key's columns, in column order, as `walbus.values.decode_row` would give them.

    Raises:
        DamagedRecord: the bytes are no key of this table.
    """
    return tuple(_columns_of(schema).read(key, parse_text))


def key_row(schema: TableSchema, key: bytes) -> dict[str, Any]:
    """A key as Python values by column name.

    Raises:
        DamagedRecord: the bytes are no key of this table.
    """
    columns = _columns_of(schema)
    return dict(zip(columns.names, columns.read(key, parse_text), strict=True))


def key_json(schema: TableSchema, key: bytes) -> dict[str, object]:
    """A key for `msgspec.json.encode`, by column name, each value as in `walbus.values.row_json`.

    Raises:
        DamagedRecord: the bytes are no key of this table.
    """
    columns = _columns_of(schema)
    return dict(zip(columns.names, columns.read(key, json_of_text), strict=True))


def key_texts(key: bytes) -> tuple[str, ...]:
    """The canonical text of a key's columns.

    Raises:
        DamagedRecord: the bytes are no key.
    """
    return tuple([str(part) for part in split_key(key)])


__all__ = ["decode_key", "encode_key", "key_json", "key_row", "key_texts"]
