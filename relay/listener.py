"""Listens, admits connections within bounds, and serves an application to them.

Connections are accepted here and not by asyncio's server: they are counted before anything is read of them, and
before a TLS handshake. One that is too many gets a 503 (or is closed, under TLS), whatever it wanted to say. When no
descriptor is left, a spare one is given up for a moment, so that those who wait are turned away instead of hanging;
streams that are open go on.

What one client can send before it is answered is bounded in bytes (`BoundedProtocol`), lines and time. What is no HTTP
is answered with JSON too, in the server's own words: the parser's quote what was sent, which may be a token.

When the process is told to stop, handlers see `STOPPING` and finish; those that do not are cancelled after two seconds.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Coroutine

import structlog
from aiohttp import http_exceptions, web

from walbus.errors import ConfigError
from walbus.relay.audit import Refusal
from walbus.relay.bounds import Bounds, counted_as, open_files
from walbus.relay.gate import Gate, ListenAddress
from walbus.relay.http import STOPPING, Handler, RequestError, json_response

_log = structlog.get_logger(__name__)

GRACE_SECONDS = 2.0  #: for handlers to end by themselves once the server stops
_REFRESH_SECONDS = 1.0
_BACKLOG = 1024
_ACCEPTED_A_TURN = 32  # of the event loop: one alone took a minute for a thousand that came while all of them read
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_SHED_SECONDS = 0.05  # between two who are turned away for want of descriptors


def run_server(
    application: web.Application,
    gate: Gate,
    stop: threading.Event,
    *,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """Serves until `stop` is set; returns when everything is closed, at most a few seconds later.

    Args:
        application: from `new_application`, with its routes.
        gate: where to listen, and whom to let in.
        stop: ends the server.
        on_listening: is told the port, once connections are accepted.

    Raises:
        ConfigError: the address is in use, or is not this machine's.
    """
    asyncio.run(_serve(application, gate, stop, on_listening))


async def _serve(
    application: web.Application, gate: Gate, stop: threading.Event, on_listening: Callable[[int], None] | None
) -> None:
    stopping = application[STOPPING] = asyncio.Event()
    application.middlewares.insert(0, _request_begins)
    gate.access.guard(application)
    _watch(stop, stopping)
    runner = web.AppRunner(
        application, handle_signals=False, handler_cancellation=True, access_log=None, shutdown_timeout=GRACE_SECONDS
    )
    await runner.setup()
    try:
        async with contextlib.AsyncExitStack() as stack:
            listener = Listener(runner, gate)
            sockets = _bound(gate.address)
            stack.push_async_callback(listener.close)
            listener.listen(sockets)
            port = sockets[0].getsockname()[1]
            _log.info("http_listening", host=gate.address.host, port=port, tls=gate.tls is not None)
            if on_listening is not None:
                on_listening(port)
            await _refresh_until(stopping, gate)
    finally:
        await runner.cleanup()


@web.middleware
async def _request_begins(request: web.Request, handler: Handler) -> web.StreamResponse:
    if isinstance(request.protocol, BoundedProtocol):
        request.protocol.request_begins()
    return await handler(request)


async def _refresh_until(stopping: asyncio.Event, gate: Gate) -> None:
    while not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH_SECONDS):
                await stopping.wait()
        await asyncio.to_thread(gate.read)
        gate.refresh()


def _watch(stop: threading.Event, stopping: asyncio.Event) -> None:
    """Carries a thread's event into the loop."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        stop.wait()
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)

    threading.Thread(target=wait, name="walbus-stop", daemon=True).start()


def _bound(address: ListenAddress) -> list[socket.socket]:
    """Sockets that listen on all addresses that a host's name stands for, under one port."""
    where = f"key {address.key}"
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in dict.fromkeys((family, place) for family, _, _, _, place in found):
            port = sockets[0].getsockname()[1] if sockets else address.port
            sockets.append(socket.create_server((place[0], port), family=family, backlog=_BACKLOG))
            sockets[-1].setblocking(False)
    except OSError as error:
        for listening in sockets:
            listening.close()
        if error.errno == errno.EADDRINUSE:
            mend = "stop the process that listens there, or choose another port"
            raise ConfigError(f"{address} is in use", where=where, mend=mend) from error
        raise ConfigError(f"cannot listen on {address}: {error.strerror}", where=where) from error
    return sockets


