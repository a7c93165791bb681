"""Callbacks by both clients: their order, what is retried and rolled back, what each policy does with a poison row."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import groupby
from pathlib import Path

import pytest

import walbus
from support.calling import Recorder, awaited, calling
from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.relay_log import SOURCE, FileEngine, table_schema, transaction
from support.serving_relay import ServingRelay
from support.waiting import wait_for
from walbus.consumers import Callbacks, ChangesRefused, DeadLetters, Delivered, Failures, Subscription
from walbus.errors import CallbackFailed, DeadLettersFull, PositionUnknown, UsageError
from walbus.events import Change
from walbus.position import Position
from walbus.records import Op

pytestmark = pytest.mark.one_version

PARK = Failures("dead-letter", attempts=2, first_pause=0.01, longest_pause=0.02)
SKIP = Failures("skip", attempts=2, first_pause=0.01, longest_pause=0.02)


@pytest.fixture(params=["threads", "asyncio"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def poison(*ids: int):
    return lambda change: change.key["id"] in ids


def letters(folder: Path) -> DeadLetters:
    return DeadLetters(folder / "caller" / "dead-letters.sqlite")


def test_calls_come_in_their_order(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2), insert(ITEMS, 3)])
    source.trim(source.end)
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls, start="snapshot") as run:
        wait_for(lambda: "bootstrap_end" in calls.calls)
        source.commit([update(ITEMS, 1, name="b"), delete(ITEMS, 2)])
        wait_for(lambda: len(calls.durable) == 5)
    assert run.error is None
    told = [name for name in calls.calls if name != "checkpoint"]
    rows = told.index("change")
    assert told[:rows] == ["start", "bootstrap_start", "window_start", "window_end", "window_start"]  # the layout first
    assert told[rows:] == [
        "change", "change", "window_end", "window_start", "change", "window_end",
        "window_start", "sweep", "window_end", "bootstrap_end",
        "window_start", "change", "change", "window_end", "stop",
    ]  # fmt: skip
    for before, after in zip(calls.calls, calls.calls[1:], strict=False):
        assert after != "checkpoint" or before in ("window_end", "bootstrap_end")
    assert calls.phases == {"snapshot", "online"}


def test_on_a_real_relay_every_change_comes_once_and_a_second_run_goes_on(tmp_path: Path, way: str) -> None:
    with closing(FileEngine(tmp_path / "log")) as engine, closing(engine.open_writer(SOURCE)) as writer:
        writer.schemas.register(table_schema("orders", 1))
        for lsn in range(0x10, 0x210, 0x10):
            writer.append(transaction(lsn, 3, table=1, schema_id=1))
        writer.sync()
        calls, again = Recorder(), Recorder()
        with ServingRelay(engine.folder) as relay:
            with calling(way, relay.url, tmp_path, calls) as run:
                wait_for(lambda: len(calls.durable) == 96)
            assert run.error is None
            writer.append(transaction(0x300, 2, table=1, schema_id=1))
            writer.sync()
            with calling(way, relay.url, tmp_path, again) as run:
                wait_for(lambda: len(again.durable) == 2)
            assert run.error is None
        seqs = [change.seq for change in (*calls.durable, *again.durable)]
        assert seqs == sorted(set(seqs)), "each once, in order"
        assert len(seqs) == 98


def test_a_change_is_tried_again_and_its_window_goes_on(source, relay, tmp_path: Path, way: str) -> None:
    left = [2]

    def twice(change: Change) -> bool:
        if change.key == {"id": 2} and left[0]:
            left[0] -= 1
            return True
        return False

    source.commit([insert(ITEMS, n) for n in (1, 2, 3)])
    calls = Recorder(twice)
    with calling(way, relay.url, tmp_path, calls) as run:
        wait_for(lambda: len(calls.durable) == 3)
    assert run.error is None
    assert calls.ids == [1, 2, 3]
    assert [change.key for _, change in calls.errors if change] == [{"id": 2}, {"id": 2}]
    assert not calls.rolled_back


def test_stop_ends_with_the_place_and_no_value_and_what_was_taken_comes_again(
    source, relay, tmp_path: Path, way: str
) -> None:
    source.commit([insert(ITEMS, 1, "kept")])
    source.commit([insert(ITEMS, 2, "secret"), insert(ITEMS, 3, "secret")])
    calls = Recorder(poison(3))
    with calling(way, relay.url, tmp_path, calls) as run:
        error = run.ended()
    assert isinstance(error, CallbackFailed)
    assert f"public.items at {source.end}" in str(error)
    assert "secret" not in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert calls.calls[-2:] == ["rollback", "stop"]
    assert len(calls.errors) == 3
    mended = Recorder()
    with calling(way, relay.url, tmp_path, mended):
        wait_for(lambda: mended.ids[-2:] == [2, 3])
    assert [*calls.ids, *mended.ids] in ([1, 2, 3], [1, 1, 2, 3]), "nothing is lost"


def test_skip_leaves_out_the_poison_row_alone(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, n) for n in range(6)])
    calls = Recorder(poison(2, 4))
    with calling(way, relay.url, tmp_path, calls, SKIP) as run:
        wait_for(lambda: len(calls.durable) == 4)
    assert run.error is None
    assert calls.ids == [0, 1, 3, 5]


def test_a_parked_key_keeps_its_order_while_others_go_on(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    calls = Recorder(poison(1))
    with calling(way, relay.url, tmp_path, calls, PARK) as run:
        wait_for(lambda: calls.ids == [2])
        calls.refuse = poison()  # mended: later changes of the key must wait all the same
        source.commit([update(ITEMS, 1, name="later"), update(ITEMS, 2, name="two")])
        source.commit([update(ITEMS, 1, new_id=7, name="moved"), insert(ITEMS, 3)])
        source.commit([update(ITEMS, 7, name="under its new key")])
        wait_for(lambda: calls.ids == [2, 2, 3])
        with closing(letters(tmp_path)) as store:
            wait_for(lambda: len(store.letters()) == 4)
            assert [letter.error for letter in store.letters()] == ["ValueError", "behind", "behind", "behind"]
            assert store.retry([store.letters()[-1].id]) == 4, "with those before it of its keys"
            wait_for(lambda: not store.letters())
    assert run.error is None
    retried = calls.durable[3:]
    assert [(c.key["id"], c.after["name"]) for c in retried] == [
        (1, "name"), (1, "later"), (7, "moved"), (7, "under its new key"),
    ]  # fmt: skip
    assert [c.seq for c in retried] == sorted(c.seq for c in retried)
    assert "dead-letter" in calls.phases


def test_a_letter_that_fails_again_stays_with_those_behind_it(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    calls = Recorder(poison(1, 2))
    with calling(way, relay.url, tmp_path, calls, PARK):
        source.commit([update(ITEMS, 1, name="later")])
        with closing(letters(tmp_path)) as store:
            wait_for(lambda: (store.asked() is not None) and len(store.letters()) == 3)
            calls.refuse = poison(1)
            store.retry()
            wait_for(lambda: [letter.change.key["id"] for letter in store.letters()] == [1, 1])
            wait_for(lambda: not any(letter.asked for letter in store.letters()))
            assert [letter.attempts for letter in store.letters()] == [3, 0]
            assert calls.ids == [2]
            assert store.drop([store.letters()[0].id]) == 1
            calls.refuse = poison()
            store.retry()
            wait_for(lambda: calls.ids == [2, 1])


def test_a_truncate_makes_a_tables_letters_void(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    calls = Recorder(poison(1))
    with calling(way, relay.url, tmp_path, calls, PARK):
        wait_for(lambda: calls.ids == [2])
        calls.refuse = poison()
        source.commit([truncate(ITEMS)])
        source.commit([insert(ITEMS, 1)])
        wait_for(lambda: calls.ids == [2, 1])
        with closing(letters(tmp_path)) as store:  # they go with the checkpoint
            wait_for(lambda: store.letters() == [])


def test_parking_is_bounded(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, n) for n in range(9)])
    calls = Recorder(lambda _: True)
    with calling(way, relay.url, tmp_path, calls, Failures("dead-letter", attempts=1, dead_letters=4)) as run:
        error = run.ended()
    assert isinstance(error, DeadLettersFull)
    assert error.mend
    with closing(letters(tmp_path)) as store:
        assert [letter.change.key["id"] for letter in store.letters()] == [0, 1, 2, 3]


def test_a_run_that_is_killed_behind_parking_parks_nothing_twice(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    for _ in range(2):
        calls = Recorder(poison(1))

        def killed() -> None:
            raise KeyboardInterrupt

        calls.raising["window_end"] = killed
        with calling(way, relay.url, tmp_path, calls, PARK) as run:
            assert isinstance(run.ended(), KeyboardInterrupt)
        assert calls.calls[-2:] == ["rollback", "stop"]
    with closing(letters(tmp_path)) as store:
        assert [letter.change.key["id"] for letter in store.letters()] == [1]


@pytest.mark.parametrize("where", ["window_start", "window_end", "checkpoint"])
def test_a_window_whose_callback_raises_is_rolled_back_and_comes_again(
    source, relay, tmp_path: Path, way: str, where: str
) -> None:
    source.commit([insert(ITEMS, 1)])
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls) as run:
        wait_for(lambda: calls.ids == [1])
        wait_for(lambda: len(calls.durable) == 1)
        failing = iter([True, True])

        def fail() -> None:
            if next(failing, False):
                raise OSError("away for now")

        calls.raising[where] = fail
        source.commit([insert(ITEMS, 2), insert(ITEMS, 3)])
        wait_for(lambda: len(calls.durable) == 3)
    assert run.error is None
    assert calls.ids == [1, 2, 3]
    assert len(calls.rolled_back) == 2
    assert {type(error) for error, _ in calls.errors} == {OSError}


def test_a_window_that_goes_on_being_refused_ends_the_run_under_any_policy(
    source, relay, tmp_path: Path, way: str
) -> None:
    source.commit([insert(ITEMS, 1)])
    calls = Recorder()

    def fail() -> None:
        raise OSError("away for good")

    calls.raising["window_end"] = fail
    with calling(way, relay.url, tmp_path, calls, SKIP) as run:
        error = run.ended()
    assert isinstance(error, CallbackFailed)
    assert isinstance(error.__cause__, OSError)
    assert calls.durable == []
    assert calls.calls.count("stop") == 1


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_code_that_writes_at_a_windows_end_names_the_changes_at_fault(
    source, relay, tmp_path: Path, way: str, policy: str
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    calls = Recorder()

    def write() -> None:
        bad = [change for change in calls.taken if change.key["id"] in (1, 3)]
        if bad:
            raise ChangesRefused(*bad)

    calls.raising["window_end"] = write
    with calling(way, relay.url, tmp_path, calls, Failures(policy, attempts=1)) as run:  # type: ignore[arg-type]
        wait_for(lambda: len(calls.durable) == 3)
        source.commit([update(ITEMS, 2, name="later")])
        wait_for(lambda: len(calls.durable) == 4)
    assert run.error is None
    assert calls.ids == [0, 2, 4, 2]
    with closing(letters(tmp_path)) as store:
        assert [letter.change.key["id"] for letter in store.letters()] == ([1, 3] if policy == "dead-letter" else [])


def test_a_transaction_whose_rest_never_comes_is_rolled_back(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, n) for n in range(4)], pieces=2)
    first, second = source.records[-2:]
    source.records = [first]
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls) as run:
        wait_for(lambda: calls.ids == [0, 1])
        run.stop()
    assert calls.calls[-2:] == ["rollback", "stop"]
    assert "checkpoint" not in calls.calls
    source.records = [first, second]
    whole = Recorder()
    with calling(way, relay.url, tmp_path, whole):
        wait_for(lambda: len(whole.durable) == 4)
    assert [name for name, _ in groupby(whole.calls)][:5] == [
        "start",
        "window_start",
        "change",
        "window_end",
        "checkpoint",
    ]


def test_a_transaction_whose_log_is_replaced_is_rolled_back(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 9)])
    source.commit([insert(ITEMS, n) for n in range(4)], pieces=2)
    source.records.pop()
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls):
        wait_for(lambda: calls.ids == [9, 0, 1])
        assert [change.key for change in calls.durable] == [{"id": 9}], "what is whole is not rolled back with it"
        other = ModelSource("log-b")
        other.commit([insert(ITEMS, 7)])
        relay.source = other
        wait_for(lambda: [change.key for change in calls.durable] == [{"id": 9}, {"id": 7}])
    told = [name for name, _ in groupby(calls.calls)]
    behind = told.index("rollback")
    assert told[behind - 2 : behind + 2] == ["window_start", "change", "rollback", "bootstrap_start"]


def test_a_task_that_is_cancelled_rolls_back_and_stops(source, relay, tmp_path: Path) -> None:
    async def run(calls: Recorder) -> None:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(name="caller", start="earliest")
            running = asyncio.ensure_future(subscription.run(awaited(calls), checkpoint_seconds=60))
            while calls.ids != [0, 1]:
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    source.commit([insert(ITEMS, n) for n in range(4)], pieces=2)
    rest = source.records.pop()
    calls, again = Recorder(), Recorder()
    asyncio.run(run(calls))
    assert calls.calls[-2:] == ["rollback", "stop"]
    source.records.append(rest)
    with calling("asyncio", relay.url, tmp_path, again):
        wait_for(lambda: len(again.durable) == 4)


def test_a_second_run_on_one_subscription_takes_what_the_first_has_rolled_back(
    source, relay, tmp_path: Path, way: str
) -> None:
    source.commit([insert(ITEMS, 1)])
    source.commit([insert(ITEMS, 2), insert(ITEMS, 3)])
    refused, mended, once = Recorder(poison(3)), Recorder(), Failures(attempts=1)
    options = {"name": "caller", "start": "earliest", "until": str(source.end)}

    async def with_asyncio() -> Position:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(**options)
            with pytest.raises(CallbackFailed):
                await subscription.run(awaited(refused), once)
            await subscription.run(awaited(mended), once)
            return subscription.stored

    if way == "asyncio":
        stored = asyncio.run(with_asyncio())
    else:
        with walbus.connect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(**options)
            with pytest.raises(CallbackFailed):
                subscription.run(refused, once)
            subscription.run(mended, once)
            stored = subscription.stored
    assert stored == source.end
    assert [change.key["id"] for change in (*refused.durable, *mended.durable)] == [1, 2, 3]


@pytest.mark.parametrize("failing", ["change", "window_end", "checkpoint"])
def test_what_fails_once_in_the_last_window_before_until_is_tried_again(
    source, relay, tmp_path: Path, way: str, failing: str
) -> None:
    source.commit([insert(ITEMS, 1)])
    source.commit([insert(ITEMS, 2)])
    calls, left = Recorder(), [1]

    def once() -> None:
        if left and (2 in calls.ids or (failing == "change" and calls.ids == [1])):
            left.clear()
            raise ValueError("not yet")

    calls.raising[failing] = once
    failures = Failures("skip", attempts=3, first_pause=0.01, longest_pause=0.02)
    with calling(way, relay.url, tmp_path, calls, failures, until=str(source.end)) as run:
        assert run.ended() is None
    assert not left, "it failed"
    assert [change.key["id"] for change in calls.durable] == [1, 2]


def test_the_last_window_before_until_is_not_lost_with_a_cancelled_asker(source, relay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1)])

    async def scene() -> list[object]:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(name="caller", start="earliest", until=str(source.end))
            asked = asyncio.ensure_future(subscription.next(60))  # which comes back with the window alone
            await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            while not subscription.ended:
                await asyncio.sleep(0.01)
            return [change.key["id"] async for window in subscription for change in window if change.key]

    assert asyncio.run(scene()) == [1]


def test_a_truncate_that_is_taken_at_its_second_attempt_makes_letters_void(
    source, relay, tmp_path: Path, way: str
) -> None:
    class Hesitant(Recorder):
        hesitated = False

        def on_change(self, change: Change, window: Delivered) -> None:
            if change.op is Op.TRUNCATE and not self.hesitated:
                self.hesitated = True
                raise ValueError("not yet")
            super().on_change(change, window)

    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    calls = Hesitant(poison(1))
    with calling(way, relay.url, tmp_path, calls, PARK):
        wait_for(lambda: calls.ids == [2])
        calls.refuse = poison()
        source.commit([truncate(ITEMS)])
        source.commit([insert(ITEMS, 1)])
        wait_for(lambda: calls.ids == [2, 1])
    assert calls.hesitated
    with closing(letters(tmp_path)) as store:
        assert store.letters() == []


def test_what_on_error_raises_ends_the_run_at_once(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1)])
    calls = Recorder(poison(1))

    def give_up() -> None:
        raise RuntimeError("no more")

    calls.raising["error"] = give_up
    with calling(way, relay.url, tmp_path, calls, SKIP) as run:
        assert isinstance(run.ended(), RuntimeError)
    assert calls.calls == ["start", "window_start", "change", "error", "rollback", "stop"]


def test_what_on_error_raises_about_the_reading_rolls_back_too(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1)])
    source.commit([insert(ITEMS, n) for n in (2, 3)], pieces=2)
    source.records.pop()
    regressed = ModelSource()
    for _ in range(9):
        regressed.progress()
    calls = Recorder()

    def give_up() -> None:
        raise RuntimeError("no more")

    calls.raising["error"] = give_up
    with calling(way, relay.url, tmp_path, calls, SKIP) as run:
        wait_for(lambda: calls.ids == [1, 2])
        relay.source = regressed
        assert isinstance(run.ended(), RuntimeError)
    assert calls.calls[-3:] == ["error", "rollback", "stop"]
    assert [type(error) for error, _ in calls.errors] == [PositionUnknown]


def test_who_goes_elsewhere_in_the_middle_of_a_transaction_has_it_rolled_back(source, relay, tmp_path: Path) -> None:
    first = source.commit([insert(ITEMS, 9)])
    source.commit([insert(ITEMS, n) for n in range(4)], pieces=2)
    went: list[Position] = []

    def go(change: Change) -> bool:
        if change.key == {"id": 1} and not went:
            went.append(calls.run.subscription.stored)
            calls.run.subscription.seek(first)
        return False

    calls = Recorder(go)
    with calling("threads", relay.url, tmp_path, calls) as run:
        wait_for(lambda: len(calls.durable) == 6)
    assert run.error is None
    assert [change.key["id"] for change in calls.durable] == [9, 9, 0, 1, 2, 3]
    assert [name for name in calls.calls if name != "change"][:8] == [
        "start", "window_start", "window_end", "checkpoint", "window_start", "rollback", "window_start", "window_end",
    ]  # fmt: skip
    assert calls.rolled_back == went, "what came since the last checkpoint, and not since the place that it went to"


def test_a_stop_is_not_held_up_by_a_pause_between_two_attempts(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1)])
    calls = Recorder(poison(1))
    with calling(way, relay.url, tmp_path, calls, Failures(first_pause=3_000, longest_pause=3_000)) as run:
        wait_for(lambda: len(calls.errors) == 1)
        assert run.stop() is None
    assert calls.calls[-2:] == ["rollback", "stop"]


def test_a_loop_over_windows_ends_behind_the_one_that_it_has(source, relay, tmp_path: Path) -> None:
    for n in range(5):
        source.commit([insert(ITEMS, n)])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="loop", start="earliest")
        seen = []
        for window in subscription:
            seen += [change.key["id"] for change in window if change.key]
            window.commit()
            if len(seen) == 2:
                threading.Thread(target=subscription.stop).start()
                wait_for(lambda: subscription.ended)
        assert seen == [0, 1]
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        following = iter(bus.subscribe(name="loop"))
        assert [change.key["id"] for change in next(following)] == [2]


LOOPS: list[Callable[[Subscription], object]] = [
    list, lambda subscription: list(subscription.batches()), lambda subscription: subscription.run(Callbacks()),
]  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS, ids=["windows", "batches", "callbacks"])
def test_a_loop_ends_that_is_closed_between_its_look_and_its_reading_on(
    relay, tmp_path: Path, monkeypatch, loop
) -> None:
    looks: list[Subscription] = []

    def closed_behind_the_look(subscription: Subscription) -> bool:
        looks.append(subscription)
        subscription.close()  # as another thread does
        return len(looks) > 3

    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="loop")
        monkeypatch.setattr(Subscription, "ended", property(closed_behind_the_look))
        assert not loop(subscription)


def test_one_subscription_runs_one_set_of_callbacks(source, relay, tmp_path: Path) -> None:
    class Twice(Callbacks):
        def on_start(self) -> None:
            with pytest.raises(UsageError, match="run already"):
                subscription.run(Callbacks())
            subscription.stop()

    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="caller", start="earliest")
        subscription.run(Twice())


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"policy": "ignore"}, "policy"),
        ({"attempts": 0}, "attempts"),
        ({"dead_letters": 0}, "dead_letters"),
        ({"first_pause": 9.0, "longest_pause": 1.0}, "first_pause, longest_pause"),
    ],
)
def test_failures_that_make_no_sense_are_refused_by_name(wrong, where: str) -> None:
    with pytest.raises(UsageError) as refused:
        Failures(**wrong)
    assert refused.value.where == where
