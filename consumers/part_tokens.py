"""What a member of a group holds where Kafka's coordinator hands the parts out, and under which tokens. Pure.

    handed out ──► bare ──► take_tokens ──► held ──► taken away ──► its holder is done ──► given back
                    ▲                        │
                    └── its holder is done ◄─┘       (it was lost to a later token: it is taken under a new one)

Partition i of the group's topic is part i. A part's token is the offset that the group has committed for its partition:
who is handed the part commits a higher one than it finds. A coordinator takes offsets only from those who are members
as it counts them now, and it hands a partition out anew only when the one before has given it back, or is a member no
more. So each token is given once, and higher than all before it.

An offset may be forgotten: the coordinator keeps those of a group without members for a week, say. So no token is below
the time of day in milliseconds, which every token was that sinks have seen (and those of relays are).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from walbus.errors import LogUnreachable
from walbus.relay.group_leases import Hold
from walbus.relay.group_requests import HeldPart, Told


class CommitRefused(Exception):  # noqa: N818  # told to the member's own thread
    """The coordinator takes no offsets from this member as it is now: nothing was stored.

    Args:
        what: it said.
        is_gone: whether it counts this as no member any more; else it shares the parts out anew just now.
    """

    def __init__(self, what: str, *, is_gone: bool = False) -> None:
        super().__init__(what)
        self.is_gone = is_gone


class TokensInDoubt(Exception):  # noqa: N818
    """It is not known whether tokens were stored, nor when: their commit may still be under way.

    Args:
        error: that of the commit.
    """

    def __init__(self, error: LogUnreachable) -> None:
        super().__init__(str(error))
        self.error = error


class Offsets(Protocol):
    """The offsets of a group, as one of its members reads and commits them."""

    def committed(self, parts: Sequence[int]) -> Mapping[int, int]:
        """Those that are stored; a part without one is left out.

        Raises:
            LogUnreachable: the coordinator does not answer.
        """

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Stores some; durable when it returns.

        Raises:
            CommitRefused: the member is none, or the group is being shared out anew: nothing was stored.
            LogUnreachable: it is not known whether they were stored.
        """


def take_tokens(offsets: Offsets, parts: Sequence[int], stamp: int) -> dict[int, int]:
    """A token for each of some parts, higher than any that was given before.

    Args:
        offsets: of the group.
        parts: that were handed out to this member, and that it has not given back.
        stamp: the time of day in milliseconds.

    Raises:
        CommitRefused: none was given.
        LogUnreachable: none was given that counts.
        TokensInDoubt: a commit that is still under way could come behind a later one of the same member, so that this
            must become another member before it asks again.
    """
    before = offsets.committed(parts)
    tokens = {part: max(before.get(part, 0) + 1, stamp) for part in parts}
    try:
        offsets.commit(tokens)
    except LogUnreachable as error:
        raise TokensInDoubt(error) from error
    after = offsets.committed(parts)
    if {part: after.get(part) for part in parts} != tokens:
        raise CommitRefused("somebody else committed in between")
    return tokens


@dataclass
class Holdings:
    """The parts of one member.

    Attributes:
        parts: how many there are in all.
    """

    parts: int
    _tokens: dict[int, int] = field(default_factory=dict, init=False)
    _bare: set[int] = field(default_factory=set, init=False)
    _taken_away: set[int] = field(default_factory=set, init=False)

    @property
    def tokens(self) -> dict[int, int]:
        """Those of the parts that it holds, by part."""
        return dict(self._tokens)

    @property
    def bare(self) -> list[int]:
        """Parts that were handed out to it, and that it has no token of yet."""
        return sorted(self._bare)

    def handed_out(self, parts: Iterable[int]) -> None:
        """It may have these from now on."""
        self._bare.update(part for part in parts if part not in self._tokens)

    def given(self, tokens: Mapping[int, int]) -> None:
        """It holds parts under tokens, those apart that it is not to have any more."""
        for part in self._bare.intersection(tokens):
            self._tokens[part] = tokens[part]
        self._bare.difference_update(tokens)

    def taken_away(self, parts: Iterable[int]) -> None:
        """Others are to have these, once nothing of them is under way here."""
        for part in parts:
            self._bare.discard(part)
            if part in self._tokens:
                self._taken_away.add(part)

    def done(self, holds: Iterable[Hold]) -> None:
        """Nothing of these is under way any more, nor will be. What names another token says nothing."""
        for part, token in holds:
            if self._tokens.get(part) != token:
                continue
            del self._tokens[part]
            if part in self._taken_away:
                self._taken_away.discard(part)
            else:
                self._bare.add(part)

    def under_way(self, parts: Iterable[int]) -> bool:
        """Whether one of some parts is still held."""
        return not self._tokens.keys().isdisjoint(parts)

    def lost(self, parts: Iterable[int]) -> None:
        """These are not its own any more, whatever is under way."""
        for part in parts:
            self._tokens.pop(part, None)
            self._bare.discard(part)
            self._taken_away.discard(part)

    def told(self, lease_seconds: float) -> Told:
        """What the member is told.

        Args:
            lease_seconds: for so long, from now, it has what it holds.
        """
        by_token = sorted(self._tokens.items(), key=lambda held: (held[1], held[0]))
        holds = [HeldPart(part, token, part in self._taken_away) for part, token in by_token]
        return Told(self.parts, lease_seconds, self.parts, holds)
