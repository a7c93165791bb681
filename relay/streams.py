"""`/v1/stream`: sends a delivery to its client, at the client's pace.

A stream first reads its own way through the log, block by block, and waits for the client before it reads the next one:
a slow client stops its own stream and nobody else's. At the log's end a stream that has no bound joins a feed
(`walbus.relay.feed`), which sends what is new to all that ask for the same, until the client falls behind.

Blocking work runs on a few threads, save for the small reads at the log's end: those bytes have just been written, so
they are in memory. A stream that is cut short (the server stops, the log is damaged, retention overtook it) ends with a
broken connection and never with a clean end, so that a bounded stream's end can be believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import structlog
from aiohttp import web

from walbus.errors import PositionTrimmed, PositionUnknown, WalbusError
from walbus.log import Bounds
from walbus.position import Position
from walbus.records import Flag
from walbus.relay.access import require_consumer, require_tables
from walbus.relay.ahead import log_reaches, sign_of_life
from walbus.relay.content_coding import CodingName, negotiate
from walbus.relay.delivery import ENDLESS, Bound, Delivery, Step, StreamForm
from walbus.relay.feed import HEARTBEAT_SECONDS, INLINE_BYTES, Feed, Feeds, Kind, wait_until
from walbus.relay.file_push import NO_DESCRIPTORS
from walbus.relay.http import RequestError
from walbus.relay.outlet import Outlet
from walbus.relay.peer import Peer
from walbus.relay.reader import FileLogReader
from walbus.relay.sse import PREAMBLE
from walbus.relay.stream_query import MEDIA_TYPES, After, AtSeq, AtTime, StreamQuery, parse_stream_query
from walbus.relay.tail import Tail

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

_PUSHES = 4  # at a time: each takes a descriptor, beside the two that a stream has
_DESCRIPTOR_SECONDS = 0.2  # between two tries to open a segment


@dataclass(eq=False)
class OpenStream:
    """A stream under way, for people and gauges.

    Attributes:
        name: of the consumer; may be empty.
        kind: its form and compression.
        outlet: where its bytes leave.
        delivery: its own way through the log; closed while it is a feed's member.
        feed: which it is a member of; None while it reads by itself.
        wake: has it look whether there is something to send.
        endless: whether it goes on for ever.
    """

    name: str
    kind: Kind
    outlet: Outlet
    delivery: Delivery
    wake: Callable[[], None]
    feed: Feed | None = None
    endless: bool = False

    @property
    def scanned(self) -> Position:
        """Up to where it has looked at the log."""
        return (self.feed.delivery if self.feed is not None else self.delivery).scanned

    @property
    def sent(self) -> int:
        """Bytes so far."""
        return self.outlet.sent

    def ask(self, wanted: list[Position]) -> None:
        """Has the client told, once the stream is behind each of these, that somebody waits for it there."""
        self.outlet.asked = wanted
        if self.feed is not None:
            self.feed.ask(self.outlet)
        self.wake()


class StreamWatcher(Protocol):
    """Who is told of streams."""

    def opened(self, name: str, tables: Iterable[str], peer: Peer, stream: OpenStream) -> None:
        """A stream begins."""

    def closed(self, name: str, stream: OpenStream) -> None:
        """It has ended."""


class StreamServer:
    """Serves the streams of one log.

    Args:
        reader: the log.
        bootstrap_url: where a client goes whose position is gone; None if there is no such server.
        threads: for blocking work.
        stopping: is set when the server stops.
        watcher: is told of streams.
        complete: whether the rows that the reader gives are whole.
    """

    def __init__(  # noqa: PLR0913  # what a server is made of
        self,
        reader: FileLogReader,
        bootstrap_url: str | None,
        threads: ThreadPoolExecutor,
        stopping: asyncio.Event,
        watcher: StreamWatcher,
        *,
        complete: bool = False,
    ) -> None:
        self._reader = reader
        self._bootstrap_url = bootstrap_url
        self._threads = threads
        self._stopping = stopping
        self._watcher = watcher
        self._complete = complete
        self.tail = Tail(reader)
        self._feeds = Feeds(self.tail, self._step, stopping)
        self._pushing = asyncio.Semaphore(_PUSHES)
        self._sent_by_closed = 0
        self.open: set[OpenStream] = set()

    @property
    def sent_bytes(self) -> int:
        """By all streams so far."""
        return self._sent_by_closed + sum(stream.sent for stream in self.open)

    async def wake_at_stop(self) -> None:
        """Wakes all streams once the server stops, so that they see it."""
        await self._stopping.wait()
        self.tail.wake()

    def wake(self) -> None:
        """Lets every stream look again: what is served has moved without the log."""
        self.tail.wake()

    async def close(self) -> None:
        """Ends the waiting thread."""
        await self.tail.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request with a stream."""
        query = parse_stream_query(_single(request), request.headers)
        if query.complete != self._complete:
            raise _other_server(query, self._bootstrap_url)
        require_tables(request, query.selection.tables or ("*.*",), "tables")
        if query.name:
            require_consumer(request, query.name)
        bounds = self._reader.bounds()
        if query.log_id not in (None, bounds.log_id):
            raise _other_log(bounds)
        kind = Kind(
            StreamForm(query.format, query.selection),
            negotiate(request.headers.get("Accept-Encoding", ""), query.format),
        )
        outlet, begun = Outlet(request, kind.coding), None
        if (place := _place_ahead(query, bounds)) is not None:
            sign = sign_of_life(self._reader, kind.form, place)
            begun = await self._begun(outlet, kind, place)
            if not await log_reaches(place, self._reader, self.tail, outlet, sign, self._stopping):
                return _broken(outlet, begun)
        bound = _bound(query, bounds)
        try:
            delivery = await self._open(query, bounds, bound, kind.form)
        except RequestError:
            if begun is None:
                raise
            return _broken(outlet, begun)  # the client asks again, and is told
        stream = OpenStream(query.name, kind, outlet, delivery, self.tail.wake, endless=bound == ENDLESS)
        self.open.add(stream)
        peer = Peer.told(request.remote, request.headers.get("User-Agent"))
        self._watcher.opened(query.name, query.selection.tables, peer, stream)
        _log.info("stream_opened", consumer=query.name, position=str(stream.scanned), tables=query.selection.tables)
        try:
            return await self._send(stream, begun or await self._begun(outlet, kind, stream.scanned))
        finally:
            self.open.discard(stream)
            self._watcher.closed(query.name, stream)
            self._sent_by_closed += stream.sent
            _log.info("stream_closed", consumer=query.name, position=str(stream.scanned), bytes=stream.sent)
            self._threads.submit(stream.delivery.close)

    async def _open(self, query: StreamQuery, bounds: Bounds, bound: Bound, form: StreamForm) -> Delivery:
        try:
            return await self._opened_at(await self._start(query, bounds), query, bounds, bound, form)
        except PositionTrimmed as error:
            more = {"log_id": bounds.log_id, "trimmed": str(bounds.trimmed), "bootstrap": self._bootstrap_url}
            raise RequestError(410, error.what, where=error.where, mend=error.mend, more=more) from None
        except PositionUnknown as error:
            mend = "send log_id and follow=true to wait for it, or read a snapshot from the bootstrap server"
            more = {"log_id": bounds.log_id, "end": str(bounds.end)}
            raise RequestError(409, error.what, where=error.where, mend=mend, more=more) from None

    async def _opened_at(
        self, after: Position, query: StreamQuery, bounds: Bounds, bound: Bound, form: StreamForm
    ) -> Delivery:
        while True:
            try:
                return await self._opened(partial(Delivery, self._reader, after, bound=bound, form=form))
            except PositionTrimmed:
                if query.start != "earliest":
                    raise
                bounds = self._reader.bounds()  # retention was faster; the client has asked for no certain change
                if bounds.trimmed <= after:
                    raise
                after = await self._start(query, bounds)

    async def _opened(self, work: Callable[[], Delivery]) -> Delivery:
        """Makes a delivery on a thread; closes it again if the client has left meanwhile."""
        made = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            made.add_done_callback(_close_unwanted)
            raise

    async def _start(self, query: StreamQuery, bounds: Bounds) -> Position:
        start = query.start
        if isinstance(start, After):
            return start.position
        if isinstance(start, AtTime):
            time = start.time
            return await self._run(lambda: self._reader.position_at(time))
        if isinstance(start, AtSeq):
            seq = start.seq
            return await self._run(lambda: self._reader.position_at_seq(seq))
        return bounds.trimmed if start == "earliest" else bounds.end

    async def _begun(self, outlet: Outlet, kind: Kind, after: Position) -> web.StreamResponse:
        """An answer whose head was sent."""
        response = web.StreamResponse()
        form = kind.form.format
        response.content_type = MEDIA_TYPES[form]
        response.headers.update(_headers(self._reader.bounds().log_id, after, kind.coding))
        await outlet.open(response)
        if form == "sse":
            outlet.put(PREAMBLE)
        return response

    async def _send(self, stream: OpenStream, response: web.StreamResponse) -> web.StreamResponse:
        try:
            if await self._pump(stream):
                await stream.outlet.finish()
                return response
        except ConnectionError:
            raise  # the client left
        except Exception as error:  # the answer has begun, so only a broken connection can tell
            known = str(error) if isinstance(error, WalbusError) else None  # others may quote a row
            _log.error("stream_failed", consumer=stream.name, kind=type(error).__name__, error=known)
        return _broken(stream.outlet, response)

    async def _pump(self, stream: OpenStream) -> bool:
        """Sends until the bound is reached (True) or the server stops (False)."""
        loop = asyncio.get_running_loop()
        heartbeat_at = loop.time() + HEARTBEAT_SECONDS
        while not self._stopping.is_set():
            if stream.outlet.takes_files and await self._sent_files(stream):
                heartbeat_at = loop.time() + HEARTBEAT_SECONDS
            moved = self.tail.moved()
            step = await self._step(stream.delivery)
            data = step.data
            if not data and loop.time() >= heartbeat_at:
                data = stream.delivery.heartbeat()
            if stream.outlet.take_asked(stream.scanned):
                data += stream.delivery.heartbeat(Flag.ASKED)
            if data:
                await self._put(stream.outlet, data)
                await stream.outlet.drained()
                heartbeat_at = loop.time() + HEARTBEAT_SECONDS
            if step.finished:
                return True
            if step.at_end and not await self._followed(stream):
                await wait_until(moved, heartbeat_at)
        return False

    async def _put(self, outlet: Outlet, data: bytes) -> None:
        """Sends a block. A large one is compressed on a thread: that takes milliseconds in which nobody is served."""
        if outlet.compresses and len(data) > INLINE_BYTES:
            outlet.put_block(await self._run(partial(outlet.block, data)), data)
        else:
            outlet.put(data)

    async def _sent_files(self, stream: OpenStream) -> bool:
        """Sends what lies ahead straight from the log's files, while there is much of it; whether there was."""
        if not stream.delivery.verbatim or stream.delivery.pending() <= INLINE_BYTES:
            return False
        outlet, sent = stream.outlet, False
        while not self._stopping.is_set():
            async with self._pushing:
                pushed = await self._run(partial(stream.delivery.push, outlet.handle()))
            if pushed.unsent is not None:
                await outlet.put_unsent(pushed.unsent)
            outlet.sent += pushed.sent
            sent = sent or pushed.sent > 0
            if pushed.over:
                break
        return sent

    async def _followed(self, stream: OpenStream) -> bool:
        """Lets a stream be a feed's member for as long as it keeps up; False if it cannot be one now."""
        if not (stream.endless and stream.outlet.shared):
            return False
        feed = self._feeds.meeting(stream.kind, stream.delivery, stream.outlet)
        if feed is None:
            return False
        stream.delivery.close()
        stream.feed = feed
        parted = await feed.follow(stream.outlet)
        if parted is not None:
            stream.delivery, stream.feed = parted, None
            await stream.outlet.drained()
        return True

    async def _step(self, delivery: Delivery) -> Step:
        """A step; where it takes a descriptor, for the next segment, and there is none, as soon as there is one."""
        while True:
            try:
                if delivery.pending() <= INLINE_BYTES:
                    step = delivery.step()
                    if not step.at_end:
                        await asyncio.sleep(0)  # a peer that takes everything, and small segments: others come between
                    return step
                return await self._run(delivery.step)
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS or self._stopping.is_set():
                    raise
            await asyncio.sleep(_DESCRIPTOR_SECONDS)

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _close_unwanted(made: asyncio.Future[Delivery]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().close()


def _broken(outlet: Outlet, response: web.StreamResponse) -> web.StreamResponse:
    """An answer that is not whole."""
    outlet.abort()
    return response


def _place_ahead(query: StreamQuery, bounds: Bounds) -> Position | None:
    """The place of a client that is ahead of its log, and follows it; None if it is not, or is to be told."""
    if not isinstance(query.start, After) or not query.follow or query.log_id is None:
        return None
    return query.start.position if query.start.position > bounds.end else None


def _bound(query: StreamQuery, bounds: Bounds) -> Bound:
    until, position = query.until, None if query.follow else bounds.end
    if isinstance(until, AtSeq):
        return Bound(position, seq=until.seq)
    if isinstance(until, AtTime):
        return Bound(position, time=int(until.time * 1e6))
    if until is None:
        return Bound(position)
    if until == "earliest":
        return Bound(bounds.trimmed)
    if until == "latest":
        return Bound(bounds.end)
    return Bound(until if position is None else min(until, position))


def _headers(log_id: str, position: Position, coding: CodingName) -> dict[str, str]:
    headers = {
        "Walbus-Log-Id": log_id,
        "Walbus-Position": str(position),
        "Cache-Control": "no-store",
        "Vary": "Accept, Accept-Encoding",
    }
    return headers if coding == "identity" else headers | {"Content-Encoding": coding}


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


def _other_server(query: StreamQuery, bootstrap_url: str | None) -> RequestError:
    """Whole rows are known to one server, and the log as it is to another."""
    if query.complete:
        mend = f"ask the bootstrap server{f', {bootstrap_url}' if bootstrap_url else ''}"
        return RequestError(400, "this server does not have whole rows", where="complete", mend=mend)
    return RequestError(400, "this server has whole rows only", where="complete", mend="set it, or ask the relay")


def _other_log(bounds: Bounds) -> RequestError:
    return RequestError(
        409,
        f"this is another log, {bounds.log_id}",
        where="log_id",
        mend="read a snapshot from the bootstrap server: positions and seqs of two logs do not compare",
        more={"log_id": bounds.log_id, "end": str(bounds.end)},
    )
