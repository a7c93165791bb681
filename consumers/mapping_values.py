"""Python values of a mapping as PostgreSQL's canonical text, by the type of the column that they go into. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from walbus.schema import Column
from walbus.values import to_text
from walbus.values.types import NATIVE, NUMERIC

#: Type OIDs and names by the word that the configuration has for them.
TYPES: dict[str, tuple[int, str]] = {
    "bool": (16, "bool"),
    "bytea": (17, "bytea"),
    "date": (1082, "date"),
    "float8": (701, "float8"),
    "int4": (23, "int4"),
    "int8": (20, "int8"),
    "json": (114, "json"),
    "jsonb": (3802, "jsonb"),
    "numeric": (NUMERIC, "numeric"),
    "text": (25, "text"),
    "timestamp": (1114, "timestamp"),
    "timestamptz": (1184, "timestamptz"),
    "uuid": (2950, "uuid"),
}
_CONSTANTS: dict[type, str] = {bool: "bool", int: "int8", float: "float8", str: "text"}
_JSON = (114, 3802)


def constant_column(name: str, value: bool | int | float | str) -> tuple[Column, str]:
    """The column of a constant, and its text."""
    oid, kind = TYPES[_CONSTANTS[type(value)]]
    return Column(name, oid, kind, -1, in_key=False), text_of(value, oid) or ""


def text_of(value: object, type_oid: int) -> str | None:
    """The canonical text of a value; None for None.

    Raises:
        TypeError, ValueError: a column of this type does not take the value.
    """
    if value is None:
        return None
    if type_oid in _JSON:
        return _json(value)
    convert = _CONVERT.get(type_oid)
    if convert is not None:
        return convert(value)
    native = NATIVE.get(type_oid)
    if isinstance(value, str) and (native is None or native.text_like) and "\0" not in value:
        return value
    raise TypeError(type(value).__name__)


def _json(value: object) -> str:
    """A text is taken for JSON already."""
    if isinstance(value, str):
        json.loads(value)
        return value
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _bool(value: object) -> str:
    return to_text.bool_text(_is(value, bool))


def _integer(bits: int) -> Callable[[object], str]:
    def convert(value: object) -> str:
        number: int = _is(value, int)
        if isinstance(value, bool) or not -(1 << bits) <= number < 1 << bits:
            raise TypeError
        return str(number)

    return convert


def _float(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return to_text.float8_text(float(value))


def _numeric(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError
    if isinstance(value, int):
        return str(value)
    if value.is_nan():
        return "NaN"
    return f"{value:f}" if value.is_finite() else f"{'-' * value.is_signed()}Infinity"


def _date(value: object) -> str:
    if isinstance(value, datetime):
        raise TypeError
    day: date = _is(value, date)
    return day.isoformat()


def _timestamp(value: object) -> str:
    moment: datetime = _is(value, datetime)
    if moment.tzinfo is not None:
        raise TypeError
    return _without_zeros(moment.isoformat(" "))


def _timestamptz(value: object) -> str:
    moment: datetime = _is(value, datetime)
    if moment.tzinfo is None:
        raise TypeError
    return _without_zeros(moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ")) + "+00"


def _time(value: object) -> str:
    moment: time = _is(value, time)
    return _without_zeros(moment.isoformat())


def _without_zeros(text: str) -> str:
    return text.rstrip("0") if "." in text else text


def _bytea(value: object) -> str:
    return to_text.bytea_text(_is(value, bytes))


def _uuid(value: object) -> str:
    return str(_is(value, UUID))


def _is(value: object, kind: type[Any]) -> Any:  # noqa: ANN401 - of that type
    if not isinstance(value, kind):
        raise TypeError
    return value


_CONVERT: dict[int, Callable[[object], str]] = {
    16: _bool,
    17: _bytea,
    20: _integer(63),
    21: _integer(15),
    23: _integer(31),
    701: _float,
    NUMERIC: _numeric,
    1082: _date,
    1083: _time,
    1114: _timestamp,
    1184: _timestamptz,
    2950: _uuid,
}
