"""The consumers that the relay knows: who reads, how far each has got, when it was last seen. Pure; time is passed in.

A name becomes known when a stream is opened under it or a report of it comes. What counts as its place is what the
consumer reports of its own durable checkpoint (`walbus.consumer_reports`); what the relay has sent it is shown beside
that, and says nothing of what it has done.

The place never goes backward by itself. Within one session a report that stands before the last one is late and is
passed over; a consumer that was reset begins another session, and is taken at its word. A report of a session that has
been replaced comes from a process that should not be there any more: it counts again only when the present session has
said nothing for a while.

What is read back from disk after a restart may be older than a reset that was not written any more. So it is shown, but
nobody is told that a consumer has done something before the consumer itself has said so to this relay (`confirmed`).

Memory is bounded: so many names, each with bounded texts. When they are used up, the name that was last seen longest
ago makes room, if that is more than an hour; otherwise a new name is refused, and its streams are served all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from walbus.consumer_reports import CONSUMER_NAME, ConsumerReport, bounded_tables
from walbus.position import Position, parse_position
from walbus.relay.peer import Peer

#: How many names are known at most.
MAX_CONSUMERS: Final = 4096

#: Seconds without a report behind which another session may go on in a session's place.
SILENT_SECONDS: Final = 60.0

#: Seconds unseen behind which a name makes room for a new one.
STALE_SECONDS: Final = 3600.0


class TooManyConsumers(Exception):  # noqa: N818  # named after the condition
    """All names are used up by consumers that were seen a short while ago."""


@dataclass(eq=False)
class KnownConsumer:
    """One consumer, as far as the relay knows.

    Attributes:
        name: of the consumer.
        first_seen, last_seen: Unix seconds.
        peer: where it was last seen.
        tables: patterns of its streams or of its report, the newer ones; the first few.
        report: the newest that counts; None if there was none yet.
        reported_at: when that came, Unix seconds.
        confirmed: whether it came since this relay started.
        sent: up to here the newest stream that has ended was sent everything; None if there was none.
    """

    name: str
    first_seen: float
    last_seen: float
    peer: Peer
    tables: tuple[str, ...] = ()
    report: ConsumerReport | None = None
    reported_at: float = 0.0
    confirmed: bool = False
    sent: Position | None = None

    @property
    def last_done(self) -> Position | None:
        """What it has stored durably, by its own word."""
        return None if self.report is None else self.report.last_done

    def proves(self, log_id: str) -> Position | None:
        """Everything up to here is with the consumer, as it has told this relay; None if that cannot be said."""
        report = self.report
        if report is None or not (self.confirmed and report.whole and report.log_id == log_id):
            return None
        return report.last_done


class KnownConsumers:
    """All of them, by name. Not thread-safe.

    Args:
        limit: how many names at most.
    """

    def __init__(self, limit: int = MAX_CONSUMERS) -> None:
        self._limit = limit
        self._consumers: dict[str, KnownConsumer] = {}
        self.changes = 0  #: rises with everything that is worth keeping

    def __len__(self) -> int:
        return len(self._consumers)

    def __iter__(self) -> Iterator[KnownConsumer]:
        return iter(sorted(self._consumers.values(), key=lambda known: known.name))

    def get(self, name: str) -> KnownConsumer | None:
        """The consumer of this name."""
        return self._consumers.get(name)

    def report(self, name: str, report: ConsumerReport, peer: Peer, now: float) -> tuple[KnownConsumer, bool]:
        """A consumer says where it is; the consumer, and whether the report counts.

        Raises:
            TooManyConsumers: there is no room for another name.
        """
        known = self._seen(name, peer, now)
        if not _counts(known, report, now):
            return known, False
        known.report, known.reported_at, known.confirmed = report, now, True
        known.tables = bounded_tables(report.tables) or known.tables
        return known, True

    def opened(self, name: str, tables: Iterable[str], peer: Peer, now: float) -> KnownConsumer:
        """A stream begins under a name.

        Raises:
            TooManyConsumers: there is no room for another name.
        """
        known = self._seen(name, peer, now)
        known.tables = bounded_tables(tables)
        return known

    def closed(self, name: str, sent: Position, now: float) -> None:
        """A stream has ended that had sent everything up to here."""
        known = self._consumers.get(name)
        if known is not None:
            known.sent, known.last_seen = sent, now
            self.changes += 1

    def seen(self, names: Iterable[str], now: float) -> None:
        """These are connected."""
        for name in names:
            known = self._consumers.get(name)
            if known is not None:
                known.last_seen = now

    def forget(self, name: str) -> bool:
        """Removes a name; False if it was not known. A consumer that goes on is known anew."""
        if self._consumers.pop(name, None) is None:
            return False
        self.changes += 1
        return True

    def expire(self, before: float) -> list[str]:
        """Removes the names that were last seen before a time, and tells them."""
        old = [name for name, known in self._consumers.items() if known.last_seen < before]
        for name in old:
            self.forget(name)
        return old

    def _seen(self, name: str, peer: Peer, now: float) -> KnownConsumer:
        known = self._consumers.get(name)
        if known is None:
            self._make_room(now)
            known = self._consumers[name] = KnownConsumer(name, now, now, peer)
        known.last_seen, known.peer = now, peer
        self.changes += 1
        return known

    def _make_room(self, now: float) -> None:
        if len(self._consumers) < self._limit:
            return
        oldest = min(self._consumers.values(), key=lambda known: known.last_seen)
        if now - oldest.last_seen < STALE_SECONDS:
            raise TooManyConsumers
        del self._consumers[oldest.name]

    # --- what is kept on disk -----------------------------------------------------------------------------------

    def dump(self) -> list[StoredConsumer]:
        """All of them, as they are stored."""
        return [_stored(known) for known in self._consumers.values()]

    def load(self, stored: Iterable[StoredConsumer]) -> None:
        """Takes what `dump` gave, in another process.

        Raises:
            ValueError: it makes no sense.
        """
        for one in stored:
            if CONSUMER_NAME.match(one.name) is None or len(self._consumers) >= self._limit:
                raise ValueError("a name that cannot be there")
            self._consumers[one.name] = _restored(one)

    def add_missing(self, stored: Iterable[StoredConsumer]) -> None:
        """Takes those of another relay's that are not known here, as long as there is room."""
        for one in stored:
            if one.name not in self._consumers and len(self._consumers) < self._limit:
                self._consumers[one.name] = _restored(one)
        self.changes += 1


