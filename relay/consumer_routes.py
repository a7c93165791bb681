"""The routes of the consumers known to the relay.

    GET    /v1/consumers                   all of them, with their lag
    GET    /v1/consumers/NAME              one
    PUT    /v1/consumers/NAME              a consumer reports where it is (`walbus.consumer_reports`)
    DELETE /v1/consumers/NAME              forgets a name; a consumer that goes on is known anew
    GET    /v1/consumers/NAME/wait         until it has done what committed before `lsn`, or up to `position`

`wait` answers 200 once that is so, and 504 if it is not within `timeout` seconds (default 30, at most 300); either
answer tells where the consumer is. A report that does not count is answered with 409, and what counts instead.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Final

from aiohttp import web

from walbus.consumer_reports import checked_name, parse_report
from walbus.errors import InvalidText, UsageError
from walbus.lsn import parse_lsn
from walbus.metrics import MetricName
from walbus.position import parse_position
from walbus.relay.access import granted, require_consumer, require_everything
from walbus.relay.consumer_desk import ConsumerDesk, Sight
from walbus.relay.consumer_waits import Goal, TooManyWaiters
from walbus.relay.gauges import LabelledFigures
from walbus.relay.http import STOPPING, RequestError, json_response
from walbus.relay.known_consumers import KnownConsumer, TooManyConsumers
from walbus.relay.peer import Peer
from walbus.relay.reader import FileLogReader
from walbus.relay.request_body import bounded_body
from walbus.relay.tokens import Grant

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MAX_BODY = 16 << 10
_WAIT_SECONDS, _MAX_WAIT_SECONDS = 30.0, 300.0
_SECONDS = re.compile(r"\d{1,6}(\.\d{1,6})?\Z")

#: Consumers that have figures of their own in /metrics: those that are furthest behind, if there are more.
_IN_METRICS: Final = 500


class ConsumerRoutes:
    """The handlers.

    Args:
        desk: the consumers.
        log: gives the log, or raises what a client is told while there is none.
    """

    def __init__(self, desk: ConsumerDesk, log: Callable[[], FileLogReader]) -> None:
        self._desk = desk
        self._log = log

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers them."""
        router.add_get("/v1/consumers", self._list, allow_head=False)
        router.add_get("/v1/consumers/{name}", self._one, allow_head=False)
        router.add_put("/v1/consumers/{name}", self._report)
        router.add_delete("/v1/consumers/{name}", self._forget)
        router.add_get("/v1/consumers/{name}/wait", self._wait, allow_head=False)

    async def figures(self) -> LabelledFigures:
        """For /metrics: by metric, by consumer."""
        sights = [sight for sight in await self._desk.sights(self._desk.known) if sight.lag is not None]
        sights.sort(key=lambda sight: sight.lag.bytes if sight.lag else 0, reverse=True)
        figures: dict[MetricName, dict[str, float]] = {}
        for sight in sights[:_IN_METRICS]:
            for metric, value in _figures_of(sight).items():
                figures.setdefault(metric, {})[sight.known.name] = value
        return figures

    async def _list(self, request: web.Request) -> web.Response:
        require_everything(request, "ask for one by its name, /v1/consumers/NAME")
        bounds = self._log().bounds()
        sights = await self._desk.sights(self._desk.known)
        return json_response(
            {
                "log_id": bounds.log_id,
                "end": str(bounds.end),
                "last_seq": bounds.last_seq,
                "problem": self._desk.problem,
                "consumers": [document_of(sight) for sight in sights],
            }
        )

    async def _one(self, request: web.Request) -> web.Response:
        self._log()
        return json_response(await self._document(self._known(_name(request)), granted(request)))

    async def _report(self, request: web.Request) -> web.Response:
        self._log()
        name = _name(request)
        require_consumer(request, name)
        report = parse_report(await bounded_body(request, "a report", _MAX_BODY))
        peer = Peer.told(request.remote, request.headers.get("User-Agent"))
        try:
            known, counts = self._desk.report(name, report, peer)
        except TooManyConsumers:
            mend = "remove names that are not needed, with DELETE /v1/consumers/NAME"
            raise RequestError(429, "the relay knows too many consumers", where="name", mend=mend) from None
        last_done = None if known.last_done is None else str(known.last_done)
        if not counts:
            raise RequestError(
                409,
                "the report does not count: a later one, or one of another process of this name, was taken before",
                where="session",
                mend="give each consumer a name of its own",
                more={"last_done": last_done},
            )
        return json_response({"last_done": last_done})

    async def _forget(self, request: web.Request) -> web.Response:
        self._log()
        name = _name(request)
        if not await self._desk.forget(name):
            raise _unknown(name)
        return json_response({"forgotten": name})

    async def _wait(self, request: web.Request) -> web.Response:
        self._log()
        goal, timeout = _goal(request), _timeout(request)
        known = self._known(_name(request))
        try:
            reached = await self._desk.wait(known, goal, timeout)
        except TooManyWaiters:
            raise RequestError(
                429, "too many wait", mend="wait for fewer at a time", headers={"Retry-After": "1"}
            ) from None
        if request.app[STOPPING].is_set() and not reached:
            raise RequestError(503, "the relay stops", mend="ask again", headers={"Retry-After": "1"})
        if self._desk.known.get(known.name) is not known:
            raise _unknown(known.name)
        document = await self._document(known, granted(request))
        if not reached:
            what = f"consumer {known.name} has not got there within {timeout:g} s"
            mend = "look at what it waits for, and ask again"
            raise RequestError(504, what, where="name", mend=mend, more={"consumer": document})
        return json_response(document)

    def _known(self, name: str) -> KnownConsumer:
        known = self._desk.known.get(name)
        if known is None:
            raise _unknown(name)
        return known

    async def _document(self, known: KnownConsumer, grant: Grant) -> dict[str, object]:
        document = document_of((await self._desk.sights([known]))[0])
        return document if grant.everything else {**document, **_named_within(grant, known)}


