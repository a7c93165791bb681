"""How fast the store is read while the applier is behind."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest

from walbus.bootstrap.reading_pace import ReadingPace


@pytest.mark.parametrize(("readers", "cores"), [(1, 1 / 3), (4, 0.5), (100, 0.5)])
def test_readers_together_take_a_part_of_a_core_while_the_applier_is_behind(readers, cores):
    pace, spent = ReadingPace(lambda: True), 0.004
    with ExitStack() as reading:
        for _ in range(readers):
            reading.enter_context(pace.reader())
        assert readers * spent / (spent + pace.rest(spent)) <= cores + 1e-9
    assert pace.rest(spent) == 0, "nobody reads any more"


def test_a_rest_ends_soon_enough_for_a_client_to_see_that_something_comes():
    pace = ReadingPace(lambda: True)
    with pace.reader():
        assert pace.rest(100.0) == 1.0


def busy() -> str:
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return "rows"


async def rests_of(pace: ReadingPace, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What one reader rests behind two pieces."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", rest)
    with pace.reader():
        assert [await pace.read(busy), await pace.read(busy)] == ["rows", "rows"]
    return rests


def test_behind_each_piece_there_is_a_rest_while_the_applier_is_behind_and_none_at_the_logs_end(monkeypatch):
    assert asyncio.run(rests_of(ReadingPace(lambda: False), monkeypatch)) == []
    rests = asyncio.run(rests_of(ReadingPace(lambda: True), monkeypatch))
    assert len(rests) == 2
    assert all(0.04 <= seconds < 1 for seconds in rests)
