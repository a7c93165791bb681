"""The order of tests loses none, and gives each worker its share of what takes long."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.order import LONG, SERVERS, ordered_for, server_of

ROOT = Path(__file__).parents[1]
WORKERS = 5


def some_of(file: str, count: int, *fixtures: str, name: str = "test_it") -> list[Any]:
    return [SimpleNamespace(path=Path(file), name=name, fixturenames=fixtures, number=n) for n in range(count)]


LONG_ONES = [one for file in sorted(LONG) for one in some_of(file, 3)]
SERVED = [
    *some_of("test_sinks.py", 8, "under_test", name="test_it[opensearch]"),
    *some_of("test_sinks.py", 8, "under_test", name="test_it[elasticsearch]"),
    *some_of("test_registry.py", 8, "apicurio", "kafka"),
]
MANY = [*some_of("test_a.py", 1000), *SERVED, *LONG_ONES, *some_of("test_b.py", 1000)]


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("items", [MANY, MANY[-50:], SERVED, LONG_ONES, []])
def test_every_test_is_there_once_and_files_keep_their_order(items: list[Any], workers: int) -> None:
    ordered = ordered_for(items, workers)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    for kind in {(item.path, server_of(item)) for item in items}:
        its = [[one for one in some if (one.path, server_of(one)) == kind] for some in (ordered, items)]
        assert its[0] == its[1]
    long = [name for name, _ in groupby(ordered, key=lambda one: one.path.name) if name in LONG]
    assert len(long) == len(set(long)), "a file that takes long is whole"


def test_each_worker_begins_with_its_share_of_what_takes_long_and_one_has_all_that_needs_a_server() -> None:
    ordered = ordered_for(MANY, WORKERS)
    size = len(MANY) / WORKERS
    pieces = [ordered[int(size * worker) : int(size * (worker + 1))] for worker in range(WORKERS)]
    for piece in pieces:
        first = [one.path.name in LONG or server_of(one) is not None for one in piece]
        assert len([one for one in piece if one.path.name in LONG]) == len(LONG_ONES) / WORKERS
        assert not any(first[sum(first) :]), "nothing of that stands behind what is quick"
    for server in SERVERS:
        assert sum(any(server_of(one) == server for one in piece) for piece in pieces) == 1


def test_the_files_that_take_long_are_there() -> None:
    assert {path.name for path in ROOT.rglob("test_*.py")} >= LONG
