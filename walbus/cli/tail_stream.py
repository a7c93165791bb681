"""Reads the relay's JSON lines for `walbus tail`: each change once, whatever happens to the connection.

`latest` is pinned to a position before the first byte is read, so that a bounded tail that has to connect again ends
where it would have ended. What was printed last is remembered; a new connection asks for what comes after it. The
first connection must succeed; a later one is tried again, without end while following, for a while when bounded.

The beginnings and ends of transactions and the heartbeats only move the place on; they are no changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import structlog

from walbus.errors import (
    InvalidText,
    PositionTrimmed,
    ProtocolError,
    RelayUnavailable,
    RequestRefused,
    UsageError,
    WalbusError,
)
from walbus.position import ORIGIN, Position, parse_position

_MARKS = frozenset({"begin", "commit", "heartbeat"})
_TIMEOUT = httpx.Timeout(10.0, read=30.0)  # heartbeats come every second
_PATIENCE = 60.0  # seconds without progress after which a bounded tail gives up
_LONGEST_DELAY = 5.0
_CLOCKS_AGREE = timedelta(seconds=2)  # how far this machine's clock and the source's are taken to differ
_AT_THE_SAME_PLACE = frozenset({"schema", "epoch"})  # they stand at the position of the change before them

log = structlog.get_logger(__name__)

#: A position, a time, or one of the words `earliest` and `latest`.
Bound = Position | datetime | str


@dataclass(frozen=True, slots=True)
class TailRequest:
    """What to print.

    Attributes:
        tables: patterns; empty for all.
        start: the first change.
        until: the last one, inclusive; None follows.
    """

    tables: tuple[str, ...]
    start: Bound
    until: Bound | None


@dataclass(slots=True)
class _Place:
    """Where the tail is.

    Attributes:
        log_id: the log that the positions belong to.
        start: what the first request asks for.
        until: the bound as a position; None follows (perhaps up to `before`).
        before: changes committed later than this are not printed, and end the tail; None for no such bound.
        last_done: the position that was dealt with last; None before the first.
        ended: whether a bound was met.
    """

    log_id: str
    start: Bound
    until: Position | None
    before: datetime | None
    last_done: Position | None = None
    ended: bool = False

    def take(self, batch: list[bytes], now: datetime) -> list[bytes]:
        """The changes of a batch of lines that are to be printed; moves on behind them."""
        return [line for line in batch if self._is_next(line, now)]

    @property
    def done(self) -> bool:
        """Whether nothing more is to be read."""
        return self.ended or (self.until is not None and self.last_done is not None and self.last_done >= self.until)

    def _is_next(self, line: bytes, now: datetime) -> bool:
        head = _read_head(line)
        if self.ended or self._too_late(head, now):
            self.ended = True
            return False
        if not head.position:
            return head.op not in _MARKS
        position = parse_position(head.position)
        repeated = self.last_done is not None and position <= self.last_done and head.op not in _AT_THE_SAME_PLACE
        if self.last_done is None or position > self.last_done:
            self.last_done = position
        return head.op not in _MARKS and not repeated

    def _too_late(self, head: _Head, now: datetime) -> bool:
        if self.before is None:
            return False
        if head.op == "heartbeat":
            return now > self.before + _CLOCKS_AGREE
        return head.commit_time is not None and head.commit_time > self.before


class _Info(msgspec.Struct):
    """What is needed of `/v1/info`."""

    log_id: str
    end: str


class _Head(msgspec.Struct):
    """What is needed of a line to know its place."""

    op: str
    position: str = ""
    commit_time: datetime | None = None


class _Refusal(msgspec.Struct):
    """An error of the relay, as JSON."""

    error: str
    where: str | None = None
    mend: str | None = None


def parse_bound(text: str, option: str, *, words: tuple[str, ...]) -> Bound:
    """What an option names.

    Raises:
        InvalidText: neither a word, nor a position, nor a time.
    """
    if text in words:
        return text
    try:
        return parse_position(text)
    except InvalidText:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        mend = f"write a position as in 1:16/B374D848:4, a time as in 2026-11-23T15:00:00Z, or {' or '.join(words)}"
        raise InvalidText(f"{text!r} is neither a position nor a time", where=option, mend=mend) from None
    return time if time.tzinfo else time.astimezone()  # without a zone: this machine's


def batches(
    url: str, request: TailRequest, *, now: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[list[bytes]]:
    """The changes as JSON lines without their newline, in batches as the network gives them.

    Args:
        url: of the relay.
        request: what to print.
        now: Unix seconds.
        sleep: waits so many seconds.

    Raises:
        RelayUnavailable: nothing answers there, or nothing did for a minute in the middle of a bounded tail.
        PositionTrimmed: the log no longer holds the start.
        RequestRefused: the relay does not take the request.
    """
    with httpx.Client(base_url=url, timeout=_TIMEOUT, headers={"User-Agent": "walbus-tail"}, trust_env=False) as client:
        place = _first_place(client, request, datetime.fromtimestamp(now(), UTC))
        failures = 0
        last_progress = now()
        while not place.done:
            before = place.last_done
            try:
                yield from _connection(client, request.tables, place, now)
                if place.last_done == before and place.until is not None:
                    return  # a whole answer without anything new: the bound lies behind the log's last change
                failures = 0
            except RelayUnavailable as error:
                failures = 1 if place.last_done != before else failures + 1
                if place.until is not None and now() - last_progress > _PATIENCE:
                    raise
                log.warning("the relay is away; trying again", error=error.what)
                sleep(min(_LONGEST_DELAY, 0.1 * 2**failures) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            if place.last_done != before:
                last_progress = now()


def _first_place(client: httpx.Client, request: TailRequest, now: datetime) -> _Place:
    """Where to begin, with `latest` pinned."""
    with _answers(client, "GET", "/v1/info", {}) as response:
        response.read()
        info = msgspec.json.decode(response.content, type=_Info)
    end = parse_position(info.end)
    start = end if request.start == "latest" else request.start
    before = request.until if isinstance(request.until, datetime) else None
    until = request.until if isinstance(request.until, Position) else None
    if request.until == "latest" or (before is not None and before < now - _CLOCKS_AGREE):
        until = end
    last_done = end if request.start == "latest" else None
    return _Place(info.log_id, start, until, before, last_done, ended=until == ORIGIN)


def _connection(
    client: httpx.Client, tables: tuple[str, ...], place: _Place, now: Callable[[], float]
) -> Iterator[list[bytes]]:
    """One request's changes."""
    with _answers(client, "GET", "/v1/stream", _parameters(tables, place)) as response:
        for lines in _whole_lines(response.iter_bytes()):
            changes = place.take(lines, datetime.fromtimestamp(now(), UTC))
            if changes:
                yield changes
            if place.ended:
                return


