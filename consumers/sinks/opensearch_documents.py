"""Documents, and the indices that hold them, as the sink names and maps them. No connection.

One index a table, one document a row. What PostgreSQL allows and a search server does not is written with `%` and two
hexadecimal digits: upper case in an index's name, a dot or a leading underscore in a field's. An index is always
reached by an alias, `public.orders`, so that another can be put in its place; its own name ends with `~` and a number.

A document's version is its row's seq. Seqs of another log say nothing, and versions never fall: above the seq's 53 bits
stands how many logs the index has seen, which leaves room for a thousand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

from walbus.consumers.sinks.layout import LayoutChange, fitted
from walbus.keys import key_texts
from walbus.schema import Column, TableSchema
from walbus.values.types import JSON, JSONB

Mapped: TypeAlias = dict[str, Any]  # what a mapping says of one field
Source: TypeAlias = dict[str, Any]  # a document's fields, ready for `msgspec.json.encode`

T = TypeVar("T")

#: Fields of the sink's own, in every document.
MARK, LACKS = "_walbus_mark", "_walbus_lacks"

_SEQ_BITS = 53
LOGS_AT_MOST = 1 << (63 - _SEQ_BITS)
#: Versions below this number are outranked by a repair; the numbers above are for repairs and logs to come.
OUTRANKED = LOGS_AT_MOST // 2
_LONGEST_ID = 512  # bytes
_EMPTY, _DIGEST = "%empty", "%sha256-"  # a text that begins with % is written otherwise
_DEEPEST = 300  # servers stop at 1,000 levels, and our own readers not far below
_LONG_NUMBER = re.compile(rb"[0-9.eE+-]{900}")  # servers stop at 1,000 digits
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_LONGEST_NAME = 200  # of 255 bytes: a number comes behind it
_WRITTEN_OTHERWISE = re.compile(r"[^a-z0-9._$-]")
_PLACEHOLDER = "{table}"

_KEYWORD: Mapped = {"type": "keyword", "ignore_above": 8191}  # of four bytes each: no term is longer than 32,766 bytes
_TEXT: Mapped = {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
_KEPT_ONLY: Mapped = {"type": "keyword", "index": False, "doc_values": False}
_FRACTION = "".join(f"[.{'S' * digits}]" for digits in range(6, 0, -1))


def _lenient(kind: str, **more: object) -> Mapped:
    """A field whose value may be text that is none of its kind, such as `infinity`: kept then, and not searched."""
    return {"type": kind, "ignore_malformed": True, **more}


_BY_OID: dict[int, Mapped] = {
    16: {"type": "boolean"},
    17: _KEPT_ONLY,
    20: _lenient("long"),
    21: _lenient("short"),
    23: _lenient("integer"),
    25: _TEXT,
    26: _lenient("long"),
    114: {"type": "object", "enabled": False},  # kept as it is: no two rows need agree on what is where in it
    700: _lenient("float"),
    701: _lenient("double"),
    869: _lenient("ip"),
    1042: _TEXT,
    1043: _TEXT,
    1082: _lenient("date", format="strict_date"),
    1114: _lenient("date", format=f"uuuu-MM-dd HH:mm:ss{_FRACTION}"),
    1184: _lenient("date", format="strict_date_optional_time"),
    1700: _lenient("double"),
    3802: {"type": "object", "enabled": False},
}
#: An array's values are values of its field, each by itself.
_ARRAYS = {1001: 17, 1005: 21, 1007: 23, 1009: 25, 1014: 1042, 1015: 1043, 1016: 20, 1021: 700, 1022: 701, 1028: 26,
           1115: 1114, 1182: 1082, 1185: 1184}  # fmt: skip


class IndexTemplate:
    """The aliases of tables' indices, such as `shop-{table}`.

    Raises:
        ValueError: the placeholder is missing, or the rest cannot be in an index's name.
    """

    def __init__(self, template: str) -> None:
        if template.count(_PLACEHOLDER) != 1:
            raise ValueError("the name needs {table} once")
        if _WRITTEN_OTHERWISE.search(template.replace(_PLACEHOLDER, "")) or template.startswith(("-", "_", ".", "$")):
            raise ValueError("beside {table} there may be lower-case letters, digits, -, _ and ., the first a letter")
        self._template = template

    def alias(self, table: str) -> str:
        """The alias of a table's index."""
        written = index_text(table)
        name = self._template.replace(_PLACEHOLDER, written)
        if not name[0].isalnum() and name[0] != "%":
            name = f"%{ord(name[0]):02x}{name[1:]}"
        if len(name) > _LONGEST_NAME:
            name = f"{name[:100]}%{hashlib.sha256(name.encode()).hexdigest()}"
        return name


