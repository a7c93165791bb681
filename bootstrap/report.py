"""How far the bootstrap is: for the status file, for `/metrics`, and for the log while tables are seeded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.pace import Progress
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import Phase
from walbus.metrics import MetricName
from walbus.relay.gauges import Refusals

log = structlog.get_logger(__name__)

_TELL_EVERY = 5.0


class Report:
    """Figures of one ledger, and what its server turned away (by reason). Thread-safe."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float], refusals: Mapping[str, int]) -> None:
        self._ledger = ledger
        self._refusals = Refusals("walbus_bootstrap_refusals_total", refusals)
        self._clock = clock
        self._progress = Progress(clock)
        self._tables: dict[bytes, Progress] = {}  # of each generation that is being seeded, by its space
        self._lock = threading.Lock()
        self._told_at = clock()
        self._end_lsn = 0
        self.tombstones = 0  #: as the upkeep counted them last
        self.disk_full = False  #: whether nothing is applied for want of room
        self.log_problem: str | None = None  #: why the log is not followed

    def observe(self, end_lsn: int) -> None:
        """Takes a sample, about each second; tells the log about seeding every few seconds.

        Args:
            end_lsn: commit LSN of the log's end, for the lag.
        """
        with self._lock:
            self._end_lsn = max(self._end_lsn, end_lsn)
            done, total = self._blocks()
            self._progress.observe(done)
            runs = {run.space: run for run in self._seeding()}
            self._tables = {space: self._tables.get(space) or Progress(self._clock) for space in runs}
            for space, run in runs.items():
                self._tables[space].observe(run.blocks_done)
            if done < total and self._clock() - self._told_at >= _TELL_EVERY:
                self._told_at = self._clock()
                left = self._seconds_left(total)
                log.info("seeding", percent=round(100 * done / total, 1), seconds_left=left)

    def status(self) -> dict[str, Any]:
        """The content of the status file."""
        with self._lock:
            done, total = self._blocks()
            left = self._seconds_left(total) if done < total else 0
        applied = self._ledger.applied
        runs = self._ledger.runs()
        figures: dict[str, Any] = dict(self._figures().items())
        waits = {"state": "waits_for_log", "error": self.log_problem} if self.log_problem else {}
        return {
            **figures,
            **waits,
            "log_id": applied.log_id if applied else None,
            "applied": str(applied.position) if applied else None,
            "seeding_seconds_left": left,
            "tables": [
                _described(run) | self._left(run)
                for run in sorted(runs, key=lambda run: (run.state.table, run.state.generation))
            ],
        }

    def seeding(self) -> list[dict[str, Any]]:
        """Of each generation that is being seeded: how far it is."""
        runs = [run for run in self._ledger.runs() if run.seeding]
        return [_described(run) | self._left(run) for run in sorted(runs, key=lambda run: run.state.table)]

    def _left(self, run: TableRun) -> dict[str, Any]:
        """The seconds that a seeding takes yet, None as long as that cannot be told; nothing of other generations."""
        if not run.seeding:
            return {}
        with self._lock:
            progress = self._tables.get(run.space)
            left = progress.seconds_left(run.state.cut.blocks) if progress and run.state.cut else None
        return {"seconds_left": None if left is None else round(left)}

    def metrics(self) -> bytes:
        """The Prometheus text form."""
        registry = CollectorRegistry()
        registry.register(self._refusals)
        for name, value in self._figures().items():
            Gauge(name, _HELP[name], registry=registry).set(value)
        rows = Gauge(_ROWS, _HELP[_ROWS], ["table"], registry=registry)
        for run in list(self._ledger.tables.values()):
            rows.labels(run.state.table).set(run.rows)
        return generate_latest(registry)

    def _figures(self) -> dict[MetricName, int]:
        applied = self._ledger.applied
        applied_lsn = applied.commit_lsn if applied else 0
        done, total = self._chunks()
        store = self._ledger.store.figures()
        return {
            "walbus_bootstrap_applied_lsn": applied_lsn,
            "walbus_bootstrap_lag_bytes": max(0, self._end_lsn - applied_lsn),
            "walbus_bootstrap_seeding_chunks_done": done,
            "walbus_bootstrap_seeding_chunks_total": total,
            "walbus_bootstrap_store_bytes": store.bytes,
            "walbus_bootstrap_store_keys": store.keys,
            "walbus_bootstrap_store_memory_bytes": store.memory_bytes,
            "walbus_bootstrap_compaction_bytes": store.compaction_bytes,
            "walbus_bootstrap_writes_slowed": int(store.slowed),
            "walbus_bootstrap_tombstones": self.tombstones,
            "walbus_bootstrap_disk_full": int(self.disk_full),
        }

    def _seeding(self) -> list[TableRun]:
        return [run for run in self._ledger.runs() if run.seeding and run.state.cut is not None]

    def _chunks(self) -> tuple[int, int]:
        """Chunks done, and done or expected, of the tables that are being seeded."""
        runs = self._seeding()
        return sum(len(run.done) for run in runs), sum(run.chunks_expected for run in runs)

    def _blocks(self) -> tuple[int, int]:
        """Blocks done and counted, of the tables that are being seeded."""
        runs = self._seeding()
        return sum(run.blocks_done for run in runs), sum(run.state.cut.blocks for run in runs if run.state.cut)

    def _seconds_left(self, total: int) -> int | None:
        left = self._progress.seconds_left(total)
        return None if left is None else round(left)


_ROWS: MetricName = "walbus_bootstrap_rows"
_HELP: dict[MetricName, str] = {
    "walbus_bootstrap_applied_lsn": "Commit LSN that the store has applied",
    "walbus_bootstrap_lag_bytes": "Log end minus applied",
    "walbus_bootstrap_rows": "Rows held, by table (estimate)",
    "walbus_bootstrap_seeding_chunks_done": "Chunks read of the tables that are being seeded",
    "walbus_bootstrap_seeding_chunks_total": "Chunks of the tables that are being seeded",
    "walbus_bootstrap_store_bytes": "Bytes of the store's files",
    "walbus_bootstrap_store_keys": "Keys held, deleted ones too (estimate)",
    "walbus_bootstrap_store_memory_bytes": "Memory of the store's caches and buffers",
    "walbus_bootstrap_compaction_bytes": "Bytes of the store that wait to be rewritten in order (estimate)",
    "walbus_bootstrap_writes_slowed": "1 while the store makes the applier wait for compaction",
    "walbus_bootstrap_tombstones": "Deleted keys that are kept for deltas, as counted last",
    "walbus_bootstrap_disk_full": "1 while nothing is applied for want of room",
}


def _described(run: TableRun) -> dict[str, Any]:
    state = run.state
    described: dict[str, Any] = {
        "table": state.table, "state": state.phase.value, "generation": state.generation, "rows": run.rows
    }  # fmt: skip
    if state.reason:
        described["reason"] = state.reason
    if state.stale:
        described["stale"] = state.stale
    if state.phase is Phase.SEEDING and state.cut is not None:
        described |= {
            "chunks_done": len(run.done),
            "chunks_total": run.chunks_expected,
            "blocks_done": run.blocks_done,
            "blocks_total": state.cut.blocks,
            "rows_read": sum(chunk.rows for chunk in list(run.done.values())),
            "bytes_read": sum(chunk.bytes for chunk in list(run.done.values())),
            "held": run.held,
        }
    return described
