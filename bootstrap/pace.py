"""How fast seeding goes, and how long it will take. Pure: time is passed in.

Three things hold it back, each by itself:

    rows a second           `Throttle`: an operator's limit for all workers together
    the time of a chunk     `next_stride`: a chunk's transaction holds back vacuum, so it lasts about `chunk_seconds`
    the source's own load   `Breath`: where a row takes much longer than it took at best, the source has other work; the
                            worker then rests for as long as the chunk took too long. And no chunk begins while more
                            than `max_active_sessions` others run a statement there
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Throttle:
    """Rows a second for all workers together. Thread-safe."""

    def __init__(self, rows_per_second: float | None, clock: Callable[[], float]) -> None:
        self._rate = rows_per_second
        self._clock = clock
        self._free_at = clock()
        self._lock = threading.Lock()

    def delay(self, rows: int) -> float:
        """Seconds to wait after reading some rows; 0 without a limit."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + rows / self._rate
            return self._free_at - now


#: A chunk has at least half and at most twice as many blocks as the one before it.
_STEP = 2.0


class ChunkRead(NamedTuple):
    """A chunk that was read: its blocks, its rows, the seconds that they took, and the rows' bytes."""

    blocks: int
    rows: int
    seconds: float
    bytes: int = 0


def next_stride(stride: int, chunk: ChunkRead, *, aim: float, most_rows: int) -> int:
    """Blocks of the next chunk, behind one that was read.

    Args:
        stride: blocks that the last chunk was to have; it had fewer at the end of a file.
        chunk: what it had, and took.
        aim: seconds that a chunk is to take.
        most_rows: that a chunk is to have.
    """
    aimed = chunk.blocks * aim / max(chunk.seconds, 1e-3)
    bounded = min(max(aimed, stride / _STEP), stride * _STEP)
    if chunk.rows:
        bounded = min(bounded, most_rows * chunk.blocks / chunk.rows)
    return max(1, round(bounded))


class Breath:
    """How long a worker rests behind a chunk that took long for what it read. One for each generation. Thread-safe.

    What a chunk read is its rows and their bytes: a table may have small rows in front and large ones behind.
    """

    _PATIENCE = 3.0  # times as long as at best is no sign of anything
    _FEW = 1000  # rows of a chunk whose time says little
    _ROW = 100  # bytes that take about as long as a row by itself
    _LONGEST = 5.0

    def __init__(self) -> None:
        self._best = math.inf  # seconds a byte
        self._lock = threading.Lock()

    def rest(self, chunk: ChunkRead) -> float:
        """Seconds to rest behind a chunk."""
        if chunk.rows < self._FEW:
            return 0.0
        work = chunk.bytes + self._ROW * chunk.rows
        with self._lock:
            best = self._best = min(chunk.seconds / work, self._best)
        return min(self._LONGEST, max(0.0, chunk.seconds - best * self._PATIENCE * work))


class Progress:
    """Work done over the last minute, and the time that the rest takes at that speed."""

    _WINDOW = 60.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def observe(self, done: int) -> None:
        """Notes how much is done now; less than before means that the work began anew."""
        now = self._clock()
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, done))
        while now - self._samples[0][0] > self._WINDOW:
            self._samples.popleft()

    def rate(self) -> float | None:
        """Units a second; None while too little is known."""
        if len(self._samples) < 2:
            return None
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end > start else None

    def seconds_left(self, total: int) -> float | None:
        """Seconds until `total` is done; None while that cannot be told."""
        rate = self.rate()
        if not rate:
            return None
        return max(0.0, (total - self._samples[-1][1]) / rate)
