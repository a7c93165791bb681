"""HTTP to the relay and to the bootstrap server: requests, status codes, and streams read by a thread.

    status                error               what the session does
    410                   PositionTrimmed     reads a snapshot
    409 (relay)           LogMismatch         asks the relay again: the log is another one
    404, 409 (bootstrap)  RequestRefused      goes on without that table: it is gone, or has no key
    429, 5xx              NotReady            waits, at least as long as Retry-After says
    other 4xx             RequestRefused      stops: 401 and 403 say what the token lacks
    no connection         RelayUnavailable    waits

A stream is read by a thread of its own into a bounded queue, so that the reader can wait with a deadline, and network
and sink work at the same time; a slow sink fills the queue, then the sockets, and the server's writes stand still.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from walbus.consumer_reports import ConsumerReport, dump_report
from walbus.consumers.steps import (
    LogSeen,
)
from walbus.consumers.tables import EVERYTHING
from walbus.credentials import ANONYMOUS, Credentials, connection_problem, is_loopback, new_client
from walbus.errors import (
    ConfigError,
    PositionTrimmed,
    PositionUnknown,
    ProtocolError,
    RelayUnavailable,
    RequestRefused,
)
from walbus.position import Position, parse_position
from walbus.record_parser import RecordParser
from walbus.records import RecordHeader
from walbus.schema import TableSchema

T = TypeVar("T")

BINARY = "application/vnd.walbus.stream"

_STREAM_HEADERS = {"Accept": BINARY, "Accept-Encoding": "identity"}

#: Seconds. A stream that is idle still carries a progress record each second, so silence means a dead peer.
TIMEOUTS = httpx.Timeout(connect=5.0, read=15.0, write=5.0, pool=5.0)

_PUT_TIMEOUT = httpx.Timeout(5.0)

#: Chunks (of at most 64 KiB) that wait for the reader of a stream.
QUEUED_CHUNKS = 64


class NotReady(RelayUnavailable):
    """The server answers that it cannot serve this yet; `retry_after` is in seconds (0: it did not say)."""

    def __init__(self, what: str, *, where: str | None = None, retry_after: float = 0.0) -> None:
        super().__init__(what, where=where)
        self.retry_after = retry_after


class LogMismatch(PositionUnknown):
    """The server follows another log than the one asked for."""


@dataclass(frozen=True, slots=True)
class RelayInfo:
    """What the relay says of itself.

    Attributes:
        log: what it holds.
        bootstrap: address of the bootstrap server, if it knows one.
        term: of the log: how often a copy of it took over, plus one.
    """

    log: LogSeen
    bootstrap: str | None
    term: int = 1


@dataclass(frozen=True, slots=True)
class TableList:
    """The tables of which the bootstrap server serves snapshots, or is about to.

    Attributes:
        log_id: of the log that it follows.
        applied: how far it has folded the log in ("last done").
        tables: the number of each table's newest layout, by the table's name.
        consistent: those of them that it serves now.
        refused: tables that it will never serve, such as those without a key.
        folds_from: where the rows of those that it serves now were begun to be read at the source; none from a
            bootstrap that does not say so.
        stale: those of `consistent` whose rows are no longer the source's, and are being seeded again.
        net_since: by table, since when who has had its rows has them by the log alone, net differences in it.
        net_told: by table, behind which position he has; none while that is to come.
    """

    log_id: str
    applied: Position
    tables: dict[str, int]
    consistent: frozenset[str]
    refused: tuple[str, ...]
    folds_from: Mapping[str, Position] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()
    net_since: Mapping[str, Position] = field(default_factory=dict)
    net_told: Mapping[str, Position] = field(default_factory=dict)


class RecordStream:
    """The records of one answer. `records` and `close` belong to one thread; reading is done by another."""

    def __init__(self, response: httpx.Response, where: str) -> None:
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._where = where
        self._parser = RecordParser()
        self._chunks: queue.Queue[bytes | RelayUnavailable] = queue.Queue(QUEUED_CHUNKS)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"walbus-stream {where}", daemon=True)
        self._thread.start()

    def records(self, timeout: float) -> list[tuple[RecordHeader, bytes]]:
        """The next whole records; [] if none came within `timeout` seconds.

        Raises:
            RelayUnavailable: the stream has ended or broken, and everything before that was handed out.
            DamagedRecord: a checksum or a length is wrong.
        """
        try:
            chunk = self._chunks.get(timeout=timeout) if timeout > 0 else self._chunks.get_nowait()
        except queue.Empty:
            return []
        if isinstance(chunk, RelayUnavailable):
            raise chunk
        self._parser.feed(chunk)
        return list(self._parser.records())

    def close(self) -> None:
        """Ends the stream. The reading thread may be blocked in the socket, which is therefore shut down first."""
        self._closed.set()
        _shut_down(self._response)
        while self._thread.is_alive():
            _drain(self._chunks)
            self._thread.join(0.05)

    def _read(self) -> None:
        ended = RelayUnavailable("the stream ended", where=self._where)
        try:
            for chunk in self._response.iter_raw():
                self._chunks.put(chunk)
                if self._closed.is_set():
                    break
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            ended = RelayUnavailable(f"the stream broke ({type(error).__name__})", where=self._where)
        finally:
            self._response.close()
            self._chunks.put(ended)


class HttpPeer:
    """One server: an address and a connection pool."""

    def __init__(self, url: str, credentials: Credentials = ANONYMOUS) -> None:
        self.url = url.rstrip("/")
        self._credentials = credentials
        self._client = new_client(self.url, credentials, TIMEOUTS)

    def beside(self, url: str) -> HttpPeer:
        """Another server, to which the same is shown.

        Raises:
            ConfigError: the token would leave this machine in the clear, which it does not do on the way to this one.
        """
        clear = not url.startswith("https://") and not is_loopback(url)
        if self._credentials.token is not None and clear and self.url.startswith("https://"):
            mend = "give the bootstrap server a certificate, and name it with https:// as url under [bootstrap]"
            raise ConfigError(f"{url} would get the token in the clear", where=self.url, mend=mend)
        return HttpPeer(url, self._credentials)

    def get_json(self, path: str, **params: str) -> dict[str, Any]:
        """The JSON object at a path.

        Raises:
            RelayUnavailable, RequestRefused, ProtocolError: see the module's table.
        """
        with self._errors():
            response = self._client.get(path, params=params)
        self._check(response)
        return self._document(response)

    def wait_json(self, path: str, **params: str) -> tuple[bool, dict[str, Any]]:
        """The JSON object of a path that answers 200 when something has come about, and 504 when it has not.

        Raises:
            RelayUnavailable, RequestRefused, ProtocolError: see the module's table.
        """
        with self._errors():
            response = self._client.get(path, params=params)
        if response.status_code == httpx.codes.GATEWAY_TIMEOUT:
            return False, self._document(response)
        self._check(response)
        return True, self._document(response)

    def put(self, path: str, body: bytes) -> None:
        """Puts a JSON document at a path.

        Raises:
            RelayUnavailable, RequestRefused: see the module's table.
        """
        with self._errors():
            headers = {"Content-Type": "application/json"}
            response = self._client.put(path, content=body, headers=headers, timeout=_PUT_TIMEOUT)
        self._check(response)

    def _document(self, response: httpx.Response) -> dict[str, Any]:
        where = f"{self.url}{response.request.url.path}"
        try:
            document = response.json()
        except ValueError:
            raise ProtocolError("the answer is not JSON", where=where) from None
        if not isinstance(document, dict):
            raise ProtocolError("the answer is not a JSON object", where=where)
        return document

    def open_stream(self, path: str, **params: str) -> RecordStream:
        """The records at a path. The caller closes the stream.

        Raises:
            RelayUnavailable, PositionTrimmed, LogMismatch, RequestRefused: see the module's table.
        """
        request = self._client.build_request("GET", path, params=params, headers=_STREAM_HEADERS)
        with self._errors():
            response = self._client.send(request, stream=True)
            if response.status_code != httpx.codes.OK:
                response.read()
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        return RecordStream(response, f"{self.url}{path}")

    def close(self) -> None:
        """Closes idle connections; streams have their own `close`."""
        self._client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, OSError) as error:
            what, mend = connection_problem(error)
            raise RelayUnavailable(what, where=self.url, mend=mend) from None

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == httpx.codes.OK:
            return
        what, mend = _error_of(response)
        where = f"{self.url}{response.request.url.path}"
        match status:
            case 410:
                raise PositionTrimmed(what, where=where, mend=mend)
            case 409 if response.request.url.path == "/v1/stream":
                raise LogMismatch(what, where=where, mend=mend)
            case _ if status == 429 or status >= 500:
                raise NotReady(f"{what} ({status})", where=where, retry_after=_retry_after(response))
            case _:
                raise RequestRefused(f"{what} ({status})", status=status, where=where, mend=mend)


class RelayPeer:
    """The relay server's routes."""

    def __init__(self, peer: HttpPeer) -> None:
        self._peer = peer

    @property
    def url(self) -> str:
        """The server's address."""
        return self._peer.url

    def info(self) -> RelayInfo:
        """`GET /v1/info`."""
        document = self._peer.get_json("/v1/info")
        log = LogSeen(
            _field(document, "log_id", str),
            parse_position(_field(document, "trimmed", str)),
            parse_position(_field(document, "end", str)),
            _field(document, "last_seq", int),
        )
        return RelayInfo(log, document.get("bootstrap"), document.get("term", 1))

    def schema(self, schema_id: int) -> TableSchema:
        """`GET /v1/schemas/{id}`."""
        return _layout(self._peer.get_json(f"/v1/schemas/{schema_id}"))

    def schemas(self) -> list[TableSchema]:
        """`GET /v1/schemas`: every layout that the log has."""
        return [_layout(document) for document in _field(self._peer.get_json("/v1/schemas"), "schemas", list)]

    def stream(self, after: Position, log_id: str, tables: tuple[str, ...], name: str) -> RecordStream:
        """`GET /v1/stream`, following, behind a position."""
        params = {"after": str(after), "log_id": log_id, "follow": "true", "name": name}
        if tables != EVERYTHING:
            params["tables"] = ",".join(tables)
        return self._peer.open_stream("/v1/stream", **params)

    def bootstrap(self, url: str) -> BootstrapPeer:
        """The bootstrap server at an address.

        Raises:
            ConfigError: see `HttpPeer.beside`.
        """
        return BootstrapPeer(self._peer.beside(url))

    def report(self, name: str, report: ConsumerReport) -> None:
        """`PUT /v1/consumers/{name}`: where a consumer is."""
        self._peer.put(f"/v1/consumers/{name}", dump_report(report))

    def wait(self, name: str, seconds: float, goal: dict[str, str]) -> tuple[bool, dict[str, Any]]:
        """`GET /v1/consumers/{name}/wait`: whether a consumer got to an `lsn` or a `position` in time, and its place.

        Raises:
            RequestRefused: the relay knows no consumer of this name (404).
        """
        path = f"/v1/consumers/{name}/wait"
        reached, document = self._peer.wait_json(path, timeout=f"{seconds:.3f}", **goal)
        return reached, document if reached else _field(document, "consumer", dict)

    def twin(self) -> RelayPeer:
        """Another one to the same relay, for another thread."""
        return RelayPeer(self._peer.beside(self._peer.url))

    def close(self) -> None:
        """Closes idle connections."""
        self._peer.close()


