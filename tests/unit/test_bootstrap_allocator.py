"""The arenas of a process's memory, counted where they are made: in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from walbus.bootstrap.allocator import share_arenas
if sys.argv[1] == "shared":
    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)
def take():
    for _ in range(100):
        together.wait()
        libc.malloc(ctypes.c_size_t(1000))
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
libc.fflush(None)
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def arenas(how: str) -> int:
    told = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return len(re.findall("<heap nr=", told.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has arenas")
def test_eight_threads_share_two_arenas() -> None:
    assert arenas("as it comes") > 2
    assert arenas("shared") <= 2
