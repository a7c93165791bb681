"""Several relays of one log: one is read at a time, and the next one when that fails.

Which relay will do is asked of each in turn, from the present one on, whenever a connection is made:

    passed over                      what becomes of it
    does not answer                  the next one is tried
    an earlier term of the log       never read: another relay has taken over
    another log                      read only if every relay answered and none has ours: the log was replaced
    ends before the position         read if none that is further answers; the relay lets the consumer wait
    no longer holds the position     read if none that holds it answers: the consumer takes a snapshot

All are asked for the latest term when a consumer begins: a machine that came back answers as it did before
another one took over, and would give nothing new for ever.

The one that was chosen is kept until it fails. A relay that is passed over is named once, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from walbus.consumer_reports import ConsumerReport
from walbus.consumers.checkpoint import Point
from walbus.consumers.peers import LogPeer, RowsPeer
from walbus.consumers.record_stream import RecordStream
from walbus.consumers.transport import NOTHING_MORE, HttpPeer, RelayInfo, RelayPeer
from walbus.credentials import Credentials
from walbus.errors import Directive, RelayUnavailable, RequestRefused, WalbusError, directive_of
from walbus.kafka_address import KafkaAddress
from walbus.position import Position
from walbus.schema import TableSchema

_log = structlog.get_logger(__name__)

#: Of a relay, or of a log on Kafka.
LogAddress = str | KafkaAddress

_UNKNOWN: Final = 404
_BEHIND, _TRIMMED, _OTHER, _EARLIER = range(4)  # why one is passed over; the lower may be read sooner


class Relays:
    """The relays of one consumer, used as one. Belongs to one thread; the peers may be shared.

    Args:
        peers: at least one, in the order in which they are tried.
    """

    def __init__(self, peers: Sequence[LogPeer]) -> None:
        self._peers = tuple(peers)
        self._at = 0
        self._term = 0  # the latest that was seen, of the log that is read
        self._said: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Of the one that is read."""
        return self._peer.url

    @property
    def _peer(self) -> LogPeer:
        return self._peers[self._at]

    def info(self, log_id: str, done: Position, seq: int = 0) -> RelayInfo:
        """What the relay says that is read from now on.

        Args:
            log_id: of the consumer's log; empty if it has none yet.
            done: the consumer's position ("last done").
            seq: the last seq given at that position; 0 if it is not known.

        Raises:
            RelayUnavailable: none can be read now.
            RequestRefused: every one refuses.
        """
        passed: list[tuple[int, int, RelayInfo]] = []
        failures: dict[int, WalbusError] = {}
        count = len(self._peers)
        if count > 1 and log_id and not self._term:
            self._term = self._latest_term(log_id)
        for index in ((self._at + step) % count for step in range(count)):
            try:
                info = self._peers[index].info(Point(done, seq) if seq else None)
            except WalbusError as error:
                if count == 1:
                    raise
                failures[index] = error
                self._say(index, str(error))
                continue
            unfit = self._unfit(info, log_id, done)
            if unfit is None:
                return self._choose(index, info)
            rank, why = unfit
            passed.append((rank, index, info))
            if count > 1:
                self._say(index, why)
        return self._second_best(passed, failures)

    def failed(self, error: BaseException) -> None:
        """A connection failed: where it was to the relay that is read, the next one is tried first."""
        if isinstance(error, WalbusError) and (error.where or "").startswith(self.url):
            self._at = (self._at + 1) % len(self._peers)

    def schema(self, schema_id: int) -> TableSchema:
        """A layout, by its number."""
        return self._peer.schema(schema_id)

    def schemas(self) -> list[TableSchema]:
        """Every layout that the log has."""
        return self._peer.schemas()

    def stream(
        self,
        after: Position,
        log_id: str,
        tables: tuple[str, ...],
        name: str,
        narrowing: Mapping[str, str] = NOTHING_MORE,
    ) -> RecordStream:
        """The log behind a position; see `RelayPeer.stream`."""
        return self._peer.stream(after, log_id, tables, name, narrowing)

    def stream_from(self, place: str, tables: tuple[str, ...], narrowing: Mapping[str, str]) -> RecordStream:
        """The log from a place to its end; see `RelayPeer.stream_from`."""
        return self._peer.stream_from(place, tables, narrowing)

    def bootstrap(self, url: str) -> RowsPeer:
        """The bootstrap server at an address; see `RelayPeer.bootstrap`."""
        return self._peer.bootstrap(url)

    def wait(self, name: str, seconds: float, goal: dict[str, str]) -> tuple[bool, dict[str, Any]]:
        """As `RelayPeer.wait`, of the first relay that knows the consumer: one reports where it reads."""
        for peer in self._peers[:-1]:
            try:
                return peer.wait(name, seconds, goal)
            except RelayUnavailable:
                continue
            except RequestRefused as error:
                if error.status != _UNKNOWN:
                    raise
        return self._peers[-1].wait(name, seconds, goal)

    def forget(self, name: str) -> None:
        """As `RelayPeer.forget`, of the relay that is read."""
        self._peer.forget(name)

    def twin(self) -> Twins:
        """Other connections to the same relays, for another thread."""
        return Twins(self)

    def peer_twin(self) -> tuple[str, Callable[[], LogPeer]]:
        """Address of the relay that is read, and what makes another connection to it; for any thread."""
        peer = self._peer
        return peer.url, peer.twin

    def _latest_term(self, log_id: str) -> int:
        """Of a log, by all relays that answer; 0 if none of them has it."""
        term = 0
        for peer in self._peers:
            with suppress(WalbusError):
                info = peer.info()
                term = max(term, info.term if info.log.log_id == log_id else 0)
        return term

    def _unfit(self, info: RelayInfo, log_id: str, done: Position) -> tuple[int, str] | None:
        """Why a relay will not do, and how bad that is; None if it will."""
        log = info.log
        if not log_id:
            return None
        if log.log_id != log_id:
            return _OTHER, f"it serves another log, {log.log_id}"
        if info.term < self._term:
            return _EARLIER, f"it serves term {info.term} of the log, and term {self._term} has begun"
        if log.end < done:
            return _BEHIND, f"it ends at {log.end}, before {done}"
        if log.trimmed > done:
            return _TRIMMED, f"it no longer holds what follows {done}"
        return None

    def _second_best(self, passed: list[tuple[int, int, RelayInfo]], failures: dict[int, WalbusError]) -> RelayInfo:
        allowed = _OTHER if not failures else _TRIMMED
        usable = [one for one in passed if one[0] <= allowed]
        if usable:
            rank = min(rank for rank, _, _ in usable)
            _, index, info = max((one for one in usable if one[0] == rank), key=lambda one: one[2].log.end)
            return self._choose(index, info)
        if failures and not passed:
            in_order = [failures[index] for index in sorted(failures)]  # one reason, wherever the round began
            raise next((error for error in in_order if directive_of(error) is Directive.RETRY), in_order[0])
        raise RelayUnavailable(
            f"none of {len(self._peers)} relays has the consumer's log, and some do not answer", where=self.url
        )

    def _choose(self, index: int, info: RelayInfo) -> RelayInfo:
        if index != self._at or self._said:
            _log.info("consumer.relay_chosen", relay=self._peers[index].url)
        self._at, self._term, self._said = index, info.term, {}
        return info

    def _say(self, index: int, why: str) -> None:
        url = self._peers[index].url
        if self._said.get(url) != why:
            _log.warning("consumer.relay_passed_over", relay=url, why=why)
        self._said[url] = why