def document_of(sight: Sight) -> dict[str, object]:
    """A consumer as JSON."""
    known, report = sight.known, sight.known.report
    return {
        "name": known.name,
        "phase": report and report.phase,
        "last_done": None if known.last_done is None else str(known.last_done),
        "seq": report and report.seq,
        "log_id": report and report.log_id,
        "whole": report is not None and report.whole,
        "confirmed": known.confirmed,
        "reported_at": known.reported_at or None,
        "lag": None if sight.lag is None else asdict(sight.lag),
        "sent": None if sight.sent is None else str(sight.sent),
        "streams": sight.streams,
        "first_seen": known.first_seen,
        "last_seen": known.last_seen,
        "address": known.peer.address,
        "agent": known.peer.agent,
        "sink": report and report.sink,
        "tables": known.tables,
        "unread": report.unread if report else (),
        "waiting_for": report and report.waiting_for,
    }


def _named_within(grant: Grant, known: KnownConsumer) -> dict[str, object]:
    """What of a consumer may name tables, as far as it lies inside a token's scope."""
    unread = known.report.unread if known.report else ()
    within = bool(known.tables) and not grant.beyond((*known.tables, *unread))
    return {
        "tables": [table for table in known.tables if grant.sees(table)],
        "unread": [table for table in unread if grant.sees(table)],
        "waiting_for": known.report.waiting_for if known.report and within else None,
        "scope": list(grant.tables),
    }


def _figures_of(sight: Sight) -> dict[MetricName, float]:
    lag = sight.lag
    if lag is None:
        return {}
    figures: dict[MetricName, float] = {
        "walbus_relay_consumer_lag_changes": lag.changes,
        "walbus_relay_consumer_lag_bytes": lag.bytes,
        "walbus_relay_consumer_lag_seconds": lag.seconds,
        "walbus_relay_consumer_seen_timestamp_seconds": sight.known.last_seen,
    }
    if lag.leaves_in_hours is not None:
        figures["walbus_relay_consumer_leaves_log_seconds"] = lag.leaves_in_hours * 3600
    return figures


def _name(request: web.Request) -> str:
    return checked_name(request.match_info["name"])


def _unknown(name: str) -> RequestError:
    mend = "list those that are known with /v1/consumers; a consumer is known once it has reported, or has a stream"
    return RequestError(404, f"there is no consumer {name!r}", where="name", mend=mend)


def _goal(request: web.Request) -> Goal:
    query = request.query
    for key in query:
        if key not in ("lsn", "position", "timeout") or len(query.getall(key)) > 1:
            raise UsageError(f"{key[:20]!r} is no parameter, or is given twice", where=key[:20])
    if ("lsn" in query) == ("position" in query):
        mend = "give the LSN that pg_current_wal_insert_lsn() told behind your commit, or a change's position"
        raise UsageError("either lsn or position is needed", where="lsn", mend=mend)
    try:
        if "lsn" in query:
            return Goal.of_lsn(parse_lsn(query["lsn"]))
        return Goal.of_position(parse_position(query["position"]))
    except InvalidText as error:
        raise UsageError(error.what, where="lsn" if "lsn" in query else "position", mend=error.mend) from None


def _timeout(request: web.Request) -> float:
    text = request.query.get("timeout")
    if text is None:
        return _WAIT_SECONDS
    if _SECONDS.match(text) is None or float(text) > _MAX_WAIT_SECONDS:
        raise UsageError("the timeout is none", where="timeout", mend=f"write seconds, at most {_MAX_WAIT_SECONDS:g}")
    return float(text)
