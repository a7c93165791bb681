"""The bootstrap server: which tables there are, and a table's rows as of one position.

    GET /v1/tables                                  what can be had, and how far it is
    GET /v1/snapshot?table=T[&after_key=HEX]        the rows in key order; ends with a record that has the END flag
    GET /v1/seeding                                 how far the tables are that are being read from the source
    GET /healthz, /readyz, /metrics

A snapshot is read from one view of the store, whatever is applied meanwhile. A response that breaks off has no END;
the reader asks again behind the last key that it has dealt with, gets the rest as of a later position, and goes on
from the *lowest* of the positions: every change in between is in the log, and each row says its version.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

from aiohttp import web

from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.report import Report
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.state import Phase, TableState
from walbus.errors import StoreError
from walbus.jsonlines import LineRenderer
from walbus.records import read_header
from walbus.relay.access import granted, require_tables
from walbus.relay.gate import Gate
from walbus.relay.http import (
    STOPPING,
    Handler,
    RequestError,
    json_response,
    new_application,
)
from walbus.relay.listener import run_server

_BINARY = "application/vnd.walbus.stream"
_LINES = "application/x-ndjson"
_RETRY_AFTER = "1"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Render = Callable[[bytes], bytes]


class BootstrapServer:
    """The handlers; `serve` runs them."""

    def __init__(self, ledger: Ledger, report: Report) -> None:
        self._ledger = ledger
        self._report = report

    def serve(self, gate: Gate, stop: threading.Event, on_listening: Callable[[int], None] | None = None) -> None:
        """Serves until `stop` is set.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        run_server(self.application(), gate, stop, on_listening=on_listening)

    def application(self) -> web.Application:
        """The routes."""
        routes: dict[str, Handler] = {
            "/v1/tables": self._tables,
            "/v1/snapshot": self._snapshot,
            "/v1/seeding": self._seeding,
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._metrics,
        }
        application = new_application()
        application.add_routes([web.get(path, handler, allow_head=False) for path, handler in routes.items()])
        return application

    async def _tables(self, request: web.Request) -> web.StreamResponse:
        if not self._ledger.listed:
            raise RequestError(503, "not every published table is known yet", mend="ask again later", headers=_retry())
        grant = granted(request)
        served = self._view()
        applied = served.applied
        document: dict[str, object] = {
            "log_id": applied.log_id,
            "applied": str(applied.position),
            "tables": [_described(state) for state in served.tables.values() if grant.sees(state.table)],
        }
        return json_response(document if grant.everything else {**document, "scope": list(grant.tables)})

    async def _snapshot(self, request: web.Request) -> web.StreamResponse:
        _refuse_unknown(request, {"table", "after_key", "format"})
        after_key = _after_key(request)
        name = request.query.get("table")
        if not name:
            raise RequestError(400, "which table", where="table", mend="give table=SCHEMA.NAME")
        require_tables(request, [name], "table")
        served = self._view()
        table = _consistent(served, name)
        media, render = self._form(request)
        response = web.StreamResponse(
            headers={
                "Content-Type": media,
                "Walbus-Log-Id": served.applied.log_id,
                "Walbus-Position": str(served.applied.position),
                "Walbus-Folds-From": table.p0,
                **({"Walbus-Stale": "yes"} if table.stale else {}),
            }
        )
        await response.prepare(request)
        await _stream(request, response, served.records(table, after_key), render)
        return response

    async def _seeding(self, request: web.Request) -> web.StreamResponse:
        grant = granted(request)
        return json_response({"seeding": [told for told in self._report.seeding() if grant.sees(told["table"])]})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        del request
        return json_response({"status": "alive"})

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        tables = self._view().tables.values()
        if not self._ledger.listed:
            raise RequestError(503, "not every published table is known yet", headers=_retry())
        seeding = [table.table for table in tables if table.phase in (Phase.SEEDING, Phase.BROKEN, Phase.WRONG)]
        if seeding:
            seen = [name for name in seeding if granted(request).sees(name)]
            raise RequestError(503, "tables are being seeded", more={"tables": seen}, headers=_retry())
        return json_response({"status": "ready"})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(body=self._report.metrics(), headers={"Content-Type": _METRICS_TYPE})

    def _view(self) -> ServedView:
        try:
            return ServedView(self._ledger.store.view())
        except StoreError as error:
            raise RequestError(503, error.what, mend=error.mend, headers=_retry()) from None

    def _form(self, request: web.Request) -> tuple[str, Render]:
        """Media type of the response, and how a record becomes bytes of it."""
        wanted = request.query.get("format")
        if wanted not in (None, "json", "binary"):
            raise RequestError(400, f"unknown format {wanted!r}", where="format", mend="use json or binary")
        if wanted != "json" and (wanted == "binary" or _LINES not in request.headers.get("Accept", "")):
            return _BINARY, bytes
        lines = LineRenderer(self._ledger.schema_of)
        return _LINES, lambda record: lines.render(read_header(record), record)


async def _stream(request: web.Request, response: web.StreamResponse, records: Iterator[bytes], render: Render) -> None:
    """Sends records; the store is read in a thread, one record at a time, as fast as the client takes them."""
    stopping = request.app[STOPPING]

    def following() -> bytes | None:
        record = next(records, None)
        return None if record is None else render(record)

    while not stopping.is_set():
        part = await asyncio.to_thread(following)
        if part is None:
            await response.write_eof()
            return
        await response.write(part)


def _consistent(served: ServedView, name: str) -> TableState:
    table = served.tables.get(name)
    if table is None:
        raise RequestError(
            404, f"no table {name!r} is published", where="table", mend="see /v1/tables, or add it to [source] tables"
        )
    if table.phase is Phase.REFUSED:
        raise RequestError(409, f"{name} cannot be bootstrapped", where="table", mend=table.reason)
    if table.phase is not Phase.CONSISTENT:
        more: dict[str, object] = {"state": table.phase.value, "reason": table.reason}
        raise RequestError(
            503, f"{name} is being seeded", where="table", mend="ask again later", more=more, headers=_retry()
        )
    return table


def _described(state: TableState) -> dict[str, object]:
    return {
        "table": state.table,
        "oid": state.oid,
        "schema_id": state.schema_id,
        "state": state.phase.value,
        "reason": state.reason or None,
        "generation": state.generation,
        "folds_from": state.p0 or None,
        "stale": state.stale or None,
        "stale_at": state.stale_at or None,
        "net_since": state.net_since or None,
        "net_told": state.net_told or None,
        "rows": state.rows,
    }


def _after_key(request: web.Request) -> bytes:
    text = request.query.get("after_key", "")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise RequestError(400, "a key is written in hexadecimal digits", where="after_key") from None


def _refuse_unknown(request: web.Request, known: set[str]) -> None:
    unknown = sorted(set(request.query) - known)
    if unknown:
        raise RequestError(400, f"unknown parameter {unknown[0]!r}", mend=f"use {', '.join(sorted(known))}")


def _retry() -> dict[str, str]:
    return {"Retry-After": _RETRY_AFTER}