class Twins:
    """Connections of another thread to the relays of one consumer: whatever is done is done at the one that is read."""

    def __init__(self, relays: Relays) -> None:
        self._relays = relays
        self._made: dict[str, LogPeer] = {}

    def report(self, name: str, report: ConsumerReport) -> None:
        """As `RelayPeer.report`."""
        url, make = self._relays.peer_twin()
        if url not in self._made:
            self._made[url] = make()
        self._made[url].report(name, report)

    def close(self) -> None:
        """Closes idle connections."""
        for peer in self._made.values():
            peer.close()


def listed(addresses: LogAddress | Sequence[LogAddress]) -> list[LogAddress]:
    """Addresses as they are given: one, several with commas between them, or a list."""
    if isinstance(addresses, KafkaAddress):
        return [addresses]
    given: Sequence[LogAddress] = addresses.split(",") if isinstance(addresses, str) else addresses
    stripped = (one.strip() if isinstance(one, str) else one for one in given)
    return [one for one in stripped if one]


def peer_at(address: LogAddress, credentials: Credentials) -> LogPeer:
    """What is at an address.

    Args:
        address: of a relay, or of a log on Kafka.
        credentials: what is shown to a relay, and to the bootstrap server; a cluster has its options.

    Raises:
        ConfigError: they cannot be used.
    """
    if isinstance(address, str):
        return RelayPeer(HttpPeer(address, credentials))
    from walbus.consumers.kafka_peer import KafkaPeer  # noqa: PLC0415 - others need nothing of it

    return KafkaPeer(address, credentials)
