"""Types of the source's columns in the target. Pure.

A column of a built-in type whose values mean the same everywhere has that type, with its modifier. Every other one is
`text`, and holds what the source prints: types that the target may not have (enums, domains, composites, those of
extensions), and types whose values name objects of one database (`regclass`, `aclitem`, …), or that a server may be
built without (`xml`).

Values travel as one array a column. The array has the column's own type where an array of it is read fastest, and
otherwise consists of texts, each cast to the column's type: an explicit cast, which cuts and pads as the source did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from walbus.values.types import NATIVE

#: Scalar types that mean the same everywhere, by OID.
PORTABLE = frozenset({
    16, 17, 18, 19, 20, 21, 23, 25, 26, 27, 28, 29, 114, 600, 601, 602, 603, 604, 628, 650, 700, 701, 718, 774, 790,
    829, 869, 1042, 1043, 1082, 1083, 1114, 1184, 1186, 1266, 1560, 1562, 1700, 2950, 3220, 3614, 3615, 3802, 3904,
    3906, 3908, 3910, 3912, 3926, 4072, 4451, 4532, 4533, 4534, 4535, 4536, 5069,
})  # fmt: skip

#: Element types of the arrays that rows travel in; any other type travels as text.
_TRAVELS = {
    16: "bool", 20: "int8", 21: "int2", 23: "int4", 25: "text", 26: "oid", 700: "float4", 701: "float8", 1082: "date",
    1114: "timestamp", 1184: "timestamptz", 1700: "numeric", 2950: "uuid",
}  # fmt: skip

#: Types whose cast to text is not what they print; rows of tables without a key are compared by their own equality.
_OWN_EQUALITY = frozenset({16, 650, 869, 1042})

#: Types that hold every value of another one, as far as columns change between them.
_WIDER = {21: (20, 23, 1700), 23: (20, 1700), 20: (1700,), 700: (701,), 1043: (25,), 1042: (25, 1043), 1082: (1114,)}


def travels_as(type_oid: int, declared: str) -> str | None:
    """The element type of the array that a column's values travel in; None: text, and each is cast to its own type."""
    return _TRAVELS.get(type_oid) if declared != "text" or type_oid == 25 else "text"


def takes(type_oid: int, declared: str, other_oid: int) -> bool:
    """Whether a column can take every value that a column of another type had, as text."""
    return type_oid == other_oid or declared == "text" or type_oid in _WIDER.get(other_oid, ())


def equality(type_oid: int, declared: str, column: str, value: str) -> str:
    """The SQL that tells whether a column (SQL) has a value (SQL of a text): most types are compared by their text."""
    if type_oid in _OWN_EQUALITY and declared != "text":
        return f"{column} IS NOT DISTINCT FROM {value}::{declared}"
    return f"{column}::text IS NOT DISTINCT FROM {value}"


def texts_of(type_oid: int, values: list[object]) -> list[str | None]:
    """The canonical texts of a column's values, which are raw or texts already."""
    native = NATIVE.get(type_oid)
    if native is None or native.text_like:
        return cast(list[str | None], values)
    text = native.text
    return [value if value is None or type(value) is str else text(value) for value in values]


def array_literal(values: Sequence[str | None]) -> str:
    """A one-dimensional array in PostgreSQL's text form; None is NULL."""
    if None not in values:
        joined = '","'.join(values)  # type: ignore[arg-type]  # there is no None among them
        if "\\" not in joined and joined.count('"') == 2 * (len(values) - 1):
            return f'{{"{joined}"}}'
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
