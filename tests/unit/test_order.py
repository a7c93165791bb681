"""The order of tests loses none, keeps files whole, and gives each worker its share of what takes long."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.order import LONG, long_ones_first

ROOT = Path(__file__).parents[1]


def tests_of(name: str, count: int) -> list[Any]:
    return [SimpleNamespace(path=Path(name), number=number) for number in range(count)]


MANY = [one for name in ("test_a.py", "test_b.py", *sorted(LONG), "test_c.py") for one in tests_of(name, 37)]


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("items", [MANY, MANY[:10], MANY[:100], []], ids=["many", "few", "some", "none"])
def test_every_test_is_there_once_and_files_keep_their_order(items: list[Any], workers: int) -> None:
    ordered = long_ones_first(items, workers)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    for name in {item.path for item in items}:
        assert [one for one in ordered if one.path == name] == [one for one in items if one.path == name]
    long = [name for name, _ in groupby(ordered, key=lambda one: one.path.name) if name in LONG]
    assert len(long) == len(set(long)), "a file that takes long is whole"


def test_each_worker_begins_with_its_share_of_what_takes_long() -> None:
    workers = 5
    items = [*tests_of("test_quick.py", 2000), *(one for name in sorted(LONG) for one in tests_of(name, 3))]
    ordered = long_ones_first(items, workers)
    size = len(items) // workers
    for worker in range(workers):
        piece = ordered[worker * size : (worker + 1) * size]
        first = [one for one in piece[: 3 * len(LONG) // workers] if one.path.name in LONG]
        assert len(first) == 3 * len(LONG) // workers


def test_the_files_that_take_long_are_there() -> None:
    assert {path.name for path in ROOT.rglob("test_*.py")} >= LONG
