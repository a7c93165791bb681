"""A sink that stands before another one: all passes, but for what a subclass does otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from walbus.consumers.checkpoint import Checkpoint, Marks
from walbus.consumers.sinks.base import Batching, SettlingSink, Sink, WatchfulSink
from walbus.consumers.steps import Sweep
from walbus.events import Window

S = TypeVar("S", bound=Sink)


class SinkLayer(Generic[S]):
    """See `walbus.consumers.sinks.base.Sink`.

    Args:
        sink: where all goes.
    """

    def __init__(self, sink: S) -> None:
        self._sink = sink

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`."""
        return self._sink.batching

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        return self._sink.checkpoint()

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        self._sink.write(windows, marks)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        self._sink.sweep(sweep)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        self._sink.commit(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        self._sink.rollback()

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        return self._sink.incomplete()

    def settle(self) -> None:
        """See `SettlingSink.settle`."""
        below: Sink = self._sink
        if isinstance(below, SettlingSink):
            below.settle()

    def watch(self) -> bool:
        """See `WatchfulSink.watch`."""
        below: Sink = self._sink
        return isinstance(below, WatchfulSink) and below.watch()

    def close(self) -> None:
        """See `Sink.close`."""
        self._sink.close()