def _parameters(tables: tuple[str, ...], place: _Place) -> dict[str, str]:
    parameters = {"format": "json", "log_id": place.log_id, "follow": str(place.until is None).lower()}
    if tables:
        parameters["tables"] = ",".join(tables)
    if place.last_done is not None:
        parameters["after"] = str(place.last_done)
    else:
        parameters["from"] = _text(place.start)
    if place.until is not None:
        parameters["until"] = str(place.until)
    return parameters


def _text(bound: Bound) -> str:
    return bound.astimezone(UTC).isoformat() if isinstance(bound, datetime) else str(bound)


@contextmanager
def _answers(client: httpx.Client, method: str, path: str, parameters: dict[str, str]) -> Iterator[httpx.Response]:
    """A streamed 200 response; everything else is an error of ours."""
    try:
        with client.stream(method, path, params=parameters) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise _refused(response)
            yield response
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise UsageError("not the URL of a relay", where=str(client.base_url), mend="write http://HOST:PORT") from None
    except httpx.TransportError as error:
        what = f"the relay does not answer: {error or type(error).__name__}"
        mend = "start it with walbus relay, or name it with --url"
        raise RelayUnavailable(what, where=str(client.base_url), mend=mend) from None


def _refused(response: httpx.Response) -> WalbusError:
    try:
        refusal = msgspec.json.decode(response.content, type=_Refusal)
    except msgspec.DecodeError:
        refusal = _Refusal(f"the relay answered {response.status_code}")
    if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        return RelayUnavailable(refusal.error, where=refusal.where, mend=refusal.mend)
    if response.status_code == httpx.codes.GONE:
        return PositionTrimmed(refusal.error, where="--from", mend=refusal.mend or "use --from earliest")
    return RequestRefused(refusal.error, status=response.status_code, where=refusal.where, mend=refusal.mend)


def _whole_lines(chunks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """The lines of each chunk, without newline; an unfinished last line is dropped, since it never came whole."""
    partial = b""
    for chunk in chunks:
        *lines, partial = (partial + chunk).split(b"\n")
        yield [line for line in lines if line]


def _read_head(line: bytes) -> _Head:
    try:
        return msgspec.json.decode(line, type=_Head)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the relay sent a line that is not JSON: {error}") from None
