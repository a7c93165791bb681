"""One signed POST: where it may go, how it is signed, and what its answer means.

Signatures are those of Standard Webhooks (https://www.standardwebhooks.com): three headers, `webhook-id`,
`webhook-timestamp` (Unix seconds) and `webhook-signature`, which is `v1,` and the base64 of an HMAC-SHA256 over
`id.timestamp.body`. The secret is `whsec_` and base64 of 24 to 64 bytes. While a secret is replaced there are two
signatures, with a blank between them.

An address is resolved here, looked at, and connected to as it was seen, so that a name cannot mean one address when it
is looked at and another one when it is called. Redirects are not followed, and no proxy of the environment is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from walbus.errors import SinkRefused, SinkUnavailable

_PREFIX = "whsec_"
_LEAST_SECRET, _MOST_SECRET = 24, 64
#: Headers of every request, in lower case.
OWN_HEADERS = frozenset({
    "host", "content-type", "content-length", "transfer-encoding", "user-agent",
    "webhook-id", "webhook-timestamp", "webhook-signature",
})  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")  # what is global of IPv6
_LONGEST_WAIT = 3_600.0  # that a server may ask for
_LATER = frozenset({408, 425, 429})  # of the 4xx: not now
_CONTENT = frozenset({400, 409, 413, 422})  # of the 4xx: not this request


def secret_bytes(secret: str) -> bytes:
    """The key of a secret.

    Raises:
        ValueError: it is none.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not (secret.startswith(_PREFIX) and _LEAST_SECRET <= len(key) <= _MOST_SECRET):
        raise ValueError(f"should be whsec_ and the base64 of {_LEAST_SECRET} to {_MOST_SECRET} random bytes")
    return key


