"""How fast seeding goes, and how long it will take. Pure: time is passed in."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


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
