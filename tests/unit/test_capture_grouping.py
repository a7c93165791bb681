"""Group commit finds its pace."""

from __future__ import annotations

import pytest

from walbus.capture.grouping import LONGEST_SECONDS, SHARE_SECONDS, Grouping


def latencies(rate: float, sync_seconds: float, count: int = 3000) -> list[float]:
    """Seconds from whole to durable of transactions that arrive at a rate, each sync taking a while."""
    group, now, arrived, durable = Grouping(), 0.0, 0, 0
    waited: list[float] = []
    while durable < count:
        here = int(now * rate)
        if here > arrived:
            arrived = here
            group.gather(now)
        due = group.due_in(now)
        if due is None or due > 0:
            now += min(1 / rate, due or 1.0)
            continue
        now += sync_seconds
        waited += [now - (number + 1) / rate for number in range(durable, arrived)]
        durable = arrived
        group.made_durable(durable)
    return sorted(waited[count // 10 :])


def test_an_empty_group_is_never_due():
    group = Grouping()
    assert group.due_in(5.0) is None
    group.gather(5.0)
    group.made_durable(1)
    assert group.due_in(9.0) is None


def test_a_lone_transaction_waits_for_nobody():
    group = Grouping()
    for number in range(1, 5):
        group.gather(float(number))
        assert round(group.due_in(float(number)), 9) <= SHARE_SECONDS
        group.made_durable(number)


@pytest.mark.parametrize("sync_seconds", [0.0002, 0.001, 0.002])
def test_a_thousand_a_second_are_durable_within_milliseconds(sync_seconds):
    waited = latencies(1000, sync_seconds)
    assert waited[len(waited) // 2] < 0.001 + 2 * sync_seconds


def test_a_flood_is_synced_in_few_groups_and_never_waits_longer_than_the_bound():
    waited = latencies(50_000, 0.001, count=50_000)
    assert LONGEST_SECONDS / 2 < waited[-1] <= LONGEST_SECONDS + 0.003


def test_behind_a_flood_a_lone_transaction_waits_once_and_then_no_more():
    group = Grouping()
    group.gather(0.0)
    group.made_durable(100_000)
    group.gather(1.0)
    assert group.due_in(1.0) == pytest.approx(LONGEST_SECONDS)
    group.made_durable(100_001)
    group.gather(2.0)
    assert round(group.due_in(2.0), 9) <= SHARE_SECONDS
