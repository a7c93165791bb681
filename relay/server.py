"""The relay's HTTP server: the log to any number of readers, without the source noticing.

    /v1/stream          records as they lie on disk, or JSON lines
    /v1/info            what the log holds, and what the rooms say of themselves
    /v1/schemas[/ID]    table layouts, with their Avro form
    /v1/openapi.json    this interface, for programs
    /v1/consumers…      who reads, how far each is, and waiting for it (`walbus.relay.consumer_routes`)
    /v1/groups…         who has which part of all keys (`walbus.relay.group_routes`)
    /v1/chain…          for relays that copy the log (`walbus.relay.chain_routes`)
    /subjects…, /schemas…  the schema registry of table topics (`walbus.relay.registry_routes`)
    /healthz, /readyz   alive; able to serve
    /metrics            for Prometheus

The server may be started before there is a log: it waits for one, and answers 503 till then.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import structlog
from aiohttp import web

from walbus import __version__
from walbus.config import RelayConfig
from walbus.errors import InvalidText, LogMissing, UsageError
from walbus.position import parse_position
from walbus.relay.access import AccessError, granted
from walbus.relay.chain_routes import ChainRoutes, Served
from walbus.relay.consumer_desk import ConsumerDesk
from walbus.relay.consumer_routes import ConsumerRoutes
from walbus.relay.engine import open_reader
from walbus.relay.gate import gate_of
from walbus.relay.gauges import Figures, RelayMetrics
from walbus.relay.group_desk import GroupDesk
from walbus.relay.group_routes import GroupRoutes
from walbus.relay.http import (
    STOPPING,
    Handler,
    RequestError,
    json_response,
    new_application,
)
from walbus.relay.lag import Place
from walbus.relay.lineage import read_lineage
from walbus.relay.listener import run_server
from walbus.relay.openapi import openapi_document
from walbus.relay.reader import FileLogReader
from walbus.relay.registry_routes import RegistryRoutes
from walbus.relay.standbys import Standbys, hold_for
from walbus.relay.streams import StreamServer
from walbus.relay.table_tally import TableFigures
from walbus.schema import TableSchema
from walbus.status import read_status
from walbus.values import avro_schema

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2  # between two looks for a log that is not there yet
_THREADS = 4
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_SEQ = re.compile(r"[0-9]{1,16}\Z")


def serve_relay(  # noqa: PLR0913  # the signature that all rooms' servers have, and what tests pass in
    folder: Path,
    config: RelayConfig,
    *,
    bootstrap_url: str | None,
    status_dir: Path,
    stop: threading.Event,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """Serves the log until `stop` is set.

    Args:
        folder: of the log.
        config: where to listen.
        bootstrap_url: where clients go whose position is gone.
        status_dir: folder of the rooms' status files.
        stop: ends the server, within a few seconds.
        on_listening: is told the port, once connections are accepted.

    Raises:
        ConfigError: the address is in use, is not this machine's, or is not allowed.
        DamagedRecord: the log's manifest is damaged.
    """
    _raise_open_files()
    gate = gate_of(config, "relay")
    server = RelayServer(folder, config, bootstrap_url, status_dir, gate.audit.counts)
    run_server(server.application(), gate, stop, on_listening=on_listening)
    if server.failure is not None:
        raise server.failure


class RelayServer:
    """The routes, and the log behind them.

    Args:
        folder: of the log.
        config: of the relay.
        bootstrap_url: where clients go whose position is gone.
        status_dir: folder of the rooms' status files.
        refusals: what the server turned away so far, by reason.
    """

    def __init__(
        self,
        folder: Path,
        config: RelayConfig,
        bootstrap_url: str | None,
        status_dir: Path,
        refusals: Mapping[str, int],
    ) -> None:
        self._folder = folder
        self._bootstrap_url = bootstrap_url
        self._status_dir = status_dir
        self._metrics = RelayMetrics(self._figures, status_dir, refusals)
        self.failure: Exception | None = None  #: why the server stopped by itself
        self._desk = ConsumerDesk(folder, config)
        self._consumers = ConsumerRoutes(self._desk, self._log_reader)
        self._groups = GroupDesk(folder, lambda: self._desk.keeps)
        self._group_routes = GroupRoutes(self._groups, self._serving_threads, copies=bool(config.upstream))
        self._registry = RegistryRoutes(config.topic_prefix, config.schema_compatibility, self._log_reader)
        self._threads: ThreadPoolExecutor | None = None
        self._reader: FileLogReader | None = None
        self._streams: StreamServer | None = None
        self._standbys = Standbys(folder, config.required_standbys)
        self._whole: Served | None = None  # up to the true end, where that is not what is served
        self._chain = ChainRoutes(
            folder, self._standbys, served=self._log_served, whole=self._log_whole, moved=self._served_moved
        )
        self._tables = TableFigures()

    def application(self) -> web.Application:
        """The routes as an application."""
        application = new_application()
        application.middlewares.insert(0, self._count)
        application.cleanup_ctx.append(self._attached)
        routes: list[tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("/v1/stream", self._stream),
            ("/v1/info", self._info),
            ("/v1/schemas", self._schemas),
            ("/v1/schemas/{id}", self._schema),
            ("/v1/openapi.json", self._openapi),
            ("/healthz", self._healthz),
            ("/readyz", self._readyz),
            ("/metrics", self._metrics_text),
        ]
        for path, handler in routes:
            application.router.add_get(path, handler, allow_head=False)
        self._consumers.add_to(application.router)
        self._group_routes.add_to(application.router)
        self._chain.add_to(application.router)
        self._registry.add_to(application.router)
        return application

    # --- the log's coming and going -----------------------------------------------------------------------------

    async def _attached(self, application: web.Application) -> AsyncIterator[None]:
        """Waits for the log beside the running server; frees it at the end."""
        with ThreadPoolExecutor(_THREADS, "walbus-read") as threads:
            attaching = asyncio.create_task(self._attach(application[STOPPING], threads))
            yield
            attaching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await attaching
            for streams in self._all_streams():
                await streams.close()
            await self._groups.close()
            await self._desk.close()
        for reader in (self._reader, self._whole.reader if self._whole is not None else None):
            if reader is not None:
                reader.close()

    async def _attach(self, stopping: asyncio.Event, threads: ThreadPoolExecutor) -> None:
        with contextlib.ExitStack() as opened:  # also when the server stops in the middle of it
            try:
                required = bool(self._standbys.required)
                reader = opened.enter_context(
                    contextlib.closing(await self._open_reader(self._standbys if required else None))
                )
                whole = opened.enter_context(contextlib.closing(await self._open_reader())) if required else None
                await self._desk.open(reader, threads, partial(hold_for, self._folder, self._standbys.required))
            except Exception as error:
                self.failure = error  # a log that cannot be read is not waited for
                stopping.set()
                return
            opened.pop_all()
        self._reader, self._threads = reader, threads
        self._streams = StreamServer(reader, self._bootstrap_url, threads, stopping, self._desk)
        if whole is not None:
            self._whole = Served(whole, StreamServer(whole, self._bootstrap_url, threads, stopping, self._desk))
        _log.info("relay_serves_log", folder=str(self._folder), end=str(reader.bounds().end))
        try:
            async with asyncio.TaskGroup() as tasks:
                for streams in self._all_streams():
                    tasks.create_task(streams.wake_at_stop())
                tasks.create_task(self._desk.run(self._streams.tail, stopping))
                tasks.create_task(self._tables.run(reader, stopping, threads))
        except* Exception as failed:  # what streams rest on is gone: better no relay than half of one
            self.failure = failed.exceptions[0]
            stopping.set()

    def _all_streams(self) -> list[StreamServer]:
        whole = self._whole.streams if self._whole is not None else None
        return [streams for streams in (self._streams, whole) if streams is not None]

    async def _open_reader(self, standbys: Standbys | None = None) -> FileLogReader:
        waiting = False
        while True:
            try:
                return open_reader(self._folder, standbys=standbys)
            except LogMissing as error:
                if not waiting:
                    _log.info("relay_waits_for_log", folder=str(self._folder), mend=error.mend)
                waiting = True
                await asyncio.sleep(_LOOK_SECONDS)

    def _serving_threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            raise _not_ready()
        return self._threads

    def _log_reader(self) -> FileLogReader:
        if self._reader is None:
            raise _not_ready()
        return self._reader

    def _log_served(self) -> Served:
        if self._reader is None or self._streams is None:
            raise _not_ready()
        return Served(self._reader, self._streams)

    def _log_whole(self) -> Served:
        return self._whole or self._log_served()

    def _served_moved(self) -> None:
        if self._streams is not None:
            self._streams.wake()

    # --- routes ---------------------------------------------------------------------------------------------------

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        resource = request.match_info.route.resource
        self._metrics.count_request(resource.canonical if resource else "other", response.status)
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self._streams is None:
            raise _not_ready()
        return await self._streams.handle(request)

    async def _info(self, request: web.Request) -> web.Response:
        reader = self._log_reader()
        bounds = reader.bounds()
        place = _place_of(request)
        behind = None if place is None else await self._desk.lag_of(place)
        document: dict[str, object] = {
            "log_id": bounds.log_id,
            "version": __version__,
            "trimmed": str(bounds.trimmed),
            "end": str(bounds.end),
            "last_seq": bounds.last_seq,
            "commit_time": bounds.commit_time,
            "term": read_lineage(self._folder).term,
            "bootstrap": self._bootstrap_url,
            **({} if behind is None else {"behind": {"changes": behind.changes, "bytes": behind.bytes}}),
        }
        grant = granted(request)
        if not grant.everything:  # other consumers, and what rooms say of tables, are not for this token
            return json_response({**document, "scope": list(grant.tables)})
        streams = self._streams.open if self._streams else ()
        return json_response(
            {
                **document,
                "source": asdict(reader.source),
                "bytes": bounds.bytes,
                "streams": [{"name": stream.name, "scanned": str(stream.scanned)} for stream in streams],
                "required_standbys": self._chain.standby_documents(),
                **self._room_statuses(),
            }
        )

    def _room_statuses(self) -> dict[str, object]:
        """The status files as they are; `null` for a room that has not written one."""
        consumers = {path.stem.removeprefix("consumer-"): path for path in self._status_dir.glob("consumer-*.json")}
        return {
            "capture": read_status(self._status_dir / "capture.json"),
            "upstream": read_status(self._status_dir / "upstream.json"),
            "bootstrap_status": read_status(self._status_dir / "bootstrap.json"),
            "consumers": {name: read_status(path) for name, path in sorted(consumers.items())},
        }

    async def _schemas(self, request: web.Request) -> web.Response:
        grant = granted(request)
        seen = [
            schema for schema in self._log_reader().schemas.all() if grant.sees_table(schema.namespace, schema.name)
        ]
        scope = {} if grant.everything else {"scope": list(grant.tables)}
        return json_response({"schemas": [_schema_document(schema) for schema in seen], **scope})

    async def _schema(self, request: web.Request) -> web.Response:
        text = request.match_info["id"]
        try:
            schema = self._log_reader().schemas.now(int(text) if _NUMBER.match(text) else 0)
        except KeyError:
            mend = "list the versions with /v1/schemas"
            raise RequestError(404, f"there is no schema {text[:20]!r}", where="id", mend=mend) from None
        grant = granted(request)
        if not grant.sees_table(schema.namespace, schema.name):
            raise AccessError(
                403,
                f"the token {grant.name} does not reach the table of schema {schema.id}",
                reason="beyond the scope",
                where="id",
                mend="list those that it reaches with /v1/schemas",
                token=grant.name,
            )
        return json_response(_schema_document(schema))

    async def _openapi(self, _: web.Request) -> web.Response:
        return json_response(openapi_document())

    async def _healthz(self, _: web.Request) -> web.Response:
        return json_response({"alive": True})

    async def _readyz(self, _: web.Request) -> web.Response:
        self._log_reader()
        return json_response({"ready": True})

    async def _metrics_text(self, _: web.Request) -> web.Response:
        consumers = await self._consumers.figures() if self._reader is not None else {}
        return web.Response(
            body=self._metrics.render(consumers, self._tables.now()),
            headers={"Content-Type": "text/plain; version=0.0.4"},
        )

    def _figures(self) -> Figures:
        if self._reader is None or self._streams is None:
            return {}
        bounds = self._reader.bounds()
        return {
            **self._chain.figures(),
            "walbus_log_bytes": bounds.bytes,
            "walbus_log_segments": self._reader.segments(),
            "walbus_log_end_lsn": bounds.end.commit_lsn,
            "walbus_log_last_seq": bounds.last_seq,
            "walbus_relay_streams": len(self._streams.open),
            "walbus_relay_consumers": len(self._desk.known),
            "walbus_relay_sent_bytes_total": self._streams.sent_bytes,
        }


def _raise_open_files() -> None:
    """A follower takes a descriptor, and one that catches up two: as many as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _not_ready() -> RequestError:
    return RequestError(
        503, "there is no log yet", mend="start `walbus capture`, which makes it", headers={"Retry-After": "1"}
    )


def _place_of(request: web.Request) -> Place | None:
    """The place that `after` and `seq` name; None if none is named.

    Raises:
        UsageError: they name none.
    """
    after, seq = request.query.get("after"), request.query.get("seq", "0")
    if after is None:
        return None
    if not _SEQ.match(seq):
        raise UsageError(
            f"{seq[:80]!r} is no seq", where="seq", mend="give the last seq of the position, or leave it out"
        )
    try:
        return Place(parse_position(after), int(seq))
    except InvalidText as error:
        raise UsageError(error.what, where="after", mend=error.mend) from None


def _schema_document(schema: TableSchema) -> dict[str, object]:
    return {"schema": schema.to_dict(), "avro": avro_schema(schema)}
