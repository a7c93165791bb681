"""Processes that are measured: time on the wall, processor time, peak memory.

Peak memory is `VmHWM` of /proc, sampled while the process lives: it belongs to the program that runs now, while the
`ru_maxrss` of wait4 also counts the memory of the parent before exec. Processor time is wait4's, user and system.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_BETWEEN_LOOKS = 0.005


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took.

    Attributes:
        seconds: from `mark` (or its start) until it was done.
        cpu: processor time of all of its life, user and system, in seconds.
        cpu_before: what it took of that before `mark`; 0 if it was never called.
        peak: largest resident memory in bytes.
    """

    seconds: float
    cpu: float
    cpu_before: float
    peak: int


def peak_memory(pid: int) -> int:
    """Largest resident memory of a living process so far, in bytes; 0 once it is gone."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def cpu_time(pid: int) -> float:
    """Processor time of a living process so far, user and system, in seconds; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seldom(done: Callable[[], bool], seconds: float = 0.02) -> Callable[[], bool]:
    """A look that costs what is measured something, so that it is done no more often than this."""
    last = -math.inf

    def look() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        found = done()
        last = time.monotonic()
        return found

    return look


class Measured:
    """A child process, from its start to its end.

    Args:
        command: program and arguments.
        environment: variables over our own.
        log: takes what it prints.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._peak = 0
        self._cpu_before = 0.0
        self._begin = time.perf_counter()
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def mark(self) -> None:
        """Time is counted from here: the process has started up and begins its work."""
        self._cpu_before = cpu_time(self._process.pid)
        self._begin = time.perf_counter()

    def until(self, done: Callable[[], bool], deadline: float) -> float:
        """Waits for a condition while the process lives; the seconds since `mark`.

        Raises:
            RuntimeError: the process ended before, or the deadline passed.
        """
        while not done():
            self._look()
            if self._ended():
                raise RuntimeError(f"the process ended too early: {self._last_words()}")
            if time.perf_counter() - self._begin > deadline:
                self.stop()
                raise RuntimeError(f"not done after {deadline:.0f} s: {self._last_words()}")
            time.sleep(_BETWEEN_LOOKS)
        return time.perf_counter() - self._begin

    def stop(self, seconds: float = 0.0) -> Usage:
        """Ends the process (SIGTERM); what it took, with `seconds` as its time."""
        self._look()
        self._process.send_signal(signal.SIGTERM)
        return self._reaped(seconds)

    def finish(self) -> Usage:
        """Waits for the process to end by itself.

        Raises:
            RuntimeError: it ended with an error.
        """
        while not self._ended():
            self._look()
            time.sleep(_BETWEEN_LOOKS)
        usage = self._reaped(time.perf_counter() - self._begin)
        if self._process.returncode:
            raise RuntimeError(f"the process ended with code {self._process.returncode}: {self._last_words()}")
        return usage

    def _look(self) -> None:
        self._peak = max(self._peak, peak_memory(self._process.pid))

    def _ended(self) -> bool:
        """Whether it has ended; leaves it to be reaped, so that its usage can still be read."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _reaped(self, seconds: float) -> Usage:
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Usage(seconds, usage.ru_utime + usage.ru_stime, self._cpu_before, self._peak)

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
