"""How long a capture waits before it connects again: longer each time, and never exactly as long as others. Pure."""

from __future__ import annotations

from collections.abc import Callable

#: Seconds of the first and of the longest pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0


class Backoff:
    """Growing pauses with full jitter.

    Args:
        random: gives numbers from 0 to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._ceiling = FIRST_PAUSE

    def next_pause(self) -> float:
        """Seconds to wait now; between half of a doubling ceiling and all of it."""
        pause = self._ceiling * (0.5 + self._random() / 2)
        self._ceiling = min(LONGEST_PAUSE, self._ceiling * 2)
        return pause

    def reset(self) -> None:
        """Begins with the first pause again."""
        self._ceiling = FIRST_PAUSE
