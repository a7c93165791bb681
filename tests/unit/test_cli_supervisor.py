"""What the supervisor decides, under a clock of our own."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walbus.cli.failures import TRY_AGAIN
from walbus.cli.supervisor import Action, Child, Kill, Phase, Start, Supervisor, Terminate, Timing

TIMING = Timing(first_delay=1.0, longest_delay=8.0, healthy_after=60.0, stage_time=2.0, kill_after=8.5)
CAPTURE = Child("capture", ("capture",), stage=3)
RELAY = Child("relay", ("relay",), stage=2)
BOOTSTRAP = Child("bootstrap", ("bootstrap",), stage=1)
CACHE = Child("cache", ("consume", "cache"), stage=0)
SEARCH = Child("search", ("consume", "search"), stage=0)
ALL = (CAPTURE, RELAY, BOOTSTRAP, CACHE, SEARCH)


def running(*children: Child, jitter: float = 1.0) -> Supervisor:
    supervisor = Supervisor(children, lambda: jitter, TIMING)
    for action in supervisor.actions(0.0):
        assert isinstance(action, Start)
        supervisor.started(action.child.name, 0.0)
    return supervisor


def names(actions: list[Action]) -> list[str]:
    return [action.child.name if isinstance(action, Start) else action.name for action in actions]


def test_everything_starts_in_the_order_of_the_data() -> None:
    supervisor = Supervisor(ALL, lambda: 0.0)
    assert names(supervisor.actions(0.0)) == ["capture", "relay", "bootstrap", "cache", "search"]


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGSEGV, TRY_AGAIN, 0, 137])
def test_a_child_that_dies_is_started_again_after_a_delay(code: int) -> None:
    supervisor = running(CAPTURE, RELAY)
    assert supervisor.exited("relay", code, 5.0) == 1.0
    assert supervisor.actions(5.9) == []
    assert supervisor.wake_at(5.9) == 6.0
    assert supervisor.actions(6.0) == [Start(RELAY)]


def test_the_delay_doubles_up_to_a_bound() -> None:
    supervisor = running(RELAY)
    delays = []
    for _ in range(6):
        delays.append(supervisor.exited("relay", -9, 0.0))
        supervisor.started("relay", 0.0)
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_healthy_run_makes_the_delay_short_again() -> None:
    supervisor = running(RELAY)
    for _ in range(4):
        supervisor.exited("relay", -9, 0.0)
        supervisor.started("relay", 100.0)
    assert supervisor.exited("relay", -9, 159.0) == 8.0
    supervisor.started("relay", 200.0)
    assert supervisor.exited("relay", -9, 260.0) == 1.0


def test_jitter_takes_up_to_half_of_the_delay() -> None:
    assert running(RELAY, jitter=0.0).exited("relay", -9, 0.0) == 0.5


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_only_an_operator_can_mend_stops_everything_and_is_passed_on(code: int) -> None:
    supervisor = running(*ALL)
    assert supervisor.exited("relay", code, 1.0) is None
    assert supervisor.stopping
    for child in (CACHE, SEARCH, BOOTSTRAP, CAPTURE):
        supervisor.actions(1.0)
        supervisor.exited(child.name, 0, 1.0)
    assert supervisor.done
    assert supervisor.exit_code == code


def test_a_consumer_that_ends_for_good_leaves_the_others_running_and_its_code_is_passed_on() -> None:
    lone = Child("lone", ("consume", "lone"), 0, essential=False)
    supervisor = running(lone, RELAY)
    assert supervisor.exited("lone", 1, 1.0) is None
    assert not supervisor.stopping
    assert supervisor.actions(100.0) == []
    supervisor.stop(200.0)
    assert supervisor.actions(200.0) == [Terminate("relay")]
    supervisor.exited("relay", 0, 200.1)
    assert supervisor.done
    assert supervisor.exit_code == 1


def test_a_consumer_whose_configuration_is_wrong_stops_everything() -> None:
    lone = Child("lone", ("consume", "lone"), 0, essential=False)
    supervisor = running(lone, RELAY)
    supervisor.exited("lone", 2, 1.0)
    assert supervisor.stopping


def test_readers_stop_before_what_they_read() -> None:
    supervisor = running(*ALL)
    supervisor.stop(10.0)
    assert supervisor.actions(10.0) == [Terminate("cache"), Terminate("search")]
    supervisor.exited("cache", 0, 10.1)
    assert supervisor.actions(10.1) == []
    for gone, following in (("search", "bootstrap"), ("bootstrap", "relay"), ("relay", "capture")):
        supervisor.exited(gone, 0, 10.2)
        assert supervisor.actions(10.2) == [Terminate(following)]
    supervisor.exited("capture", 0, 10.3)
    assert supervisor.done
    assert supervisor.exit_code == 0


def test_a_stage_that_hangs_does_not_hold_up_the_others() -> None:
    supervisor = running(*ALL)
    supervisor.stop(10.0)
    supervisor.actions(10.0)
    assert supervisor.wake_at(10.0) == 12.0
    assert supervisor.actions(12.0) == [Terminate("bootstrap")]
    assert supervisor.actions(14.0) == [Terminate("relay")]
    assert supervisor.actions(16.0) == [Terminate("capture")]
    assert supervisor.wake_at(16.0) == 18.5
    assert supervisor.actions(18.5) == [Kill(child.name) for child in ALL]
    assert supervisor.actions(18.6) == []
    assert supervisor.wake_at(18.6) is None


def test_a_child_that_had_to_be_killed_is_a_failure() -> None:
    supervisor = running(RELAY)
    supervisor.stop(0.0)
    supervisor.actions(0.0)
    supervisor.actions(8.5)
    supervisor.exited("relay", -signal.SIGKILL, 8.6)
    assert supervisor.exit_code == 1


def test_a_child_that_is_stopped_while_it_starts_is_no_failure() -> None:
    supervisor = running(RELAY)
    supervisor.stop(0.0)
    supervisor.actions(0.0)
    supervisor.exited("relay", -signal.SIGTERM, 0.1)
    assert supervisor.exit_code == 0


def test_nothing_is_started_once_stopping() -> None:
    supervisor = running(RELAY, CAPTURE)
    supervisor.exited("relay", -9, 0.0)
    supervisor.stop(0.1)
    assert supervisor.actions(100.0) == [Kill("capture")]
    supervisor.exited("capture", 0, 100.0)
    assert supervisor.done


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_dies_whenever_everything_is_gone_within_ten_seconds_of_a_stop(data: st.DataObject) -> None:
    supervisor = Supervisor(ALL, lambda: 0.5, TIMING)
    now, alive, stopped_at = 0.0, set[str](), None
    for _ in range(200):
        for action in supervisor.actions(now):
            match action:
                case Start(child):
                    assert stopped_at is None
                    alive.add(child.name)
                    supervisor.started(child.name, now)
                case Kill(name):
                    alive.discard(name)
                    supervisor.exited(name, -signal.SIGKILL, now)
        assert {one.child.name for one in supervisor.progress if one.phase is Phase.RUNNING} == alive
        if supervisor.done:
            break
        if alive and data.draw(st.booleans(), label="one dies"):
            name = data.draw(st.sampled_from(sorted(alive)), label="which")
            alive.discard(name)
            supervisor.exited(name, data.draw(st.sampled_from([0, 1, 2, TRY_AGAIN, -9, -11])), now)
        if stopped_at is None and (supervisor.stopping or data.draw(st.integers(0, 9), label="stop at 0") == 0):
            supervisor.stop(now)
            stopped_at = now
        wake_at = supervisor.wake_at(now)
        now = max(now, wake_at) if wake_at is not None else now + data.draw(st.floats(0.0, 1.0), label="passes")
    if stopped_at is not None and supervisor.done:
        assert now - stopped_at <= 10.0
        assert not alive
