"""Who hands the parts of all keys out to the members of a group: a relay, or the cluster that the log is read from.

A member asks again and again, and is told what it holds, each part under a token; whatever is behind that, the rules
are those of `walbus.consumers.group_membership`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from walbus.consumers.clock import Clock
from walbus.consumers.peers import LogPeer
from walbus.consumers.transport import RelayPeer
from walbus.errors import Directive, RequestRefused, WalbusError, directive_of
from walbus.relay.group_leases import Asked
from walbus.relay.group_requests import Told

_CONFLICT: Final = 409


class Lessor(Protocol):
    """Hands parts out to one member of a group, which asks in one thread."""

    def begin(self, member: str, news: Callable[[], object]) -> None:
        """Called once, before anything is asked.

        Args:
            member: its name.
            news: called by any thread when asking now would tell something new; it does not block.
        """

    def ask(self, asked: Asked, timeout: float) -> Told:
        """What the member holds now; a part that is not named, or under another token, is its own no more.

        Args:
            asked: what it asks. With `leaves` it is done with all of them, and asks no more.
            timeout: seconds for which an answer is waited for.

        Raises:
            RelayUnavailable, OSError: there is no answer now; what is held is held until its lease is over.
            WalbusError: there will be none: the group has another number of parts, or the member may not be one.
        """


class RelayLessor:
    """The relays of one log; see `Lessor`.

    Args:
        group: its name.
        relays: in the order in which they are asked.
    """

    def __init__(self, group: str, relays: Sequence[RelayPeer]) -> None:
        self._group, self._relays = group, tuple(relays)
        self._at, self._member = 0, ""

    def begin(self, member: str, news: Callable[[], object]) -> None:
        """See `Lessor.begin`; a relay tells nothing by itself."""
        del news
        self._member = member

    def ask(self, asked: Asked, timeout: float) -> Told:
        """The answer of the first relay that gives one: a copy of the log refuses, and has the next one asked."""
        count = len(self._relays)
        for step in range(count):
            index = (self._at + step) % count
            try:
                told = self._relays[index].ask_parts(self._group, self._member, asked, timeout)
            except (WalbusError, OSError) as error:
                copies = isinstance(error, RequestRefused) and error.status == _CONFLICT
                if step == count - 1 or not (copies or directive_of(error) is Directive.RETRY):
                    raise
            else:
                self._at = index
                return told
        raise AssertionError("the last one answers or raises")


def lessor_of(group: str, peers: Sequence[LogPeer], clock: Clock) -> Lessor:
    """Who leases the parts of a group to its members.

    Args:
        group: its name.
        peers: from which the log is read: relays, or one cluster.
        clock: time.
    """
    relays = [peer for peer in peers if isinstance(peer, RelayPeer)]
    if len(relays) == len(peers):
        return RelayLessor(group, relays)
    from walbus.consumers.kafka_lessor import KafkaLessor  # noqa: PLC0415 - others need nothing of it
    from walbus.consumers.kafka_peer import KafkaPeer  # noqa: PLC0415

    cluster = next(peer.cluster for peer in peers if isinstance(peer, KafkaPeer))
    return KafkaLessor(group, cluster, clock)
