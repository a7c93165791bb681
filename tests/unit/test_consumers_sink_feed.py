"""What the runner hands to a sink, and when: sizes and checkpoints alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from support.model_source import ITEMS, ModelSource, insert
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.runner import SinkFeed
from walbus.consumers.sinks.base import Batching, Sink
from walbus.consumers.steps import Deliver
from walbus.events import Window, window_of

MARKS = Marks(1, 1)


class RecordingSink:
    """Keeps the sizes of what was written."""

    batching = Batching(linger=1.0, max_changes=1_000, max_bytes=10_000)

    def __init__(self) -> None:
        self.written: list[int] = []

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        self.written.append(sum(map(len, windows)))

    def commit(self, checkpoint: Following) -> None:
        """Nothing."""


def test_a_transaction_of_large_rows_is_written_in_pieces_of_bounded_bytes() -> None:
    source, sink = ModelSource(), RecordingSink()
    source.commit([insert(ITEMS, n, "x" * 6_000) for n in range(9)], pieces=9)
    feed = SinkFeed(cast(Sink, sink), lambda *_: None)
    windows = [window_of(header, record, source.layouts.__getitem__) for header, record in source.records]
    for window in windows:
        done = Following("log-a", MARKS, Point(window.last, window.last_seq)) if window.ends else None
        feed.take(Deliver(window, MARKS, done), 0.0)
    feed.finish(0.0)
    assert sink.written == [2, 2, 2, 2, 1]
