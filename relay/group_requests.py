"""What a member asks the relay, and what it is told: JSON, and what may stand in it. No I/O.

PUT /v1/groups/orders/members/host-1f3a
{"parts": 8, "lease_seconds": 15, "done": [{"part": 5, "token": 1732723200000}]}

{"parts": 8, "lease_seconds": 15, "members": 3,
 "holds": [{"part": 2, "token": 1732723100000, "give_up": false}, …]}
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from walbus.errors import ProtocolError, UsageError
from walbus.relay.group_leases import Asked, Group, Hold

#: What a member may be called.
MEMBER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}\Z")

#: Parts that a group has at most, and seconds that a lease has. A member waits for an answer for a third of its lease,
#: and the relay syncs a file before it gives one: a shorter lease ends again and again where a disk is busy.
MAX_PARTS: Final = 1024
MIN_LEASE: Final = 3.0
MAX_LEASE: Final = 60.0


class _Done(msgspec.Struct, frozen=True):
    part: Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARTS)]
    token: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _Asked(msgspec.Struct, frozen=True):
    parts: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)]
    lease_seconds: Annotated[float, msgspec.Meta(ge=MIN_LEASE, le=MAX_LEASE)]
    done: Annotated[list[_Done], msgspec.Meta(max_length=MAX_PARTS)] = []
    leaves: bool = False


class HeldPart(msgspec.Struct, frozen=True):
    """A part that a member has.

    Attributes:
        part: its number, from 0.
        token: larger than that of anyone who had it before.
        give_up: whether it is to finish what it is at, and to say that it is done.
    """

    part: int
    token: int
    give_up: bool


class Told(msgspec.Struct, frozen=True):
    """What a member is told.

    Attributes:
        parts: how many there are.
        lease_seconds: for so long, from before it asked, it has what it holds.
        members: how many there are.
        holds: its parts; any other one is not its any more.
    """

    parts: int
    lease_seconds: float
    members: int
    holds: list[HeldPart]


def checked_member(name: str) -> str:
    """The name, if a member may have it.

    Raises:
        UsageError: it may not.
    """
    if MEMBER_NAME.match(name) is None:
        mend = "use up to 63 letters, digits, dots, dashes and underscores, no dot or dash first"
        raise UsageError(f"{name[:80]!r} is no member's name", where="member", mend=mend)
    return name


def parse_asked(data: bytes) -> Asked:
    """What a member asks. Members of the object that are not known are passed over.

    Raises:
        UsageError: it is none of that; `where` names what is wrong.
    """
    mend = "send what docs/relay.md describes"
    try:
        asked = msgspec.json.decode(data, type=_Asked)
    except msgspec.ValidationError as error:
        found = re.search(r"`\$\.?([a-z_]*)", str(error)) or re.search(r"field `([a-z_]+)`", str(error))
        where = found[1] if found and found[1] else "body"
        raise UsageError("this is not what a member asks", where=where, mend=mend) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UsageError("this is not JSON", where="body", mend=mend) from None
    done = [Hold(one.part, one.token) for one in asked.done]
    return Asked(asked.parts, asked.lease_seconds, done, asked.leaves)


def pack_asked(asked: Asked) -> bytes:
    """What a member sends: the inverse of `parse_asked`."""
    done = [_Done(part, token) for part, token in asked.done]
    return msgspec.json.encode(_Asked(asked.parts, asked.lease, done, asked.leaves))


def parse_told(data: bytes) -> Told:
    """What a member was told.

    Raises:
        ProtocolError: it is none of that.
    """
    try:
        return msgspec.json.decode(data, type=Told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("the answer is not what a member of a group is told") from None


def told(group: Group, member: str, asked: Asked) -> Told:
    """What a member is told once it has asked."""
    beyond = group.to_give_up(member)
    holds = [HeldPart(hold.part, hold.token, hold in beyond) for hold in group.holds(member)]
    return Told(asked.parts, asked.lease, len(group.members), holds)
