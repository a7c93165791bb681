"""What slices the kernel gives a thread."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SLICE = re.compile(r"^se\.slice\s*:\s*(\d+)$", re.MULTILINE)


def kernel_slice(thread: Path = Path("/proc/thread-self")) -> int | None:
    """Nanoseconds; None where the kernel does not tell them (Linux before 6.12, and other systems).

    Args:
        thread: its folder in /proc.
    """
    try:
        found = _SLICE.search((thread / "sched").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def may_have_slices() -> bool:
    """Whether the kernel tells slices, and this process is one of those that may ask for them."""
    return kernel_slice() is not None and os.sched_getscheduler(0) in (os.SCHED_OTHER, os.SCHED_BATCH)
