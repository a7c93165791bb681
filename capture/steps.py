"""How a capture that is far behind goes on: in steps of which size, and when to leave the rest to the walsender. Pure.

A step reads what commits up to an LSN through the SQL interface, and costs what the walsender's stream does not:

- It decodes again from the slot's restart_lsn, which lies before the confirmed LSN by the WAL of the oldest
  transaction that runs, and by what the server wrote since it last logged who runs. This is repeated work.
- Moving the slot reads the same WAL once more (without decoding rows).

In return each message comes far cheaper, so that a quarter of a first step pays for both (measured,
`docs/adr/0116-…`). Steps begin small, so that the first one is soon durable, and double; a step is never smaller than
the work that it repeats, as long as so much is left; and what cannot pay goes by the walsender:

- the tail: what is left is less than a quarter of a first step, or than the work that a step for it would repeat
- repeated work larger than the largest step: a transaction that runs for long holds restart_lsn back
- a large transaction, which the server spills to its disk anew in each step until the one that meets its commit, and
  then holds in temporary files besides; the walsender can stream it. It is known by more having been spilled than given

WAL of other databases and unpublished tables, out of which little comes, goes faster in steps too.

A stream that fell far behind goes back to steps where they save more than the new connection costs. Steps that were
refused are tried again after a pause that grows with each attempt in vain (`Pauses`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: The smallest backlog that a step is worth, as a part of a first step.
LEAST = 1 / 4
#: A stream makes way for steps when so many first steps are left to read.
FAR_BEHIND = 2
#: The largest step, in first steps.
LARGEST = 8

#: A change takes up so many times the bytes of its message, at most, where the server spills it.
SPILLED_FOR_GIVEN = 4

Reason = Literal[
    "the tail is near",
    "a long transaction makes every step repeat its WAL",
    "a large transaction is on its way",
    "a required standby does not have what was read",
]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a slot has to give, all LSNs.

    Attributes:
        restart: decoding begins here.
        confirmed: what commits from here on is still to be read.
        end: the WAL is durable (on the standbys that must have it first, too) up to here.
    """

    restart: int
    confirmed: int
    end: int

    @property
    def left(self) -> int:
        """Bytes of WAL that are still to be read."""
        return max(0, self.end - self.confirmed)

    @property
    def repeated(self) -> int:
        """Bytes of WAL that the next step decodes again."""
        return max(0, self.confirmed - self.restart)

    def beyond(self, reached: int) -> Backlog:
        """What is left of it where everything before an LSN is in the log, though the slot may not be there yet."""
        return replace(self, confirmed=max(self.confirmed, reached))


@dataclass(frozen=True, slots=True)
class Step:
    """Read what commits before `upto`, an LSN that is not beyond `Backlog.end`."""

    upto: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Leave the rest to the walsender."""

    reason: Reason


class StepPolicy:
    """Decides from step to step.

    Args:
        first_bytes: WAL of the first step.
    """

    def __init__(self, first_bytes: int) -> None:
        self._first = first_bytes
        self._largest = first_bytes * LARGEST
        self._size = first_bytes
        self._met_large = False

    def is_far_behind(self, backlog: Backlog) -> bool:
        """Whether a step pays: at the beginning of a connection, and for what the last one left."""
        least = max(1, int(LEAST * self._first))
        return backlog.left >= min(self._first, max(least, backlog.repeated))

    def is_worth_another_connection(self, backlog: Backlog) -> bool:
        """Whether a stream should make way for steps."""
        return backlog.left >= FAR_BEHIND * self._first

    def next(self, backlog: Backlog) -> Step | Stream:
        """What comes next; the first step too is decided here."""
        if not self.is_far_behind(backlog):
            return Stream("the tail is near")
        if backlog.repeated > self._largest:
            return Stream("a long transaction makes every step repeat its WAL")
        if self._met_large:
            return Stream("a large transaction is on its way")
        size = max(self._size, backlog.repeated)
        if backlog.left < size + self._first:  # what would be left would not be worth a step
            size = backlog.left
        return Step(backlog.confirmed + size)

    def done(self, given: int, spilled: int) -> None:
        """A step is durable, and the slot moved.

        Args:
            given: bytes of messages that came out of it.
            spilled: bytes that the server wrote to its disk for transactions that were too large for its memory.
        """
        self._size = min(self._size * 2, self._largest)
        self._met_large = spilled > SPILLED_FOR_GIVEN * given + self._first


class Pauses:
    """How long steps keep away, in seconds.

    Args:
        first: behind an attempt that was of use; doubled by each that was not.
        longest: up to here.
        share: an attempt in vain is not made again for so many times the seconds that it took.
    """

    def __init__(self, first: float = 60.0, longest: float = 3600.0, share: float = 20.0) -> None:
        self.first = first
        self._longest = longest
        self._share = share
        self._next = first

    def after_success(self) -> float:
        """Steps went to the tail."""
        self._next = self.first
        return self.first

    def after_failure(self, took: float) -> float:
        """An attempt of so many seconds was in vain."""
        pause, self._next = self._next, min(self._longest, 2 * self._next)
        return max(pause, self._share * took)
