"""What every HTTP server of Walbus shares: where it listens, how it refuses, how it stops.

A server listens on loopback unless the operator insists. Every refusal is JSON: `{"error", "where", "mend"}`. The time
for a request's header, and its size, are bounded; bodies are not taken. When the process is told to stop, handlers see
`STOPPING` and finish; those that do not are cancelled after two seconds. A handler whose client hangs up is cancelled.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
import structlog
from aiohttp import ClientConnectionResetError, web

from walbus.config import parse_listen
from walbus.errors import ConfigError, Directive, UsageError, WalbusError

_log = structlog.get_logger(__name__)

HEADER_SECONDS = 10.0  #: for a request's header to arrive, from the connection's or the last response's end on
GRACE_SECONDS = 2.0  #: for handlers to end by themselves once the server stops
_MAX_LINE = 8190
_MAX_HEADERS = 100
_MAX_BODY = 64 << 10

#: Set in the application when the server stops; long-lived handlers watch it.
STOPPING: web.AppKey[asyncio.Event] = web.AppKey("stopping", asyncio.Event)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens.

    Attributes:
        host: name or address, without brackets.
        port: 0 lets the system choose.
        key: the configuration's key, for errors.
    """

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def listen_address(listen: str, *, insecure: bool, key: str) -> ListenAddress:
    """Reads and judges `HOST:PORT`.

    Args:
        listen: the text.
        insecure: whether an address that others can reach is allowed.
        key: the configuration's key, such as `relay.listen`.

    Raises:
        ConfigError: it is no address, or not loopback while `insecure` is false.
    """
    try:
        host, port = parse_listen(listen)
    except ValueError:
        mend = "write it as in 127.0.0.1:7070"
        raise ConfigError(f"{listen!r} is not HOST:PORT", where=f"key {key}", mend=mend) from None
    if not insecure and not _is_loopback(host):
        room = key.rpartition(".")[0]
        raise ConfigError(
            f"{listen} can be reached by others, without token and TLS",
            where=f"key {key}",
            mend=f"listen on 127.0.0.1, or set {room}.insecure = true",
        )
    return ListenAddress(host, port, key)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class RequestError(Exception):
    """A request that is answered with a 4xx or 5xx and a JSON body.

    Args:
        status: the HTTP status.
        what: what is wrong.
        where: which parameter or object.
        mend: what the client can do.
        more: further members of the JSON object.
        headers: further headers of the response.
    """

    def __init__(  # noqa: PLR0913  # each is a part of the answer
        self,
        status: int,
        what: str,
        *,
        where: str | None = None,
        mend: str | None = None,
        more: Mapping[str, object] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(what)
        self.status = status
        self.body: dict[str, object] = {"error": what, "where": where, "mend": mend, **(more or {})}
        self.headers = headers or {}


def json_response(document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON document as a response."""
    body = msgspec.json.encode(document)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def refusal(error: Exception) -> RequestError:
    """What a client is told about an error: total. Errors that are not the client's fault tell no details."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, web.HTTPException):
        allow = error.headers.get("Allow")
        return RequestError(error.status, error.reason, headers={"Allow": allow} if allow else None)
    if isinstance(error, UsageError):
        return RequestError(400, error.what, where=error.where, mend=error.mend)
    if isinstance(error, WalbusError) and error.directive is Directive.RETRY:
        return RequestError(503, error.what, mend=error.mend, headers={"Retry-After": "1"})
    return RequestError(500, "the server failed; its log says more")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every error with JSON, and logs those that are the server's fault."""
    try:
        return await handler(request)
    except Exception as error:
        refused = refusal(error)
        if isinstance(error, ClientConnectionResetError):  # nobody's fault, and nobody hears the answer
            _log.debug("http_client_left", path=request.path)
        elif refused.status >= 500 and not isinstance(error, RequestError):
            _log_failure(request, error)
        return json_response(refused.body, status=refused.status, headers=refused.headers)


def _log_failure(request: web.Request, error: Exception) -> None:
    """Kind and place only: an unforeseen error's text may quote a row."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    known = str(error) if isinstance(error, WalbusError) else None
    _log.error(
        "http_request_failed",
        path=request.path,
        kind=type(error).__name__,
        error=known,
        where=f"{frame.filename}:{frame.lineno}",
    )


def new_application() -> web.Application:
    """An application without routes that refuses with JSON."""
    return web.Application(middlewares=[errors_as_json], client_max_size=_MAX_BODY)


def run_server(
    application: web.Application,
    address: ListenAddress,
    stop: threading.Event,
    *,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """Serves until `stop` is set; returns when everything is closed, at most a few seconds later.

    Args:
        application: from `new_application`, with its routes.
        address: where to listen.
        stop: ends the server.
        on_listening: is told the port, once connections are accepted.

    Raises:
        ConfigError: the address is in use, or is not this machine's.
    """
    asyncio.run(_serve(application, address, stop, on_listening))


async def _serve(
    application: web.Application,
    address: ListenAddress,
    stop: threading.Event,
    on_listening: Callable[[int], None] | None,
) -> None:
    stopping = application[STOPPING] = asyncio.Event()
    _watch(stop, stopping)
    runner = web.AppRunner(
        application,
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=HEADER_SECONDS,
        lingering_time=1.0,
        max_line_size=_MAX_LINE,
        max_field_size=_MAX_LINE,
        max_headers=_MAX_HEADERS,
        shutdown_timeout=GRACE_SECONDS,
    )
    await runner.setup()
    try:
        port = await _listen(runner, address)
        _log.info("http_listening", host=address.host, port=port)
        if on_listening is not None:
            on_listening(port)
        await stopping.wait()
    finally:
        await runner.cleanup()


def _watch(stop: threading.Event, stopping: asyncio.Event) -> None:
    """Carries a thread's event into the loop."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        stop.wait()
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)

    threading.Thread(target=wait, name="walbus-stop", daemon=True).start()


async def _listen(runner: web.AppRunner, address: ListenAddress) -> int:
    try:
        await web.TCPSite(runner, address.host, address.port, backlog=1024).start()
    except OSError as error:
        where = f"key {address.key}"
        if error.errno == errno.EADDRINUSE:
            mend = "stop the process that listens there, or choose another port"
            raise ConfigError(f"{address} is in use", where=where, mend=mend) from error
        raise ConfigError(f"cannot listen on {address}: {error.strerror}", where=where) from error
    return int(runner.addresses[0][1])
