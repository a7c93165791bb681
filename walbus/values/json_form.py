r"""Rows as JSON: one line of valid JSON, whatever is in them.

Integers, finite floats and booleans are JSON's own; NaN and the infinities are strings. `json` and `jsonb` are
spliced in as they are, but that line breaks become spaces (valid JSON has them between tokens only). bytea is
`\x…` hex, timestamptz ISO 8601 in UTC, an array with a native form an array; everything else is canonical text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values.decode import row_reader
from walbus.values.encode import row_encoder
from walbus.values.layouts import PerLayout
from walbus.values.types import JSON, JSONB, NATIVE

_LINE_BREAKS = str.maketrans("\n\r", "  ")


class _RowJson:
    def __init__(self, schema: TableSchema) -> None:
        self._reader = row_reader(schema)
        self._columns = [(column.name, _json_function(column)) for column in schema.columns]

    def __call__(self, payload: bytes, unchanged: bytes) -> dict[str, object]:
        values = self._reader.raw(payload)
        row = {
            name: None if value is None else to_json(value)
            for (name, to_json), value in zip(self._columns, values, strict=True)
        }
        if unchanged:
            bits = int.from_bytes(unchanged, "little")
            for index, (name, _) in enumerate(self._columns):
                if bits >> index & 1:
                    del row[name]
        return row


def _json_function(column: Column) -> Callable[[Any], object]:
    if column.type_oid in (JSON, JSONB):
        return splice
    native = NATIVE.get(column.type_oid)
    if native is None or native.text_like:
        return _as_it_is
    to_json = native.json
    return lambda value: value if type(value) is str else to_json(value)


def _as_it_is(value: object) -> object:
    return value


def splice(text: str) -> msgspec.Raw:
    """A JSON document to be written verbatim on one line."""
    return msgspec.Raw(text.translate(_LINE_BREAKS).encode() if "\n" in text or "\r" in text else text.encode())


_row_json = PerLayout(_RowJson)


def row_json(schema: TableSchema, payload: bytes, unchanged: bytes = b"") -> dict[str, object]:
    """A row for `msgspec.json.encode`, by column name.

    Args:
        schema: the row's layout.
        payload: the row.
        unchanged: bitmap of columns that were not sent; they are left out.

    Raises:
        DamagedRecord: the payload is no row of this layout.
    """
    return _row_json(schema)(payload, unchanged)


def json_of_text(type_oid: int, text: str) -> object:
    """The JSON form of one value given as canonical text."""
    schema = _lone_column(type_oid)
    return row_json(schema, row_encoder(schema).encode([text.encode()]))["value"]


@cache
def _lone_column(type_oid: int) -> TableSchema:
    column = Column("value", type_oid, str(type_oid), -1, in_key=False)
    return TableSchema(0, 0, "", "", ReplicaIdentity.NOTHING, (column,))
