"""Windows on their way into a sink, as many at a time as arrive together.

A commit happens only between windows. A transaction that is larger than the sink's batch is written in pieces, which
the sink keeps uncommitted (or shows early, if it has no transactions) until the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from walbus.consumers.checkpoint import Checkpoint, Marks
from walbus.consumers.progress import Tally
from walbus.consumers.sinks import Sink
from walbus.consumers.steps import Advance, Asked, Deliver, DeliverRun, Discard, Output, Sweep
from walbus.events import Window

#: Seconds between two checkpoints that are stored only because the log moved on without anything for the consumer.
IDLE_COMMIT_SECONDS = 1.0


@dataclass
class SinkFeed:
    """Batches outputs of a session into a sink. Pure but for the sink: time is passed in.

    Attributes:
        sink: where windows go.
        committed: called with what each commit made durable, and its checkpoint.
    """

    sink: Sink
    committed: Callable[[Tally, Checkpoint], None]
    _pending: list[Window] = field(default_factory=list, init=False)
    _written: Tally = field(default_factory=Tally, init=False)  # of windows that are written and not committed
    _changes: int = field(default=0, init=False)  # in `_pending`
    _bytes: int = field(default=0, init=False)  # of rows in `_pending`
    _marks: Marks = field(default=Marks(0, 0), init=False)
    _checkpoint: Checkpoint | None = field(default=None, init=False)  # holds once all that was taken is committed
    _whole: bool = field(default=True, init=False)  # whether what was taken ends with a transaction
    _since: float | None = field(default=None, init=False)  # when the oldest uncommitted window came
    _idle_at: float = field(default=0.0, init=False)  # when a checkpoint without windows is next due

    @property
    def is_whole(self) -> bool:
        """Whether what was taken ends with a transaction."""
        return self._whole

    @property
    def is_clean(self) -> bool:
        """Whether everything that was taken is committed, but for a checkpoint without windows."""
        return self._whole and self._since is None

    def take(self, output: Output, now: float) -> None:
        """Accepts one output; writes and commits what is due.

        Raises:
            SinkUnavailable, SinkRefused
        """
        match output:
            case Deliver(window, marks, checkpoint):
                self._take_window(window, marks, checkpoint, now)
            case DeliverRun(windows, marks, checkpoint):
                for window in windows:  # nothing is committed between them
                    self._take_window(window, marks, checkpoint, now)
            case Sweep(checkpoint=checkpoint):
                self._write()
                self.sink.sweep(output)
                self._checkpoint = checkpoint
                self._commit(now)
            case Advance(checkpoint):
                self._checkpoint = checkpoint
            case Discard():
                self._drop()
                self.sink.rollback()
            case Asked():
                self.finish(now)

    def flush_due(self, now: float) -> None:
        """Commits if the oldest window has waited long enough, or if the log moved on without windows."""
        if not self._whole or self._checkpoint is None:
            return
        if self._since is None:
            if now >= self._idle_at:
                self._commit(now)
        elif now - self._since >= self.sink.batching.linger:
            self._commit(now)

    def wait(self, now: float, longest: float) -> float:
        """Seconds until `flush_due` has something to do, at most `longest`."""
        if self._since is None or not self._whole:
            return longest
        return min(longest, max(0.0, self._since + self.sink.batching.linger - now))

    def finish(self, now: float) -> None:
        """Commits whatever whole windows are there."""
        if self._whole and self._checkpoint is not None:
            self._commit(now)

    def _take_window(self, window: Window, marks: Marks, checkpoint: Checkpoint | None, now: float) -> None:
        if checkpoint is None and self._whole and self._since is not None:
            self._commit(now)  # a large transaction begins: what is whole does not wait for its end
        if marks != self._marks:
            self._write()
        self._pending.append(window)
        self._changes += len(window.changes)
        self._bytes += sum(len(change.raw.after or b"") for change in window.changes)
        self._whole = checkpoint is not None
        self._since = now if self._since is None else self._since
        self._marks = marks
        self._checkpoint = checkpoint or self._checkpoint
        batching = self.sink.batching
        if self._changes >= batching.max_changes or self._bytes >= batching.max_bytes:
            self._write()

    def _write(self) -> None:
        if self._pending:
            self.sink.write(self._pending, self._marks)
            self._written.add(self._pending)
            self._pending, self._changes, self._bytes = [], 0, 0

    def _commit(self, now: float) -> None:
        checkpoint = self._checkpoint
        if checkpoint is None:
            return
        self._write()
        self.sink.commit(checkpoint)
        written = self._written
        self._drop()
        self._idle_at = now + IDLE_COMMIT_SECONDS
        self.committed(written, checkpoint)

    def _drop(self) -> None:
        self._pending, self._written, self._changes, self._bytes = [], Tally(), 0, 0
        self._checkpoint, self._since, self._whole = None, None, True
