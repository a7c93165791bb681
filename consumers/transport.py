"""HTTP to the relay and to the bootstrap server: their routes, and what their refusals mean to a session.

status                error               what the session does
410                   PositionTrimmed     reads a delta or a snapshot; of a delta: a snapshot
409 (relay)           LogMismatch         asks the relay again: the log is another one
404, 409 (bootstrap)  RequestRefused      goes on without that table: it is gone, or has no key
429, 5xx              NotReady            waits, at least as long as Retry-After says
other 4xx             RequestRefused      stops: 401 and 403 say what the token lacks
no connection         RelayUnavailable    waits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from walbus import http_peer
from walbus.consumer_reports import ConsumerReport, dump_report
from walbus.consumers.checkpoint import Point
from walbus.consumers.record_stream import HttpStream, RecordStream
from walbus.consumers.steps import (
    LogSeen,
)
from walbus.consumers.tables import of_tables
from walbus.credentials import ANONYMOUS, Credentials, require_no_less_private
from walbus.errors import (
    PositionTrimmed,
    PositionUnknown,
    ProtocolError,
    RelayUnavailable,
    RequestRefused,
    WalbusError,
)
from walbus.position import Position, parse_position
from walbus.relay.group_leases import Asked
from walbus.relay.group_requests import Told, pack_asked, parse_told
from walbus.schema import TableSchema

T = TypeVar("T")

#: Seconds. A stream that is idle still carries a progress record each second, so silence means a dead peer.
TIMEOUTS = httpx.Timeout(connect=5.0, read=15.0, write=5.0, pool=5.0)

_PUT_TIMEOUT = httpx.Timeout(5.0)

#: No further parameters.
NOTHING_MORE: Mapping[str, str] = {}


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
        rows: about how many rows each table has.
        folds_from: where the rows of those that it serves now were begun to be read at the source; none from a
            bootstrap that does not say so.
        stale: those of `consistent` whose rows are no longer the source's, and are being seeded again.
        net_since: by table, since when who has had its rows has them by the log alone, net differences in it.
        net_told: by table, behind which position he has; none while that is to come.
        oids: by table, its relation OID, which it keeps when it gets another name.
        applied_seq: the last seq given at `applied`; None from a bootstrap that does not say so.
    """

    log_id: str
    applied: Position
    tables: dict[str, int]
    consistent: frozenset[str]
    refused: tuple[str, ...]
    rows: Mapping[str, int] = field(default_factory=dict)
    folds_from: Mapping[str, Position] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()
    net_since: Mapping[str, Position] = field(default_factory=dict)
    net_told: Mapping[str, Position] = field(default_factory=dict)
    oids: Mapping[str, int] = field(default_factory=dict)
    applied_seq: int | None = None


def _of_no(server: str, error: RequestRefused) -> RequestRefused:
    """The error of a server that does not know what it is asked first: it is another one."""
    if error.status != httpx.codes.NOT_FOUND:
        return error
    mend = f"write the address of the {server}"
    return RequestRefused(f"this is no {server}", status=error.status, where=error.where, mend=mend)


def error_of(refusal: http_peer.Refusal) -> WalbusError:
    """What a refusal means to a session; see the module's table."""
    status, what, mend, path, where, retry_after = refusal
    match status:
        case 410:
            return PositionTrimmed(what, where=where, mend=mend)
        case 409 if path == "/v1/stream":
            return LogMismatch(what, where=where, mend=mend)
        case _ if status == 429 or status >= 500:
            return NotReady(f"{what} ({status})", where=where, retry_after=retry_after)
        case _:
            return RequestRefused(f"{what} ({status})", status=status, where=where, mend=mend)


