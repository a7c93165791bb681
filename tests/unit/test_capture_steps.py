"""The step policy: how large, when to begin, and when the rest is for the walsender."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walbus.capture.steps import (
    FAR_BEHIND,
    LARGEST,
    LEAST,
    SPILLED_FOR_GIVEN,
    Backlog,
    Pauses,
    Step,
    StepPolicy,
    Stream,
)

FIRST = 1000


def sizes(backlog, policy=None):
    """The steps through a backlog that nobody adds to, and the reason of the end."""
    policy = policy or StepPolicy(FIRST)
    taken = []
    while isinstance(step := policy.next(backlog), Step):
        taken.append(step.upto - backlog.confirmed)
        policy.done(1, 0)
        backlog = Backlog(min(backlog.restart + taken[-1], step.upto), step.upto, backlog.end)
    return taken, step.reason


def test_steps_begin_when_a_quarter_of_a_first_one_is_left():
    least = int(LEAST * FIRST)
    assert StepPolicy(FIRST).is_far_behind(Backlog(0, 0, least))
    assert StepPolicy(FIRST).next(Backlog(0, 0, least)) == Step(least)
    assert not StepPolicy(FIRST).is_far_behind(Backlog(0, 0, least - 1))
    assert StepPolicy(FIRST).next(Backlog(0, 0, least - 1)) == Stream("the tail is near")


def test_less_than_a_first_step_is_not_read_by_one_that_would_repeat_more():
    assert StepPolicy(FIRST).is_far_behind(Backlog(restart=0, confirmed=500, end=1000))
    assert not StepPolicy(FIRST).is_far_behind(Backlog(restart=0, confirmed=501, end=1000))
    assert StepPolicy(FIRST).is_far_behind(Backlog(restart=0, confirmed=5000, end=5000 + FIRST))


def test_a_stream_makes_way_when_two_first_steps_are_left():
    assert StepPolicy(FIRST).is_worth_another_connection(Backlog(0, 0, FAR_BEHIND * FIRST))
    assert not StepPolicy(FIRST).is_worth_another_connection(Backlog(0, 0, FAR_BEHIND * FIRST - 1))


def test_steps_double_up_to_the_largest_and_the_last_takes_what_would_not_pay_for_one_of_its_own():
    taken, reason = sizes(Backlog(0, 0, 31_900))
    assert taken == [1000, 2000, 4000, 8000, 8000, 8900]
    assert reason == "the tail is near"


def test_a_step_is_never_smaller_than_the_work_that_it_repeats():
    step = StepPolicy(FIRST).next(Backlog(restart=0, confirmed=5000, end=50_000))
    assert step == Step(10_000)


def test_what_is_in_the_log_already_counts_as_read_though_the_slot_is_not_there_yet():
    backlog = Backlog(restart=0, confirmed=100, end=50_000)
    assert StepPolicy(FIRST).next(backlog.beyond(300)) == Step(1300)
    assert backlog.beyond(50) == backlog


def test_work_repeated_beyond_the_largest_step_turns_to_the_stream():
    repeated = LARGEST * FIRST
    assert isinstance(StepPolicy(FIRST).next(Backlog(0, repeated, 90_000)), Step)
    assert StepPolicy(FIRST).next(Backlog(0, repeated + 1, 90_000)) == Stream(
        "a long transaction makes every step repeat its WAL"
    )


def test_more_spilled_than_given_tells_of_a_large_transaction_and_turns_to_the_stream():
    for spilled, goes_on in ((SPILLED_FOR_GIVEN * 10 + FIRST, True), (SPILLED_FOR_GIVEN * 10 + FIRST + 1, False)):
        policy = StepPolicy(FIRST)
        policy.done(10, spilled)
        assert isinstance(policy.next(Backlog(0, 0, 90_000)), Step) is goes_on


@given(
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 30),
    st.integers(1, 1 << 28),
    st.integers(0, 5),
)
def test_a_step_goes_forward_and_never_beyond_the_durable_end(restart, repeated, left, first, done):
    policy = StepPolicy(first)
    for _ in range(done):
        policy.done(1, 0)
    backlog = Backlog(restart, restart + repeated, restart + repeated + left)
    step = policy.next(backlog)
    if isinstance(step, Step):
        assert backlog.confirmed < step.upto <= backlog.end
        assert repeated <= LARGEST * first


def test_steps_in_vain_keep_away_for_longer_and_longer_and_for_much_longer_than_they_took():
    pauses = Pauses(first=60, longest=200, share=20)
    assert [pauses.after_failure(1) for _ in range(4)] == [60, 120, 200, 200]
    assert pauses.after_failure(600) == 12_000
    assert pauses.after_success() == 60
    assert pauses.after_failure(0) == 60
