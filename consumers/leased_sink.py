"""A sink of a part that a member of a group holds: it takes nothing when the lease is over.

What a process that was stopped is in the middle of comes late all the same; the sink itself refuses that, for the part
was taken over there under a higher token (`walbus.consumers.sinks.taking_over`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from walbus.consumers.checkpoint import Checkpoint, Marks
from walbus.consumers.part_lease import PartLease
from walbus.consumers.sinks.layer import SinkLayer
from walbus.consumers.sinks.taking_over import FencedSink
from walbus.consumers.steps import Sweep
from walbus.errors import PartLost
from walbus.events import Window


class LeasedSink(SinkLayer[FencedSink]):
    """See `walbus.consumers.sinks.base.Sink`; raises PartLost where the lease is over.

    Where the sink says that another holder is there, the lease is lost for good.

    Args:
        sink: where windows go.
        lease: of the part.
        lease_seconds: how long it is.
    """

    def __init__(self, sink: FencedSink, lease: PartLease, lease_seconds: float) -> None:
        super().__init__(sink)
        self._lease, self._lease_seconds = lease, lease_seconds

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`: the part is taken over with it."""
        with self._held():
            return self._sink.take_over(self._lease.part, self._lease_seconds)

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._held():
            super().write(windows, marks)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._held():
            super().sweep(sweep)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        with self._held():
            super().commit(checkpoint)

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._lease.require()
        try:
            yield
        except PartLost:
            self._lease.lose()
            raise
