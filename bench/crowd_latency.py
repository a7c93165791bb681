"""What followers of the relay cost capture: from a commit in PostgreSQL to its transaction in the durable log.

PostgreSQL under a steady load of pgbench, capture, its relay and all followers share the machine. The load runs by
turns with no follower and with all of them. A transaction's clock starts at its commit time, which PostgreSQL took from
the clock that the watcher reads when the log has woken it: what it sees is durable. The followers are one process, and
behind each turn every one must have exactly what the log has, by digest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import psycopg

import relay_load
from commit_latency import load, quantile
from durable_latency import LogWatcher, captured
from relay_streams import raise_open_files, running_relay
from report import Report
from source import Source
from walbus.position import Position
from walbus.records import Kind, read_header
from walbus.relay import open_reader

_DEADLINE = 60.0
_TURNS = 4
_SETTLE_SECONDS = 2.0
_LOADING = "SELECT FROM pg_stat_activity WHERE application_name = 'pgbench'"


class AgeWatcher(LogWatcher):
    """Follows the log, and notes how old each transaction is when it is durable, in seconds."""

    clock = staticmethod(time.time)

    def __init__(self, folder: Path) -> None:
        self.ages: list[float] = []
        super().__init__(folder)

    def note(self, record: bytes, now: float) -> None:
        """How old a transaction is."""
        header = read_header(record)
        if header.kind == Kind.TRANSACTION:
            self.ages.append(now - header.commit_time / 1e6)


@dataclass
class _Side:
    """What was measured with one number of followers: ages in seconds, and p50 of each turn in milliseconds."""

    ages: list[float] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    late: float = 0.0

    def note(self, ages: list[float]) -> None:
        """One turn."""
        self.ages += ages
        self.turns.append(f"{quantile(sorted(ages), 0.5) * 1e3:.2f}")

    def took(self, share: float) -> float:
        """A quantile, in milliseconds."""
        return quantile(sorted(self.ages), share) * 1e3


def run(followers: int, rate: int, seconds: int) -> Report:
    """Measures each side for `seconds` at `rate` transactions a second."""
    report = Report(
        "relay-crowd",
        "Capture beside followers",
        ("followers", "commit to durable p50 ms", "p99 ms", "transactions", "p50 ms of each turn", "last follower, ms"),
        notes=[
            f"{rate:,} transactions a second; PostgreSQL, pgbench, capture, relay and followers share the machine. "
            "The last column: how long after the load's end the last one had everything. Every digest is the log's."
        ],
    )
    raise_open_files()
    sides = {0: _Side(), followers: _Side()}
    with captured() as (source, folder):
        watcher = AgeWatcher(folder / "walbus" / "relay")
        with running_relay(folder / "walbus") as (port, _):
            for _ in range(_TURNS):
                for count, side in sides.items():
                    loaded = load(source, rate, int(seconds / _TURNS + _SETTLE_SECONDS) + 1, folder)
                    with _crowd(source, folder, port, count, side), loaded:
                        side.note(_ages(watcher, seconds / _TURNS))
        watcher.stop()
    for count, side in sides.items():
        shown = f"{side.took(0.5):.2f}", f"{side.took(0.99):.2f}", f"{len(side.ages):,}", ", ".join(side.turns)
        report.row(f"{count:,}", *shown, f"{side.late * 1e3:,.0f}" if count else "")
    for share in (0.5, 0.99):
        ratio = sides[followers].took(share) / sides[0].took(share)
        report.ratio(f"capture-durable-with-followers/alone {followers} p{share * 100:.0f}", ratio)
    return report


def _ages(watcher: AgeWatcher, seconds: float) -> list[float]:
    """What the watcher sees for `seconds`, once the load is steady."""
    time.sleep(_SETTLE_SECONDS)
    first = len(watcher.ages)
    time.sleep(seconds)
    return watcher.ages[first:]


@contextmanager
def _crowd(source: Source, folder: Path, port: int, count: int, side: _Side) -> Iterator[None]:
    """Followers meanwhile; behind it each has what the log has.

    Raises:
        RuntimeError: one has not.
    """
    log = folder / "walbus" / "relay"
    start = _settled(source, log)  # followers begin at the log's end, and nobody writes meanwhile
    with nullcontext() if not count else _following(port, count) as crowd:
        yield
        end = _settled(source, log)
        if crowd is None:
            return
        size, digest = _told(log, start, end)
        out, _ = crowd.communicate(f"{size} {digest}\n", timeout=2 * _DEADLINE)
    if crowd.returncode:
        raise RuntimeError("the followers ended early")
    figures = json.loads(out)
    if figures["wrong"]:
        raise RuntimeError(f"{figures['wrong']} followers got something else than the log")
    side.late = max(side.late, figures["late"])


@contextmanager
def _following(port: int, count: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, relay_load.__file__, "follow", str(port), str(count)]
    crowd = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert crowd.stdout is not None
        if crowd.stdout.readline() != "connected\n":
            raise RuntimeError("the followers did not connect")
        yield crowd
    finally:
        crowd.kill()
        crowd.wait()


def _settled(source: Source, log: Path) -> Position:
    """The log's end once it has all that was committed."""
    with psycopg.connect(source.dsn, autocommit=True) as connection, closing(open_reader(log)) as reader:
        _until(lambda: not connection.execute(_LOADING).rowcount, "pgbench's sessions did not end")
        connection.execute("UPDATE probe SET n = n + 1")
        behind = source.insert_lsn()
        _until(lambda: reader.bounds().end_lsn >= behind, "capture did not get to the end of the load")
        return reader.bounds().end


def _until(done: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + _DEADLINE
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(otherwise)
        time.sleep(0.01)


def _told(log: Path, start: Position, end: Position) -> tuple[int, int]:
    """Bytes of the records between two positions but those of progress, and their digest."""
    size = digest = 0
    with closing(open_reader(log)) as reader, closing(reader.cursor(start)) as cursor:
        while records := cursor.read(1 << 20):
            for record in records:
                header = read_header(record)
                if header.kind != Kind.PROGRESS and header.last <= end:
                    size += len(record)
                    digest = google_crc32c.extend(digest, record)
    return size, digest
