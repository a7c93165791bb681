"""Rows and keys in the types of Debezium's PostgreSQL connector, made of the log's. No I/O.

    date                      int, io.debezium.time.Date
    time                      long, io.debezium.time.MicroTime
    timestamp                 long, io.debezium.time.MicroTimestamp
    timestamptz               string, io.debezium.time.ZonedTimestamp
    uuid, json, jsonb, xml    string, io.debezium.data.Uuid, .Json, .Xml
    numeric, interval, …      string: PostgreSQL's text, as with its decimal.handling.mode=string
    everything else           as in the log

A field there has one type, where the log's has `string` beside it for values outside of Avro's range. Days and times
outside of it are numbers too; the infinities are those that Debezium documents for timestamps, and the first and last
of an int for dates. An array outside of it (of several dimensions, say) has no form there.

Most columns have the very bytes that they have in the log, so a row is taken apart only if some do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any, Final

from walbus.schema import Column, TableSchema
from walbus.values import row_texts
from walbus.values.arrays import join_array, split_array
from walbus.values.avro_bytes import NULL, native_array, native_long, native_string, text_string
from walbus.values.from_text import OUTSIDE
from walbus.values.key_codec import split_key
from walbus.values.layouts import PerLayout
from walbus.values.merge import split_row
from walbus.values.schema_form import field_names
from walbus.values.types import NATIVE, SCALARS

Json = dict[str, Any]
_Convert = Callable[[bytes, str | None], bytes]

DATE, TIME, TIMESTAMP, TIMESTAMPTZ = 1082, 1083, 1114, 1184
_TEXT, _TEXTS, _ZONED_ARRAY = 25, 1009, 1185
_IN_TEXT_BRANCH: Final = 4  #: first byte of a value that the log has as text
_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND
_INT_ENDS: Final = {"infinity": (1 << 31) - 1, "-infinity": -(1 << 31)}
_TIMESTAMP_ENDS: Final = {"infinity": 9223372036825200000, "-infinity": -9223372036832400000}
_CLOCK = re.compile(r"(\d+):(\d+):(\d+)(?:\.(\d+))?\Z", re.ASCII)
_CALENDAR = re.compile(r"(\d+)-(\d+)-(\d+)\Z", re.ASCII)

#: What Kafka Connect calls the types that are more than their Avro, by OID.
_CONNECT: Final[dict[int, tuple[object, str]]] = {
    DATE: ("int", "io.debezium.time.Date"),
    TIME: ("long", "io.debezium.time.MicroTime"),
    TIMESTAMP: ("long", "io.debezium.time.MicroTimestamp"),
    TIMESTAMPTZ: ("string", "io.debezium.time.ZonedTimestamp"),
    1266: ("string", "io.debezium.time.ZonedTime"),
    2950: ("string", "io.debezium.data.Uuid"),
    114: ("string", "io.debezium.data.Json"),
    3802: ("string", "io.debezium.data.Json"),
    142: ("string", "io.debezium.data.Xml"),
}
_ITEMS: Final = {type_oid: item for item, type_oid in (
    (16, 1000), (17, 1001), (19, 1003), (20, 1016), (21, 1005), (23, 1007), (25, 1009), (26, 1028), (700, 1021),
    (701, 1022), (1042, 1014), (1043, 1015), (DATE, 1182), (TIME, 1183), (TIMESTAMP, 1115), (TIMESTAMPTZ, _ZONED_ARRAY),
    (2950, 2951),
)}  # fmt: skip


class NoFormError(ValueError):
    """A value that Debezium's types cannot hold; names the column."""


def row_fields(layout: TableSchema) -> list[Json]:
    """The fields of a row's record."""
    return [
        {"name": name, "type": ["null", _type(column.type_oid)], "default": None}
        for name, column in zip(field_names(layout), layout.columns, strict=True)
    ]