def _counts(known: KnownConsumer, report: ConsumerReport, now: float) -> bool:
    last = known.report
    if last is None or report.begins:
        return True
    if report.session != last.session:
        return not known.confirmed or now - known.reported_at > SILENT_SECONDS
    return report.log_id != last.log_id or report.order >= last.order


# --- the stored form ---------------------------------------------------------------------------------------------


class StoredReport(msgspec.Struct, frozen=True):
    """A report, stored."""

    session: str
    log_id: str
    phase: str
    last_done: str | None
    seq: int
    generation: int
    whole: bool
    sink: str | None
    at: float


class StoredConsumer(msgspec.Struct, frozen=True):
    """A consumer, stored. What it waits for and the like it tells again."""

    name: str
    first_seen: float
    last_seen: float
    address: str
    agent: str
    tables: tuple[str, ...]
    sent: str | None
    report: StoredReport | None


def _stored(known: KnownConsumer) -> StoredConsumer:
    peer, report = known.peer, known.report
    return StoredConsumer(
        known.name,
        known.first_seen,
        known.last_seen,
        peer.address,
        peer.agent,
        known.tables,
        _text(known.sent),
        None if report is None else _stored_report(report, known.reported_at),
    )


def _stored_report(report: ConsumerReport, at: float) -> StoredReport:
    return StoredReport(
        report.session,
        report.log_id,
        report.phase,
        _text(report.last_done),
        report.seq,
        report.generation,
        report.whole,
        report.sink,
        at,
    )


def _restored(stored: StoredConsumer) -> KnownConsumer:
    kept = stored.report
    return KnownConsumer(
        stored.name,
        stored.first_seen,
        stored.last_seen,
        Peer(stored.address, stored.agent),
        stored.tables,
        None if kept is None else _restored_report(kept, stored.tables),
        0.0 if kept is None else kept.at,
        sent=_position(stored.sent),
    )


def _restored_report(kept: StoredReport, tables: tuple[str, ...]) -> ConsumerReport:
    return ConsumerReport(
        kept.session,
        begins=False,
        log_id=kept.log_id,
        phase=kept.phase,
        last_done=_position(kept.last_done),
        seq=kept.seq,
        generation=kept.generation,
        whole=kept.whole,
        tables=tables,
        sink=kept.sink,
    )


def _text(position: Position | None) -> str | None:
    return None if position is None else str(position)


def _position(text: str | None) -> Position | None:
    return None if text is None else parse_position(text)
