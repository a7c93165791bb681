"""Seeding of one table against `COPY table TO STDOUT`, and what it does to a neighbour while it is throttled.

The table is filled before capture makes its slot, so that all its rows are the seeding's. The time of Walbus counts
from the moment at which the table is noticed until it is consistent: every row in the store, every W applied. That of
COPY is the time of `psql` with its output thrown away. The two take turns; medians are reported.

The neighbour is pgbench on another database of the server: its transactions a second alone, and while the table is
seeded with one and with another limit of rows a second. They take turns, and medians of their ratios are reported.
"""

from __future__ import annotations

import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from capture_backlog import start_capture
from measured import Measured, Usage
from report import Report
from source import Source, open_server
from walbus.demo.postgres import EmbeddedPostgres

_DEADLINE = 1200.0
_ROW = "i, mod(i, 1000), 'kind-' || mod(i, 7), i * 0.01, now(), md5(i::text) || md5((-i)::text)"
_TABLE = "public.events"
_WORKERS = 2
#: Rows a second of a throttled seeding, some percent of what it reads without a limit.
_LIMITS = (10_000, 20_000)
_TPS = re.compile(r"tps = ([0-9.]+)")


def run(rows: int, rounds: int, seconds: int) -> Report:
    """Measures both.

    Args:
        rows: of the table.
        rounds: of each of the two.
        seconds: for which pgbench runs, each time.
    """
    report = Report(
        "bootstrap-seed",
        "Seeding",
        ("table", "reader", "seconds", "rows/s", "processor seconds", "peak MiB"),
        notes=[f"Medians over the rounds; {_WORKERS} workers."],
    )
    with open_server() as (server, folder):
        source = Source(server, "seeded")
        source.fill("events", _ROW, rows, 50_000)
        source.execute("VACUUM (ANALYZE) events")
        capture = start_capture(source, folder / "data")
        capture.until(lambda: source.streams("walbus"), _DEADLINE)
        _compare(source, folder, rows, rounds, report)
        _neighbour(server, source, folder, rounds, seconds, report)
        capture.stop()
    return report


def _compare(source: Source, folder: Path, rows: int, rounds: int, report: Report) -> None:
    taken: dict[str, list[Usage]] = {"walbus": [], "COPY": []}
    for _ in range(rounds):
        taken["COPY"].append(_copy(source, folder))
        taken["walbus"].append(_seed(source, folder, rows))
    median = {name: statistics.median(usage.seconds for usage in usages) for name, usages in taken.items()}
    for name, usages in taken.items():
        cpu = statistics.median(usage.cpu for usage in usages)
        peak = max(usage.peak for usage in usages) / (1 << 20)
        rate = f"{rows / median[name]:,.0f}"
        report.row(f"{rows:,} rows", name, f"{median[name]:.2f}", rate, f"{cpu:.2f}", f"{peak:.0f}")
    report.ratio("seed/COPY", median["COPY"] / median["walbus"])


def _copy(source: Source, folder: Path) -> Usage:
    program = str(source.server.bin_dir / "psql")
    command = [program, "-q", "-X", "-d", source.database, "-c", "COPY events TO STDOUT", "-o", "/dev/null"]
    return Measured(command, source.libpq_environment(), folder / "psql.log").finish()


def _seed(source: Source, folder: Path, rows: int) -> Usage:
    with _bootstrap(source, folder) as (process, url):
        process.until(lambda: _state(url) is not None, _DEADLINE)
        process.mark()
        seconds = process.until(lambda: _state(url) == "consistent", _DEADLINE)
        if (held := _table(url)["rows"]) != rows:
            raise RuntimeError(f"the store holds {held} of {rows} rows")
        return process.stop(seconds)


def _neighbour(  # noqa: PLR0913, PLR0917  (what it measures, how often, and where it is told)
    server: EmbeddedPostgres, source: Source, folder: Path, rounds: int, seconds: int, report: Report
) -> None:
    """Pgbench's transactions a second beside throttled seedings, against those alone."""
    with server.connect() as admin:
        admin.execute("CREATE DATABASE neighbour")
    environment = {**source.libpq_environment(), "PGDATABASE": "neighbour"}
    program = str(server.bin_dir / "pgbench")
    subprocess.run([program, "-i", "-q", "-s", "10"], env=environment, check=True, capture_output=True)
    command = [program, "-n", "-c", "2", "-T", str(seconds)]
    _tps(command, environment)  # until its tables and the server's buffers are what they will be
    ratios: dict[int, list[float]] = {limit: [] for limit in _LIMITS}
    for _ in range(rounds):
        alone = _tps(command, environment)
        for limit, found in ratios.items():
            with _bootstrap(source, folder, MAX_ROWS_PER_SECOND=str(limit)) as (process, url):
                process.until(lambda: _state(url) is not None and _table(url)["rows"] > 0, _DEADLINE)
                found.append(_tps(command, environment) / alone)
                process.stop()
    for limit, found in ratios.items():
        report.ratio(f"pgbench beside {limit:,} rows seeded a second/alone", statistics.median(found))


def _tps(command: list[str], environment: Mapping[str, str]) -> float:
    told = subprocess.run(command, env=dict(environment), check=True, capture_output=True, text=True).stdout
    found = _TPS.search(told)
    if found is None:
        raise RuntimeError(f"pgbench tells no rate: {told}")
    return float(found[1])


@contextmanager
def _bootstrap(source: Source, folder: Path, **options: str) -> Iterator[tuple[Measured, str]]:
    """A bootstrap with an empty store beside the capture that runs, and its address."""
    data = folder / "data"
    shutil.rmtree(data / "bootstrap", ignore_errors=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {"LISTEN": address, "WORKERS": str(_WORKERS), **options}
    environment = {"WALBUS_SOURCE__DSN": source.dsn, "WALBUS_DATA_DIR": str(data), "WALBUS_LOG__LEVEL": "warning"}
    environment |= {f"WALBUS_BOOTSTRAP__{name}": value for name, value in options.items()}
    command = [sys.executable, "-P", "-m", "walbus", "bootstrap", "-c", str(data / "walbus.toml")]
    yield Measured(command, environment, folder / "bootstrap.log"), f"http://{address}"


def _table(url: str) -> dict[str, int]:
    """What the bootstrap says of the table; empty while it does not know it."""
    try:
        response = httpx.get(f"{url}/v1/tables", trust_env=False)
    except httpx.TransportError:
        return {}
    tables = response.json().get("tables", []) if response.status_code == 200 else []
    return next((table for table in tables if table["table"] == _TABLE), {})


def _state(url: str) -> object:
    time.sleep(0.02)  # looking must not cost what is measured
    return _table(url).get("state")
