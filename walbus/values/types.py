"""The table of built-in types that have a native Avro form, by type OID.

A `NativeType` knows one type from every side: how text becomes Avro bytes, how the raw Avro value becomes text and
JSON again, and what Python value stands for it. Types that are not in the table (numeric apart, which only gives a
`Decimal`) are carried as their text. OIDs below 16384 are fixed by PostgreSQL and never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any
from uuid import UUID

from walbus.values import from_text, to_text
from walbus.values.arrays import join_array, split_array
from walbus.values.avro_bytes import NULL, native_array

NUMERIC = 1700
JSON = 114
JSONB = 3802


@dataclass(frozen=True, slots=True)
class NativeType:
    """One type with a native Avro form.

    Attributes:
        name: PostgreSQL's name.
        avro: its Avro type in schemas.
        raw: the same without logical types that this package resolves itself, or that Python cannot hold.
        encode: canonical text to branch 1 of the union; raises one of `from_text.OUTSIDE`.
        text: raw Avro value to canonical text.
        json: raw Avro value to what `msgspec.json` writes.
        python: what fastavro gives to the Python value; None where that is the same.
        parse: canonical text to the Python value, the text itself where it is outside the native range.
        text_like: whether the native form is a string, so that the union needs no branch for texts.
    """

    name: str
    avro: object
    raw: object
    encode: Callable[[bytes], bytes]
    text: Callable[[Any], str]
    json: Callable[[Any], object]
    python: Callable[[Any], Any] | None
    parse: Callable[[str], Any]
    text_like: bool = False


def _same(value: Any) -> Any:
    return value


def _parse_or_text(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        return text


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else to_text.float8_text(value)


def _finite_single(value: float) -> float | str:
    """The double with the fewest digits that is the same single-precision number: 0.1, not 0.10000000149011612."""
    text = to_text.float4_text(value)
    return float(text) if math.isfinite(value) else text


def _parse_bool(text: str) -> bool | str:
    return {"t": True, "f": False}.get(text, text)


def _parse_bytea(text: str) -> bytes:
    if not text.startswith("\\x"):
        raise ValueError("not bytea's hex form")
    return bytes.fromhex(text[2:])


def _parse_iso(kind: type[date | time | datetime], text: str) -> Any:
    return kind.fromisoformat(text)


def _parse_utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


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


def _logical(primitive: str, logical_type: str) -> dict[str, str]:
    return {"type": primitive, "logicalType": logical_type}


def _plain(name: str, avro: str, encode: Callable[[bytes], bytes], text: Callable[[Any], str],
           parse: Callable[[str], Any], json: Callable[[Any], object] = _same) -> NativeType:  # fmt: skip
    """A type whose Avro value is the Python value."""
    return NativeType(name, avro, avro, encode, text, json, None, partial(_parse_or_text, parse))


def _string(name: str) -> NativeType:
    return NativeType(name, "string", "string", from_text.from_string, _same, _same, None, _same, text_like=True)


_DATE = _logical("int", "date")
_TIME = _logical("long", "time-micros")
_TIMESTAMP = _logical("long", "local-timestamp-micros")
_TIMESTAMPTZ = _logical("long", "timestamp-micros")

_BOOL = _plain("bool", "boolean", from_text.from_bool, to_text.bool_text, _parse_bool)
_BYTEA = _plain("bytea", "bytes", from_text.from_bytea, to_text.bytea_text, _parse_bytea, to_text.bytea_text)


def _temporal(name: str, avro: dict[str, str], encode: Callable[[bytes], bytes], text: Callable[[int], str],
              parse: Callable[[str], Any], json: Callable[[int], str] | None = None) -> NativeType:  # fmt: skip
    """A type that fastavro turns into one of `datetime`'s."""
    return NativeType(name, avro, avro["type"], encode, text, json or text, None, partial(_parse_or_text, parse))


#: Scalar types by OID.
SCALARS: dict[int, NativeType] = {
    16: _BOOL,
    17: _BYTEA,
    19: _string("name"),
    20: _plain("int8", "long", from_text.from_long, str, int),
    21: _plain("int2", "int", from_text.from_int, str, int),
    23: _plain("int4", "int", from_text.from_int, str, int),
    25: _string("text"),
    26: _plain("oid", "long", from_text.from_long, str, int),
    700: _plain("float4", "float", from_text.from_float4, to_text.float4_text, float, _finite_single),
    701: _plain("float8", "double", from_text.from_float8, to_text.float8_text, float, _finite),
    1042: _string("bpchar"),
    1043: _string("varchar"),
    1082: _temporal("date", _DATE, from_text.from_date, to_text.date_text, partial(_parse_iso, date)),
    1083: _temporal("time", _TIME, from_text.from_time, to_text.time_text, partial(_parse_iso, time)),
    1114: _temporal(
        "timestamp", _TIMESTAMP, from_text.from_timestamp, to_text.timestamp_text, partial(_parse_iso, datetime)
    ),
    1184: _temporal(
        "timestamptz",
        _TIMESTAMPTZ,
        from_text.from_timestamptz,
        to_text.timestamptz_text,
        _parse_utc,
        to_text.timestamptz_iso,
    ),
    2950: NativeType(
        "uuid", _logical("string", "uuid"), "string", from_text.from_uuid, _same, _same, as_uuid, as_uuid, text_like=True
    ),
}

_ARRAY_OIDS = {
    16: 1000, 17: 1001, 19: 1003, 20: 1016, 21: 1005, 23: 1007, 25: 1009, 26: 1028, 700: 1021, 701: 1022, 1042: 1014,
    1043: 1015, 1082: 1182, 1083: 1183, 1114: 1115, 1184: 1185, 2950: 2951,
}  # fmt: skip


def _array_of(item: NativeType) -> NativeType:
    def encode(text: bytes) -> bytes:
        return native_array([NULL if e is None else item.encode(e) for e in split_array(text)])

    def to_array_text(values: list[Any]) -> str:
        return join_array([None if v is None else item.text(v) for v in values])

    def to_json(values: list[Any]) -> object:
        return [None if v is None else item.json(v) for v in values]

    def to_python(values: list[Any]) -> object:
        convert = item.python or _same
        return [None if v is None else convert(v) for v in values]

    def parse(text: str) -> object:
        try:
            elements = split_array(text.encode())
            for element in elements:
                if element is not None:
                    item.encode(element)
        except from_text.OUTSIDE:
            return text
        return [None if e is None else item.parse(e.decode()) for e in elements]

    return NativeType(
        f"_{item.name}",
        {"type": "array", "items": ["null", item.avro]},
        {"type": "array", "items": ["null", item.raw]},
        encode,
        to_array_text,
        to_json,
        to_python if item.python else None,
        parse,
    )


#: All types with a native form, one-dimensional arrays included.
NATIVE: dict[int, NativeType] = SCALARS | {_ARRAY_OIDS[oid]: _array_of(item) for oid, item in SCALARS.items()}


def parse_text(type_oid: int, text: str) -> Any:
    """The Python value of a canonical text, as `decode_row` would give it."""
    if type_oid == NUMERIC:
        return as_decimal(text)
    native = NATIVE.get(type_oid)
    return text if native is None else native.parse(text)
