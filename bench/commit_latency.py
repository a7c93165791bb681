"""From a commit in PostgreSQL to the row in the SQLite sink, under a steady load, beside pg_recvlogical's pipe.

pgbench keeps up the load. Beside it one session counts a row up, about thirty times a second, and notes when it sent
the statement. One watcher looks into the SQLite file until the number is there (every millisecond: the latency's
resolution); another reads the standard output of `pg_recvlogical -f -` on a slot of its own, which is the soonest that
any program can have the change. Both are measured from the same moment, so that the commit itself is in both.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg

from report import Report
from rooms import open_rooms
from source import Source, open_server

PROBE = "CREATE TABLE probe (id integer PRIMARY KEY, n bigint NOT NULL, mark text NOT NULL)"
COUNT_UP = "UPDATE probe SET n = %(n)s, mark = %(mark)s WHERE id = 1"
MARK = re.compile(rb"mark-(\d+);")
_LOAD = """
INSERT INTO events
VALUES (nextval('events_id'), 1, 'load', 1.5, now(), 'a note of the length that notes have, or nearly so')
"""
_BETWEEN_LOOKS = 0.001
BETWEEN_PROBES = 0.02
_DEADLINE = 60.0


class StreamWatcher:
    """Reads the output of pg_recvlogical, and notes when each mark came by."""

    def __init__(self, source: Source) -> None:
        self.seen: dict[int, float] = {}
        source.execute("SELECT pg_create_logical_replication_slot('reference', 'pgoutput')")
        options = [f"--dbname={source.database}", "--slot=reference", "--start", "--no-loop", "--file=-"]
        self._process = subprocess.Popen(
            [
                str(source.server.bin_dir / "pg_recvlogical"),
                *options,
                "-o",
                "proto_version=1",
                "-o",
                "publication_names=walbus",
            ],
            env=source.libpq_environment(),
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := self._process.stdout.read(1 << 16):
            now = time.perf_counter()
            for mark in MARK.findall(rest + chunk):
                self.seen.setdefault(int(mark), now)
            rest = chunk[-32:]

    def stop(self) -> None:
        """Ends pg_recvlogical."""
        self._process.terminate()
        self._process.wait()
        self._thread.join(10)


def run(rate: int, seconds: int) -> Report:
    """Measures for `seconds` at `rate` transactions a second."""
    report = Report("latency", "Latency", ("from the commit to", "p50 ms", "p99 ms", "probes"))
    with open_server() as (server, folder):
        source = Source(server, "bench")
        source.execute(PROBE)
        source.execute("INSERT INTO probe VALUES (1, 0, ''); CREATE SEQUENCE events_id")
        with open_rooms(source, folder / "rooms", start="snapshot") as rooms:
            rooms.wait(lambda: _number(rooms.cache) is not None, _DEADLINE)
            watcher = StreamWatcher(source)
            with load(source, rate, seconds, folder):
                sqlite = probe(source, lambda: _number(rooms.cache), watcher, seconds)
            watcher.stop()
    report.notes.append(load_note(rate))
    summarise(report, "the row in SQLite", sqlite)
    for share in (0.5, 0.99):
        ratio = quantile(sorted(to for to, _ in sqlite), share) / quantile(sorted(pipe for _, pipe in sqlite), share)
        report.ratio(f"commit-to-sqlite/pg_recvlogical p{share * 100:.0f}", ratio)
    return report


def load_note(rate: int) -> str:
    """What the figures were measured under."""
    return f"{rate:,} transactions a second beside the probes. The clock starts before the statement is sent."


def probe(
    source: Source, number_there: Callable[[], int | None], watcher: StreamWatcher, seconds: int
) -> list[tuple[float, float]]:
    """Pairs of (to the sink, to pg_recvlogical's pipe) in seconds, in the order of the probes.

    Args:
        source: with the table of `PROBE`.
        number_there: looks into the sink; None while the row is not there.
        watcher: of the pipe.
        seconds: for so long.
    """
    pairs = []
    end = time.monotonic() + seconds
    number = 0
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        while time.monotonic() < end:
            number += 1
            begin = time.perf_counter()
            connection.execute(COUNT_UP, {"n": number, "mark": f"mark-{number};"})
            arrived = _until_there(number_there, number)
            pairs.append((arrived - begin, _stream_time(watcher, number) - begin))
            time.sleep(BETWEEN_PROBES)
    return pairs


def _until_there(number_there: Callable[[], int | None], number: int) -> float:
    end = time.monotonic() + _DEADLINE
    while (number_there() or 0) < number:
        if time.monotonic() > end:
            raise RuntimeError(f"probe {number} did not arrive")
        time.sleep(_BETWEEN_LOOKS)
    return time.perf_counter()


def _stream_time(watcher: StreamWatcher, number: int) -> float:
    end = time.monotonic() + _DEADLINE
    while number not in watcher.seen:
        if time.monotonic() > end:
            raise RuntimeError(f"pg_recvlogical did not send probe {number}")
        time.sleep(_BETWEEN_LOOKS)
    return watcher.seen[number]


def _number(cache: Path) -> int | None:
    try:
        with closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True, timeout=1)) as connection:
            row = connection.execute("SELECT n FROM probe WHERE id = 1").fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else int(row[0])


@contextmanager
def load(source: Source, rate: int, seconds: int, folder: Path) -> Iterator[None]:
    """Load by pgbench at `rate` transactions a second, a little longer than `seconds`."""
    script = folder / "load.sql"
    script.write_text(_LOAD.strip().replace("\n", " ") + ";\n")
    program = str(source.server.bin_dir / "pgbench")
    options = ["--no-vacuum", "--client=2", f"--rate={rate}", f"--time={seconds + 5}", f"--file={script}"]
    with (folder / "pgbench.log").open("wb") as log:
        process = subprocess.Popen([program, *options], env=source.libpq_environment(), stdout=log, stderr=log)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"pgbench ended early: {(folder / 'pgbench.log').read_text()}")
    finally:
        process.kill()
        process.wait()


def summarise(report: Report, what: str, pairs: list[tuple[float, float]]) -> None:
    """Rows of `what` and of the pipe."""
    sink, stream = (sorted(column) for column in zip(*pairs, strict=True))
    for name, values in ((what, sink), ("pg_recvlogical's pipe", stream)):
        p50, p99 = (f"{quantile(values, share) * 1000:.1f}" for share in (0.5, 0.99))
        report.row(name, p50, p99, str(len(values)))


def quantile(ordered: list[float], share: float) -> float:
    """The value below which a share of them lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
