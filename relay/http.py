"""What every route of every HTTP server of Walbus shares: how it answers and refuses.

Every refusal is JSON: `{"error", "where", "mend"}`. Bodies are small and never compressed. When the process is told to
stop, handlers see `STOPPING` and finish. A handler whose client hangs up is cancelled.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import structlog
from aiohttp import web

from walbus.errors import Directive, UsageError, WalbusError
from walbus.relay.bounds import BODY_BYTES

_log = structlog.get_logger(__name__)

#: Set in the application when the server stops; long-lived handlers watch it.
STOPPING: web.AppKey[asyncio.Event] = web.AppKey("stopping", asyncio.Event)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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
        if isinstance(error, ConnectionError):  # nobody's fault, and nobody hears the answer
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


@web.middleware
async def _plain_bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses bodies that would have to be unpacked: a few bytes could become gigabytes."""
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise RequestError(415, "the body is compressed", where="Content-Encoding", mend="send it as it is")
    return await handler(request)


def new_application() -> web.Application:
    """An application without routes that refuses with JSON."""
    return web.Application(middlewares=[errors_as_json, _plain_bodies], client_max_size=BODY_BYTES)
