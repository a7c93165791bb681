"""HTTP to the relay that is copied: what it holds, its records, its layouts, and reports to it.

GET /v1/chain                   what the log is and how far it goes          -> `Origin`
GET /v1/chain/stream            its records, as they lie in its files        -> `UpstreamStream`
GET /v1/chain/catalog           what its capture remembers of the source's catalog
GET /v1/schemas                 layouts by number
PUT /v1/chain/standbys/NAME     how far the copy is durable, for a required standby
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx

from walbus.credentials import ANONYMOUS, Credentials
from walbus.errors import (
    LogDiverged,
    PositionTrimmed,
    ProtocolError,
    RelayUnavailable,
    RequestRefused,
    WalbusError,
)
from walbus.http_peer import HttpPeer, Refusal, shut_down, socket_of
from walbus.log import SourceIdentity
from walbus.position import Position, parse_position
from walbus.record_parser import RecordParser
from walbus.records import RecordHeader
from walbus.relay.lineage import BEGIN_ANEW
from walbus.relay.standbys import parse_tip, tip_document
from walbus.relay.tip import Tip
from walbus.schema import TableSchema

#: Seconds. A stream that is idle carries a sign of life each second: silence means a dead peer.
TIMEOUTS: Final = httpx.Timeout(connect=5.0, read=6.0, write=5.0, pool=5.0)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a relay says of the log that it can be copied from.

    Attributes:
        log_id, source: of the log.
        base: what is known before the first record that is held.
        tip: what is known at the end.
        term, began: of its lineage.
        required: whether the copy that asked is a required standby.
    """

    log_id: str
    source: SourceIdentity
    base: Tip
    tip: Tip
    term: int
    began: Position
    required: bool


def origin_document(origin: Origin) -> dict[str, object]:
    """As it is served under /v1/chain."""
    source = origin.source
    return {
        "log_id": origin.log_id,
        "source": {
            "system_identifier": source.system_identifier, "database": source.database, "slot": source.slot,
        },
        "base": tip_document(origin.base),
        "tip": tip_document(origin.tip),
        "term": origin.term,
        "began": str(origin.began),
        "required": origin.required,
    }  # fmt: skip


def _parse_origin(document: dict[str, Any]) -> Origin:
    source = document["source"]
    return Origin(
        str(document["log_id"]),
        SourceIdentity(source["system_identifier"], source["database"], source["slot"]),
        parse_tip(document["base"]),
        parse_tip(document["tip"]),
        int(document["term"]),
        parse_position(document["began"]),
        bool(document["required"]),
    )


class UpstreamStream:
    """The records of one answer, as they arrive. Belongs to one thread."""

    def __init__(self, response: httpx.Response, where: str) -> None:
        self._response = response
        self._where = where
        self._chunks = response.iter_raw()
        self._parser = RecordParser()

    def records(self) -> list[tuple[RecordHeader, bytes]]:
        """The records that the next bytes complete; blocks until there are some bytes.

        Raises:
            RelayUnavailable: the stream has ended or broken, or nothing was heard for too long.
            DamagedRecord: a checksum or a length is wrong.
        """
        try:
            chunk = next(self._chunks)
        except StopIteration:
            raise RelayUnavailable("the stream ended", where=self._where) from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise RelayUnavailable(f"the stream broke ({type(error).__name__})", where=self._where) from None
        self._parser.feed(chunk)
        return list(self._parser.records())

    def more_has_arrived(self) -> bool:
        """Whether `records` would not wait; a hint."""
        connection = socket_of(self._response)
        if connection is None:
            return False
        poll = select.poll()  # a relay with a thousand followers has numbers of sockets that `select.select` refuses
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))

    def shut_down(self) -> None:
        """Makes a call of `records` that waits on another thread fail."""
        shut_down(self._response)

    def close(self) -> None:
        """Ends the stream."""
        self.shut_down()  # what is on its way is not read to its end
        self._response.close()


class Upstream:
    """One relay that can be copied from. `report` may be called by another thread than the rest.

    Args:
        url: its address.
        name: of the relay that copies.
        credentials: what is shown to it.
    """

    def __init__(self, url: str, name: str, credentials: Credentials = ANONYMOUS) -> None:
        self._peer = HttpPeer(url, credentials, TIMEOUTS, _error_of)
        self.url = self._peer.url
        self._name = name

    def origin(self) -> Origin:
        """What it holds.

        Raises:
            RelayUnavailable, RequestRefused, ProtocolError
        """
        document = self._peer.json("GET", "/v1/chain", params={"name": self._name})
        with self._well_formed("/v1/chain"):
            return _parse_origin(document)

    def schemas(self) -> list[TableSchema]:
        """Every layout of the log."""
        document = self._peer.json("GET", "/v1/schemas")
        with self._well_formed("/v1/schemas"):
            return [TableSchema.from_dict(one["schema"]) for one in document["schemas"]]

    def catalog(self) -> bytes | None:
        """What capture remembers of the catalog; None if it does not."""
        nothing = httpx.codes.NO_CONTENT
        response = self._peer.answer("GET", "/v1/chain/catalog", accepted=nothing)
        return None if response.status_code == nothing else response.content

    def report(self, log_id: str, term: int, tip: Tip) -> Tip:
        """Reports how far the copy is durable; how far the log itself is.

        Raises:
            RelayUnavailable, RequestRefused
        """
        document = {"log_id": log_id, "term": term, **tip_document(tip)}
        answer = self._peer.json("PUT", f"/v1/chain/standbys/{self._name}", json=document)
        with self._well_formed("/v1/chain/standbys"):
            return parse_tip(answer)

    def stream(self, after: Position, log_id: str) -> UpstreamStream:
        """The records behind a position, following.

        Raises:
            RelayUnavailable: it does not answer, or cannot yet.
            PositionTrimmed: it no longer holds what follows.
            LogDiverged: it serves another log.
        """
        params = {"name": self._name, "after": str(after), "log_id": log_id, "follow": "true"}
        return UpstreamStream(self._peer.stream("/v1/chain/stream", params), self.url)

    def close(self) -> None:
        """Closes idle connections; streams have their own `close`."""
        self._peer.close()

    @contextmanager
    def _well_formed(self, path: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the answer makes no sense ({type(error).__name__})"
            raise ProtocolError(what, where=f"{self.url}{path}", mend="run the same Walbus on both sides") from None


def _error_of(refusal: Refusal) -> WalbusError:
    status, what, _, _, where, _ = refusal
    if status == httpx.codes.GONE:
        return PositionTrimmed(what, where=where, mend=BEGIN_ANEW)
    if status == httpx.codes.CONFLICT:
        return LogDiverged(what, where=where, mend=BEGIN_ANEW)
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return RelayUnavailable(f"{what} ({status})", where=where)
    return RequestRefused(f"{what} ({status})", status=status, where=where, mend="look at the upstream's log")
