"""How long to wait before the next attempt: doubling, bounded, with jitter. The waiting itself is the caller's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Delays of one series of attempts.

    Attributes:
        first: seconds before the second attempt.
        longest: no delay is longer.
        uniform: gives a number in [0, 1); a delay is between half and all of its nominal length.
    """

    first: float = 0.1
    longest: float = 5.0
    uniform: Callable[[], float] = random.random
    attempts: int = field(default=0, init=False)

    def next_delay(self) -> float:
        """Seconds to wait now; the next answer is longer."""
        nominal = min(self.longest, self.first * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return nominal * (0.5 + self.uniform() / 2)

    def reset(self) -> None:
        """An attempt succeeded."""
        self.attempts = 0
