"""Time, as it is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def boottime() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one: leases go on as well."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True)
class Clock:
    """Time as it is passed in: a monotonic clock, the wall clock (Unix seconds), a pause of some seconds; leases'."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    pause: Callable[[float], object] = time.sleep
    boottime: Callable[[], float] = boottime
