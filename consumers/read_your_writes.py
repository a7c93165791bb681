"""Read-your-writes: waiting until a consumer has done what was committed before.

    with source.transaction():
        source.execute("UPDATE orders SET …")
    lsn = source.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]
    bus.wait_for("orders-cache", lsn=lsn)        # from here on the cache has it, or something newer

The relay does the waiting, as long as one request may take; a relay that goes away meanwhile is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from walbus.consumers.addresses import Relays
from walbus.consumers.backoff import Backoff
from walbus.consumers.clock import Clock
from walbus.errors import Directive, ProtocolError, RelayUnavailable, UsageError, WalbusError
from walbus.lsn import format_lsn, parse_lsn
from walbus.position import Position, parse_position

_ASK_SECONDS = 10.0  # of one request; the transport takes longer silence for a dead peer


@dataclass(frozen=True, slots=True)
class ConsumerPlace:
    """Where a consumer is, as the relay knows it.

    Attributes:
        name: of the consumer.
        last_done: everything up to here is stored durably with it; None before there is such a place.
        phase: `online`, `catchup`, `snapshot`, `listing`, `starting` or `paused`; `unknown` if it has never reported.
        unread: tables whose rows it has still to read again, and are not right yet.
        waiting_for: why it reads nothing at present; None while it does.
    """

    name: str
    last_done: Position | None
    phase: str
    unread: tuple[str, ...]
    waiting_for: str | None


class ConsumerBehind(WalbusError):  # noqa: N818  # named after the condition, as in walbus.errors
    """A consumer did not get to a place in the time that somebody could wait.

    Attributes:
        place: where it is.
    """

    directive = Directive.RETRY

    def __init__(self, place: ConsumerPlace, timeout: float) -> None:
        super().__init__(
            f"consumer {place.name} did not get there within {timeout:g} s",
            where=f"its position {place.last_done}, phase {place.phase}",
            mend=f"it waits: {place.waiting_for}" if place.waiting_for else "wait longer",
        )
        self.place = place


def goal_of(lsn: str | int | None, position: str | Position | None) -> dict[str, str]:
    """What is waited for, as the relay is asked for it.

    Raises:
        UsageError: neither or both are given, or one does not parse.
    """
    if (lsn is None) == (position is None):
        mend = "give the LSN that pg_current_wal_insert_lsn() told behind your commit, or a change's position"
        raise UsageError("either lsn or position is needed", mend=mend)
    if lsn is not None:
        return {"lsn": format_lsn(parse_lsn(lsn) if isinstance(lsn, str) else lsn)}
    return {"position": str(parse_position(str(position)))}


def wait_for(relay: Relays, name: str, goal: dict[str, str], timeout: float, clock: Clock) -> ConsumerPlace:
    """Blocks until a consumer has met a goal.

    Args:
        relay: which is asked.
        name: of the consumer.
        goal: of `goal_of`.
        timeout: seconds.
        clock: time.

    Raises:
        ConsumerBehind: it has not in time.
        RequestRefused: the relay knows no consumer of this name (`status` 404).
        RelayUnavailable: the relay did not answer in time.
    """
    deadline = clock.monotonic() + timeout
    backoff = Backoff()
    while True:
        left = max(deadline - clock.monotonic(), 0.0)
        try:
            reached, document = relay.wait(name, min(left, _ASK_SECONDS), goal)
        except RelayUnavailable:
            pause = backoff.next_delay()
            if pause >= left:
                raise
            clock.pause(pause)
            continue
        if reached:
            return _place_of(document)
        if clock.monotonic() >= deadline:
            raise ConsumerBehind(_place_of(document), timeout)


def _place_of(document: dict[str, Any]) -> ConsumerPlace:
    try:
        last_done, phase = document["last_done"], document["phase"]
        return ConsumerPlace(
            str(document["name"]),
            None if last_done is None else parse_position(str(last_done)),
            "unknown" if phase is None else str(phase),
            tuple(map(str, document["unread"])),
            document["waiting_for"],
        )
    except (KeyError, TypeError, UsageError) as error:
        raise ProtocolError(f"a consumer's place is malformed ({type(error).__name__})") from None
