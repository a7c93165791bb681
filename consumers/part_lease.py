"""The lease of one part: what its holder may still do, and how its checkpoint is taken over from the one before.

    hands on        until a tenth of the lease before its end: what is handed on is to be done within it
    commits         until its end, by a clock that goes on while the machine sleeps

No clock helps a process that is stopped behind its look at the clock: the save that it is in the middle of comes
late. Such a one is refused by the place that it saves to, which knows a higher token by then
(`walbus.consumers.checkpoint_fence`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from walbus.consumers.checkpoint import Checkpoint, Part, token_of
from walbus.consumers.checkpoint_fence import FencedCheckpointStore
from walbus.consumers.deliveries import Delivery
from walbus.consumers.partitions import require_same_part
from walbus.consumers.reporting import Reporter
from walbus.consumers.session import Session
from walbus.consumers.subscription import Handing, Subscription
from walbus.errors import CheckpointTaken, PartLost

_PAUSE_SECONDS = 0.1


class PartLease:
    """The lease of one part. Renewed by one thread, asked by another.

    Args:
        part: with its token.
        name: of the part's consumer.
        margin: seconds before its end in which nothing is handed on any more.
        until: its end, in seconds of the clock.
        clock: gives seconds, of the time in which the machine sleeps as well.
    """

    def __init__(self, part: Part, name: str, margin: float, until: float, clock: Callable[[], float]) -> None:
        self.part, self.name = part, name
        self._margin, self._until, self._clock = margin, until, clock
        self._lost = False

    def may_hand_on(self) -> bool:
        """Whether changes of the part may still be handed on."""
        return not self._lost and self._clock() < self._until - self._margin

    @property
    def lost(self) -> bool:
        """Whether it is over for good."""
        return self._lost

    def renewed(self, until: float) -> None:
        """It goes on until then."""
        self._until = until

    def lose(self) -> None:
        """The part is another member's, or nobody's."""
        self._lost = True

    def require(self) -> None:
        """Sees to it that the part is still one's own.

        Raises:
            PartLost: it is not, or the lease is over and it may be another's.
        """
        if self._lost or self._clock() >= self._until:
            what = f"the lease of part {self.part.partition} is over, and another member may have the part"
            mend = "nothing: what was done since the last commit comes again; if it happens often, take a longer lease"
            raise PartLost(what, where=f"consumer {self.name}", mend=mend)


def taken_over(store: FencedCheckpointStore, lease: PartLease) -> Checkpoint | None:
    """The checkpoint of a part, stored anew under the token of its new holder: no earlier one can store its own now.

    Args:
        store: which the members share.
        lease: of the new holder.

    Raises:
        PartLost: a later holder has it already, or the lease is over.
        CheckpointUnavailable: the place does not answer.
        UsageError: it is of another part.
    """
    part = lease.part
    while True:
        checkpoint = store.load()
        require_same_part(checkpoint, part.partition, lease.name, part.token)
        lease.require()
        if checkpoint is None:
            return None
        if token_of(checkpoint) > part.token:
            lease.lose()
            lease.require()
        mine = replace(checkpoint, part=part)
        try:
            store.save(mine)
        except CheckpointTaken:  # the holder before stored one more in between, or a later holder is there
            continue
        return mine


class LeasedSubscription(Subscription):
    """The subscription of a member of a group to a part that it holds.

    It hands nothing on and stores nothing when its lease is over, and goes on if that is renewed under the same token.
    """

    def __init__(
        self, session: Session, store: FencedCheckpointStore, reporter: Reporter, handing: Handing, lease: PartLease
    ) -> None:
        super().__init__(session, store, reporter, handing)
        self._lease = lease
        self._withheld: Delivery | None = None  # was read while the lease ran out

    @property
    def part(self) -> Part:
        """The part, with the token under which it is held: whoever else writes for it may have the token compared."""
        return self._lease.part

    def _next(self, timeout: float) -> Delivery | None:
        """As that of `Subscription`; None while the lease is over."""
        if not self._lease.may_hand_on():
            self._stopping.wait(min(timeout, _PAUSE_SECONDS))
            return None
        delivery, self._withheld = self._withheld, None
        if delivery is None:
            try:
                delivery = super()._next(timeout)
            except PartLost:  # of a checkpoint that nobody asked for
                return None
        if self._lease.may_hand_on():
            return delivery
        self._withheld = delivery
        return None

    def _further(self) -> Delivery | None:
        """As that of `Subscription`; None while the lease is over, and before what was read meanwhile."""
        if self._withheld is not None or not self._lease.may_hand_on():
            return None
        return super()._further()

    def rewind(self) -> None:
        """As `Subscription.rewind`."""
        self._withheld = None
        super().rewind()

    def _save(self, checkpoint: Checkpoint) -> None:
        self._lease.require()
        super()._save(checkpoint)