def key_fields(layout: TableSchema) -> list[Json]:
    """The fields of a key's record."""
    names = field_names(layout)
    return [{"name": names[index], "type": _type(layout.columns[index].type_oid)} for index in layout.key_indexes]


def _type(type_oid: int) -> object:
    if type_oid in _CONNECT:
        avro, name = _CONNECT[type_oid]
        return {"type": avro, "connect.version": 1, "connect.name": name}
    if type_oid == 21:
        return {"type": "int", "connect.type": "int16"}
    if type_oid in _ITEMS:
        return {"type": "array", "items": ["null", _type(_ITEMS[type_oid])]}
    native = NATIVE.get(type_oid)
    return "string" if native is None else native.avro


# Rows


def debezium_row(layout: TableSchema, row: bytes) -> bytes:
    """A row of the log in these types.

    Raises:
        NoFormError: a value has no form in them.
        DamagedRecord: it is no row of this layout.
    """
    convert = _converters(layout)
    if not convert:
        return row
    parts, texts = split_row(layout, row), row_texts(layout, row)
    for index, change in convert.items():
        parts[index] = change(parts[index], texts[index])
    return b"".join(parts)


def log_row(layout: TableSchema, row: bytes) -> bytes:
    """The inverse of `debezium_row`, of a row whose days and times are all in Avro's range.

    Raises:
        DamagedRecord: it is none of this layout.
    """
    zoned = {i for i, column in enumerate(layout.columns) if column.type_oid in {TIMESTAMPTZ, _ZONED_ARRAY}}
    if not zoned:
        return row
    twin = _twin(layout)
    parts, texts = split_row(twin, row), row_texts(twin, row)
    for index in zoned:
        text = texts[index]
        if text is not None:
            parts[index] = _logged(layout.columns[index].type_oid, text)
    return b"".join(parts)


def is_exact(layout: TableSchema, row: bytes) -> bool:
    """Whether `log_row` gives a row back: all of its days and times are in Avro's range."""
    numbers = [i for i, column in enumerate(layout.columns) if column.type_oid in {DATE, TIME, TIMESTAMP}]
    if not numbers:
        return True
    parts = split_row(layout, row)
    return all(parts[index][0] != _IN_TEXT_BRANCH for index in numbers)


def _logged(type_oid: int, text: str) -> bytes:
    if type_oid == _ZONED_ARRAY:
        items = [None if item is None else _unzoned(item.decode()) for item in split_array(text.encode())]
        text = join_array(items)
    else:
        text = _unzoned(text)
    try:
        return NATIVE[type_oid].encode(text.encode())
    except OUTSIDE:
        return text_string(text.encode())


def _twin(layout: TableSchema) -> TableSchema:
    """A layout of which `split_row` understands a row in these types."""
    types = {TIMESTAMPTZ: _TEXT, _ZONED_ARRAY: _TEXTS}
    columns = (replace(column, type_oid=types.get(column.type_oid, column.type_oid)) for column in layout.columns)
    return replace(layout, columns=tuple(columns))


def _converters_of(layout: TableSchema) -> dict[int, _Convert]:
    found = ((index, _converter(column)) for index, column in enumerate(layout.columns))
    return {index: convert for index, convert in found if convert is not None}


_converters = PerLayout(_converters_of)


def _converter(column: Column) -> _Convert | None:
    def zoned(part: bytes, text: str | None) -> bytes:
        return part if text is None else native_string(_zoned(text).encode())

    def zoned_array(part: bytes, text: str | None) -> bytes:
        if text is None:
            return part
        items = _one_dimension(column, part, text)
        return native_array([NULL if i is None else native_string(_zoned(i.decode()).encode()) for i in items])

    def array(part: bytes, text: str | None) -> bytes:
        if text is not None and part[0] == _IN_TEXT_BRANCH:
            _one_dimension(column, part, text)
        return part

    def number(part: bytes, text: str | None) -> bytes:
        return native_long(_number(column, text)) if text is not None and part[0] == _IN_TEXT_BRANCH else part

    def plain(part: bytes, text: str | None) -> bytes:
        if text is not None and part[0] == _IN_TEXT_BRANCH:
            raise NoFormError(column.name)
        return part

    if column.type_oid == TIMESTAMPTZ:
        return zoned
    if column.type_oid in {DATE, TIME, TIMESTAMP}:
        return number
    if column.type_oid in _ITEMS:
        return zoned_array if column.type_oid == _ZONED_ARRAY else array
    native = NATIVE.get(column.type_oid)
    return plain if native is not None and not native.text_like else None


