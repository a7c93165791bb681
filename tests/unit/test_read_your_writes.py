"""When a consumer has done what was committed before an LSN: on a busy log, on an idle one, behind a failover."""

from __future__ import annotations

import asyncio

import pytest

from walbus.consumers.read_your_writes import goal_of
from walbus.errors import UsageError
from walbus.log import Bounds
from walbus.lsn import record_end
from walbus.position import Position
from walbus.relay.consumer_waits import MAX_WAITERS, MAX_WAITERS_OF_ONE, Goal, TooManyWaiters, Waits


def at(lsn: int, ordinal: int = 1, epoch: int = 1) -> Position:
    return Position(epoch, lsn, ordinal)


def bounds(end: Position, end_lsn: int) -> Bounds:
    return Bounds("log", at(0), end, end_lsn, 0, 0, 0)


#: The transaction commits at 0x100, its record ends at 0x130, and that is what the source tells behind it.
COMMIT, TOLD = 0x100, 0x130


def test_an_idle_source_whose_consumer_has_done_its_last_transaction_is_enough():
    goal = Goal.of_lsn(TOLD)
    log = bounds(at(COMMIT), TOLD)
    goal.look(log)
    assert not goal.met_by(at(0x90), log)
    assert not goal.met_by(None, log)
    assert goal.met_by(at(COMMIT), log)


def test_before_the_log_holds_it_nobody_has_done_it():
    goal = Goal.of_lsn(TOLD)
    log = bounds(at(0x90), 0xC0)
    goal.look(log)
    assert goal.position is None
    assert not goal.met_by(at(0x90), log)


def test_a_transaction_of_no_table_that_is_published_is_passed_by_progress():
    goal = Goal.of_lsn(TOLD)
    log = bounds(at(TOLD, 0), TOLD)  # a PROGRESS record
    goal.look(log)
    assert not goal.met_by(at(0x90), log)
    assert goal.met_by(at(TOLD, 0), log)


def test_a_consumer_far_behind_a_busy_log_need_only_get_past_the_lsn():
    goal = Goal.of_lsn(TOLD)
    log = bounds(at(0x9000), 0x9030)
    goal.look(log)
    assert not goal.met_by(at(COMMIT), log)  # it has done it, in fact; the next transaction shows it
    assert goal.met_by(at(0x140), log)


def test_the_log_that_goes_on_does_not_move_the_goal():
    goal = Goal.of_lsn(TOLD)
    goal.look(bounds(at(COMMIT), TOLD))
    later = bounds(at(0x200), 0x230)
    goal.look(later)
    assert goal.met_by(at(COMMIT), later)


def test_what_a_failover_has_lost_does_not_count_for_the_new_timeline():
    goal = Goal.of_lsn(0x160)  # committed on timeline 2, which began at 0x150
    log = bounds(at(0x150, 0, epoch=2), 0x150)
    goal.look(log)
    assert not goal.met_by(at(0x200, epoch=1), log)  # done on timeline 1, and lost
    goal.look(behind := bounds(at(0x158, epoch=2), 0x160))
    assert not goal.met_by(at(0x200, epoch=1), behind)
    assert goal.met_by(at(0x158, epoch=2), behind)


def test_a_position_is_met_by_itself_and_by_what_is_behind_it():
    goal = Goal.of_position(at(0x100, 2))
    log = bounds(at(0x900), 0x930)
    assert not goal.met_by(at(0x100, 1), log)
    assert goal.met_by(at(0x100, 2), log)
    assert goal.met_by(at(0x101, 0), log)


@pytest.mark.parametrize(
    ("told", "end"),
    [
        (0x130, 0x130),
        (0x4000 + 24, 0x4000),  # behind a page's header
        (0x4000 + 40, 0x4000 + 40),  # an ordinary record in the middle of a segment
        (0x1000000 + 40, 0x1000000),  # behind a segment's header
        (0x1000000 + 24, 0x1000000),
        (0x4000, 0x4000),
    ],
)
def test_a_page_header_that_nothing_follows_is_not_waited_for(told, end):
    assert record_end(told) == end


def test_whoever_waits_is_woken_and_nobody_else():
    async def scene() -> list[bool]:
        waits, log = Waits(), bounds(at(0x90), 0xC0)
        first = waits.add("cache", Goal.of_lsn(0xC0))
        second = waits.add("cache", Goal.of_lsn(TOLD))
        other = waits.add("search", Goal.of_lsn(0xC0))
        waits.done("cache", at(0x90), log)
        return [waiter.outcome.done() for waiter in (first, second, other)]

    assert asyncio.run(scene()) == [True, False, False]


def test_what_is_waited_for_is_known_once_the_log_has_it():
    async def scene() -> None:
        waits = Waits()
        waits.add("cache", Goal.of_lsn(TOLD))
        waits.add("cache", Goal.of_position(at(0x50)))
        assert waits.wanted("cache") == [at(0x50)]
        assert list(waits.log_moved(bounds(at(0x90), 0xC0))) == []
        assert list(waits.log_moved(bounds(at(COMMIT), TOLD))) == ["cache"]
        assert list(waits.log_moved(bounds(at(0x200), 0x230))) == []
        assert waits.wanted("cache") == [at(0x50), at(COMMIT)]
        assert waits.wanted("search") == []

    asyncio.run(scene())


def test_waiters_are_bounded_and_leave_no_trace():
    async def scene() -> None:
        waits = Waits()
        of_one = [waits.add("cache", Goal.of_lsn(1)) for _ in range(MAX_WAITERS_OF_ONE)]
        with pytest.raises(TooManyWaiters):
            waits.add("cache", Goal.of_lsn(1))
        others = [waits.add(f"n{n}", Goal.of_lsn(1)) for n in range(MAX_WAITERS - MAX_WAITERS_OF_ONE)]
        with pytest.raises(TooManyWaiters):
            waits.add("one-more", Goal.of_lsn(1))
        for waiter in (*of_one, *others):
            waits.remove(waiter)
        assert len(waits) == 0
        assert waits._waiters == {}

    asyncio.run(scene())


def test_whoever_waits_for_a_name_that_is_removed_is_told():
    async def scene() -> bool:
        waits = Waits()
        waiter = waits.add("cache", Goal.of_lsn(1))
        waits.give_up("cache")
        return await waiter.outcome

    assert asyncio.run(scene()) is False


def test_a_goal_is_an_lsn_or_a_position_and_not_both():
    assert goal_of("16/B374D848", None) == goal_of(0x16_B374D848, None) == {"lsn": "16/B374D848"}
    assert goal_of(None, at(0x100, 2)) == goal_of(None, "1:0/100:2") == {"position": "1:0/100:2"}
    for lsn, position in ((None, None), ("0/1", "1:0/1:1"), ("x", None), (None, "0/1")):
        with pytest.raises(UsageError):
            goal_of(lsn, position)
