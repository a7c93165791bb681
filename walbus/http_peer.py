"""One server of Walbus as its clients reach it: requests, what a refusal says, and answers that go on.

What a refusal means is its reader's business: `HttpPeer` is given a function that makes an error of it. A connection
that cannot be made, or breaks, is `RelayUnavailable` for everybody.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from walbus.credentials import Credentials, connection_problem, new_client
from walbus.errors import ProtocolError, RelayUnavailable, WalbusError

_STREAM_HEADERS = {"Accept": "application/vnd.walbus.stream", "Accept-Encoding": "identity"}
_LONGEST_RETRY = 30.0


class Refusal(NamedTuple):
    """An answer that is none.

    Attributes:
        status: of HTTP.
        what, mend: what the server says of it.
        path: of the request.
        where: the address with the path.
        retry_after: seconds; 0 if the server does not say.
    """

    status: int
    what: str
    mend: str | None
    path: str
    where: str
    retry_after: float


class HttpPeer:
    """One server: an address and a connection pool.

    Args:
        url: the address.
        credentials: what is shown to it.
        timeouts: in seconds.
        error_of: what a refusal is to whoever asks.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        timeouts: httpx.Timeout,
        error_of: Callable[[Refusal], WalbusError],
    ) -> None:
        self.url = url.rstrip("/")
        self._client = new_client(self.url, credentials, timeouts)
        self._error_of = error_of

    def answer(
        self,
        method: str,
        path: str,
        *,
        accepted: int = httpx.codes.OK,
        **more: Any,  # noqa: ANN401 - httpx's own parameters
    ) -> httpx.Response:
        """The whole answer to a request; `accepted` is a status that is no refusal either.

        Raises:
            RelayUnavailable: there was none.
            WalbusError: it was refused.
        """
        with self._reached():
            response = self._client.request(method, path, **more)
        if response.status_code != accepted:
            self._check(response)
        return response

    def json(self, method: str, path: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """The JSON object that is the answer.

        Raises:
            RelayUnavailable, WalbusError: as `answer`.
            ProtocolError: it is none.
        """
        return document_of(self.answer(method, path, **more))

    def stream(self, path: str, params: Mapping[str, str]) -> httpx.Response:
        """An answer of records whose body is still to be read; the caller closes it.

        Raises:
            RelayUnavailable, WalbusError: as `answer`.
        """
        request = self._client.build_request("GET", path, params=params, headers=_STREAM_HEADERS)
        with self._reached():
            response = self._client.send(request, stream=True)
            if response.status_code != httpx.codes.OK:
                response.read()
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        return response

    def close(self) -> None:
        """Closes idle connections; an answer that is still read has its own `close`."""
        self._client.close()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, OSError) as error:
            what, mend = connection_problem(error)
            raise RelayUnavailable(what, where=self.url, mend=mend) from None

    def _check(self, response: httpx.Response) -> None:
        if response.status_code != httpx.codes.OK:
            raise self._error_of(_refusal(response, self.url))


def document_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        ProtocolError: it is none.
    """
    where = str(response.request.url.copy_with(query=None))
    try:
        document = response.json()
    except ValueError:
        raise ProtocolError("the answer is not JSON", where=where) from None
    if not isinstance(document, dict):
        raise ProtocolError("the answer is not a JSON object", where=where)
    return document


def socket_of(response: httpx.Response) -> socket.socket | None:
    """The socket that an answer comes by, while it is open."""
    stream = response.extensions.get("network_stream")
    found = stream.get_extra_info("socket") if stream is not None else None
    return found if isinstance(found, socket.socket) and found.fileno() >= 0 else None


def shut_down(response: httpx.Response) -> None:
    """Makes whoever waits for more of an answer, on whichever thread, wait no longer."""
    connection = socket_of(response)
    if connection is not None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already


def _refusal(response: httpx.Response, url: str) -> Refusal:
    status, path = response.status_code, response.request.url.path
    try:
        document = response.json()
        what, mend = str(document["error"]), document.get("mend")
    except (ValueError, KeyError, TypeError):
        what, mend = f"answered {status}", None
    return Refusal(status, what, mend, path, f"{url}{path}", _retry_after(response))


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(_LONGEST_RETRY, max(0.0, float(response.headers.get("Retry-After", "0"))))
    except ValueError:  # the date form: the ordinary back-off will do
        return 0.0
