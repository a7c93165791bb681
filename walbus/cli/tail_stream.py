"""Reads the relay's JSON lines for `walbus tail`: each change once, whatever happens to the connection.

With whole rows the lines come from the bootstrap server that the relay names, by the same positions.

`latest` is pinned to a position before the first byte is read, so that a bounded tail that has to connect again ends
where it would have ended. What was printed last is remembered; a new connection asks for what comes after it. The
first connection must succeed; a later one is tried again, without end while following, for a while when bounded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import httpx
import msgspec
import structlog

from walbus.cli.tail_place import CLOCKS_AGREE, Bound, Place, TailRequest, whole_lines
from walbus.credentials import Credentials, connection_problem, new_client, require_no_less_private
from walbus.errors import (
    PositionTrimmed,
    RelayUnavailable,
    RequestRefused,
    UsageError,
    WalbusError,
)
from walbus.position import ORIGIN, Position, parse_position

_TIMEOUT = httpx.Timeout(10.0, read=30.0)  # heartbeats come every second
_PATIENCE = 60.0  # seconds without progress after which a bounded tail gives up
_LONGEST_DELAY = 5.0

log = structlog.get_logger(__name__)


class _Info(msgspec.Struct):
    """What is needed of `/v1/info`."""

    log_id: str
    end: str
    bootstrap: str | None = None


class _Refusal(msgspec.Struct):
    """An error of the relay, as JSON."""

    error: str
    where: str | None = None
    mend: str | None = None


def batches(
    url: str,
    request: TailRequest,
    credentials: Credentials,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[list[bytes]]:
    """The changes as JSON lines without their newline, in batches as the network gives them.

    Args:
        url: of the relay.
        request: what to print.
        credentials: what is shown to the relay.
        now: Unix seconds.
        sleep: waits so many seconds.

    Raises:
        RelayUnavailable: nothing answers there, or nothing did for a minute in the middle of a bounded tail.
        PositionTrimmed: the log no longer holds the start.
        RequestRefused: the relay does not take the request.
    """
    with ExitStack() as opened:
        client = opened.enter_context(new_client(url, credentials, _TIMEOUT, agent="walbus-tail"))
        info = _info(client)
        place = _first_place(info, request, datetime.fromtimestamp(now(), UTC))
        if request.complete:
            beside = _bootstrap(info, url, credentials)
            client = opened.enter_context(new_client(beside, credentials, _TIMEOUT, agent="walbus-tail"))
        patience = _Patience(now, sleep, endless=place.until is None)
        while not place.done:
            before = place.last_done
            try:
                yield from _connection(client, request, place, now)
                if place.last_done == before and not place.follows:
                    return  # a whole answer without anything new: the bound lies behind the log's last change
            except RelayUnavailable as error:
                patience.keep(error)
            patience.wait(progressed=place.last_done != before)


class _Patience:
    """How long the relay may be away in the middle of a tail."""

    def __init__(self, now: Callable[[], float], sleep: Callable[[float], None], *, endless: bool) -> None:
        self._now = now
        self._sleep = sleep
        self._endless = endless
        self._failures = 0
        self._last_progress = now()

    def keep(self, error: RelayUnavailable) -> None:
        """Says what happened; raises it when a bounded tail has waited long enough."""
        if not self._endless and self._now() - self._last_progress > _PATIENCE:
            raise error
        log.warning("the relay is away; trying again", error=error.what)

    def wait(self, *, progressed: bool) -> None:
        """Waits before the next connection: longer each time that one brought nothing, with jitter."""
        self._failures = 0 if progressed else self._failures + 1
        if progressed:
            self._last_progress = self._now()
        self._sleep(min(_LONGEST_DELAY, 0.1 * 2.0**self._failures) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def _info(client: httpx.Client) -> _Info:
    with _answers(client, "GET", "/v1/info", {}) as response:
        response.read()
        return msgspec.json.decode(response.content, type=_Info)


def _bootstrap(info: _Info, relay: str, credentials: Credentials) -> str:
    """The address of the server that has whole rows."""
    if info.bootstrap is None:
        mend = "run the bootstrap beside the relay, or leave --complete out"
        raise UsageError("the relay names no bootstrap server, which has whole rows", where="--complete", mend=mend)
    require_no_less_private(relay, info.bootstrap, credentials)
    return info.bootstrap


def _first_place(info: _Info, request: TailRequest, now: datetime) -> Place:
    """Where to begin, with `latest` pinned."""
    end = parse_position(info.end)
    start = end if request.start == "latest" else request.start
    before = request.until if isinstance(request.until, datetime) else None
    until = request.until if isinstance(request.until, Position) else None
    if request.until == "latest" or (before is not None and before < now - CLOCKS_AGREE):
        until = end
    if isinstance(start, Position) and until is not None and start > until and request.start != "latest":
        raise UsageError(f"there is nothing from {start} until {until}", where="--from", mend="name an earlier one")
    last_done = end if request.start == "latest" else None
    ended = until is not None and until == ORIGIN
    return Place(info.log_id, start, until, before, end, last_done, ended=ended)


def _connection(
    client: httpx.Client, request: TailRequest, place: Place, now: Callable[[], float]
) -> Iterator[list[bytes]]:
    """One request's changes."""
    with _answers(client, "GET", "/v1/stream", _parameters(request, place)) as response:
        for lines in whole_lines(response.iter_bytes()):
            changes = place.take(lines, datetime.fromtimestamp(now(), UTC))
            if changes:
                yield changes
            if place.done:
                return


def _parameters(request: TailRequest, place: Place) -> dict[str, str]:
    """Whole rows come up to what is applied, so that a bounded tail of them waits for its bound."""
    follows = place.follows or request.complete
    parameters = {"format": "json", "log_id": place.log_id, "follow": "true" if follows else "false"}
    if request.tables:
        parameters["tables"] = ",".join(request.tables)
    if request.complete:
        parameters["complete"] = "true"
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
        with client.stream(method, path, params=parameters, headers={"Accept-Encoding": "identity"}) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise _refused(response)
            yield response
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise UsageError("not the URL of a relay", where=str(client.base_url), mend="write http://HOST:PORT") from None
    except httpx.TransportError as error:
        what, mend = connection_problem(error)
        mend = mend or "start it with walbus relay, or name it with --url"
        raise RelayUnavailable(f"the relay does not answer: {what}", where=str(client.base_url), mend=mend) from None


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
