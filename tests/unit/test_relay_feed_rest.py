"""How long a feed rests behind a round: what a relay takes of the machine, whatever its crowd."""

from __future__ import annotations

import pytest

from walbus.relay.feed import rest_behind


def test_a_few_followers_have_each_change_at_once() -> None:
    assert rest_behind(0.0005) == 0.0


@pytest.mark.parametrize(("took", "share"), [(0.002, 0.5), (0.004, 0.5), (0.012, 0.25), (0.1, 0.25)])
def test_serving_takes_half_of_a_core_and_serving_a_crowd_a_quarter(took: float, share: float) -> None:
    assert took / (took + rest_behind(took)) == pytest.approx(share)


def test_a_larger_crowd_never_waits_less() -> None:
    rests = [rest_behind(took / 10_000) for took in range(1_000)]
    assert rests == sorted(rests)
