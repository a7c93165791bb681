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
_SYNC = re.compile(r"\d+ +f(?:data)?sync\(\d+<(.*?)>(.*)")


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
    return ("strace", "--seccomp-bpf", "-f", "-y", "-o", str(output), "-e", f"trace={call},fdatasync,fsync", *inject)


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


def syncs_tried_again(output: Path) -> list[str]:
    """The calls that sync what the first failed call could not: none may be, for they would succeed."""
    syncs = [match for line in output.read_text().splitlines() if (match := _SYNC.match(line))]
    failed = next((i for i, match in enumerate(syncs) if "(INJECTED)" in match[2]), len(syncs))
    return [match[0] for match in syncs[failed + 1 :] if match[1] == syncs[failed][1]]


def _inject(call: str, what: str) -> tuple[str, ...]:
    return ("-e", f"inject={call}:{what}")