def _one_dimension(column: Column, part: bytes, text: str) -> list[bytes | None]:
    if part[0] == _IN_TEXT_BRANCH:
        raise NoFormError(column.name)
    return split_array(text.encode())


# Keys


def debezium_key(layout: TableSchema, key: bytes) -> bytes:
    """A key of the log in these types, as Avro.

    Raises:
        NoFormError: a value has no form in them.
        DamagedRecord: the bytes are no key.
    """
    columns = [layout.columns[index] for index in layout.key_indexes]
    return b"".join([_key_part(column, str(part)) for column, part in zip(columns, split_key(key), strict=True)])


def _key_part(column: Column, text: str) -> bytes:
    native = NATIVE.get(column.type_oid)
    if column.type_oid == TIMESTAMPTZ:
        return native_string(_zoned(text).encode())[1:]
    if native is None:
        return native_string(text.encode())[1:]
    if column.type_oid == _ZONED_ARRAY:
        items = split_array(text.encode())
        return native_array([NULL if i is None else native_string(_zoned(i.decode()).encode()) for i in items])[1:]
    try:
        return native.encode(text.encode())[1:]
    except OUTSIDE:
        return native_long(_number(column, text))[1:]


# Days and times


def _zoned(text: str) -> str:
    """A timestamptz as ISO 8601 in UTC; what is no day of the calendar stays PostgreSQL's text."""
    if text.endswith("+00"):
        return text[:-3].replace(" ", "T", 1) + "Z"
    return text


def _unzoned(text: str) -> str:
    return text[:-1].replace("T", " ", 1) + "+00" if text.endswith("Z") else text


def _number(column: Column, text: str) -> int:
    """A date's days, or a time's or timestamp's microseconds, from a text outside of Avro's range."""
    try:
        if column.type_oid == DATE:
            days = _INT_ENDS.get(text)
            return _days(text) if days is None else days
        if column.type_oid == TIME:
            return _micros(text)
        ends = _TIMESTAMP_ENDS.get(text)
        if column.type_oid == TIMESTAMP:
            return _moment(text) if ends is None else ends
    except ValueError:
        pass
    raise NoFormError(column.name)


def _moment(text: str) -> int:
    era = " BC" if text.endswith(" BC") else ""
    day, _, clock = text.removesuffix(" BC").partition(" ")
    return _days(day + era) * _DAY + _micros(clock)


def _micros(text: str) -> int:
    found = _CLOCK.match(text)
    if found is None:
        raise ValueError(text)
    hours, minutes, seconds, fraction = found.groups(default="")
    return (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * _SECOND + int(fraction.ljust(6, "0"))


def _days(text: str) -> int:
    """Days since 1970 of a date of the Gregorian calendar, however far it reaches."""
    found = _CALENDAR.match(text.removesuffix(" BC"))
    if found is None:
        raise ValueError(text)
    year, month, day = map(int, found.groups())
    if text.endswith(" BC"):
        year = 1 - year
    # Cycles of 400 years have 146,097 days. Within one, the calendar of the same year from 2000 on is Python's own.
    cycles, within = divmod(year - 2000, 400)
    return cycles * 146_097 + date(2000 + within, month, day).toordinal() - date(1970, 1, 1).toordinal()


assert set(_ITEMS.values()) == set(SCALARS)  # noqa: S101 - each type's array is known