class BootstrapPeer:
    """The bootstrap server's routes."""

    def __init__(self, peer: HttpPeer) -> None:
        self._peer = peer

    @property
    def url(self) -> str:
        """The server's address."""
        return self._peer.url

    def tables(self) -> TableList:
        """`GET /v1/tables`."""
        document = self._peer.get_json("/v1/tables")
        tables: dict[str, int] = {}
        consistent: list[str] = []
        refused: list[str] = []
        folds_from: dict[str, Position] = {}
        stale: list[str] = []
        net: dict[str, dict[str, Position]] = {"net_since": {}, "net_told": {}}
        for table in _field(document, "tables", list):
            name = _field(table, "table", str)
            if table.get("state") == "refused":
                refused.append(name)
                continue
            tables[name] = _field(table, "schema_id", int)
            if table.get("state") == "consistent":
                consistent.append(name)
                stale += [name] if table.get("stale") else []
                if table.get("folds_from"):
                    folds_from[name] = parse_position(_field(table, "folds_from", str))
                for member, places in net.items():
                    if table.get(member):
                        places[name] = parse_position(_field(table, member, str))
        applied = parse_position(_field(document, "applied", str))
        log_id = _field(document, "log_id", str)
        return TableList(
            log_id, applied, tables, frozenset(consistent), tuple(refused), folds_from, frozenset(stale), **net
        )

    def snapshot(self, table: str, after_key: bytes | None) -> RecordStream:
        """`GET /v1/snapshot`: the table's rows in key order, behind a key."""
        params = {"table": table}
        if after_key is not None:
            params["after_key"] = after_key.hex()
        return self._peer.open_stream("/v1/snapshot", **params)

    def close(self) -> None:
        """Closes idle connections."""
        self._peer.close()


def _layout(document: dict[str, Any]) -> TableSchema:
    try:
        return TableSchema.from_dict(document["schema"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"a schema is malformed ({type(error).__name__})") from None


def _field(document: dict[str, Any], name: str, kind: type[T]) -> T:
    value = document.get(name)
    if not isinstance(value, kind):
        raise ProtocolError(f"the answer has no {name} of type {kind.__name__}")
    return value


def _error_of(response: httpx.Response) -> tuple[str, str | None]:
    try:
        document = response.json()
        return str(document["error"]), document.get("mend")
    except (ValueError, KeyError, TypeError):
        return f"answered {response.status_code}", None


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(30.0, max(0.0, float(response.headers.get("Retry-After", "0"))))
    except ValueError:  # the date form: the ordinary back-off will do
        return 0.0


def _shut_down(response: httpx.Response) -> None:
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is None:
        return
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already


def _drain(chunks: queue.Queue[bytes | RelayUnavailable]) -> None:
    try:
        while True:
            chunks.get_nowait()
    except queue.Empty:
        return