def index_text(text: str) -> str:
    """A text as a part of an index's name."""
    return _WRITTEN_OTHERWISE.sub(_escaped, text)


def field_name(column: str) -> str:
    """The field of a column: a dot would make it a part of another, and a leading underscore is the server's own."""
    name = column.replace("%", "%25").replace(".", "%2e")
    if name.startswith("_"):
        name = f"%5f{name[1:]}"
    return name if name.strip() else "".join(f"%{byte:02x}" for byte in name.encode())


def document_id(key: bytes) -> str:
    """The `_id` of a row. Several key columns are joined by colons, colons inside them being written as %3A."""
    texts = key_texts(key)
    if len(texts) > 1:
        return _fitting(":".join(text.replace("%", "%25").replace(":", "%3A") for text in texts))
    (text,) = texts
    return _fitting(f"%25{text[1:]}" if text.startswith("%") else text)


def routing_of(text: str) -> str:
    """The routing that a column's text gives. To a server an empty one is none."""
    return text or _EMPTY


def is_digest(id_: str) -> bool:
    """Whether an id is the digest of a longer one."""
    return id_.startswith(_DIGEST)


def key_of_id(id_: str, columns: int) -> tuple[str, ...]:
    """The texts of the key that `document_id` makes an id of; the id alone where it is a digest, or of no such key.

    Args:
        id_: of a document, whoever wrote it.
        columns: that the key has.
    """
    if is_digest(id_):
        return (id_,)
    if id_ == _EMPTY:
        return ("",)
    parts = id_.split(":") if columns > 1 else [f"%{id_[3:]}" if id_.startswith("%25") else id_]
    if len(parts) != columns:
        return (id_,)
    return tuple(part.replace("%3A", ":").replace("%25", "%") for part in parts) if columns > 1 else tuple(parts)


def number_in(version: int) -> int:
    """The number that stands above the seq in a version."""
    return version >> _SEQ_BITS


def seq_of(number: int, version: int) -> int:
    """The seq that a version has among those of a log: below all of them in an earlier one, above in a later one."""
    if version >> _SEQ_BITS == number:
        return version & ((1 << _SEQ_BITS) - 1)
    return -1 if version >> _SEQ_BITS < number else version


def _fitting(text: str) -> str:
    if not text:
        return _EMPTY
    encoded = text.encode()
    return text if len(encoded) <= _LONGEST_ID else f"{_DIGEST}{hashlib.sha256(encoded).hexdigest()}"


def version_of(number: int, seq: int) -> int:
    """The version of a document: `number` of the logs before this one, then the seq."""
    return number << _SEQ_BITS | seq


def properties_of(layout: TableSchema, chosen: Mapping[str, Mapped]) -> dict[str, Mapped]:
    """The mapping of a table's fields.

    Args:
        layout: of the table.
        chosen: by column, what an operator wants instead.
    """
    columns = {field_name(column.name): chosen.get(column.name) or _mapped(column) for column in layout.columns}
    return columns | {MARK: {"type": "long"}, LACKS: {"type": "boolean"}}


