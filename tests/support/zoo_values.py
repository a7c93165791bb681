"""What a value of the source must be in Python, in Avro and in JSON, worked out without Walbus's own code.

psycopg reads PostgreSQL's text, and says which Python value it is. `docs/values.md` says which types and values are
native; that is written down here a second time, so that both would have to be wrong in the same way.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import Format

NATIVE = {
    "boolean", "smallint", "integer", "bigint", "oid", "real", "double precision", "text", "character varying",
    "character", "name", "bytea", "date", "time without time zone", "timestamp without time zone",
    "timestamp with time zone", "uuid",
}  # fmt: skip
TEXT_LIKE = {"text", "character varying", "character", "name"}
_INFINITE = re.compile(r"-?infinity")
_SHAPED = re.compile(r"\[|\{\{")


class Expected:
    """Works out values of one server's types.

    Args:
        connection: in UTC, as psycopg makes aware times in the session's zone.
    """

    def __init__(self, connection: psycopg.Connection) -> None:
        self._transformer = Transformer(connection)
        query = "SELECT format_type(oid, NULL), oid::int8 FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace"
        self._oids: dict[str, int] = dict(connection.execute(query).fetchall())

    def python(self, type_name: str, text: str | None) -> Any:
        """The value that a consumer gets."""
        if text is None:
            return None
        element = type_name.removesuffix("[]")
        if type_name == "numeric":
            return Decimal(text)
        if element not in NATIVE:
            return text
        if element != type_name and _SHAPED.match(text):
            return text  # other dimensions, or another lower bound
        value = self._loaded(type_name, text)
        within = value if isinstance(value, list) else [value]
        return value if all(_in_range(element, each) for each in within) else text

    def avro(self, type_name: str, text: str | None) -> Any:
        """The value that an Avro reader gets."""
        return text if type_name == "numeric" else self.python(type_name, text)

    def json(self, type_name: str, text: str | None) -> Any:  # noqa: PLR0911  (one a form)
        """What a JSON line's value is; documents of json and jsonb as `Verbatim`."""
        if text is None:
            return None
        if type_name in ("json", "jsonb"):
            return Verbatim(text.replace("\n", " ").replace("\r", " "))
        value = self.python(type_name, text)
        match value:
            case list():
                return [self.json(type_name.removesuffix("[]"), each) for each in self._element_texts(text)]
            case bool() | int():
                return value
            case float():
                return float(text) if math.isfinite(value) else text
            case datetime() if value.tzinfo:
                return text.replace(" ", "T").replace("+00", "Z")
        return text

    def _loaded(self, type_name: str, text: str) -> Any:
        loader = self._transformer.get_loader(self._oids[type_name], Format.TEXT)
        try:
            value = loader.load(text.encode())
        except psycopg.DataError:  # beyond Python's range
            return text
        if type_name.removesuffix("[]") != "real":
            return value
        return [_single(each) for each in value] if isinstance(value, list) else _single(value)

    def _element_texts(self, text: str) -> Sequence[str | None]:
        loader = self._transformer.get_loader(self._oids["text[]"], Format.TEXT)
        elements: list[str | None] = loader.load(text.encode())
        return elements


class Verbatim(str):
    """A JSON document, to be found byte by byte in the line."""


def _single(value: float | None) -> float | None:
    """The single-precision number; psycopg reads its digits as a double's."""
    return value if value is None else float(struct.unpack("<f", struct.pack("<f", value))[0])


def _in_range(element: str, value: object) -> bool:
    return element in TEXT_LIKE or not isinstance(value, str)


def identical(mine: object, theirs: object) -> bool:
    """Equal, of the same type, floats bit for bit (all NaN are one)."""
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, float) and isinstance(theirs, float):
        if math.isnan(mine) or math.isnan(theirs):
            return math.isnan(mine) and math.isnan(theirs)
        return struct.pack("<d", mine) == struct.pack("<d", theirs)
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(identical, mine, theirs))
    if isinstance(mine, Decimal) and isinstance(theirs, Decimal):
        return mine.as_tuple() == theirs.as_tuple()
    return mine == theirs
