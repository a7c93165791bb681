"""What a client of `/v1/stream` asks for, read from the query string and the headers. No I/O.

tables, ops, columns, partition  what passes: `walbus.relay.selection`
after=POSITION                   go on behind a change that was done; wins over `from`
from=PLACE                       begin with; default: latest when following, earliest otherwise
until=PLACE                      end behind the transaction that holds it, or before the first one committed at a time
follow=true|false                wait for more at the end; default: true without `until`
name=CONSUMER                    for logs and gauges
log_id=…                         refuse any other log
format=binary|json|sse           default: by the Accept header, binary without one
complete=true                    whole rows, before each change and behind it; of the bootstrap server alone

A PLACE is a position, a time, `seq:N`, `earliest` or `latest` (the end as of the request). Server-sent events carry
`POSITION@LOG_ID` as their ids; what a browser sends back as Last-Event-ID is an `after` with its `log_id`, and wins
over both parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from walbus.errors import InvalidText, UsageError
from walbus.position import Position, parse_position
from walbus.relay.selection import Selection, parse_selection

Format = Literal["binary", "json", "sse"]

MEDIA_TYPES: Final[dict[Format, str]] = {
    "binary": "application/vnd.walbus.stream",
    "json": "application/x-ndjson",
    "sse": "text/event-stream",
}

PARAMETERS: Final = (
    "tables", "ops", "columns", "partition", "after", "from", "until", "follow", "name", "log_id", "format",
    "complete",
)  # fmt: skip
LAST_EVENT_ID: Final = "Last-Event-ID"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_SECONDS = re.compile(r"\d{1,11}(\.\d{1,6})?\Z")
_SEQ = re.compile(r"seq:(\d{1,16})\Z")
_MAX_SEQ = 1 << 53
_MEND_PLACE = "write it as in 1:16/B374D848:4, 2026-01-31T12:00:00Z or seq:42, or use earliest or latest"


@dataclass(frozen=True, slots=True)
class After:
    """Begin behind this "last done" position."""

    position: Position


@dataclass(frozen=True, slots=True)
class AtTime:
    """The first transaction committed at or after this time (Unix seconds)."""

    time: float


@dataclass(frozen=True, slots=True)
class AtSeq:
    """The change with this seq, or the first one behind it."""

    seq: int


Place = Position | AtTime | AtSeq | Literal["earliest", "latest"]
Start = After | AtTime | AtSeq | Literal["earliest", "latest"]


@dataclass(frozen=True, slots=True)
class StreamQuery:
    """A stream as it was asked for.

    Attributes:
        selection: what passes.
        start: where to begin.
        until: where to end; None: nowhere.
        follow: whether to wait at the log's end.
        name: of the consumer; may be empty.
        log_id: the log that the client's position belongs to; None if it does not say.
        format: the form of the answer.
        complete: whether rows are to be whole.
    """

    selection: Selection
    start: Start
    until: Place | None
    follow: bool
    name: str
    log_id: str | None
    format: Format
    complete: bool = False


def parse_stream_query(parameters: Mapping[str, str], headers: Mapping[str, str]) -> StreamQuery:
    """Reads the parameters, and the headers Accept and Last-Event-ID.

    Raises:
        UsageError: one is unknown or wrong; `where` names it.
    """
    for key in parameters:
        if key not in PARAMETERS:
            raise UsageError(f"{key[:80]!r} is not a parameter", where=key[:80], mend=f"use {', '.join(PARAMETERS)}")
    until = _place(parameters["until"], "until") if "until" in parameters else None
    follow = _follow(parameters.get("follow"), bounded=until is not None)
    form = _format(parameters.get("format"), headers.get("Accept", ""))
    start, log_id = _start(parameters, follow=follow), parameters.get("log_id")
    last_event = headers.get(LAST_EVENT_ID, "")
    if last_event and form == "sse":
        start, log_id = _last_event(last_event, log_id)
    return StreamQuery(
        selection=parse_selection(*(parameters.get(key) for key in ("tables", "ops", "columns", "partition"))),
        start=start,
        until=until,
        follow=follow,
        name=_name(parameters.get("name", "")),
        log_id=log_id,
        format=form,
        complete=_truth(parameters.get("complete", "false"), "complete"),
    )


def _position(text: str, where: str) -> Position:
    try:
        return parse_position(text)
    except InvalidText as error:
        raise UsageError(error.what, where=where, mend=error.mend) from None


def _follow(text: str | None, *, bounded: bool) -> bool:
    return not bounded if text is None else _truth(text, "follow")


def _truth(text: str, parameter: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError(f"{text[:80]!r} is neither true nor false", where=parameter, mend="use true or false")
    return text == "true"


def _start(parameters: Mapping[str, str], *, follow: bool) -> Start:
    if "after" in parameters:
        return After(_position(parameters["after"], "after"))
    place = _place(parameters.get("from", "latest" if follow else "earliest"), "from")
    if isinstance(place, Position):
        return After(place._replace(ordinal=max(place.ordinal - 1, 0)))
    return place


def _last_event(text: str, log_id: str | None) -> tuple[After, str | None]:
    position, _, log = text.partition("@")
    return After(_position(position, LAST_EVENT_ID)), log or log_id


def _place(text: str, parameter: str) -> Place:
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    seq = _SEQ.match(text)
    if seq is not None and int(seq[1]) < _MAX_SEQ:
        return AtSeq(int(seq[1]))
    try:
        return parse_position(text)
    except InvalidText:
        return AtTime(parse_time(text, parameter))


def parse_time(text: str, parameter: str) -> float:
    """Unix seconds, or ISO 8601 (UTC where it names no zone), as Unix seconds.

    Raises:
        UsageError: it is neither; `where` names the parameter.
    """
    if _SECONDS.match(text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign in a query string is a space
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        what = f"{text[:80]!r} is neither a position nor a time"
        raise UsageError(what, where=parameter, mend=_MEND_PLACE) from None


def _name(text: str) -> str:
    if text and not _NAME.match(text):
        raise UsageError(
            "a consumer's name is too long, or has other characters", where="name",
            mend="use at most 64 letters, digits, _ . and -",
        )  # fmt: skip
    return text


def _format(text: str | None, accept: str) -> Format:
    if text is None:
        return next((form for form in MEDIA_TYPES if MEDIA_TYPES[form] in accept), "binary")
    for form in MEDIA_TYPES:
        if text == form:
            return form
    raise UsageError(f"{text[:80]!r} is no format", where="format", mend=f"use {', '.join(MEDIA_TYPES)}")
