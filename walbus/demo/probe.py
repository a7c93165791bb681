"""Measures the way from a commit to the cache from outside, at one row that nobody else touches.

A session counts a row up, takes the time when its commit is acknowledged, and looks into the SQLite file until the
number is there. Nothing is taken from the rooms' own figures, and what a killed room costs is in the measurement.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg

_CREATE = (
    "CREATE TABLE walbus_probe (id integer PRIMARY KEY, n bigint NOT NULL); INSERT INTO walbus_probe VALUES (1, 0)"
)
_COUNT_UP = "UPDATE walbus_probe SET n = n + 1 RETURNING n"
_LOOK = "SELECT n FROM walbus_probe WHERE id = 1"
#: The table that the probe makes.
TABLE = "walbus_probe"
_BETWEEN_LOOKS = 0.001
_BETWEEN_PROBES = 0.02
_GIVE_UP = 60.0


class LatencyProbe:
    """Counts up and looks, in a thread of its own, until it is stopped.

    Args:
        dsn: of the source.
        cache: the SQLite file that a consumer keeps in step; may not be there yet.

    Attributes:
        seconds: what each probe took, in order.
        failure: why it ended before it was stopped; None if it did not.
    """

    def __init__(self, dsn: str, cache: Path) -> None:
        self.seconds: list[float] = []
        self.failure: str | None = None
        self._dsn = dsn
        self._cache = cache
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def prepare(self) -> None:
        """Makes the row in the source."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(_CREATE)

    def start(self) -> None:
        """Begins to measure."""
        self._thread.start()

    def stop(self) -> None:
        """Begins no further probe; the one under way goes on, for a stall that nobody waits out is not measured."""
        self._stop.set()

    def finish(self) -> None:
        """Waits for the probe under way; call `stop` first, and this once the cache has everything."""
        if self._thread.is_alive():
            self._thread.join(_GIVE_UP)

    def count_up(self) -> None:
        """One commit outside the measurement."""
        with psycopg.connect(self._dsn, autocommit=True) as source:
            source.execute(_COUNT_UP)

    def seen(self) -> int | None:
        """The number in the cache now; None while there is no such row (or no cache) yet."""
        try:
            with closing(self._open_cache()) as cache:
                return _number(cache)
        except sqlite3.Error:
            return None

    def _run(self) -> None:
        try:
            self._measure()
        except (psycopg.Error, sqlite3.Error) as error:  # the source may be gone already, after Ctrl-C
            self.failure = type(error).__name__

    def _measure(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as source:
            while not self._stop.wait(_BETWEEN_PROBES):
                row = source.execute(_COUNT_UP).fetchone()
                committed = time.perf_counter()
                if row is not None and self._arrives(int(row[0])):
                    self.seconds.append(time.perf_counter() - committed)

    def _arrives(self, number: int) -> bool:
        end = time.monotonic() + _GIVE_UP
        with closing(self._open_cache()) as cache:
            while time.monotonic() < end:
                if (_number(cache) or 0) >= number:
                    return True
                time.sleep(_BETWEEN_LOOKS)
        return False

    def _open_cache(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self._cache}?mode=ro", uri=True, timeout=1)


def _number(cache: sqlite3.Connection) -> int | None:
    row = cache.execute(_LOOK).fetchone()
    return None if row is None else int(row[0])


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie; `values` must not be empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
