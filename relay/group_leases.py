"""Which member of a group has which part of all keys, and until when. Pure: time is passed in.

    member asks ──► its lease begins anew ──► free parts, up to its share       each with a new token
                                          └─► what it has beyond its share      it is to give up

A part has one holder. It goes to another only after its holder said that it is done with it, left, or has not asked for
so long that its lease is over by the holder's clock as well: a holder counts from before it asked, the relay from when
it was asked, and adds a margin for clocks that go at different speeds. What a holder says it is done with names the
token, so that no request that comes late, twice or out of turn gives up anything else.

Tokens only grow, over whatever is forgotten: each is above every one that the relay ever gave, of whatever part and
group, and not below the time of day in milliseconds. Whoever keeps something for the holder of a part refuses what
comes with a token below the highest seen.

Shares are equal but for one part, and those that have more keep more. So a member that comes or goes moves as many
parts as it must. A member asks for itself alone: nothing is given to one that is not there to take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

#: Members that a group has at most.
MAX_MEMBERS: Final = 256

#: By so much a lease is longer for the relay: a part of it, and seconds.
_SLOWER, _MARGIN_SECONDS = 0.1, 1.0


class Hold(NamedTuple):
    """A part that a member has.

    Attributes:
        part: its number, from 0.
        token: larger than that of anyone who had it before.
    """

    part: int
    token: int


class Part(NamedTuple):
    """A part, and who has it.

    Attributes:
        token: the last one that was given; 0: none was.
        holder: the member that has it; None: it is free.
    """

    token: int = 0
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A member.

    Attributes:
        lease: the longest that it ever asked for, in seconds.
        gone_at: it is taken for gone from then on, in seconds of the relay's clock.
        joined: the order in which members came.
        owner: the name of the access token that it joined with; empty: none was asked for.
    """

    lease: float
    gone_at: float
    joined: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a member asks.

    Attributes:
        parts: how many there are.
        lease: for how many seconds it is to have its parts.
        done: parts that it is done with, each with the token that it had.
        leaves: whether it is done with all of them, and asks for none.
        owner: the name of the access token that it shows; empty: none is asked for.
    """

    parts: int
    lease: float
    done: Sequence[Hold] = ()
    leaves: bool = False
    owner: str = ""


class OtherParts(Exception):  # noqa: N818  # told to the client, as what it asked against
    """The group has members that read another number of parts; `args[0]` says how many."""


class OtherOwner(Exception):  # noqa: N818
    """The member joined with another access token, whose bearer alone speaks for it."""


class TooManyMembers(Exception):  # noqa: N818
    """There is no room for another member."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group. Never changed: what happens gives another one.

    Attributes:
        parts: by number.
        members: by name; not to be changed.
    """

    parts: tuple[Part, ...]
    members: Mapping[str, Member] = field(default_factory=dict)

    @property
    def highest(self) -> int:
        """The highest token that its parts have; 0: none was given."""
        return max((part.token for part in self.parts), default=0)

    def asked(self, member: str, asked: Asked, now: float, stamp: int) -> Group:
        """The group once a member has asked.

        Args:
            member: its name, which no other process ever has.
            asked: what it asks.
            now: seconds of a clock that does not go back.
            stamp: above every token that was ever given, and not below the time of day in milliseconds.

        Raises:
            OtherParts, OtherOwner, TooManyMembers
        """
        group = self.without_gone(now)
        before = group.members.get(member)
        if before is not None and before.owner and asked.owner and before.owner != asked.owner:
            raise OtherOwner
        if asked.leaves:
            return group.left(member)
        if len(group.parts) != asked.parts:
            if group.members:
                raise OtherParts(len(group.parts))
            group = Group((Part(),) * asked.parts)
        parts = list(group.parts)
        for part, token in asked.done:
            if 0 <= part < len(parts) and parts[part] == (token, member):
                parts[part] = Part(token)
        members = {**group.members, member: group._renewed(member, asked, now)}
        if len(members) > MAX_MEMBERS:
            raise TooManyMembers
        return Group(tuple(parts), members)._given(member, stamp)

    def left(self, member: str) -> Group:
        """The group without a member; what it had is free."""
        parts = tuple(Part(part.token) if part.holder == member else part for part in self.parts)
        return Group(parts, {name: one for name, one in self.members.items() if name != member})

    def without_gone(self, now: float) -> Group:
        """The group without those whose lease is over."""
        group = self
        for name, member in self.members.items():
            if member.gone_at <= now:
                group = group.left(name)
        return group

    def taken_up(self, now: float) -> Group:
        """The group of an earlier relay, whose clock was another one: each lease may have begun just now."""
        return replace(self, members={name: _from(member, now) for name, member in self.members.items()})

    def holds(self, member: str) -> list[Hold]:
        """What a member has, in the order in which it got it."""
        held = [Hold(number, part.token) for number, part in enumerate(self.parts) if part.holder == member]
        return sorted(held, key=lambda hold: (hold.token, hold.part))

    def share(self, member: str) -> int:
        """How many parts a member is to have."""
        least, more = divmod(len(self.parts), len(self.members))
        ranks = sorted(self.members, key=lambda name: (-len(self.holds(name)), self.members[name].joined))
        return least + (ranks.index(member) < more)

    def to_give_up(self, member: str) -> list[Hold]:
        """What a member has beyond its share: what it got last."""
        return self.holds(member)[self.share(member) :] if member in self.members else []

    def _renewed(self, member: str, asked: Asked, now: float) -> Member:
        before = self.members.get(member)
        joined = max((one.joined for one in self.members.values()), default=0) + 1
        new = _from(Member(asked.lease, 0.0, joined, asked.owner), now)
        if before is None:
            return new
        lease, gone_at = max(asked.lease, before.lease), max(new.gone_at, before.gone_at)
        return Member(lease, gone_at, before.joined, asked.owner or before.owner)

    def _given(self, member: str, stamp: int) -> Group:
        """With free parts for a member, up to its share."""
        lacking = self.share(member) - len(self.holds(member))
        parts = list(self.parts)
        free = [number for number, part in enumerate(parts) if part.holder is None]
        for number in free[: max(0, lacking)]:
            parts[number] = Part(max(parts[number].token + 1, stamp), member)
        return replace(self, parts=tuple(parts))


def _from(member: Member, now: float) -> Member:
    return replace(member, gone_at=now + member.lease * (1 + _SLOWER) + _MARGIN_SECONDS)
