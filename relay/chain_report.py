"""What a relay that copies another one tells of that: a status file, its figures by metric name.

`/v1/info` shows it under `upstream`, and /metrics its figures; nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from walbus.metrics import MetricName
from walbus.relay.tip import Tip
from walbus.relay.upstream import Origin
from walbus.status import StatusFile

State = Literal["connecting", "copying", "waiting", "disk full", "stopped"]


class ChainReport:
    """The status of one process's copying.

    Args:
        path: of the file; None for none.
        clock: Unix seconds.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self._file = StatusFile(path, "copying goes on")
        self._clock = clock
        self._state: State = "connecting"
        self._error: str | None = None
        self._url: str | None = None
        self._required = False
        self._connections = 0
        self._here: Tip | None = None
        self._there: Tip | None = None

    def connected(self, url: str, origin: Origin) -> None:
        """Copying begins."""
        self._connections += 1
        self._url, self._required, self._there = url, origin.required, origin.tip
        self.tell("copying", None)

    def progress(self, here: Tip, there: Tip) -> None:
        """How far both logs are durable."""
        self._here, self._there = here, there
        self._write()

    def tell(self, state: State, error: str | None) -> None:
        """Another state."""
        self._state, self._error = state, error
        self._write()

    def _write(self) -> None:
        fields: dict[str, object] = {
            "state": self._state,
            "error": self._error,
            "url": self._url,
            "required": self._required,
            "end": self._here and str(self._here.position),
            "upstream_end": self._there and str(self._there.position),
            "updated": self._clock(),
        }
        figures = {str(name): figure for name, figure in self._figures().items()}
        self._file.write(fields | figures)

    def _figures(self) -> dict[MetricName, float]:
        figures: dict[MetricName, float] = {
            "walbus_relay_upstream_connected": int(self._state == "copying"),
            "walbus_relay_upstream_reconnects_total": max(self._connections - 1, 0),
        }
        here, there = self._here, self._there
        if here is not None and there is not None:
            behind = there.position > here.position
            age = self._clock() - here.commit_time / 1e6 if behind and here.commit_time else 0.0
            figures["walbus_relay_upstream_lag_bytes"] = max(there.end_lsn - here.end_lsn, 0)
            figures["walbus_relay_upstream_lag_seconds"] = round(max(age, 0.0), 3)
        return figures
