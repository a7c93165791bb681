"""What a consumer tells of itself: the figures of its status file, and when to write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walbus.consumers.checkpoint import Checkpoint, whole_up_to
from walbus.consumers.clock import Clock
from walbus.consumers.latency import LatencyWindow
from walbus.consumers.reporting import Reporter
from walbus.events import Window
from walbus.position import ORIGIN, Position
from walbus.records import Kind
from walbus.status import StatusFile

STATUS_SECONDS = 1.0


@dataclass
class Tally:
    """What a commit made durable.

    Attributes:
        changes: of the log.
        snapshot_rows: of a snapshot.
        delta_changes: of a delta.
        windows: of any kind.
        commit_times: of the transactions, Unix seconds, in order.
    """

    changes: int = 0
    snapshot_rows: int = 0
    delta_changes: int = 0
    windows: int = 0
    commit_times: list[float] = field(default_factory=list)

    def add(self, windows: Sequence[Window]) -> None:
        """Counts windows; keeps no row."""
        self.windows += len(windows)
        for window in windows:
            if window.kind == Kind.SNAPSHOT:
                self.snapshot_rows += len(window.changes)
            if window.kind == Kind.DELTA:
                self.delta_changes += len(window.changes)
            if window.kind != Kind.TRANSACTION:
                continue
            self.changes += len(window.changes)
            if window.ends and window.xid:
                self.commit_times.append(window.commit_time.timestamp())


@dataclass
class ConsumerProgress:
    """Figures of one consumer since its process started.

    Attributes:
        name, sink: of the consumer.
        path: of the status file; None for none.
        clock: time.
        reporter: tells the relay; None until there is one.
        skipped, parked: changes that were left out for good, and that lie among the dead letters, under `on_error`.
        last_done: everything up to here is done; it stays where it was while a snapshot, or deltas, are read.
    """

    name: str
    sink: str
    path: Path | None
    clock: Clock
    reporter: Reporter | None = None
    skipped: int = field(default=0, init=False)
    parked: int = field(default=0, init=False)
    last_done: Position = field(default=ORIGIN, init=False)

    def __post_init__(self) -> None:
        self._file = StatusFile(self.path, "reading is not touched by this")
        self._latency = LatencyWindow()
        self._total = Tally()
        self._behind = 0.0  # seconds, of the newest transaction when it reached the sink
        self._due = 0.0

    def begins(self, checkpoint: Checkpoint | None) -> None:
        """Reading begins, or goes on, behind what the sink tells: what it had before does not count any more."""
        self.last_done = whole_up_to(checkpoint)

    def committed(self, tally: Tally, checkpoint: Checkpoint) -> None:
        """The sink has committed this much."""
        now = self.clock.wall()
        if (done := whole_up_to(checkpoint)) > ORIGIN:
            self.last_done = done
        if self.reporter is not None:
            self.reporter.durable(checkpoint)
        self._total.windows += tally.windows
        self._total.changes += tally.changes
        self._total.snapshot_rows += tally.snapshot_rows
        self._total.delta_changes += tally.delta_changes
        for commit_time in tally.commit_times:
            self._latency.add(now, max(0.0, now - commit_time))
        self._behind = max(0.0, now - tally.commit_times[-1]) if tally.commit_times else 0.0

    def publish(self, phase: str, waiting_for: str | None) -> None:
        """Leaves it with the reporter, and writes the status file if a second has passed."""
        now = self.clock.monotonic()
        if self.reporter is not None:
            self.reporter.doing(phase, waiting_for)
        if now < self._due:
            return
        self._due = now + STATUS_SECONDS
        self._tell(self.status(phase, waiting_for))

    def publish_now(self, phase: str, waiting_for: str | None) -> None:
        """Writes the status file."""
        self._due = 0.0
        self.publish(phase, waiting_for)

    def _tell(self, status: dict[str, Any]) -> None:
        self._file.write(status)

    def status(self, phase: str, waiting_for: str | None) -> dict[str, Any]:
        """What the status file has."""
        now = self.clock.wall()
        p50, p99 = self._latency.quantiles(now, 0.5, 0.99)
        return {
            "name": self.name,
            "sink": self.sink,
            "time": now,
            "phase": phase,
            "waiting_for": waiting_for,
            "last_done": str(self.last_done),
            "windows": self._total.windows,
            "snapshot_rows": self._total.snapshot_rows,
            "delta_changes": self._total.delta_changes,
            "changes_skipped": self.skipped,
            "dead_letters": self.parked,
            "latency_p50_seconds": p50,
            "latency_p99_seconds": p99,
            "walbus_consumer_changes_total": self._total.changes,
            "walbus_consumer_last_done_lsn": self.last_done.commit_lsn,
            "walbus_consumer_lag_seconds": self._behind,
        }
