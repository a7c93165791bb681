"""From a commit in PostgreSQL to its transaction in the durable log, under a steady load, beside pg_recvlogical's pipe.

Capture alone runs (no relay, bootstrap or consumer). pgbench keeps up the load. Beside it one session counts a row up
and notes when it sent the statement. One watcher follows the log as any reader does: it is woken when a sync has
published a new end, and reads up to there, so what it sees is durable. Another reads the standard output of
`pg_recvlogical -f -` on a slot of its own, which is the soonest that any program can have the change. Both are measured
from the same moment, so that the commit itself is in both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from capture_backlog import start_capture, until_free
from commit_latency import BETWEEN_PROBES, COUNT_UP, MARK, PROBE, StreamWatcher, load, quantile
from report import Report
from source import Source, open_server
from walbus.relay import open_reader

_DEADLINE = 60.0


class LogWatcher:
    """Follows the log in a folder, and notes when each mark was durable, by `clock`."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, folder: Path) -> None:
        self.seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._reader = open_reader(folder)
        self._end = self._reader.bounds().end
        self._cursor = self._reader.cursor(self._end)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._reader.wait(self._end, 0.5)
            now = self.clock()
            self._end = self._reader.bounds().end
            while records := self._cursor.read(1 << 20):
                for record in records:
                    self.note(record, now)

    def note(self, record: bytes, now: float) -> None:
        """A record that is durable since `now`."""
        for mark in MARK.findall(record):
            self.seen.setdefault(int(mark), now)

    def stop(self) -> None:
        """Ends following."""
        self._stop.set()
        self._thread.join(10)
        self._cursor.close()
        self._reader.close()


@contextmanager
def captured() -> Iterator[tuple[Source, Path]]:
    """A source with the table of `PROBE`, and capture that streams from it into `walbus` in the folder."""
    with open_server() as (server, folder):
        source = Source(server, "bench")
        source.execute(PROBE)
        source.execute("INSERT INTO probe VALUES (1, 0, ''); CREATE SEQUENCE events_id")
        capture = start_capture(source, folder / "walbus")
        try:
            capture.until(lambda: source.streams("walbus"), _DEADLINE)
            yield source, folder
        finally:
            capture.stop()
            until_free(source)


def run(rate: int, seconds: int) -> Report:
    """Measures for `seconds` at `rate` transactions a second."""
    report = Report("durable-latency", "Latency of capture", ("from the commit to", "p50 ms", "p99 ms", "probes"))
    with captured() as (source, folder):
        log, stream = LogWatcher(folder / "walbus" / "relay"), StreamWatcher(source)
        with load(source, rate, seconds, folder):
            pairs = _probe(source, log, stream, seconds)
        log.stop()
        stream.stop()
    durable, pipe = (sorted(column) for column in zip(*pairs, strict=True))
    for name, values in (("the durable log", durable), ("pg_recvlogical's pipe", pipe)):
        p50, p99 = (f"{quantile(values, share) * 1000:.1f}" for share in (0.5, 0.99))
        report.row(name, p50, p99, str(len(values)))
    for share in (0.5, 0.99):
        report.ratio(
            f"commit-to-durable/pg_recvlogical p{share * 100:.0f}", quantile(durable, share) / quantile(pipe, share)
        )
    report.notes.append(f"{rate:,} transactions a second beside the probes, each its own commit.")
    return report


def _probe(source: Source, log: LogWatcher, stream: StreamWatcher, seconds: int) -> list[tuple[float, float]]:
    """Pairs of (to the durable log, to pg_recvlogical's pipe) in seconds, in the order of the probes."""
    sent: dict[int, float] = {}
    end = time.monotonic() + seconds
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        while time.monotonic() < end:
            number = len(sent) + 1
            sent[number] = time.perf_counter()
            connection.execute(COUNT_UP, {"n": number, "mark": f"mark-{number};"})
            time.sleep(BETWEEN_PROBES)
    deadline = time.monotonic() + _DEADLINE
    while len(log.seen) < len(sent) or len(stream.seen) < len(sent):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(sent)} probes, {len(log.seen)} in the log, {len(stream.seen)} in the stream")
        time.sleep(0.01)
    return [(log.seen[number] - begin, stream.seen[number] - begin) for number, begin in sent.items()]
