"""The table of built-in types that have a native Avro form, by type OID.

A `NativeType` knows one type from every side: how text becomes Avro bytes, how the raw Avro value becomes text and
JSON again, and what Python value stands for it. Types that are not in the table (numeric apart, which only gives a
`Decimal`) are carried as their text. OIDs below 16384 are fixed by PostgreSQL and never change.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar
from uuid import UUID

from walbus.values import from_text, to_text
from walbus.values.arrays import join_array, split_array
from walbus.values.avro_bytes import NULL, native_array

T = TypeVar("T")

_unpack_float = struct.Struct("<f").unpack

NUMERIC = 1700
JSON = 114
JSONB = 3802


def same(value: T) -> T:
    """The value."""
    return value


@dataclass(frozen=True)
class NativeType:
    """One type with a native Avro form.

    Attributes:
        name: PostgreSQL's name.
        avro: its Avro type in schemas.
        encode: canonical text to branch 1 of the union; raises one of `from_text.OUTSIDE`.
        text: raw Avro value (no `datetime`) to canonical text.
        parse: canonical text inside the native range to the Python value.
        json: raw Avro value to what `msgspec.json` writes.
        python: what fastavro gives to the Python value; None where that is the same.
        text_like: whether the native form is a string, so that the union needs no branch for texts.
    """

    name: str
    avro: object
    encode: Callable[[bytes], bytes]
    text: Callable[[Any], str]
    parse: Callable[[str], Any]
    json: Callable[[Any], object] = same
    python: Callable[[Any], object] | None = None
    text_like: bool = False

    @property
    def raw(self) -> object:
        """The Avro type without logical types."""
        return _without_logical(self.avro)


def _without_logical(avro: object) -> object:
    if isinstance(avro, dict):
        if "items" in avro:
            return {"type": "array", "items": ["null", _without_logical(avro["items"][1])]}
        return avro["type"]
    return avro


def as_uuid(text: str) -> UUID | str:
    """The UUID; the text itself where it is none."""
    try:
        return UUID(text)
    except ValueError:
        return text


def as_decimal(text: str) -> Decimal | str:
    """The number, exactly; the text itself where it is none."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def _parse_bool(text: str) -> bool:
    return text == "t"


def _parse_bytea(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def _parse_float4(text: str) -> float:
    """The single-precision number, as reading a row gives it; the text's digits are fewer than its own."""
    value: float = _unpack_float(from_text.from_float4(text.encode())[1:])[0]
    return value


def _parse_timestamptz(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def finite(value: float) -> float | str:
    """A double; the text of one that is no number."""
    return value if math.isfinite(value) else to_text.float8_text(value)


def _finite_single(value: float) -> float | str:
    """The double with the fewest digits that is the same single-precision number: 0.1, not 0.10000000149011612."""
    text = to_text.float4_text(value)
    return float(text) if math.isfinite(value) else text


def _string(name: str) -> NativeType:
    return NativeType(name, "string", from_text.from_string, same, same, text_like=True)


#: Scalar types by OID.
SCALARS: dict[int, NativeType] = {
    16: NativeType("bool", "boolean", from_text.from_bool, to_text.bool_text, _parse_bool),
    17: NativeType("bytea", "bytes", from_text.from_bytea, to_text.bytea_text, _parse_bytea, to_text.bytea_text),
    19: _string("name"),
    20: NativeType("int8", "long", from_text.from_long, str, int),
    21: NativeType("int2", "int", from_text.from_int, str, int),
    23: NativeType("int4", "int", from_text.from_int, str, int),
    25: _string("text"),
    26: NativeType("oid", "long", from_text.from_long, str, int),
    700: NativeType("float4", "float", from_text.from_float4, to_text.float4_text, _parse_float4, _finite_single),
    701: NativeType("float8", "double", from_text.from_float8, to_text.float8_text, float, finite),
    1042: _string("bpchar"),
    1043: _string("varchar"),
    1082: NativeType(
        "date",
        {"type": "int", "logicalType": "date"},
        from_text.from_date,
        to_text.date_text,
        date.fromisoformat,
        to_text.date_text,
    ),
    1083: NativeType(
        "time",
        {"type": "long", "logicalType": "time-micros"},
        from_text.from_time,
        to_text.time_text,
        time.fromisoformat,
        to_text.time_text,
    ),
    1114: NativeType(
        "timestamp",
        {"type": "long", "logicalType": "local-timestamp-micros"},
        from_text.from_timestamp,
        to_text.timestamp_text,
        datetime.fromisoformat,
        to_text.timestamp_text,
    ),
    1184: NativeType(
        "timestamptz",
        {"type": "long", "logicalType": "timestamp-micros"},
        from_text.from_timestamptz,
        to_text.timestamptz_text,
        _parse_timestamptz,
        to_text.timestamptz_iso,
    ),
    2950: NativeType(
        "uuid",
        {"type": "string", "logicalType": "uuid"},
        from_text.from_uuid,
        same,
        UUID,
        python=as_uuid,
        text_like=True,
    ),
}

_ARRAY_OIDS = {
    16: 1000, 17: 1001, 19: 1003, 20: 1016, 21: 1005, 23: 1007, 25: 1009, 26: 1028, 700: 1021, 701: 1022, 1042: 1014,
    1043: 1015, 1082: 1182, 1083: 1183, 1114: 1115, 1184: 1185, 2950: 2951,
}  # fmt: skip


def _array_of(item: NativeType) -> NativeType:
    def encode(text: bytes) -> bytes:
        return native_array([NULL if e is None else item.encode(e) for e in split_array(text)])

    def array_text(values: list[Any]) -> str:
        return join_array([None if v is None else item.text(v) for v in values])

    def parse(text: str) -> list[object]:
        return [None if e is None else item.parse(e.decode()) for e in split_array(text.encode())]

    return NativeType(
        f"_{item.name}",
        {"type": "array", "items": ["null", item.avro]},
        encode,
        array_text,
        parse,
        _each(item.json),
        _each(item.python) if item.python else None,
    )


def _each(convert: Callable[[Any], object]) -> Callable[[list[Any]], object]:
    return lambda values: [None if value is None else convert(value) for value in values]


#: All types with a native form, one-dimensional arrays included.
NATIVE: dict[int, NativeType] = SCALARS | {_ARRAY_OIDS[oid]: _array_of(item) for oid, item in SCALARS.items()}


def parse_text(type_oid: int, text: str) -> object:
    """The Python value of a canonical text, as `walbus.values.decode_row` would give it."""
    if type_oid == NUMERIC:
        return as_decimal(text)
    native = NATIVE.get(type_oid)
    if native is None:
        return text
    try:
        native.encode(text.encode())  # decides what is inside the native range; Python's parsers take more
        return native.parse(text)
    except from_text.OUTSIDE:
        return text
