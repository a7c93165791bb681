"""`/v1/stream`: sends a delivery to its client, at the client's pace.

Each stream holds one block; a slow client stops its own stream in `write`, which waits for the socket, and nobody
else's. Blocking work runs on a few threads, save for the small reads at the log's end: those bytes have just been
written, so they are in memory. A stream that is cut short (the server stops, the log is damaged, retention overtook it)
ends with a broken connection and never with a clean end, so that a bounded stream's end can be believed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog
from aiohttp import web

from walbus.errors import PositionTrimmed, PositionUnknown, WalbusError
from walbus.log import Bounds
from walbus.position import Position
from walbus.relay.delivery import Delivery, Step
from walbus.relay.http import STOPPING, RequestError
from walbus.relay.reader import FileLogReader
from walbus.relay.stream_query import BINARY_TYPE, JSON_TYPE, After, Since, StreamQuery, parse_stream_query
from walbus.relay.table_filter import TableFilter
from walbus.relay.tail import Tail

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 1.0
_INLINE_BYTES = 32 << 10  # a read this small at the log's end is not worth a thread


@dataclass(eq=False)
class OpenStream:
    """A stream under way, for people and gauges.

    Attributes:
        name: of the consumer; may be empty.
        delivery: its way through the log.
        sent: bytes so far.
    """

    name: str
    delivery: Delivery
    sent: int = 0


class StreamServer:
    """Serves the streams of one log.

    Args:
        reader: the log.
        bootstrap_url: where a client goes whose position is gone; None if there is no such server.
        threads: for blocking work.
    """

    def __init__(self, reader: FileLogReader, bootstrap_url: str | None, threads: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._bootstrap_url = bootstrap_url
        self._threads = threads
        self._tail = Tail(reader)
        self.open: set[OpenStream] = set()
        self.sent_bytes = 0  #: by all streams so far

    async def stop_with(self, stopping: asyncio.Event) -> None:
        """Wakes all streams once the server stops, so that they see it."""
        await stopping.wait()
        self._tail.wake()

    async def close(self) -> None:
        """Ends the waiting thread."""
        await self._tail.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request with a stream."""
        query = parse_stream_query(_single(request), request.headers.get("Accept", ""))
        bounds = self._reader.bounds()
        if query.log_id not in (None, bounds.log_id):
            raise _other_log(bounds)
        tables = TableFilter(query.tables, self._reader.schemas)
        delivery = await self._open(query, bounds, tables)
        stream = OpenStream(query.name, delivery)
        self.open.add(stream)
        _log.info("stream_opened", consumer=query.name, position=str(delivery.scanned), tables=list(query.tables))
        try:
            return await self._send(request, stream, query)
        finally:
            self.open.discard(stream)
            _log.info("stream_closed", consumer=query.name, position=str(delivery.scanned), bytes=stream.sent)
            self._threads.submit(delivery.close)

    async def _open(self, query: StreamQuery, bounds: Bounds, tables: TableFilter) -> Delivery:
        until = bounds.end if query.until == "latest" else query.until
        if not query.follow:
            until = bounds.end if until is None else min(until, bounds.end)
        after = await self._start(query, bounds)
        if after > bounds.end and query.follow and query.log_id is not None:
            await self._reached(after)
        try:
            return await self._run(lambda: Delivery(self._reader, after, until=until, tables=tables, json=query.json))
        except PositionTrimmed as error:
            more = {"log_id": bounds.log_id, "trimmed": str(bounds.trimmed), "bootstrap": self._bootstrap_url}
            raise RequestError(410, error.what, where=error.where, mend=error.mend, more=more) from None
        except PositionUnknown as error:
            mend = "send log_id and follow=true to wait for it, or read a snapshot from the bootstrap server"
            more = {"log_id": bounds.log_id, "end": str(bounds.end)}
            raise RequestError(409, error.what, where=error.where, mend=mend, more=more) from None

    async def _start(self, query: StreamQuery, bounds: Bounds) -> Position:
        start = query.start
        if isinstance(start, After):
            return start.position
        if isinstance(start, Since):
            time = start.time
            return await self._run(lambda: self._reader.position_at(time))
        return bounds.trimmed if start == "earliest" else bounds.end

    async def _reached(self, position: Position) -> None:
        """Waits until the log holds a position that a client is ahead with."""
        while True:
            moved = self._tail.moved()
            if self._reader.bounds().end >= position:
                return
            await moved.wait()

    async def _send(self, request: web.Request, stream: OpenStream, query: StreamQuery) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = JSON_TYPE if query.json else BINARY_TYPE
        response.headers["Walbus-Log-Id"] = self._reader.bounds().log_id
        response.headers["Walbus-Position"] = str(stream.delivery.scanned)
        response.headers["Cache-Control"] = "no-store"
        await response.prepare(request)
        try:
            finished = await self._pump(request.app[STOPPING], stream, response)
        except ConnectionError:
            raise  # the client left
        except Exception as error:  # the answer has begun, so only a broken connection can tell
            known = str(error) if isinstance(error, WalbusError) else None  # others may quote a row
            _log.error("stream_failed", consumer=query.name, kind=type(error).__name__, error=known)
            finished = False
        if not finished and request.transport is not None:
            request.transport.abort()
        return response

    async def _pump(self, stopping: asyncio.Event, stream: OpenStream, response: web.StreamResponse) -> bool:
        """Sends until the bound is reached (True) or the server stops (False)."""
        loop = asyncio.get_running_loop()
        heartbeat_at = loop.time() + HEARTBEAT_SECONDS
        while not stopping.is_set():
            moved = self._tail.moved()
            step = await self._step(stream.delivery)
            data = step.data
            if not data and loop.time() >= heartbeat_at:
                data = stream.delivery.heartbeat()
            if data:
                await response.write(data)
                stream.sent += len(data)
                self.sent_bytes += len(data)
                heartbeat_at = loop.time() + HEARTBEAT_SECONDS
            if step.finished:
                return True
            if step.at_end:
                await _wait(moved, heartbeat_at - loop.time())
        return False

    async def _step(self, delivery: Delivery) -> Step:
        if delivery.pending() <= _INLINE_BYTES:
            return delivery.step()
        return await self._run(delivery.step)

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _single(request: web.Request) -> dict[str, str]:
    """The query's parameters; `tables` may be repeated, nothing else may.

    Raises:
        RequestError: another one is repeated.
    """
    found: dict[str, str] = {}
    for key, value in request.query.items():
        if key not in found:
            found[key] = value
        elif key == "tables":
            found[key] += f",{value}"
        else:
            raise RequestError(400, f"{key!r} is given twice", where=key, mend="give it once")
    return found


def _other_log(bounds: Bounds) -> RequestError:
    return RequestError(
        409,
        f"this is another log, {bounds.log_id}",
        where="log_id",
        mend="read a snapshot from the bootstrap server: positions and seqs of two logs do not compare",
        more={"log_id": bounds.log_id, "end": str(bounds.end)},
    )


async def _wait(moved: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0)):
            await moved.wait()
