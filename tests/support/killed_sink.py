"""A sink that is killed at some of its system calls, one process after the other (`sink_steps_process`).

killed = Killed(under_test, count)
for nth in killed.calls:
    killed.at("sendto", nth)
killed.at_the_end()           what is left, to the end of `killed.source`
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support import sink_steps_process
from support.model_source import ITEMS, Row
from support.seed import announced_seed
from support.sink_steps_process import MORE, model
from support.sinks_under_test import SinkUnderTest
from support.strace import killing

MOST, DRAWN = 60, 4  # a process has made some commits by then


def points(kind: str) -> list[Any]:
    swept = [pytest.mark.long, pytest.mark.exhaustive, pytest.mark.timeout(3600)]
    return [pytest.param(kind, DRAWN, id=kind), pytest.param(kind, MOST, id=f"{kind}-every", marks=swept)]


def bare(rows: Mapping[str, Row], *, more: bool = True) -> dict[str, Row]:
    """Rows without what is NULL, and without the columns that come and go if there are not to be `more`."""
    return {
        id: {name: v for name, v in row.items() if v is not None and (more or not name.startswith(MORE))}
        for id, row in rows.items()
    }


class Killed:
    """A sink that is killed at some calls, one process after the other.

    Attributes:
        calls: the numbers of these.
        source: has more than the processes come to before they are killed, even with a call to each commit.
    """

    def __init__(self, under_test: SinkUnderTest, count: int) -> None:
        self._under_test, self._seed = under_test, announced_seed("kills of a sink")
        self.calls = sorted(random.Random(self._seed).sample(range(1, MOST + 1), count))
        self._transactions = 120 + 3 * sum(self.calls)
        self.source = model(self._seed, self._transactions)

    def rows(self, *, more: bool = True) -> dict[str, Row]:
        """What the source has in the end, without what is NULL: with the column that is there then, or without."""
        layout = self.source.current[ITEMS]
        names = {one.name for one in layout.columns if more or not one.name.startswith(MORE)}
        return bare({id: {name: row.get(name) for name in names} for id, row in self.source.rows().items()}, more=more)

    def at(self, call: str, nth: int) -> None:
        assert self._went_on(killing(call, nth)) == -signal.SIGKILL, f"it made no {nth} calls"

    def at_the_end(self) -> None:
        assert self._went_on() == 0

    def _went_on(self, prefix: Sequence[str] = ()) -> int:
        under_test = self._under_test
        options = {name: str(one) if isinstance(one, Path) else one for name, one in under_test.options.items()}
        place = (under_test.name, str(under_test.place.folder), json.dumps(options))
        command = [*prefix, sys.executable, sink_steps_process.__file__, *place, str(self._seed)]
        return subprocess.run([*command, str(self._transactions)], check=False, timeout=240).returncode
