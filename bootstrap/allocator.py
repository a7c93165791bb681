"""How the C library hands out memory to RocksDB's threads.

glibc gives each thread that finds the others busy an arena of its own, up to eight for each core, and what is freed in
one arena serves no thread of another. RocksDB allocates a block in the thread that reads it and frees it in the thread
that has the cache evict it. So the arenas of readers, flushes and compactions each grow to what was once in use there,
and a process lives at twice what its cache and write buffers may take.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # of malloc.h
_ARENAS: Final = 2


def share_arenas() -> None:
    """Has all threads of this process take their memory from two arenas; to be called before they start.

    Other C libraries have no arenas, or no `mallopt`: then there is nothing to do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
