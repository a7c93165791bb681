"""A capture process under strace: killed, or failed, at the n-th system call of a kind.

    counts = calls_of(run)                    # how often each call is made once the log is opened, on the main thread
    process = capture under `killing("fdatasync", 7)` or `failing("pwrite64", "ENOSPC", 5, 30)`

strace counts the calls of each thread by itself; those that Python makes before it opens the log are always as many.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

#: What capture calls between the walsender and the disk.
CALLS = ("fdatasync", "fsync", "pwrite64", "write", "sendto", "rename", "link", "unlink", "openat", "mkdir")

_LINE = re.compile(r"(\d+) +(\w+)\(")


class Reach(NamedTuple):
    """Of the main thread's calls of a kind: how many came before the log was opened, and how many in all."""

    before: int
    total: int


def traced(output: Path) -> tuple[str, ...]:
    """A command that notes every call."""
    return ("strace", "--seccomp-bpf", "-f", "-o", str(output), "-e", f"trace={','.join(CALLS)}")


def killing(call: str, nth: int) -> tuple[str, ...]:
    """A command that sends SIGKILL at the n-th call of any thread."""
    return ("strace", "--seccomp-bpf", "-f", "-o", "/dev/null", *_inject(call, f"signal=SIGKILL:when={nth}"))


def failing(call: str, error: str, first: int, last: int, output: Path) -> tuple[str, ...]:
    """A command that lets calls of each thread fail, from one to another; it notes the kinds that sync too."""
    inject = _inject(call, f"error={error}:when={first}..{last}")
    return ("strace", "--seccomp-bpf", "-f", "-o", str(output), "-e", f"trace={call},fdatasync,fsync", *inject)


def reaches(output: Path, folder: Path) -> dict[str, Reach]:
    """What `traced` noted of a process whose log is in `folder`."""
    before, total = Counter[str](), Counter[str]()
    main, opened = "", False
    for line in output.read_text().splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        main = main or match[1]
        opened = opened or str(folder) in line
        if match[1] == main:
            total[match[2]] += 1
            before[match[2]] += not opened
    return {call: Reach(before[call], total[call]) for call in CALLS}


def syncs_behind_failure(output: Path) -> list[str]:
    """The lines of calls that sync which follow the first one that failed by injection."""
    lines = [line for line in output.read_text().splitlines() if _LINE.match(line)]
    failed = next((i for i, line in enumerate(lines) if "(INJECTED)" in line), len(lines))
    return [line for line in lines[failed + 1 :] if "sync(" in line]


def _inject(call: str, what: str) -> tuple[str, ...]:
    return ("-e", f"inject={call}:{what}")
