"""What a member of a group holds, by what its lessor told it. Pure: time is passed in.

    asked() ──► the lessor ──► told(answer, when it was asked)    it holds what the answer names, until the lease is
                                                                  over by its own clock, counted from before it asked
    finished(hold)                                                nothing of it is under way: the next request says so

What an answer does not name, or names under another token, is lost. A hold that is finished is named in each request
until an answer is without it, so that neither a lost request nor a lost answer keeps a part from others. A relay
keeps the other side of it (`walbus.relay.group_leases`), or Kafka's coordinator does (`walbus.consumers.part_tokens`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from walbus.relay.group_leases import Asked, Hold
from walbus.relay.group_requests import Told

#: A member asks again after this part of its lease: two answers may get lost before it is over.
ASKS_AFTER = 1 / 3

#: A part of its lease: so much before its end nothing is handed on any more, and so soon it asks again for its share.
MARGIN = 1 / 10


@dataclass
class Membership:
    """One member.

    Attributes:
        parts: how many there are.
        lease: in seconds.
        until: by hold, when its lease is over, in seconds of the member's clock.
        to_give_up: the holds that are to be finished.
        members: how many there are, as was said last.
    """

    parts: int
    lease: float
    until: dict[Hold, float] = field(default_factory=dict, init=False)
    to_give_up: frozenset[Hold] = field(default=frozenset(), init=False)
    members: int = field(default=1, init=False)
    _done: set[Hold] = field(default_factory=set, init=False)

    def asked(self, *, leaves: bool = False) -> Asked:
        """What it asks now."""
        return Asked(self.parts, self.lease, sorted(self._done), leaves)

    def told(self, told: Told, asked_at: float) -> None:
        """Takes an answer.

        Args:
            told: the answer.
            asked_at: when it was asked for, before the request was sent.
        """
        named = {Hold(held.part, held.token): held.give_up for held in told.holds}
        until = asked_at + min(self.lease, told.lease_seconds)
        self.until = {hold: max(until, self.until.get(hold, until)) for hold in named if hold not in self._done}
        self.to_give_up = frozenset(hold for hold in self.until if named[hold])
        self._done &= named.keys()
        self.members = told.members

    def finished(self, hold: Hold) -> None:
        """Nothing of a hold is under way any more, and nothing will be."""
        self.until.pop(hold, None)
        self._done.add(hold)

    @property
    def pause(self) -> float:
        """Seconds behind a request that was answered, after which the next one is due."""
        lacks = len(self.until) < self.parts // max(1, self.members)
        return self.lease * (MARGIN if lacks else ASKS_AFTER)
