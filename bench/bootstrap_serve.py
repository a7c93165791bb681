"""A snapshot over HTTP against a bare iteration over the same rows in RocksDB, both by processor time.

A store is seeded from a table with keys in random order. `walbus bootstrap` serves it to a client that throws the bytes
away; its processor time (of all its threads, from the request to the last byte) is compared with that of a Python
process of its own that steps through the same range of RocksDB and looks at every key and value. The snapshot must hold
every row. Medians over the rounds; the first one warms the caches of both, and is not counted.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rocksdict import AccessType, Options, Rdict

from bootstrap_apply import open_bootstrap, pristine_store
from capture_backlog import KEPT
from measured import cpu_time
from report import Report
from source import Source, open_server
from walbus.record_parser import RecordParser

_ROUND = tuple[float, float]  # processor seconds, seconds


def run(rows: int, rounds: int) -> Report:
    """Measures one table."""
    report = Report(
        "bootstrap-serve",
        "Snapshots",
        ("rows", "what", "seconds", "processor seconds", "rows/s of a core"),
        notes=["Medians over the rounds."],
    )
    with open_server() as (server, folder):
        source = Source(server, "serve")
        place = pristine_store(source, folder, rows)
        served = _served(source, place, rows, rounds)
        iterated = _iterated(place / "bootstrap", rows, rounds)
        source.drop_slot("walbus")
        source.drop_slot(KEPT)
        shutil.rmtree(place)
    for what, taken in (("walbus", served), ("RocksDB", iterated)):
        cpu, seconds = taken
        report.row(f"{rows:,}", what, f"{seconds:.2f}", f"{cpu:.2f}", f"{rows / cpu:,.0f}")
    report.ratio("serve/rocksdb", iterated[0] / served[0])
    return report


def _served(source: Source, place: Path, rows: int, rounds: int) -> _ROUND:
    taken: list[_ROUND] = []
    with open_bootstrap(source, place) as (bootstrap, url):
        if _rows_of(url) != rows:
            raise RuntimeError(f"the snapshot does not hold {rows} rows")
        for _ in range(rounds + 1):
            before, start = cpu_time(bootstrap.pid), time.perf_counter()
            with httpx.stream("GET", f"{url}/v1/snapshot?table=public.events", trust_env=False, timeout=60) as response:
                for _ in response.iter_raw(1 << 20):
                    pass
            taken.append((cpu_time(bootstrap.pid) - before, time.perf_counter() - start))
        bootstrap.stop()
    return _median(taken[1:])


def _rows_of(url: str) -> int:
    parser, rows = RecordParser(), 0
    with httpx.stream("GET", f"{url}/v1/snapshot?table=public.events", trust_env=False, timeout=60) as response:
        for data in response.iter_raw():
            parser.feed(data)
            rows += sum(header.count for header, _ in parser.records())
    return rows


def _iterated(store: Path, rows: int, rounds: int) -> _ROUND:
    out = subprocess.run(
        [sys.executable, __file__, str(store), str(rounds)], check=True, capture_output=True, text=True
    )
    told = json.loads(out.stdout)
    if told["rows"] != rows:
        raise RuntimeError(f"RocksDB holds {told['rows']} of {rows} rows")
    return _median([(cpu, seconds) for cpu, seconds in told["taken"]][1:])


def _median(taken: list[_ROUND]) -> _ROUND:
    return statistics.median(cpu for cpu, _ in taken), statistics.median(seconds for _, seconds in taken)


def _iterate(store: str, rounds: int) -> None:
    """Runs in a process of its own."""
    families = {name: Options(raw_mode=True) for name in ("entries", "changes", "missing")}
    options = Options(raw_mode=True)
    database = Rdict(store, options, column_families=families, access_type=AccessType.read_only(False))
    entries = database.get_column_family("entries")
    taken, rows = [], 0
    for _ in range(rounds + 1):
        before, start = time.process_time(), time.perf_counter()
        rows = sum(1 for _ in entries.items())
        taken.append((time.process_time() - before, time.perf_counter() - start))
    print(json.dumps({"rows": rows, "taken": taken}))


if __name__ == "__main__":
    _iterate(sys.argv[1], int(sys.argv[2]))
