"""How soon the kernel runs capture again when the disk, or the source, has answered.

Capture waits most of the time: for the walsender, then for the disk. When the answer comes on a machine whose cores
are all busy (a relay that serves a thousand followers), Linux lets the thread that runs finish its slice first, which
is longer than the sync was. A thread with a shorter slice comes first, and gets no more of the processor for it
(EEVDF, Linux 6.12 and later).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

#: Nanoseconds; the shortest that the kernel gives.
SHORT_SLICE: Final = 100_000

#: struct sched_attr of sched_setattr(2), as far as all kernels know it: size, policy, flags, nice, priority, and
#: runtime, deadline and period in nanoseconds. The runtime of an ordinary thread is its slice.
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
_ORDINARY: Final = (os.SCHED_OTHER, os.SCHED_BATCH) if hasattr(os, "SCHED_BATCH") else ()

#: Numbers of sched_setattr and sched_getattr, which few C libraries have; the generic ones are those of newer machines.
_CALLS: Final = {
    "x86_64": (314, 315),
    "aarch64": (274, 275),
    "riscv64": (274, 275),
    "ppc64le": (355, 356),
    "s390x": (345, 346),
}


def ask_for_short_slices() -> bool:
    """Asks for short slices for this thread and those that it starts later; their share of the processor stays.

    Returns:
        Whether the kernel gives them; False too where this thread was given another policy than the ordinary ones.
    """
    calls = _CALLS.get(platform.machine()) if platform.system() == "Linux" else None
    if calls is None:
        return False
    setter, getter = calls
    kernel = ctypes.CDLL(None).syscall
    own = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if kernel(getter, 0, own, _ATTRIBUTES.size, 0):
        return False
    size, policy, flags, nice, priority, _, deadline, period = _ATTRIBUTES.unpack(own)
    if policy not in _ORDINARY:
        return False
    asked = _ATTRIBUTES.pack(size, policy, flags, nice, priority, SHORT_SLICE, deadline, period)
    if kernel(setter, 0, ctypes.create_string_buffer(asked, len(asked)), 0):
        return False
    if kernel(getter, 0, own, _ATTRIBUTES.size, 0):
        return False
    return bool(_ATTRIBUTES.unpack(own)[5] == SHORT_SLICE)  # kernels before 6.12 take it, and forget it
