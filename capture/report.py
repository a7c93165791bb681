"""What capture tells of itself: one status file, rewritten about each second, its figures by metric name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from walbus.amounts import human_bytes
from walbus.capture.retention import RetentionWatch
from walbus.errors import LogFull, LogUnreachable
from walbus.lsn import format_lsn
from walbus.metrics import MetricName
from walbus.status import StatusFile

State = Literal[
    "connecting", "catching up", "streaming", "disk full", "log unreachable", "waiting to reconnect", "stopped"
]


def hindrance(full: LogFull) -> State:
    """The state of a capture whose log takes nothing now."""
    return "log unreachable" if isinstance(full, LogUnreachable) else "disk full"


class Report:
    """Figures of one capture process.

    Args:
        path: of the status file; None for none.
        clock: Unix seconds.
        about: fields that never change (slot, publication).
        retention: what the slot holds back, as the catalog's watch sees it.
    """

    def __init__(
        self, path: Path | None, clock: Callable[[], float], about: dict[str, str], retention: RetentionWatch
    ) -> None:
        self._file = StatusFile(path, "capture goes on")
        self._clock = clock
        self._about = about
        self.retention = retention
        self._lag: float | None = None
        self.state: State = "connecting"
        self.error: str | None = None  #: why it is not streaming
        self.timeline = 0
        self.tables = 0  #: published tables
        self.received_lsn = 0
        self.confirmed_lsn = 0
        self.transactions = 0
        self.changes = 0
        self.repeats = 0
        self.spooled_bytes = 0  #: of transactions that are open, or prepared, at the source
        self.standbys_away: tuple[str, ...] = ()  #: required ones that do not report: nothing is confirmed
        self.protocol = 0  #: of pgoutput
        self.reconnects = 0
        self.catch_up: str | None = None  #: why steps are off, once they should have been taken
        self.catch_up_steps = 0
        self.catch_up_left = 0  #: bytes of WAL that were still to be read when the last step ended

    def note_lag(self, seconds: float) -> None:
        """A commit is durable, or still waits to be, so long after it was made; the longest since the last `write`."""
        self._lag = max(seconds, self._lag or 0.0, 0.0)

    def write(self) -> None:
        """Replaces the status file; figures that nobody knows now are left out."""
        lag, self._lag = self._lag, None
        metrics = {**self._figures(), **self._retained()}
        if lag is not None:
            metrics["walbus_capture_lag_seconds"] = round(lag, 3)
        fields: dict[str, object] = {
            **self._about,
            "state": self.state,
            "error": self.error,
            "catch_up": self._catch_up(),
            "timeline": self.timeline,
            "protocol": self.protocol,
            "tables": self.tables,
            "received": format_lsn(self.received_lsn),
            "confirmed": format_lsn(self.confirmed_lsn),
            "standbys_away": list(self.standbys_away),
            "wal_status": self.retention.last and self.retention.last.wal_status,
            "updated": self._clock(),
        }
        self._file.write(fields | {str(name): figure for name, figure in metrics.items()})

    def _figures(self) -> dict[MetricName, object]:
        return {
            "walbus_capture_transactions_total": self.transactions,
            "walbus_capture_changes_total": self.changes,
            "walbus_capture_repeats_total": self.repeats,
            "walbus_capture_reconnects_total": self.reconnects,
            "walbus_capture_received_lsn": self.received_lsn,
            "walbus_capture_confirmed_lsn": self.confirmed_lsn,
            "walbus_capture_lag_bytes": max(0, self.received_lsn - self.confirmed_lsn),
            "walbus_capture_catch_up_steps_total": self.catch_up_steps,
            "walbus_capture_spooled_bytes": self.spooled_bytes,
            "walbus_capture_standbys_away": len(self.standbys_away),
            "walbus_capture_disk_full": int(self.state == "disk full"),
            "walbus_capture_log_unreachable": int(self.state == "log unreachable"),
        }

    def _retained(self) -> dict[MetricName, object]:
        last = self.retention.last
        if last is None:
            return {}
        figures: dict[MetricName, object] = {"walbus_capture_retained_wal_bytes": last.retained_bytes}
        if last.safe_bytes is not None:
            figures["walbus_capture_slot_safe_bytes"] = last.safe_bytes
        return figures

    def _catch_up(self) -> str | None:
        """One phrase for the status file: progress while catching up, why it is off, or nothing."""
        if self.state == "catching up":
            return f"{self.catch_up_steps} steps, {human_bytes(self.catch_up_left)} of WAL left"
        return self.catch_up
