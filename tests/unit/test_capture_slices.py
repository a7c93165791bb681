"""The slices of a process, told by the kernel itself: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.kernel_slices import may_have_slices
from walbus.capture import slices

PROGRAM = """
import os, sys, threading
sys.path.insert(0, "tests")
from support.kernel_slices import kernel_slice
from walbus.capture.slices import ask_for_short_slices
if sys.argv[1] == "idle":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
if sys.argv[1] == "nice":
    os.nice(7)
print(ask_for_short_slices(), kernel_slice())
told = threading.Thread(target=lambda: print(kernel_slice(), os.getpriority(os.PRIO_PROCESS, 0)))
told.start()
told.join()
"""


def told(how: str) -> list[str]:
    """Whether the slices were given, the first thread's, a later one's, and how nice that is."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout.split()


@pytest.mark.skipif(
    not may_have_slices(), reason="this kernel does not tell slices, or this process is not an ordinary one"
)
@pytest.mark.parametrize(("how", "more"), [("as it is", 0), ("nice", 7)])
def test_a_thread_and_those_behind_it_have_short_slices_and_are_as_nice_as_before(how: str, more: int) -> None:
    nice = os.getpriority(os.PRIO_PROCESS, 0) + more
    assert told(how) == ["True", "100000", "100000", str(min(nice, 19))]


@pytest.mark.skipif(
    not may_have_slices(), reason="this kernel does not tell slices, or this process is not an ordinary one"
)
def test_a_process_that_was_made_to_wait_for_all_others_goes_on_to() -> None:
    given, slice_, *_ = told("idle")
    assert (given, slice_ == "100000") == ("False", False)


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "sparc64")])
def test_where_it_is_not_known_how_to_ask_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(slices.ctypes, "CDLL", lambda *_: pytest.fail("the kernel was asked"))
    assert not slices.ask_for_short_slices()
