"""What clients of the bootstrap server ask for, read from query strings. No I/O.

table=schema.name                one table, by its name
tables=schema.name,schema.*      several, by patterns, in the order of their names
after_table=T, after_key=HEX     a snapshot goes on behind this key (of this table)
after=POSITION|seq:N, seq=N      a delta of what changed since
partition=I/N                    the part I, from 0, of N parts of all keys, as of the relay's streams
log_id=…                         refuse any other log
format=binary|json|arrow         default: by the Accept header, binary without one
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Final, Literal

from walbus.errors import InvalidText, UsageError
from walbus.keys import encode_key
from walbus.native.reading import WHOLE, Partition
from walbus.position import Position, parse_position
from walbus.relay.selection import parse_selection
from walbus.schema import TableSchema

Format = Literal["binary", "json", "arrow"]

MEDIA_TYPES: Final[dict[Format, str]] = {
    "binary": "application/vnd.walbus.stream",
    "json": "application/x-ndjson",
    "arrow": "application/vnd.apache.arrow.stream",
}
#: Parameters of each route.
SNAPSHOT_PARAMETERS: Final = ("table", "tables", "after_table", "after_key", "partition", "log_id", "format")
DELTA_PARAMETERS: Final = ("table", "after", "seq", "partition", "log_id", "format", "count", "limit")
ROW_PARAMETERS: Final = ("table", "key", "log_id")
#: Begins the name of a parameter of `/v1/row` that gives a column of the key.
KEY_COLUMN: Final = "key."

#: Places that a count looks at unless it is told otherwise, and at most.
COUNTED, MOST_COUNTED = 1_000_000, 100_000_000

_SEQ = re.compile(r"\d{1,16}\Z", re.ASCII)
_MAX_SEQ = 1 << 53
_COUNT = re.compile(r"\d{1,9}\Z", re.ASCII)
_INTEGERS = frozenset({20, 21, 23, 26})  # type OIDs
_BOOL, _TIMESTAMPTZ = 16, 1184
_MEND_AFTER = "write it as in 1:16/B374D848:4 (with seq=N, the seq of that place) or as seq:N"


def refuse_unknown(query: Mapping[str, str], known: tuple[str, ...], prefix: str = "") -> None:
    """Refuses parameters that the route does not have, or has twice: of two values one would be passed over.

    Raises:
        UsageError: names the first one.
    """
    names = sorted(name for name, _ in query.items())
    for name, following in zip_longest(names, names[1:]):
        if name == following:
            mend = "give it once; several tables stand in one list: tables=schema.name,schema.*"
            raise UsageError(f"{name[:80]} is given twice", where=name[:80], mend=mend)
        if name not in known and not (prefix and name.startswith(prefix) and name != prefix):
            raise UsageError(f"{name[:80]!r} is not a parameter", where=name[:80], mend=f"use {', '.join(known)}")


def format_of(query: Mapping[str, str], accept: str, offered: tuple[Format, ...]) -> Format:
    """The form of the answer.

    Raises:
        UsageError: it is not one of those that the route offers.
    """
    wanted = query.get("format")
    if wanted is None:
        return next((form for form in offered if MEDIA_TYPES[form] in accept), "binary")
    for form in offered:
        if wanted == form:
            return form
    raise UsageError(f"{wanted[:80]!r} is no format", where="format", mend=f"use {', '.join(offered)}")


def partition_of(query: Mapping[str, str]) -> Partition:
    """The part of the keys.

    Raises:
        UsageError: it is none.
    """
    text = query.get("partition")
    return WHOLE if text is None else parse_selection(None, None, None, text).partition


def patterns_of(query: Mapping[str, str]) -> tuple[str, ...]:
    """The patterns of `tables`.

    Raises:
        UsageError: one has another form.
    """
    return parse_selection(query.get("tables"), None, None).tables


def key_of(query: Mapping[str, str]) -> bytes:
    """The key of `after_key`; empty without one.

    Raises:
        UsageError: it is not hexadecimal.
    """
    try:
        return bytes.fromhex(query.get("after_key", ""))
    except ValueError:
        raise UsageError("a key is written in hexadecimal digits", where="after_key") from None


def since_of(query: Mapping[str, str]) -> tuple[Position | None, int | None]:
    """Position and seq of a delta's beginning; at least one of them is there.

    Raises:
        UsageError: `after` is missing, or one of the two makes no sense.
    """
    text = query.get("after")
    if not text:
        raise UsageError("since when", where="after", mend=_MEND_AFTER)
    if text.startswith("seq:"):
        return None, _seq(text[4:], "after")
    try:
        position = parse_position(text)
    except InvalidText as error:
        raise UsageError(error.what, where="after", mend=_MEND_AFTER) from None
    return position, _seq(query["seq"], "seq") if "seq" in query else None


def _seq(text: str, where: str) -> int:
    if not _SEQ.match(text) or int(text) >= _MAX_SEQ:
        raise UsageError(f"{text[:80]!r} is no seq", where=where, mend="give what a change, or an answer, has as seq")
    return int(text)


def limit_of(query: Mapping[str, str]) -> int | None:
    """How many places a count looks at; None if none is asked for.

    Raises:
        UsageError: `count` or `limit` makes no sense.
    """
    count, limit = query.get("count", "false"), query.get("limit", str(COUNTED))
    if count not in ("true", "false"):
        raise UsageError(f"{count[:80]!r} is neither true nor false", where="count", mend="use true or false")
    if not _COUNT.match(limit) or not 0 < int(limit) <= MOST_COUNTED:
        raise UsageError(f"{limit[:80]!r} is no limit", where="limit", mend=f"use 1 to {MOST_COUNTED}")
    return int(limit) if count == "true" else None


def row_key(query: Mapping[str, str], schema: TableSchema) -> bytes:
    """The key of `/v1/row`: `key` is a JSON object by column, or `key.COLUMN` gives each column's text.

    Values are canonical text, or what `walbus.values.row_json` makes of it; integers, booleans, numbers may be JSON's
    own.

    Raises:
        UsageError: the columns are not those of the key, or a value is none.
    """
    columns = [schema.columns[index] for index in schema.key_indexes]
    given: Mapping[str, object] = {
        name.removeprefix(KEY_COLUMN): value for name, value in query.items() if name.startswith(KEY_COLUMN)
    }
    if "key" in query:
        given = {**_key_object(query["key"]), **given}
    names = [column.name for column in columns]
    if set(given) != set(names):
        what = f"the key of {schema.table} is ({', '.join(names)})"
        raise UsageError(what, where="key", mend='give each, as in key={"id":7} or key.id=7')
    texts = [_canonical(given[column.name], column.type_oid, column.name) for column in columns]
    return encode_key(texts, [column.type_oid for column in columns])


def _key_object(text: str) -> dict[str, object]:
    try:
        found = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError("the key is no JSON object", where="key", mend='write it as in {"id":7}')
    return found


def _canonical(value: object, type_oid: int, column: str) -> bytes:
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if not isinstance(value, str):
        raise UsageError(
            "this is no value of a key", where=f"{KEY_COLUMN}{column}"[:80], mend="give a text or a number"
        )
    if type_oid in _INTEGERS and _INTEGER.match(value):
        value = str(int(value))
    elif type_oid == _BOOL:
        value = {"true": "t", "false": "f"}.get(value, value)
    elif type_oid == _TIMESTAMPTZ:
        value = _ISO.sub(r"\1 \2+00", value)
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise UsageError("this is no text", where=f"{KEY_COLUMN}{column}"[:80]) from None


_INTEGER = re.compile(r"[+-]?\d{1,20}\Z", re.ASCII)
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d(?:\.\d+)?)Z\Z", re.ASCII)
