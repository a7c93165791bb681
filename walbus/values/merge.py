"""Filling in what PostgreSQL did not send.

An update that leaves a TOASTed value alone does not carry it. The stored row has it. Columns are moved as the bytes
they are: the encoding of a value depends on its column's type alone, so nothing is decoded.
"""

from __future__ import annotations

from walbus.errors import DamagedRecord
from walbus.schema import Column, TableSchema
from walbus.values.avro_bytes import read_long
from walbus.values.layouts import PerLayout
from walbus.values.types import NATIVE

_TEXTS = frozenset({25, 1043})  # text and varchar of any length have the same values
_FIXED = {"boolean": 1, "float": 4, "double": 8}


def merge_unchanged(  # noqa: PLR0913, PLR0917 - two rows, each with its layout and its bitmap
    schema: TableSchema,
    payload: bytes,
    unchanged: bytes,
    stored_schema: TableSchema,
    stored_payload: bytes,
    stored_unchanged: bytes = b"",
) -> tuple[bytes, bytes]:
    """The row with its unchanged columns taken from the stored row, by column name.

    Args:
        schema: the row's layout.
        payload: the row; its unchanged columns hold NULL.
        unchanged: bitmap of those columns; empty for none.
        stored_schema: the stored row's layout, which may be an earlier one.
        stored_payload: the stored row.
        stored_unchanged: bitmap of columns that the stored row itself lacks; empty for none.

    Returns:
        the payload, and the bitmap of the columns that are still missing (empty if none is). A column is missing if
        the stored row lacks it, or has it with another type.

    Raises:
        DamagedRecord: one of the payloads is no row of its layout.
    """
    if not any(unchanged):
        return payload, b""
    sources = _stored_columns(stored_schema, stored_payload, stored_unchanged)
    wanted, missing = int.from_bytes(unchanged, "little"), 0
    parts = []
    for index, (column, part) in enumerate(zip(schema.columns, split_row(schema, payload), strict=True)):
        if not wanted >> index & 1:
            parts.append(part)
            continue
        stored = sources.get(column.name)
        if stored is None or not _same_values(column, stored[0]):
            missing |= 1 << index
            parts.append(part)
        else:
            parts.append(stored[1])
    return b"".join(parts), missing.to_bytes(len(unchanged), "little") if missing else b""


def _stored_columns(schema: TableSchema, payload: bytes, lacking: bytes) -> dict[str, tuple[Column, bytes]]:
    lacks = int.from_bytes(lacking, "little")
    return {
        column.name: (column, part)
        for index, (column, part) in enumerate(zip(schema.columns, split_row(schema, payload), strict=True))
        if not lacks >> index & 1
    }


def _same_values(column: Column, stored: Column) -> bool:
    if column.type_oid in _TEXTS and stored.type_oid in _TEXTS:
        return True
    return (column.type_oid, column.typmod) == (stored.type_oid, stored.typmod)


def _layout_parts(schema: TableSchema) -> list[object]:
    return ["string" if (t := NATIVE.get(column.type_oid)) is None else t.raw for column in schema.columns]


_parts_of = PerLayout(_layout_parts)


def split_row(schema: TableSchema, payload: bytes) -> list[bytes]:
    """The encoded columns of a row, each with its branch byte.

    Raises:
        DamagedRecord: the payload is no row of this layout.
    """
    parts = []
    offset = 0
    try:
        for avro in _parts_of(schema):
            end = _skip_nullable(avro, payload, offset, text_branch=avro != "string")
            parts.append(payload[offset:end])
            offset = end
    except IndexError:
        offset = -1
    if offset != len(payload):
        raise DamagedRecord("a row does not decode in its schema", where=f"{schema.table}, schema {schema.id}")
    return parts


def _skip_nullable(avro: object, data: bytes, offset: int, *, text_branch: bool) -> int:
    branch = data[offset]
    if branch == 0:
        return offset + 1
    if branch == 2:
        return _skip(avro, data, offset + 1)
    if branch != 4 or not text_branch:
        raise IndexError
    return _skip("string", data, offset + 1)


def _skip(avro: object, data: bytes, offset: int) -> int:
    if isinstance(avro, dict):
        return _skip_array(avro["items"][1], data, offset)
    fixed = _FIXED.get(str(avro))
    if fixed is not None:
        return offset + fixed
    number, offset = read_long(data, offset)
    if avro in ("int", "long"):
        return offset
    if number < 0:
        raise IndexError
    return offset + number


def _skip_array(item: object, data: bytes, offset: int) -> int:
    while True:
        count, offset = read_long(data, offset)
        if count < 0:
            raise IndexError  # a count below zero is that of a block that tells its bytes: nobody writes one
        if count == 0:
            return offset
        for _ in range(count):
            offset = _skip_nullable(item, data, offset, text_branch=False)
