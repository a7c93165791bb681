"""The body of a request, bounded in bytes and seconds."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from walbus.relay.http import RequestError

_SECONDS: Final = 10.0


async def bounded_body(request: web.Request, what: str, limit: int) -> bytes:
    """The body.

    Args:
        request: whose.
        what: it is, for the error.
        limit: bytes that it has at most.

    Raises:
        RequestError: it is longer (413), or did not arrive in time (408).
    """
    if (request.content_length or 0) > limit:
        raise _refused(413, f"{what} has at most {limit} bytes")
    try:
        async with asyncio.timeout(_SECONDS):
            data = await request.content.read(limit + 1) if request.can_read_body else b""
            while not request.content.at_eof() and len(data) <= limit:
                data += await request.content.read(limit + 1 - len(data))
    except TimeoutError:
        raise _refused(408, "the body did not arrive in time") from None
    if len(data) > limit:
        raise _refused(413, f"{what} has at most {limit} bytes")
    return data


def _refused(status: int, what: str) -> RequestError:
    """The rest of the body is not read, so the connection is of no more use."""
    return RequestError(status, what, where="body", headers={"Connection": "close"})