class Listener:
    """Accepts connections for one runner.

    Args:
        runner: set up, without sites.
        gate: whom to let in.
    """

    def __init__(self, runner: web.AppRunner, gate: Gate) -> None:
        self._runner = runner
        self._gate = gate
        self._bounds = gate.bounds.within(open_files())
        self._addresses: collections.Counter[str] = collections.Counter()  # connections, by what they count under
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)

    def listen(self, sockets: list[socket.socket]) -> None:
        """Begins to accept."""
        self._sockets = sockets
        for listening in sockets:
            self._start(self._accept(listening))

    async def close(self) -> None:
        """Accepts no more; connections are the runner's to end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        self._give_up_spare()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop, accepted = asyncio.get_running_loop(), 0
        while True:
            try:
                connection, place = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._shed(listening)
                await asyncio.sleep(_SHED_SECONDS if error.errno in _NO_ROOM else 0)  # it befell the one connection
                continue
            self._admit(connection, str(place[0]))
            accepted += 1
            if accepted % _ACCEPTED_A_TURN == 0:
                await asyncio.sleep(0)  # accepting does not wait while others do: a flood would stop all streams

    def _admit(self, connection: socket.socket, address: str) -> None:
        counted = counted_as(address)
        if self._addresses.total() >= self._bounds.connections:
            self._turn_away(connection, address, "too many connections")
        elif self._addresses[counted] >= self._bounds.connections_per_address:
            self._turn_away(connection, address, "too many connections of one address")
        else:
            self._addresses[counted] += 1
            self._start(self._connect(connection, address, counted))

    async def _connect(self, connection: socket.socket, address: str, counted: str) -> None:
        """Makes the protocol of a connection; under TLS, after the handshake."""
        protocol = BoundedProtocol(self._runner, self._gate, self._bounds, lambda: self._release(counted))
        tls = self._gate.tls
        try:
            _bound_stall(connection, self._bounds.stall_seconds)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=tls.context if tls is not None else None,
                ssl_handshake_timeout=self._bounds.handshake_seconds if tls is not None else None,
            )
        except OSError:
            self._note("no TLS handshake" if tls is not None else "connection broke", address)
            protocol.never_connected()
        except BaseException:
            protocol.never_connected()
            connection.close()
            raise

    def _release(self, counted: str) -> None:
        self._addresses[counted] -= 1
        if not self._addresses[counted]:
            del self._addresses[counted]

    def _turn_away(self, connection: socket.socket, address: str, reason: str) -> None:
        self._note(reason, address)
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            if self._gate.tls is None:
                connection.send(_plain_answer(503, reason))
                connection.shutdown(socket.SHUT_WR)

    def _shed(self, listening: socket.socket) -> None:
        """Turns one away with the spare descriptor, since without it not even that can be done."""
        self._give_up_spare()
        try:
            connection, place = listening.accept()
        except OSError:
            pass  # somebody else took the descriptor, or nobody waits any more
        else:
            self._turn_away(connection, str(place[0]), "no descriptors left")
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _give_up_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _note(self, reason: str, address: str) -> None:
        self._gate.audit.note(Refusal(reason, address), asyncio.get_running_loop().time())


class BoundedProtocol(web.RequestHandler):
    """One connection, of which neither header nor body nor what is sent ahead can grow without bound.

    Args:
        runner: of the application.
        gate: whose audit is told what is refused.
        bounds: how much.
        closed: is called once, when the connection is gone.
    """

    def __init__(self, runner: web.AppRunner, gate: Gate, bounds: Bounds, closed: Callable[[], None]) -> None:
        manager = runner.server
        assert manager is not None  # noqa: S101 - the runner is set up
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=bounds.header_seconds,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own word for none
            lingering_time=1.0,
            max_line_size=bounds.header_line_bytes,
            max_field_size=bounds.header_line_bytes,
            max_headers=bounds.header_lines,
            auto_decompress=False,
        )
        self._gate = gate
        self._most = bounds.request_bytes
        self._heard = 0  # bytes since the last request began to be handled
        self._closed: Callable[[], None] | None = closed

    def never_connected(self) -> None:
        """The connection ended before it began."""
        if self._closed is not None:
            self._closed()
            self._closed = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends the connection's handler, and counts the connection no more."""
        super().connection_lost(exc)
        self.never_connected()

    def request_begins(self) -> None:
        """A request is being handled: what comes from now on belongs to its body or to the next one."""
        self._heard = 0

    def data_received(self, data: bytes) -> None:
        """Takes what was sent, up to the bound of one request."""
        self._heard += len(data)
        if self._heard <= self._most:
            super().data_received(data)
            return
        self._note("request too large")
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to what the parser did not take. Its own words are not used: they quote what was sent."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if isinstance(exc, http_exceptions.LineTooLong):
            refused = RequestError(431, "a line of the request is too long", mend="keep each below 8 KiB")
        elif status < 500:
            refused = RequestError(400, "the request is not HTTP", mend="see docs/access.md for what is taken")
        else:
            _log.error("http_request_failed", kind=type(exc).__name__)
            refused = RequestError(500, "the server failed; its log says more")
        self._note("malformed request")
        response = json_response(refused.body, status=refused.status)
        response.force_close()
        return response

    def _note(self, reason: str) -> None:
        peer = self.peername
        address = str(peer[0]) if isinstance(peer, tuple) else "unknown"
        self._gate.audit.note(Refusal(reason, address), asyncio.get_running_loop().time())


def _plain_answer(status: int, what: str) -> bytes:
    body = b'{"error":"%s","where":null,"mend":"try again later"}' % what.encode()
    head = f"HTTP/1.1 {status} Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" + body


def _bound_stall(connection: socket.socket, seconds: float) -> None:
    """A client that takes nothing for so long is dropped by the kernel, also if its machine still answers."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # it has gone already, as will be seen
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
