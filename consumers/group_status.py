"""The status file of a process that fills parts of a sink: their figures together, and each part's own below `held`.

It has the keys of any consumer's. `phase` and `waiting_for` tell of the parts that are furthest from following the log,
`last_done` is that of the part which is furthest behind; counts are sums since the process started, those of parts that
it no longer has included.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from walbus.consumers.checkpoint import Part
from walbus.consumers.clock import Clock
from walbus.consumers.progress import ConsumerProgress
from walbus.position import ORIGIN, parse_position
from walbus.status import StatusFile

#: From the one that says the most of what is wanting.
_PHASES: Final = ("waiting", "paused", "starting", "listing", "snapshot", "delta", "catchup", "online", "stopped")
_COUNTS: Final = (
    "windows", "snapshot_rows", "delta_changes", "changes_skipped", "dead_letters", "walbus_consumer_changes_total",
)  # fmt: skip
_HIGHEST: Final = ("latency_p50_seconds", "latency_p99_seconds", "walbus_consumer_lag_seconds")


class PartProgress(ConsumerProgress):
    """What the consumer of a part tells of itself: to the relay, and, each second, to whoever looks at `told`.

    Args:
        name, sink: of the consumer.
        clock: time.

    Attributes:
        told: last.
    """

    def __init__(self, name: str, sink: str, clock: Clock) -> None:
        super().__init__(name, sink, None, clock)
        self.told = self.status("starting", None)

    def _tell(self, status: dict[str, Any]) -> None:
        self.told = status


class GroupStatus:
    """What a process tells of its parts. Written by one thread, while those of the parts come and go.

    Args:
        name, sink: of the consumer.
        parts: how many there are in all.
        path: of the status file; None for none.
        clock: time.
    """

    def __init__(self, name: str, sink: str, parts: int, path: Path | None, clock: Clock) -> None:
        self._name, self._sink, self._parts, self._clock = name, sink, parts, clock
        self._file = StatusFile(path, "reading is not touched by this")
        self._held: dict[Part, PartProgress] = {}
        self._before: Counter[str] = Counter()  # of parts that are no longer here
        self._lock = threading.Lock()

    @contextmanager
    def part(self, part: Part, name: str) -> Iterator[PartProgress]:
        """One more, for as long as it is here; `name` is that of its consumer."""
        progress = PartProgress(name, self._sink, self._clock)
        with self._lock:
            self._held[part] = progress
        try:
            yield progress
        finally:
            told = progress.status("stopped", None)
            with self._lock:
                del self._held[part]
                self._before.update({key: told[key] for key in _COUNTS})

    def write(self, member: str, waiting_for: str | None) -> None:
        """Replaces the status file, if it can be.

        Args:
            member: what the process is called in the group.
            waiting_for: why it is given nothing; `stopped`: it has ended.
        """
        self._file.write(self.document(member, waiting_for))

    def document(self, member: str, waiting_for: str | None) -> dict[str, Any]:
        """What `write` writes."""
        with self._lock:
            held = {
                part.partition: {"token": part.token, **progress.told} for part, progress in sorted(self._held.items())
            }
            before = Counter(self._before)
        worst = min(held.values(), key=lambda told: _PHASES.index(told["phase"]), default=None)
        if waiting_for is None and worst is None:
            waiting_for = f"it has been given none of the {self._parts} parts"
        lowest = min((parse_position(told["last_done"]) for told in held.values()), default=ORIGIN)
        return {
            "name": self._name,
            "sink": self._sink,
            "time": self._clock.wall(),
            "phase": "waiting" if worst is None else worst["phase"],
            "waiting_for": waiting_for or (worst or {}).get("waiting_for"),
            "last_done": str(lowest),
            **{key: before[key] + sum(told[key] for told in held.values()) for key in _COUNTS},
            **{
                key: max((told[key] for told in held.values() if told[key] is not None), default=None)
                for key in _HIGHEST
            },
            "walbus_consumer_last_done_lsn": lowest.commit_lsn,
            "parts": self._parts,
            "member": member,
            "held": held,
        }
