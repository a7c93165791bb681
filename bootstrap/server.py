"""The bootstrap server: which tables there are, and their rows and changes as of one position.

    GET /v1/tables                                  what can be had, and how far it is
    GET /v1/snapshot, /v1/delta, /v1/row            rows and changes (`walbus.bootstrap.serving_routes`)
    GET /v1/stream?complete=true                    the log with whole rows (`walbus.bootstrap.completed_routes`)
    GET /v1/seeding                                 how far the tables are that are being read from the source
    GET /v1/openapi.json                            this interface, for programs
    GET /healthz, /readyz, /metrics

A snapshot that breaks off goes on behind its last key, as of a later position; its reader then replays the log from the
*lowest* of the positions: every change in between is in the log, and each row says its version.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from walbus.bootstrap.completed_routes import CompletedRoutes
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.openapi import openapi_document
from walbus.bootstrap.report import Report
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.serving_routes import ServingRoutes
from walbus.bootstrap.state import Applied, Phase, TableState
from walbus.errors import StoreError
from walbus.log import LogReader
from walbus.relay.access import granted
from walbus.relay.gate import Gate
from walbus.relay.http import Handler, RequestError, json_response, new_application
from walbus.relay.listener import run_server
from walbus.schema import TableSchema

_RETRY = {"Retry-After": "1"}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class BootstrapServer:
    """The handlers; `serve` runs them.

    Args:
        ledger: the store with its meaning.
        report: figures.
        open_log: opens the log, for requests that name a position without its seq.
        log_dir: folder of the log, for complete changes.
    """

    def __init__(
        self,
        ledger: Ledger,
        report: Report,
        open_log: Callable[[], LogReader] | None = None,
        log_dir: Path | None = None,
    ) -> None:
        self._ledger = ledger
        self._report = report
        self._serving = ServingRoutes(self._view, self._layout, open_log, lambda: ledger.behind)
        self._completed = CompletedRoutes(ledger, log_dir)

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
            "/v1/seeding": self._seeding,
            "/v1/openapi.json": self._openapi,
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._metrics,
        }
        application = new_application()
        application.add_routes([web.get(path, handler, allow_head=False) for path, handler in routes.items()])
        self._serving.add_to(application.router)
        self._completed.add_to(application)
        return application

    async def _tables(self, request: web.Request) -> web.StreamResponse:
        if not self._ledger.listed:
            raise RequestError(503, "not every published table is known yet", mend="ask again later", headers=_RETRY)
        grant = granted(request)
        served = self._view()
        applied = served.applied
        document: dict[str, object] = {
            "log_id": applied.log_id,
            "applied": str(applied.position),
            "applied_seq": applied.last_seq,
            "tables": [_described(state) for state in served.tables.values() if grant.sees(state.table)],
            "complete_since": self._complete_since(applied),
        }
        return json_response(document if grant.everything else {**document, "scope": list(grant.tables)})

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        del request
        return json_response(openapi_document())

    async def _seeding(self, request: web.Request) -> web.StreamResponse:
        grant = granted(request)
        return json_response({"seeding": [told for told in self._report.seeding() if grant.sees(told["table"])]})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        del request
        return json_response({"status": "alive"})

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        tables = self._view().tables.values()
        if not self._ledger.listed:
            raise RequestError(503, "not every published table is known yet", headers=_RETRY)
        seeding = [table.table for table in tables if table.phase in (Phase.SEEDING, Phase.BROKEN, Phase.WRONG)]
        if seeding:
            seen = [name for name in seeding if granted(request).sees(name)]
            raise RequestError(503, "tables are being seeded", more={"tables": seen}, headers=_RETRY)
        return json_response({"status": "ready"})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(body=self._report.metrics(), headers={"Content-Type": _METRICS_TYPE})

    def _complete_since(self, applied: Applied) -> str | None:
        """Behind which position changes can be had complete; None while none can."""
        kept = self._ledger.completions.kept
        return None if kept is None or kept.log_id != applied.log_id else str(kept.position)

    def _layout(self, schema_id: int) -> TableSchema:
        return self._ledger.schema_of(schema_id)

    def _view(self) -> ServedView:
        try:
            return ServedView(self._ledger.store.view())
        except StoreError as error:
            raise RequestError(503, error.what, mend=error.mend, headers=_RETRY) from None


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