class HttpPeer(http_peer.HttpPeer):
    """One server, as a session speaks with it; errors are those of the module's table."""

    def __init__(self, url: str, credentials: Credentials = ANONYMOUS) -> None:
        super().__init__(url, credentials, TIMEOUTS, error_of)
        self._credentials = credentials

    def beside(self, url: str) -> HttpPeer:
        """Another server, to which the same is shown.

        Raises:
            ConfigError: the token would leave this machine in the clear, which it does not do on the way to this one.
        """
        require_no_less_private(self.url, url, self._credentials)
        return HttpPeer(url, self._credentials)

    def get_json(self, path: str, **params: str) -> dict[str, Any]:
        """The JSON object at a path."""
        return self.json("GET", path, params=params)

    def wait_json(self, path: str, **params: str) -> tuple[bool, dict[str, Any]]:
        """The JSON object of a path that answers 200 when something has come about, and 504 when it has not."""
        timeout = httpx.codes.GATEWAY_TIMEOUT
        response = self.answer("GET", path, accepted=timeout, params=params)
        return response.status_code != timeout, http_peer.document_of(response)

    def put(self, path: str, body: bytes) -> None:
        """Puts a JSON document at a path."""
        headers = {"Content-Type": "application/json"}
        self.answer("PUT", path, content=body, headers=headers, timeout=_PUT_TIMEOUT)

    def open_stream(self, path: str, **params: str) -> RecordStream:
        """The records at a path. The caller closes the stream."""
        return HttpStream(self.stream(path, params), f"{self.url}{path}")


