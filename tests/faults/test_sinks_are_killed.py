"""A sink whose process is killed at any system call between a row and its checkpoint: the next one loses nothing.

Some calls are drawn; `-m exhaustive` takes each of them.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support import sink_steps_process
from support.seed import announced_seed
from support.sink_steps_process import model
from support.sinks_under_test import SinkUnderTest, of_kind
from support.strace import killing
from walbus.consumers.checkpoint import last_done_of

pytestmark = [pytest.mark.one_version, pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")]

#: The call that rows and checkpoint go out by.
CALLS = {
    "sqlite": "pwrite64",
    "postgres": "sendto",
    "tantivy": "write",
    "redis-hash": "sendto",
    "redis-string": "sendto",
    "cluster-hash": "sendto",
    "opensearch": "sendto",
    "elasticsearch": "sendto",
}
TRANSACTIONAL = ("sqlite", "postgres", "tantivy")
MOST, DRAWN = 60, 4  # a process has made some commits by then


def points(kind: str) -> list[Any]:
    swept = [pytest.mark.long, pytest.mark.exhaustive, pytest.mark.timeout(3600)]
    return [pytest.param(kind, DRAWN, id=kind), pytest.param(kind, MOST, id=f"{kind}-every", marks=swept)]


def went_on(under_test: SinkUnderTest, seed: int, prefix: Sequence[str] = ()) -> int:
    options = {name: str(one) if isinstance(one, Path) else one for name, one in under_test.options.items()}
    told = (under_test.name, str(under_test.place.folder), json.dumps(options), str(seed))
    command = [*prefix, sys.executable, sink_steps_process.__file__, *told]
    return subprocess.run(command, check=False, timeout=240).returncode


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "count"), [param for kind in CALLS for param in points(kind)])
def test_a_sink_that_is_killed_at_any_call_is_gone_on_with(
    kind: str, count: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = announced_seed("kills of a sink")
    under_test, source = of_kind(kind, tmp_path, request.getfixturevalue), model(seed)
    at = {
        position: {id: one.row for id, one in state.get("public.items", {}).items()}
        for position, _, state in source.history
    }
    for nth in sorted(random.Random(seed).sample(range(1, MOST + 1), count)):
        assert went_on(under_test, seed, killing(CALLS[kind], nth)) == -signal.SIGKILL, f"it made no {nth} calls"
        with closing(under_test.open()) as sink:
            done = last_done_of(sink.checkpoint())
        if kind in TRANSACTIONAL:
            assert under_test.rows() == at[done], f"call {nth}"
    assert went_on(under_test, seed) == 0
    assert under_test.rows() == source.rows()
