"""Group commit: how long whole transactions wait for others that are made durable with them. Pure.

A sync costs the same for one transaction as for a thousand. So a group may wait for as long as the last one suggests
that company will come: a share of a millisecond for each transaction that the last group had, up to a bound. Lone
transactions then wait for nobody, and a flood gives a few large groups; at a rate in between the groups find their
size by themselves, since a group that waited for nobody makes the next one wait less.
"""

from __future__ import annotations

#: Seconds that a group waits for each transaction of the one before it.
SHARE_SECONDS = 0.0001
#: Seconds that a group waits at most.
LONGEST_SECONDS = 0.02


class Grouping:
    """The group that is being gathered.

    Attributes:
        since: when its first transaction was whole, in seconds; None while there is none.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self._patience = 0.0
        self._before = 0

    def gather(self, now: float) -> None:
        """Something whole waits to be made durable."""
        if self.since is None:
            self.since = now

    def due_in(self, now: float) -> float | None:
        """Seconds until the group should be made durable, 0 or less when it is time; None while it is empty."""
        return None if self.since is None else self.since + self._patience - now

    def made_durable(self, transactions: int) -> None:
        """The group is durable; `transactions` is how many there were in all groups so far."""
        self._patience = min(LONGEST_SECONDS, SHARE_SECONDS * (transactions - self._before))
        self._before = transactions
        self.since = None
