"""What the runner hands to a sink, and when: sizes and checkpoints alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from support.model_source import ITEMS, ModelSource, insert
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sink_feed import SinkFeed
from walbus.consumers.sinks.base import Batching, Sink
from walbus.consumers.steps import Advance, Asked, Deliver
from walbus.events import Window, window_of
from walbus.position import Position

MARKS = Marks(1, 1)


class RecordingSink:
    """Keeps the sizes of what was written."""

    batching = Batching(linger=1.0, max_changes=1_000, max_bytes=10_000)

    def __init__(self) -> None:
        self.written: list[int] = []
        self.committed: list[Following] = []

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        self.written.append(sum(map(len, windows)))

    def commit(self, checkpoint: Following) -> None:
        self.committed.append(checkpoint)


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


def at(lsn: int) -> Following:
    return Following("log-a", MARKS, Point(Position(1, lsn, 1), lsn))


def test_somebody_who_waits_has_what_is_whole_committed_at_once() -> None:
    source, sink = ModelSource(), RecordingSink()
    source.commit([insert(ITEMS, 1, "x"), insert(ITEMS, 2, "y")], pieces=2)
    feed = SinkFeed(cast(Sink, sink), lambda *_: None)
    feed.take(Advance(at(16)), 0.0)
    feed.flush_due(0.0)
    feed.take(Advance(at(32)), 0.1)
    feed.flush_due(0.1)  # a checkpoint without windows is stored once a second
    assert sink.committed == [at(16)]
    feed.take(Asked(Position(1, 32, 1)), 0.1)
    assert sink.committed == [at(16), at(32)]
    first, last = (window_of(header, record, source.layouts.__getitem__) for header, record in source.records)
    feed.take(Deliver(first, MARKS, None), 0.2)
    feed.take(Asked(Position(1, 48, 1)), 0.2)
    assert sink.committed == [at(16), at(32)]  # half of a transaction is not
    feed.take(Deliver(last, MARKS, at(64)), 0.3)
    feed.take(Asked(Position(1, 64, 1)), 0.3)
    assert sink.committed == [at(16), at(32), at(64)]
