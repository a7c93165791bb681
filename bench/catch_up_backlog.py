"""Catch-up mode against `pg_recvlogical -f FILE`, both on the same backlog of many transactions.

Capture that is far behind reads in steps of 128 MiB of WAL and more through SQL, and streams the tail. Each reader gets
copies of one slot, in turn, and medians are reported. The time of Walbus counts from the moment at which its slot is
first in use until the log holds the last commit durably; that of pg_recvlogical from its start. `walbus, streaming`
is the same capture with `source.catch_up` off: what the steps save.

The log is read back after each round: it must hold every row exactly once. The status file must tell of steps.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from capture_backlog import KEPT, prepare, rows_in_log, run_reference, start_capture, until_free
from measured import Usage
from report import Report
from source import Source, open_server
from walbus.lsn import Lsn
from walbus.relay import open_reader

_DEADLINE = 900.0
_PER_TRANSACTION = 5
_STEP = 128 << 20
#: Steps that a backlog has at least, however small it is.
_STEPS = 4


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is to be read: so many rows, up to an LSN, by a capture that begins with a pristine log."""

    source: Source
    rows: int
    target: Lsn
    pristine: Path


def run(rows: int, rounds: int) -> Report:
    """Measures one backlog."""
    report = Report(
        "catch-up",
        "Catch-up",
        ("backlog", "reader", "seconds", "changes/s", "processor seconds", "peak MiB"),
        notes=["Medians over the rounds; seconds count from the first use of the slot, processor time from the start."],
    )
    with open_server() as (server, folder):
        source = Source(server, "bench_catch_up")
        pristine = prepare(source, folder)
        begin = source.insert_lsn()
        target = source.many_transactions(rows, _PER_TRANSACTION)
        step = min(_STEP, (target - begin) // _STEPS)
        backlog = Backlog(source, rows, target, pristine)
        readers: dict[str, Callable[[Path], Usage]] = {
            "walbus": partial(_walbus, backlog, {"CATCH_UP_STEP_BYTES": str(step)}),
            "walbus, streaming": partial(_walbus, backlog, {"CATCH_UP": "false"}),
            "pg_recvlogical": partial(_pg_recvlogical, backlog),
        }
        taken: dict[str, list[Usage]] = {name: [] for name in readers}
        for number in range(rounds):
            names = list(readers)[number % len(readers) :] + list(readers)[: number % len(readers)]
            for name in names:
                place = folder / f"round-{number}"
                taken[name].append(readers[name](place))
                shutil.rmtree(place)
        _tell(report, f"{rows:,} rows in {(target - begin) / 1e6:,.0f} MB of WAL", rows, taken)
    return report


def _tell(report: Report, backlog: str, rows: int, taken: dict[str, list[Usage]]) -> None:
    seconds = {name: statistics.median(usage.seconds for usage in usages) for name, usages in taken.items()}
    for name, usages in taken.items():
        cpu = statistics.median(usage.cpu for usage in usages)
        peak = max(usage.peak for usage in usages) / (1 << 20)
        rate = f"{rows / seconds[name]:,.0f}"
        report.row(backlog, name, f"{seconds[name]:.2f}", rate, f"{cpu:.2f}", f"{peak:.0f}")
    report.ratio("catchup/pg_recvlogical", seconds["pg_recvlogical"] / seconds["walbus"])
    report.ratio("catchup/streaming", seconds["walbus, streaming"] / seconds["walbus"])


def _walbus(backlog: Backlog, options: dict[str, str], place: Path) -> Usage:
    source, rows = backlog.source, backlog.rows
    shutil.copytree(backlog.pristine, place)
    source.copy_slot(KEPT, "walbus")
    capture = start_capture(source, place, **options)
    capture.until(lambda: source.streams("walbus"), _DEADLINE)
    capture.mark()
    with closing(open_reader(place / "relay")) as reader:  # opened once: looking must not cost what is measured
        seconds = capture.until(lambda: reader.bounds().end_lsn >= backlog.target, _DEADLINE)
    usage = capture.stop(seconds)
    until_free(source)
    if (held := rows_in_log(place)) != rows:
        raise RuntimeError(f"the log holds {held} of {rows} rows")
    steps = json.loads((place / "status" / "capture.json").read_text())["walbus_capture_catch_up_steps_total"]
    if (steps > 0) != ("CATCH_UP" not in options):
        raise RuntimeError(f"it was read in {steps} steps")
    return usage


def _pg_recvlogical(backlog: Backlog, place: Path) -> Usage:
    return run_reference(backlog.source, backlog.rows, backlog.target, place)