class RelayPeer:
    """The relay server's routes."""

    def __init__(self, peer: HttpPeer) -> None:
        self._peer = peer

    @property
    def url(self) -> str:
        """The server's address."""
        return self._peer.url

    def info(self, place: Point | None = None) -> RelayInfo:
        """`GET /v1/info`, with how far the log goes on behind a consumer's place, if one is given."""
        params = {} if place is None else {"after": str(place.last_done), "seq": str(place.seq)}
        try:
            document = self._peer.get_json("/v1/info", **params)
        except RequestRefused as error:
            raise _of_no("relay", error) from None
        behind = document.get("behind") or {}
        log = LogSeen(
            _field(document, "log_id", str),
            parse_position(_field(document, "trimmed", str)),
            parse_position(_field(document, "end", str)),
            _field(document, "last_seq", int),
            _field(behind, "changes", int) if behind else 0,
        )
        return RelayInfo(log, document.get("bootstrap"), document.get("term", 1))

    def schema(self, schema_id: int) -> TableSchema:
        """`GET /v1/schemas/{id}`.

        Raises:
            NotReady: the relay does not have it yet: a copy of a log may be behind the bootstrap that names it.
        """
        try:
            return _layout(self._peer.get_json(f"/v1/schemas/{schema_id}"))
        except RequestRefused as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise
            raise NotReady(f"the relay does not have layout {schema_id} yet", where=error.where) from None

    def schemas(self) -> list[TableSchema]:
        """`GET /v1/schemas`: every layout that the log has."""
        return [_layout(document) for document in _field(self._peer.get_json("/v1/schemas"), "schemas", list)]

    def stream(
        self,
        after: Position,
        log_id: str,
        tables: tuple[str, ...],
        name: str,
        narrowing: Mapping[str, str] = NOTHING_MORE,
    ) -> RecordStream:
        """`GET /v1/stream`, following, behind a position; `narrowing` is further parameters."""
        params = {"after": str(after), "log_id": log_id, "follow": "true", "name": name}
        return self._peer.open_stream("/v1/stream", **params, **of_tables(tables), **narrowing)

    def stream_from(self, place: str, tables: tuple[str, ...], narrowing: Mapping[str, str]) -> RecordStream:
        """`GET /v1/stream` from a place (as the relay writes it) to the log's end, for nobody by name."""
        params = {"from": place, "follow": "false"}
        return self._peer.open_stream("/v1/stream", **params, **of_tables(tables), **narrowing)

    def bootstrap(self, url: str) -> BootstrapPeer:
        """The bootstrap server at an address.

        Raises:
            ConfigError: see `HttpPeer.beside`.
        """
        return BootstrapPeer(self._peer.beside(url))

    def report(self, name: str, report: ConsumerReport) -> None:
        """`PUT /v1/consumers/{name}`: where a consumer is."""
        self._peer.put(f"/v1/consumers/{name}", dump_report(report))

    def ask_parts(self, group: str, member: str, asked: Asked, timeout: float) -> Told:
        """`PUT /v1/groups/{group}/members/{member}`: a member of a group asks, and is told what it holds."""
        path, headers = f"/v1/groups/{group}/members/{member}", {"Content-Type": "application/json"}
        answer = self._peer.answer("PUT", path, content=pack_asked(asked), headers=headers, timeout=timeout)
        return parse_told(answer.content)

    def forget(self, name: str) -> None:
        """`DELETE /v1/consumers/{name}`: a consumer that will not come again."""
        self._peer.json("DELETE", f"/v1/consumers/{name}")

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
        try:
            document = self._peer.get_json("/v1/tables")
        except RequestRefused as error:
            raise _of_no("bootstrap server", error) from None
        tables: dict[str, int] = {}
        consistent: list[str] = []
        refused: list[str] = []
        rows: dict[str, int] = {}
        oids: dict[str, int] = {}
        folds_from: dict[str, Position] = {}
        stale: list[str] = []
        net: dict[str, dict[str, Position]] = {"net_since": {}, "net_told": {}}
        for table in _field(document, "tables", list):
            name = _field(table, "table", str)
            if table.get("state") == "refused":
                refused.append(name)
                continue
            tables[name] = _field(table, "schema_id", int)
            rows[name] = int(table.get("rows") or 0)
            oids[name] = _field(table, "oid", int)
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
            log_id,
            applied,
            tables,
            frozenset(consistent),
            tuple(refused),
            rows,
            folds_from,
            frozenset(stale),
            oids=oids,
            applied_seq=document.get("applied_seq"),
            **net,
        )

    def snapshot(
        self, table: str, after_key: bytes | None, narrowing: Mapping[str, str] = NOTHING_MORE
    ) -> RecordStream:
        """`GET /v1/snapshot`: the table's rows in key order, behind a key."""
        params = {"table": table, **narrowing}
        if after_key is not None:
            params["after_key"] = after_key.hex()
        return self._peer.open_stream("/v1/snapshot", **params)

    def delta(self, table: str, since: Point, narrowing: Mapping[str, str] = NOTHING_MORE) -> RecordStream:
        """`GET /v1/delta`: what became of the table's keys that changed behind a seq.

        Raises:
            PositionTrimmed: the delta would not be complete (410).
        """
        return self._peer.open_stream("/v1/delta", **_since(table, since), **narrowing)

    def delta_cost(self, table: str, since: Point) -> int | None:
        """How many changes a delta has at most; None if there is none, or none yet.

        Raises:
            RelayUnavailable: the server did not answer.
        """
        try:
            document = self._peer.get_json("/v1/delta", count="true", **_since(table, since))
        except (PositionTrimmed, RequestRefused, NotReady):  # a bootstrap of before has no such route
            return None
        return None if document.get("more") else _field(document, "changes_at_most", int)

    def stream(
        self, after: Position, log_id: str, tables: tuple[str, ...], name: str, narrowing: Mapping[str, str]
    ) -> RecordStream:
        """`GET /v1/stream?complete=true`, following, behind a position: as `RelayPeer.stream`, with whole rows."""
        params = {"after": str(after), "log_id": log_id, "follow": "true", "name": name, "complete": "true"}
        return self._peer.open_stream("/v1/stream", **params, **of_tables(tables), **narrowing)

    def complete_from(self, log_id: str, tables: tuple[str, ...], narrowing: Mapping[str, str]) -> Position:
        """Behind which position `stream` can be had.

        Raises:
            RequestRefused: it cannot be had of these tables at all.
            LogMismatch: the server follows another log.
        """
        params = {"from": "earliest", "until": "earliest", "log_id": log_id, "complete": "true", "format": "binary"}
        response = self._peer.answer("GET", "/v1/stream", params={**params, **of_tables(tables), **narrowing})
        return parse_position(response.headers.get("Walbus-Position", ""))

    def close(self) -> None:
        """Closes idle connections."""
        self._peer.close()


def _since(table: str, since: Point) -> dict[str, str]:
    return {"table": table, "after": str(since.last_done), "seq": str(since.seq)}


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
