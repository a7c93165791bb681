"""How long commits took to reach the sink: quantiles over a sliding window of time."""

from __future__ import annotations

from collections import deque


class LatencyWindow:
    """The latencies of the last `seconds`, at most `limit` of them.

    Times are Unix seconds, passed in: source and consumer may be on two machines, whose clocks then differ.
    """

    def __init__(self, seconds: float = 10.0, limit: int = 20_000) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, float]] = deque(maxlen=limit)

    def add(self, now: float, latency: float) -> None:
        """One transaction arrived `latency` seconds after its commit."""
        self._samples.append((now, latency))

    def quantiles(self, now: float, *shares: float) -> list[float | None]:
        """The latency below which each share (0 to 1) of them lie, in seconds; None where there were none."""
        while self._samples and self._samples[0][0] < now - self._seconds:
            self._samples.popleft()
        ordered = sorted(latency for _, latency in self._samples)
        if not ordered:
            return [None for _ in shares]
        return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares]
