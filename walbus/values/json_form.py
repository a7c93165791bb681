r"""Rows as JSON: one line of valid JSON, whatever is in them.

Integers, finite floats and booleans are JSON's own; NaN and the infinities are strings. `json` and `jsonb` are
spliced in as they are, but that line breaks become spaces (valid JSON has them between tokens only). bytea is
`\x…` hex, timestamptz ISO 8601 in UTC, an array with a native form an array; everything else is canonical text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values.encode import row_encoder
from walbus.values.layouts import PerLayout
from walbus.values.types import JSON, JSONB, NATIVE, same

if TYPE_CHECKING:
    from walbus.events import Change

_LINE_BREAKS = str.maketrans("\n\r", "  ")


class _RowJson:
    def __init__(self, schema: TableSchema) -> None:
        from walbus.native import new_converted_rows  # noqa: PLC0415  (the native core imports this package)

        self._rows = new_converted_rows(schema, [_json_function(column) for column in schema.columns])
        self._names = [column.name for column in schema.columns]

    def puts(self, changes: Sequence[Change], at: int) -> list[dict[str, object]]:
        names = self._names
        return [dict(zip(names, row, strict=False)) for row in self._rows.whole_puts(changes, at, None)]

    def __call__(self, payload: bytes, unchanged: bytes) -> dict[str, object]:
        row: dict[str, object] = dict(zip(self._names, self._rows.values(payload), strict=True))
        if unchanged:
            bits = int.from_bytes(unchanged, "little")
            for index, name in enumerate(self._names):
                if bits >> index & 1:
                    del row[name]
        return row


def _json_function(column: Column) -> Callable[[Any], object] | None:
    if column.type_oid in (JSON, JSONB):
        return splice
    native = NATIVE.get(column.type_oid)
    return None if native is None or native.json is same else native.json


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


def json_puts(schema: TableSchema, changes: Sequence[Change], at: int) -> list[dict[str, object]]:
    """As `row_json`, of each change from `at` on that puts a whole row in this layout under its own key.

    Args:
        schema: the layout of the change at `at`; the first of another one ends them.
        changes: some.
        at: index of the first.
    """
    return _row_json(schema).puts(changes, at)


def json_of_text(type_oid: int, text: str) -> object:
    """The JSON form of one value given as canonical text."""
    schema = _lone_column(type_oid)
    return row_json(schema, row_encoder(schema).encode([text.encode()]))["value"]


@cache
def _lone_column(type_oid: int) -> TableSchema:
    column = Column("value", type_oid, str(type_oid), -1, in_key=False)
    return TableSchema(0, 0, "", "", ReplicaIdentity.NOTHING, (column,))
