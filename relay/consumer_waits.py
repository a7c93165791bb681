"""Read-your-writes: who waits until a consumer has done what committed up to a place. No I/O but futures of the loop.

What somebody who has just committed can ask the source for is `pg_current_wal_insert_lsn()`. It lies behind the commit
record, and nothing need ever stand at it: the next transaction may commit further on, or never, and the one that was
made may touch no table that the consumer reads, or that is published at all. So a goal that is an LSN is met in either
of two ways:

- the consumer has done something of the log's epoch that commits at or behind the LSN; or
- the log holds everything that commits before the LSN (its `end_lsn`, which keepalives of the source move on too), and
  the consumer is at least where the log ended when that was seen first.

Nobody polls. A goal is looked at when its consumer reports, and when the log's end moves for as long as the log does
not hold the LSN. Where a goal is known as a position, the consumer's streams are told that somebody waits for it
(`wanted`): the consumer then stores and reports its place as soon as it is there, instead of within its second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from walbus.log import Bounds
from walbus.lsn import record_end
from walbus.position import Position

#: How many wait at the same time, of all and of one consumer.
MAX_WAITERS: Final = 1000
MAX_WAITERS_OF_ONE: Final = 200


class TooManyWaiters(Exception):  # noqa: N818  # named after the condition
    """There is no room for another one."""


@dataclass
class Goal:
    """What somebody waits for.

    Attributes:
        lsn: everything that commits before this is to be done; None if the goal is a position.
        position: a consumer that is here has met the goal; None while the log does not hold everything before `lsn`.
    """

    lsn: int | None
    position: Position | None

    @classmethod
    def of_lsn(cls, lsn: int) -> Goal:
        """Everything that commits before an LSN."""
        return cls(record_end(lsn), None)

    @classmethod
    def of_position(cls, position: Position) -> Goal:
        """Everything up to a position."""
        return cls(None, position)

    def look(self, bounds: Bounds) -> None:
        """Takes note of how far the log is."""
        if self.position is None and self.lsn is not None and bounds.end_lsn >= self.lsn:
            self.position = bounds.end

    def met_by(self, done: Position | None, bounds: Bounds) -> bool:
        """Whether a consumer that has done everything up to a position has met it."""
        if done is None:
            return False
        if self.position is not None and done >= self.position:
            return True
        return self.lsn is not None and done.epoch == bounds.end.epoch and done.commit_lsn >= self.lsn


@dataclass(eq=False)
class Waiter:
    """Somebody who waits.

    Attributes:
        name: of the consumer.
        goal: what for.
        outcome: True once the goal is met; False if the consumer was removed, or the server stops.
    """

    name: str
    goal: Goal
    outcome: asyncio.Future[bool]


class Waits:
    """All who wait, by consumer. Belongs to the event loop."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[Waiter]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str, goal: Goal) -> Waiter:
        """Somebody begins to wait; `remove` ends it.

        Raises:
            TooManyWaiters: too many do.
        """
        of_one = self._waiters.get(name, [])
        if self._count >= MAX_WAITERS or len(of_one) >= MAX_WAITERS_OF_ONE:
            raise TooManyWaiters
        waiter = Waiter(name, goal, asyncio.get_running_loop().create_future())
        self._waiters[name] = [*of_one, waiter]
        self._count += 1
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Somebody waits no longer."""
        left = [other for other in self._waiters[waiter.name] if other is not waiter]
        self._count -= 1
        if left:
            self._waiters[waiter.name] = left
        else:
            del self._waiters[waiter.name]

    def done(self, name: str, done: Position | None, bounds: Bounds) -> None:
        """A consumer has done everything up to here: wakes whom that is enough for."""
        for waiter in self._waiters.get(name, ()):
            waiter.goal.look(bounds)
            if waiter.goal.met_by(done, bounds):
                _settle(waiter, met=True)

    def log_moved(self, bounds: Bounds) -> Iterator[str]:
        """The log's end has moved; yields the consumers of whom it is known since then what to wait for."""
        for name, waiters in list(self._waiters.items()):
            open_goals = [waiter.goal for waiter in waiters if waiter.goal.position is None]
            for goal in open_goals:
                goal.look(bounds)
            if any(goal.position is not None for goal in open_goals):
                yield name

    def wanted(self, name: str) -> list[Position]:
        """The positions of a consumer that somebody waits for, as far as they are known; ascending."""
        goals = (waiter.goal.position for waiter in self._waiters.get(name, ()) if not waiter.outcome.done())
        return sorted({position for position in goals if position is not None})

    def give_up(self, name: str) -> None:
        """A consumer is not known any more."""
        for waiter in self._waiters.get(name, ()):
            _settle(waiter, met=False)

    def close(self) -> None:
        """The server stops."""
        for name in self._waiters:
            self.give_up(name)


def _settle(waiter: Waiter, *, met: bool) -> None:
    if not waiter.outcome.done():
        waiter.outcome.set_result(met)
