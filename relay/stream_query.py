"""What a client of `/v1/stream` asks for, read from the query string. No I/O.

tables=public.orders,public.*    which tables (default: all, with messages)
after=POSITION                   go on behind a change that was done; wins over `from`
from=POSITION|TIME|earliest|latest   begin with; default: latest when following, earliest otherwise
until=POSITION|latest            end behind the transaction that holds it; `latest`: the end as of the request
follow=true|false                wait for more at the end; default: true without `until`
name=CONSUMER                    for logs and gauges
log_id=…                         refuse any other log
format=binary|json               default: by the Accept header, binary without one
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from walbus.errors import InvalidText, UsageError
from walbus.position import Position, parse_position

BINARY_TYPE: Final = "application/vnd.walbus.stream"
JSON_TYPE: Final = "application/x-ndjson"

_KNOWN = frozenset(("tables", "after", "from", "until", "follow", "name", "log_id", "format"))
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,6})?\Z")


@dataclass(frozen=True, slots=True)
class After:
    """Begin behind this "last done" position."""

    position: Position


@dataclass(frozen=True, slots=True)
class Since:
    """Begin with the first transaction committed at or after this time (Unix seconds)."""

    time: float


Start = After | Since | Literal["earliest", "latest"]
Until = Position | Literal["latest"] | None


@dataclass(frozen=True, slots=True)
class StreamQuery:
    """A stream as it was asked for.

    Attributes:
        tables: patterns, as `TableFilter` takes them; empty: everything.
        start: where to begin.
        until: where to end; None: nowhere.
        follow: whether to wait at the log's end.
        name: of the consumer; may be empty.
        log_id: the log that the client's position belongs to; None if it does not say.
        json: whether JSON lines are wanted.
    """

    tables: tuple[str, ...]
    start: Start
    until: Until
    follow: bool
    name: str
    log_id: str | None
    json: bool


def parse_stream_query(parameters: Mapping[str, str], accept: str) -> StreamQuery:
    """Reads the parameters and the Accept header.

    Raises:
        UsageError: one is unknown or wrong; `where` names it.
    """
    for key in parameters:
        if key not in _KNOWN:
            raise UsageError(f"{key!r} is not a parameter", where=key, mend=f"use {', '.join(sorted(_KNOWN))}")
    until = _until(parameters.get("until"))
    follow = _follow(parameters.get("follow"), bounded=until is not None)
    return StreamQuery(
        tables=tuple(part for part in parameters.get("tables", "").split(",") if part),
        start=_start(parameters, follow=follow),
        until=until,
        follow=follow,
        name=_name(parameters.get("name", "")),
        log_id=parameters.get("log_id"),
        json=_wants_json(parameters.get("format"), accept),
    )


def _position(text: str, parameter: str) -> Position:
    try:
        return parse_position(text)
    except InvalidText as error:
        raise UsageError(error.what, where=parameter, mend=error.mend) from None


def _until(text: str | None) -> Until:
    if text is None:
        return None
    return "latest" if text == "latest" else _position(text, "until")


def _follow(text: str | None, *, bounded: bool) -> bool:
    if text is None:
        return not bounded
    if text not in ("true", "false"):
        raise UsageError(f"{text!r} is neither true nor false", where="follow")
    return text == "true"


def _start(parameters: Mapping[str, str], *, follow: bool) -> Start:
    if "after" in parameters:
        return After(_position(parameters["after"], "after"))
    text = parameters.get("from", "latest" if follow else "earliest")
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    try:
        epoch, lsn, ordinal = parse_position(text)
    except InvalidText:
        return Since(parse_time(text, "from"))
    return After(Position(epoch, lsn, max(ordinal - 1, 0)))


def parse_time(text: str, parameter: str) -> float:
    """Unix seconds, or ISO 8601 (UTC where it names no zone), as Unix seconds.

    Raises:
        UsageError: it is neither; `where` names the parameter.
    """
    if _SECONDS.match(text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign in a query string is a space
    except ValueError:
        raise UsageError(
            f"{text!r} is neither a position nor a time",
            where=parameter,
            mend="write it as in 1:16/B374D848:4 or 2026-01-31T12:00:00Z, or use earliest or latest",
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _name(text: str) -> str:
    if text and not _NAME.match(text):
        raise UsageError("a consumer's name has other characters", where="name", mend="use letters, digits, _ . and -")
    return text


def _wants_json(text: str | None, accept: str) -> bool:
    if text is None:
        return JSON_TYPE in accept
    if text not in ("binary", "json"):
        raise UsageError(f"{text!r} is no format", where="format", mend="use binary or json")
    return text == "json"
