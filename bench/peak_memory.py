"""Peak memory of each process with a backlog, and with one ten times as large.

The backlog is one transaction, written while nothing of Walbus runs: all of it lies before capture, then before the
relay's reader, bootstrap and the consumer, who starts at the log's beginning. Memory that grows with the backlog shows
as a ratio well above 1; a figure is read when the last row is in SQLite and in the bootstrap store.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from report import Report
from rooms import Rooms, open_rooms
from source import Source, open_server

_DEADLINE = 900.0


def run(small: int) -> Report:
    """Measures with `small` rows, and with ten times as many."""
    large = small * 10
    report = Report(
        "memory",
        "Memory",
        ("process", f"MiB at {small:,} rows", f"MiB at {large:,} rows"),
        notes=[
            "Peak resident memory of each process; all rows in one transaction. The store of bootstrap has a cache of"
            " 64 MiB and write buffers of 128 MiB, which fill up with the first rows and then stay as they are."
        ],
    )
    with open_server() as (server, folder):
        first = _peaks(Source(server, "small"), small, folder / "small")
        second = _peaks(Source(server, "large"), large, folder / "large")
    for name in first:
        report.row(name, f"{first[name] / (1 << 20):.0f}", f"{second[name] / (1 << 20):.0f}")
        report.ratio(f"memory-10x/memory {name}", second[name] / first[name])
    return report


def _peaks(source: Source, rows: int, folder: Path) -> dict[str, int]:
    """Peaks by process. The slot is made by a first, short run, so that the backlog lies behind it."""
    _make_slot(source)
    source.one_transaction(rows)
    with open_rooms(source, folder, start="earliest") as rooms:
        rooms.wait(lambda: _last_row(rooms.cache) >= rows, _DEADLINE)
        rooms.wait(lambda: _applied(rooms), _DEADLINE)
        return rooms.peaks()


def _make_slot(source: Source) -> None:
    source.execute("CREATE PUBLICATION walbus FOR TABLE events")
    source.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")


def _applied(rooms: Rooms) -> bool:
    status = rooms.status("bootstrap")
    return status.get("walbus_bootstrap_lag_bytes") == 0


def _last_row(cache: Path) -> int:
    """The largest id that is there: rows arrive in its order, and an index answers."""
    try:
        with closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True, timeout=1)) as connection:
            return int(connection.execute("SELECT max(id) FROM events").fetchone()[0] or 0)
    except sqlite3.Error:
        return 0