def _mapped(column: Column) -> Mapped:
    known = _BY_OID.get(_ARRAYS.get(column.type_oid, column.type_oid))
    if known is not None:
        return known
    return _TEXT if column.type_name.rpartition(".")[2] == "citext" else _KEYWORD


def fitting_row(row: Mapping[str, T], change: LayoutChange) -> dict[str, T]:
    """A row of one layout with the columns of a later one, by column.

    Of a column that is a boolean now the old values are left out, and so are objects of one that was JSON, since
    servers take no such values there; the table is read again after such a change. All other fields are lenient.
    """
    now = fitted(row, change)
    for column in change.retyped:
        kind = _mapped(column)["type"]
        if kind == "boolean" or (kind != "object" and _has_objects(now.get(column.name))):
            now.pop(column.name, None)
    return now


def _has_objects(value: object) -> bool:
    text = bytes(value).lstrip() if isinstance(value, msgspec.Raw) else b""
    return text.startswith(b"{") or (text.startswith(b"[") and b"{" in text)


class RowForm:
    """Rows of a layout as documents' fields; their `json` and `jsonb` as `acceptable` has it."""

    def __init__(self, layout: TableSchema) -> None:
        self._fields = {
            column.name: field for column in layout.columns if (field := field_name(column.name)) != column.name
        }
        self._documents = [column.name for column in layout.columns if column.type_oid in {JSON, JSONB}]

    def fields(self, row: Source) -> Source:
        """A row of `walbus.values.row_json`, which is used up, by fields."""
        source = row
        for column in self._documents:
            value = source.get(column)
            if isinstance(value, msgspec.Raw):
                source[column] = acceptable(value)
        if not self._fields:
            return source
        return {self._fields.get(column, column): value for column, value in source.items()}


def acceptable(document: msgspec.Raw) -> msgspec.Raw | str:
    """A JSON document as servers take it, who read the whole of it even where nothing is searched.

    One that is nested too deep, has a number of too many digits, or half of a sign (an escaped surrogate alone), is its
    own text. Of a name that stands twice in one object, as it may in `json`, the last counts, as it does for `jsonb`;
    numbers keep every digit.
    """
    text = bytes(document)
    if (len(text) > _DEEPEST and _beyond_parsers(text)) or (b"\\u" in text and not _has_whole_signs(text)):
        return text.decode()
    repeated = False

    def seen(pairs: list[tuple[str, object]]) -> None:
        nonlocal repeated
        repeated = repeated or len({name for name, _ in pairs}) < len(pairs)

    if text.count(b":") > 1:
        json.loads(text, object_pairs_hook=seen, parse_int=str, parse_float=str)
    return msgspec.Raw(msgspec.json.encode(_once(document))) if repeated else document


def _beyond_parsers(text: bytes) -> bool:
    if text.count(b"[") + text.count(b"{") <= _DEEPEST and not _LONG_NUMBER.search(text):
        return False
    bare = _STRING.sub(b"", text)
    depth = deepest = 0
    for sign in re.findall(rb"[\[{}\]]", bare):
        depth += 1 if sign in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest > _DEEPEST or _LONG_NUMBER.search(bare) is not None


def _has_whole_signs(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def _once(document: msgspec.Raw) -> object:
    match bytes(document).lstrip()[:1]:
        case b"{":
            members = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
            return {name: _once(value) for name, value in members.items()}
        case b"[":
            return [_once(value) for value in msgspec.json.decode(document, type=list[msgspec.Raw])]
        case _:
            return document


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02x}" for byte in match[0].encode())


__all__ = [
    "LACKS", "LOGS_AT_MOST", "MARK", "OUTRANKED", "IndexTemplate", "Mapped", "RowForm", "Source", "acceptable",
    "document_id", "field_name", "fitting_row", "index_text", "is_digest", "key_of_id", "number_in", "properties_of",
    "routing_of", "seq_of", "version_of",
]  # fmt: skip