def signature(key: bytes, request_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of one secret."""
    signed = f"{request_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class RequestRefused(SinkRefused):
    """A request that will never be taken as it is, while others are."""


class WebhookClient:
    """Posts bodies to one URL.

    Args:
        url: `http` or `https`.
        keys: of the secrets, the newest first.
        headers: sent with each request.
        seconds: that a request may take.
        allow_private: whether addresses that are not public are called.
        clock: gives Unix seconds.
    """

    def __init__(  # noqa: PLR0913  # what a request needs
        self,
        url: str,
        keys: tuple[bytes, ...],
        headers: Mapping[str, str],
        seconds: float,
        *,
        allow_private: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = httpx.URL(url)
        self._where = str(self._url.copy_with(userinfo=b"", query=None))
        self._keys, self._allow_private, self._clock = keys, allow_private, clock
        self._headers, self._seconds = dict(headers), seconds
        self._http = self._new()
        self._not_before = 0.0  # the server asked for patience
        self._answering = ""  # the address that answered last

    def post(self, request_id: str, body: bytes) -> None:
        """Returns once the receiver has taken a body: it answered 2xx.

        Raises:
            SinkUnavailable: not now: no answer, 5xx, 408, 425, 429 (whose `Retry-After` is kept to).
            RequestRefused: never this one: 400, 409, 413, 422.
            SinkRefused: never any: every other answer, or an address that may not be called.
        """
        patience = self._not_before - self._clock()
        if patience > 0:
            raise SinkUnavailable(f"it asked to be left alone for {patience:.0f} s", where=self._where)
        timestamp = int(self._clock())
        headers = {
            "host": self._url.netloc.decode(),
            "content-type": "application/json",
            "user-agent": "walbus",
            "webhook-id": request_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(signature(key, request_id, timestamp, body) for key in self._keys),
        }
        answer = self._answer(self._addresses(), body, headers)
        self._heed(*answer)

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def _answer(self, addresses: Sequence[str], body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        """The status of an answer, and its `Retry-After`; of a body nobody reads more than that there is none.

        The addresses are tried in their order until one takes the connection.
        """
        http, named = self._http, {"sni_hostname": self._url.host}
        timeout = httpx.Timeout(self._seconds, connect=self._seconds / len(addresses))

        def ask_at(address: str) -> tuple[int, str]:
            url = self._url.copy_with(host=address)
            with http.stream("POST", url, content=body, headers=headers, extensions=named, timeout=timeout) as answer:
                self._answering = address
                if answer.status_code == httpx.codes.NO_CONTENT or answer.headers.get("content-length") == "0":
                    answer.read()  # so that the connection is used again
                return answer.status_code, answer.headers.get("retry-after", "")

        def ask() -> tuple[int, str]:
            for address in addresses[:-1]:
                with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                    return ask_at(address)
            return ask_at(addresses[-1])

        try:
            return self._within(ask)
        except TimeoutError:
            self._http = self._new()
            with suppress(httpx.HTTPError, OSError):
                http.close()
            raise SinkUnavailable(f"no whole answer within {self._seconds:g} s", where=self._where) from None
        except httpx.InvalidURL:
            raise SinkRefused(f"its address {addresses[0]} cannot be called", where=self._where) from None
        except httpx.ProtocolError as error:  # its text may quote what was sent
            raise SinkUnavailable(f"no answer ({type(error).__name__})", where=self._where) from None
        except httpx.HTTPError as error:
            what = f"no answer: {str(error) or type(error).__name__}"
            raise SinkUnavailable(what, where=self._where) from None

    def _within(self, ask: Callable[[], tuple[int, str]]) -> tuple[int, str]:
        """What a call gives in time: the library bounds each step of a request, and a receiver may take any number."""
        outcome: Future[tuple[int, str]] = Future()

        def run() -> None:
            try:
                outcome.set_result(ask())
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, name="walbus-webhook", daemon=True).start()
        return outcome.result(self._seconds)

    def _new(self) -> httpx.Client:
        return httpx.Client(headers=self._headers, timeout=self._seconds, follow_redirects=False, trust_env=False)

    def _heed(self, status: int, retry_after: str) -> None:
        if 200 <= status < 300:
            return
        if status in _LATER or status >= 500:
            now = self._clock()
            self._not_before = now + min(max(0.0, _patience(retry_after, now)), _LONGEST_WAIT)
            raise SinkUnavailable(f"answered {status}", where=self._where)
        if 300 <= status < 400:
            mend = "redirects are not followed: write the address that takes the changes"
        else:
            mend = "the receiver will not take this: look at its log, then start the consumer again"
        if status in _CONTENT:
            raise RequestRefused(f"answered {status}", where=self._where, mend=mend)
        raise SinkRefused(f"answered {status}", where=self._where, mend=mend)

    def _addresses(self) -> list[str]:
        """The addresses of the host, all of which may be called; the one that answered last comes first."""
        host, port = self._url.host, self._url.port or (443 if self._url.scheme == "https" else 80)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SinkUnavailable(f"the host's name gives no address: {error}", where=self._where) from None
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        if not self._allow_private:
            for address in addresses:
                if not _is_public(address):
                    raise SinkRefused(
                        f"its address {address} is not a public one",
                        where=self._where,
                        mend="set allow_private = true if this receiver is meant",
                    )
        return sorted(addresses, key=lambda address: address != self._answering)


def _patience(retry_after: str, now: float) -> float:
    """The seconds that a `Retry-After` asks for, as such or as a date; 0, for the usual pause, if it is neither."""
    with suppress(ValueError):
        return float(retry_after)
    with suppress(ValueError):
        until = parsedate_to_datetime(retry_after)
        return until.replace(tzinfo=until.tzinfo or UTC).timestamp() - now
    return 0.0


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed.is_global and not parsed.is_multicast
    inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
    if inner is None and parsed in _NAT64:
        inner = ipaddress.IPv4Address(parsed.packed[-4:])
    if inner is not None:
        return _is_public(str(inner))
    return parsed in _UNICAST and parsed.is_global


def is_header(name: str, value: str) -> bool:
    """Whether a header can be sent as it is."""
    return bool(_NAME.fullmatch(name)) and value == value.strip() and value.isascii() and value.isprintable()
