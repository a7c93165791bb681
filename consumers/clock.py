"""Time, as it is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Time as it is passed in: a monotonic clock, the wall clock (Unix seconds), and a pause of some seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    pause: Callable[[float], object] = time.sleep
