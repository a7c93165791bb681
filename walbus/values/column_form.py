"""What a column of values is as memory, in the layout of Apache Arrow: which buffers, and of what.

    bool                        a bit each
    int2, int4, int8, oid       2, 4, 8, 8 bytes each
    float4, float8              4, 8 bytes each
    date                        4 bytes: Unix days
    time, timestamp, timestamptz   8 bytes: microseconds since midnight, since 1970 (timestamptz in UTC)
    numeric(p, s), p <= 38      16 bytes: the number times 10^s; numeric of any other modifier is text
    bytea                       64-bit offsets, and bytes
    one-dimensional arrays      64-bit offsets, and the items as a column of their own
    everything else             64-bit offsets, and canonical text in UTF-8

Offsets have 64 bits, since a value may be a gigabyte. A value outside the native range (`infinity`, NaN in a
`numeric(p, s)`) has no such form: it is null there, and told beside it as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from walbus.schema import Column
from walbus.values.types import NATIVE, NUMERIC

Kind = Literal["bit", "int16", "int32", "int64", "float32", "float64", "decimal", "bytes", "text", "list"]

_BY_NAME: dict[str, Kind] = {
    "bool": "bit", "int2": "int16", "int4": "int32", "int8": "int64", "oid": "int64", "float4": "float32",
    "float8": "float64", "date": "int32", "time": "int64", "timestamp": "int64", "timestamptz": "int64",
    "bytea": "bytes",
}  # fmt: skip
_MODIFIER_HEADER = 4
_MOST_DIGITS = 38


@dataclass(frozen=True, slots=True)
class ColumnForm:
    """The form of a column.

    Attributes:
        kind: of its values.
        name: of the native type that the values are of; empty for text that has none.
        precision, scale: of a decimal; else 0.
        item: of a list, the form of its items.
    """

    kind: Kind
    name: str = ""
    precision: int = 0
    scale: int = 0
    item: ColumnForm | None = None


def column_form(column: Column) -> ColumnForm:
    """The form of a column's values."""
    if column.type_oid == NUMERIC:
        return _numeric_form(column.typmod)
    native = NATIVE.get(column.type_oid)
    if native is None:
        return ColumnForm("text")
    if native.name.startswith("_"):
        item = native.name[1:]
        return ColumnForm("list", native.name, item=ColumnForm(_BY_NAME.get(item, "text"), item))
    return ColumnForm(_BY_NAME.get(native.name, "text"), native.name)


def _numeric_form(typmod: int) -> ColumnForm:
    if typmod < _MODIFIER_HEADER:
        return ColumnForm("text")
    precision, scale = typmod - _MODIFIER_HEADER >> 16 & 0xFFFF, typmod - _MODIFIER_HEADER & 0x7FF
    if not 0 <= scale <= precision <= _MOST_DIGITS:  # a scale below zero is a large number here
        return ColumnForm("text")
    return ColumnForm("decimal", "numeric", precision, scale)
