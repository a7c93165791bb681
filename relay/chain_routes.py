"""Routes for relays that copy this one's log: `/v1/chain…`; `walbus.relay.upstream` is the other side.

A required standby reads up to the durable end, and everybody else, chained relays too, up to what is served. So whoever
asks under a required standby's name needs the role `admin`, as for the reports by which confirming and serving go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from walbus.errors import InvalidText
from walbus.relay.access import AccessError, granted
from walbus.relay.gauges import Figures
from walbus.relay.http import RequestError, json_response
from walbus.relay.lineage import BEGIN_ANEW, read_lineage
from walbus.relay.reader import FileLogReader
from walbus.relay.request_body import bounded_body
from walbus.relay.standbys import Standbys, lies_beyond, parse_tip, tip_document
from walbus.relay.streams import StreamServer
from walbus.relay.upstream import Origin, origin_document

_CATALOG_FILE: Final = "catalog.json"  # of capture, in the log's folder
_MAX_BODY: Final = 16 << 10


@dataclass(frozen=True)
class Served:
    """A log as it is read by some: up to where, and the streams that send it."""

    reader: FileLogReader
    streams: StreamServer


class ChainRoutes:
    """The routes of one log.

    Args:
        folder: of the log.
        standbys: the required ones.
        served: the log as everybody reads it; raises while there is none.
        whole: the log up to its durable end; raises while there is none.
        moved: to be called when more may be served.
    """

    def __init__(
        self,
        folder: Path,
        standbys: Standbys,
        *,
        served: Callable[[], Served],
        whole: Callable[[], Served],
        moved: Callable[[], None],
    ) -> None:
        self._folder, self._standbys = folder, standbys
        self._served, self._whole, self._moved = served, whole, moved

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds them to a server's."""
        router.add_get("/v1/chain", self._origin, allow_head=False)
        router.add_get("/v1/chain/stream", self._stream, allow_head=False)
        router.add_get("/v1/chain/catalog", self._catalog, allow_head=False)
        router.add_put("/v1/chain/standbys/{name}", self._report)

    def standby_documents(self) -> dict[str, object]:
        """For people: what the required standbys hold, by name."""
        away = self._standbys.away()
        return {
            name: None if report is None else {**tip_document(report.tip), "at": report.at, "away": name in away}
            for name, report in self._standbys.reports().items()
        }

    def figures(self) -> Figures:
        """For gauges; none where no standby is required."""
        if not self._standbys.required:
            return {}
        held = self._standbys.lowest()
        behind = self._whole().reader.tip().end_lsn - (held.end_lsn if held is not None else 0)
        return {
            "walbus_relay_standbys_away": len(self._standbys.away()),
            "walbus_relay_standby_lag_bytes": max(behind, 0),
        }

    async def _origin(self, request: web.Request) -> web.Response:
        log = self._log_for(request)
        return json_response(origin_document(await asyncio.to_thread(self._origin_of, log, self._is_required(request))))

    def _origin_of(self, log: Served, required: bool) -> Origin:
        lineage = read_lineage(self._folder)
        reader = log.reader
        base = reader.base()
        return Origin(reader.bounds().log_id, reader.source, base, reader.tip(), lineage.term, lineage.began, required)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        return await self._log_for(request).streams.handle(request)

    async def _catalog(self, request: web.Request) -> web.Response:
        self._log_for(request)
        try:
            content = await asyncio.to_thread((self._folder / _CATALOG_FILE).read_bytes)
        except FileNotFoundError:
            return web.Response(status=204)
        return web.Response(body=content, content_type="application/json")

    async def _report(self, request: web.Request) -> web.Response:
        name, log = request.match_info["name"], self._whole()
        if name not in self._standbys.required:
            what, mend = f"no standby {name[:64]!r} is required", "name it in relay.required_standbys of this relay"
            raise RequestError(404, what, where="name", mend=mend)
        try:
            document = msgspec.json.decode(await bounded_body(request, "a report", _MAX_BODY), type=dict[str, object])
            tip = parse_tip(document)
        except (msgspec.DecodeError, RecursionError, InvalidText) as error:
            raise RequestError(400, f"the report makes no sense: {error}", where="body") from None
        ours = (log.reader.bounds().log_id, read_lineage(self._folder).term)
        if (document.get("log_id"), document.get("term")) != ours:
            raise RequestError(409, "the report is about another log, or another term of it", mend=BEGIN_ANEW)
        end = log.reader.tip()
        if lies_beyond(tip, end):
            raise RequestError(409, f"the report is beyond the log's end, {end.position}", mend=BEGIN_ANEW)
        self._standbys.report(name, tip)
        self._moved()
        return json_response(tip_document(log.reader.tip()))

    def _log_for(self, request: web.Request) -> Served:
        grant = granted(request)
        if not grant.everything:
            raise AccessError(
                403,
                f"the token {grant.name} does not reach all tables, as a copy of the log does",
                reason="beyond the scope",
                where="Authorization",
                mend="use one without a scope",
                token=grant.name,
            )
        return self._whole() if self._is_required(request) else self._served()

    def _is_required(self, request: web.Request) -> bool:
        name = request.query.get("name", "")
        if name not in self._standbys.required:
            return False
        grant = granted(request)
        if not grant.may("admin"):
            raise AccessError(
                403,
                f"the token {grant.name} may not read as {name}, which is a required standby",
                reason="role missing",
                where="name",
                mend="use one with the role admin, or another name (relay.name of the copy)",
                token=grant.name,
            )
        return True
