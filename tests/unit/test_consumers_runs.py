"""Transactions that are taken together are delivered, committed and called for as if each had come by itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.calling import awaited
from support.log_in_portions import PortionedRelay
from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, update
from walbus.consumers import (
    AsyncSubscription,
    Callbacks,
    ChangesRefused,
    DeadLetters,
    Delivered,
    Failures,
    MemoryCheckpointStore,
)
from walbus.consumers.callbacks import STOP, AsyncCallbacks
from walbus.consumers.checkpoint import Checkpoint, Following, Marks, Part, Point, dump_checkpoint, load_checkpoint
from walbus.consumers.part_lease import LeasedSubscription, PartLease
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.phases import behind_window
from walbus.consumers.places import Place, Until, parse_place
from walbus.consumers.reporting import Reporter
from walbus.consumers.session import Session
from walbus.consumers.sink_feed import SinkFeed
from walbus.consumers.sinks.base import Batching, Sink
from walbus.consumers.steps import Deliver, DeliverRun, Output
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.subscription import Handing, Subscription
from walbus.errors import CallbackFailed
from walbus.events import Change, Window
from walbus.position import ORIGIN, Position
from walbus.records import Flag, RecordHeader, body_of, pack_record, read_header

BEGIN = Following("log-a", Marks(1, 1), Point(ORIGIN, 0))
ONE_PORTION = [1 << 20]

Step = tuple[str, int]
_steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["small"] * 6 + ["large", "cut", "progress", "asked", "layout", "new", "lose", "net", "nothing"]
        ),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=14,
)
_sizes = st.lists(st.one_of(st.integers(1, 400), st.integers(1_000, 5_000)), min_size=1, max_size=5)
_breaks = st.lists(st.integers(0, 3_000), max_size=3)


def log_of(steps: Sequence[Step]) -> ModelSource:
    """A log with what may come between small transactions, and ends them."""
    source, ids = ModelSource(), iter(range(1, 1_000))
    for what, count in steps:
        match what:
            case "small" | "net":
                edits = [insert(ITEMS, next(ids)) for _ in range(count)]
                source.commit([*edits, *(update(ITEMS, int(edit.id), name="x") for edit in edits[1:])])
                if what == "net":
                    source.records[-1] = with_flags(source, Flag.NET)
            case "large":
                source.commit([insert(ITEMS, next(ids)) for _ in range(count + 1)], pieces=2)
            case "cut":  # a filter left out its last piece
                source.commit([insert(ITEMS, next(ids)) for _ in range(2)], pieces=2)
                del source.records[-1]
            case "progress":
                source.progress()
            case "asked":
                source.progress(Flag.ASKED)
            case "layout":
                source.add_layout(items_layout())
            case "new":
                source.add_layout(items_layout(f"more{next(ids)}", oid=17_000 + next(ids)))
            case "lose":
                source.lose(ITEMS)
            case _:  # a filter left all of it out, but for its end
                source.commit([insert(ITEMS, next(ids))])
                source.records[-1] = with_flags(source, Flag.FILTERED, count=0, body=b"")
    return source


def with_flags(source: ModelSource, flag: Flag, **changed: Any) -> tuple[RecordHeader, bytes]:
    """The last record with one flag more."""
    header, record = source.records[-1]
    known = {name: value for name, value in header._asdict().items() if name not in ("length", "origin_length")}
    record = pack_record(**{"body": body_of(record, header), **known, "flags": header.flags | flag, **changed})
    return read_header(record), record


@contextmanager
def taken(way: str) -> Iterator[None]:
    """Together, or each record by itself."""
    if way == "together":
        yield
        return
    with mock.patch("walbus.consumers.session.whole_transactions", lambda *_: []):
        yield


def session(relay: PortionedRelay, checkpoint: Checkpoint | None = BEGIN) -> Session:
    return Session(relay.as_relays(), Subscribed("runs", ("public.*",), "snapshot"), checkpoint, relay.clock)


def outputs(relay: PortionedRelay, poll: Callable[[float], Output | PhaseEvent | None]) -> Iterator[Output]:
    while True:
        output = poll(1.0)
        if output is None and relay.ended:
            return
        if output is not None:
            assert not isinstance(output, PhaseEvent)
            yield output


def alone(output: Output) -> list[Output]:
    """The deliveries of a run, each by itself."""
    if not isinstance(output, DeliverRun):
        return [output]
    return [Deliver(one, output.marks, behind_window(output.checkpoint, one)) for one in output.windows]


def read(source: ModelSource, way: str, sizes: Sequence[int], breaks: Sequence[int], **more: Any) -> list[Output]:
    relay = PortionedRelay(source, sizes, breaks)
    with taken(way):
        reading = session(relay, **more)
        return list(outputs(relay, reading.poll))


@given(_steps, _sizes, _breaks)
def test_what_is_delivered_is_the_same_at_any_split_of_the_bytes(
    steps: list[Step], sizes: list[int], breaks: list[int]
) -> None:
    source = log_of(steps)
    expected = read(source, "alone", ONE_PORTION, breaks)
    assert read(source, "together", sizes, breaks) == expected
    relay = PortionedRelay(source, sizes, breaks)
    runs = outputs(relay, session(relay).poll_run)
    assert [one for output in runs for one in alone(output)] == expected


@given(_steps, _sizes, st.integers(0, 30))
def test_a_consumer_goes_on_from_any_checkpoint_within_a_run(steps: list[Step], sizes: list[int], kill: int) -> None:
    source = log_of(steps)
    delivered = [one for one in read(source, "together", sizes, ()) if isinstance(one, Deliver)]
    whole = [one for one in delivered if one.checkpoint is not None]
    if not whole:
        return
    last = whole[kill % len(whole)]
    assert last.checkpoint is not None
    checkpoint = load_checkpoint(dump_checkpoint(last.checkpoint))
    assert checkpoint == last.checkpoint
    again = read(source, "together", sizes, (), checkpoint=checkpoint)
    assert again == read(source, "alone", ONE_PORTION, (), checkpoint=checkpoint)
    seqs = {change.seq for one in again if isinstance(one, Deliver) for change in one.window if change.raw.key}
    wanted = {change.seq for one in delivered for change in one.window if change.raw.key}
    assert seqs == {seq for seq in wanted if seq > last.window.last_seq}, "what is behind it, and nothing else"


def test_a_transaction_is_taken_from_its_middle_where_a_place_is_there() -> None:
    source = log_of([("small", 3)] * 2)
    middle = replace(BEGIN, point=Point(Position(1, source.records[0][0].commit_lsn, 2), 0))  # a place has no seq
    taken_together = read(source, "together", ONE_PORTION, (), checkpoint=middle)
    assert taken_together == read(source, "alone", ONE_PORTION, (), checkpoint=middle)
    seqs = [change.seq for one in taken_together if isinstance(one, Deliver) for change in one.window]
    assert seqs == [3, 4, 5, 6, 7, 8, 9, 10]


def test_small_transactions_that_came_together_are_one_run() -> None:
    source = log_of([("small", 1)] * 5 + [("large", 1)] + [("small", 1)] * 3)
    relay = PortionedRelay(source, ONE_PORTION)
    runs = [len(one.windows) for one in outputs(relay, session(relay).poll_run) if isinstance(one, DeliverRun)]
    assert runs == [5, 3]


def test_a_transaction_that_repeats_seqs_is_refused_behind_what_came_before_it() -> None:
    source = log_of([("small", 1)] * 3)
    source.records[-1] = with_flags(source, Flag(0), first_seq=1, last_seq=1)
    relay = PortionedRelay(source, ONE_PORTION)
    reading, seqs = session(relay), []
    with pytest.raises(Exception, match="seq 1 is not above 2"):
        for output in outputs(relay, reading.poll):
            if isinstance(output, Deliver):
                seqs.append(output.window.last_seq)
    assert seqs == [1, 2]


# A sink


class NotingSink:
    """Notes what is written and committed."""

    batching = Batching(linger=1.0, max_changes=4, max_bytes=300)

    def __init__(self) -> None:
        self.noted: list[object] = []

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        self.noted.append((list(windows), marks))

    def commit(self, checkpoint: Checkpoint) -> None:
        self.noted.append(checkpoint)

    def rollback(self) -> None:
        self.noted.append("rollback")


@given(_steps, _sizes)
def test_a_sink_gets_a_run_in_the_batches_of_its_windows(steps: list[Step], sizes: list[int]) -> None:
    source = log_of(steps)
    noted = []
    for as_runs in (True, False):
        relay, sink = PortionedRelay(source, sizes), NotingSink()
        feed, reading = SinkFeed(cast(Sink, sink), lambda *_: None), session(relay)
        for output in outputs(relay, reading.poll_run if as_runs else reading.poll):
            feed.take(output, 0.0)
        feed.finish(0.0)
        noted.append(sink.noted)
    assert noted[0] == noted[1]


# A subscription


class KeptStore(MemoryCheckpointStore):
    """Notes every checkpoint that was stored."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[Checkpoint] = []
        self.save(BEGIN)

    def save(self, checkpoint: Checkpoint) -> None:
        self.saved.append(checkpoint)
        super().save(checkpoint)


class Unheard:
    """In place of what reports to the relay."""

    def doing(self, phase: str, waiting_for: str | None) -> None: ...

    def durable(self, checkpoint: Checkpoint) -> None: ...

    def asked(self, position: Position) -> None: ...

    def begin(self, checkpoint: Checkpoint | None) -> None: ...

    def close(self) -> None: ...


def subscription(relay: PortionedRelay, store: KeptStore, folder: Path, until: Place | None = None) -> Subscription:
    handing = Handing(folder, until=None if until is None else Until(parse_place(until, "until")))
    return Subscription(session(relay, store.load()), store, cast(Reporter, Unheard()), handing)


class Acting(Callbacks):
    """Notes every call; does what is planned at its nth one. The run ends with the log."""

    def __init__(self, relay: PortionedRelay, acts: dict[int, str]) -> None:
        self._relay, self._acts = relay, acts
        self.calls: list[object] = []
        self.subscription: Subscription

    def _called(self, what: object) -> None:
        act = self._acts.get(len(self.calls), "")
        self.calls.append(what)
        match act:
            case "stop":
                self.subscription.stop()
            case "time passes":
                self._relay.clock.pause(10.0)
            case "raise":
                raise ValueError("planned")
            case "seek":
                self.subscription.seek("earliest")

    def on_window_start(self, window: Delivered) -> None:
        self._called(("start", window.window, window.phase))

    def on_change(self, change: Change, window: Delivered) -> None:
        self._called(change)
        if self._acts.get(len(self.calls) - 1) == "refuse":
            raise ChangesRefused(change)

    def on_window_end(self, window: Delivered) -> None:
        self._called(("end", window.window))

    def on_checkpoint(self, position: Position) -> None:
        self._called(("checkpoint", position))

    def on_rollback(self, position: Position) -> None:
        self._called(("rollback", position))

    def on_error(self, error: Exception, change: Change | None) -> None:
        self._called(("error", repr(error), change))


def run_awaited(reading: Subscription, calls: Callbacks, failures: Failures = STOP) -> None:
    """As `Subscription.run`, by the twin for asyncio."""

    async def run() -> None:
        twin = AsyncSubscription(reading)
        try:
            await twin.run(awaited(calls), failures)
        finally:
            await twin.close()

    asyncio.run(run())


_acts = st.dictionaries(
    st.integers(0, 60), st.sampled_from(["stop", "time passes", "time passes", "raise", "refuse", "seek"]), max_size=4
)
_places = st.integers(0, 14).map(lambda number: Position(1, 0x1000 + number * 0x100, 1))
_until = st.one_of(st.just("latest"), st.integers(1, 25).map("seq:{}".format), _places)


@given(_steps, _sizes, _acts, st.sampled_from(["stop", "skip"]), _until)
@example([("small", 1)] * 8, ONE_PORTION, {5: "time passes"}, "stop", "latest")
@example([("small", 1)] * 8, ONE_PORTION, {4: "raise", 5: "raise"}, "skip", "latest")
@example([("small", 1)] * 8, ONE_PORTION, {4: "stop"}, "stop", "latest")
@example([("small", 1)] * 8, ONE_PORTION, {}, "stop", "seq:4")
def test_callbacks_checkpoints_and_ends_are_the_same(
    steps: list[Step], sizes: list[int], acts: dict[int, str], policy: Any, until: Place
) -> None:
    source = log_of(steps)
    seen = []
    for way, run in (("together", Subscription.run), ("alone", Subscription.run), ("together", run_awaited)):
        relay, store = PortionedRelay(source, sizes), KeptStore()
        calls, ended = Acting(relay, acts), ""
        with taken(way), subscription(relay, store, Path("/nowhere"), until) as calls.subscription:
            relay.at_end = calls.subscription.stop
            try:
                run(calls.subscription, calls, Failures(policy, attempts=2, first_pause=0, longest_pause=0))
            except (CallbackFailed, ValueError) as error:
                ended = repr(error)
            seen.append((calls.calls, store.saved, ended, calls.subscription.has_uncommitted))
    assert seen[0] == seen[1]
    assert seen[0] == seen[2]


@given(_steps, _sizes, st.integers(1, 4), _until)
def test_a_loop_that_commits_now_and_then_gets_and_stores_the_same(
    steps: list[Step], sizes: list[int], each: int, until: Place
) -> None:
    source = log_of(steps)
    seen = []
    for way in ("together", "alone"):
        relay, store, windows = PortionedRelay(source, sizes), KeptStore(), []
        with taken(way), subscription(relay, store, Path("/nowhere"), until) as reading:
            while not reading.ended and not relay.ended:
                delivery = reading.next(1.0)
                if delivery is not None:
                    windows.append((delivery.window, delivery.phase, delivery.generation))
                if delivery is not None and len(windows) % each == 0:
                    delivery.commit()
            seen.append((windows, store.saved, reading.has_uncommitted, reading.stored))
    assert seen[0] == seen[1]


@pytest.fixture
def eight(tmp_path: Path) -> Iterator[tuple[Subscription, KeptStore]]:
    """A subscription to eight transactions that have come together; their seqs are 1 to 8."""
    relay, store = PortionedRelay(log_of([("small", 1)] * 8), ONE_PORTION), KeptStore()
    with subscription(relay, store, tmp_path) as reading:
        yield reading, store


def seq_of(delivery: Delivered | None) -> int | None:
    return None if delivery is None else delivery.window.last_seq


def test_a_window_within_a_run_has_a_checkpoint_of_its_own(eight: tuple[Subscription, KeptStore]) -> None:
    reading, store = eight
    first, second, third = reading.next(1.0), reading._further(), reading._further()
    assert (seq_of(first), seq_of(second), seq_of(third)) == (1, 2, 3)
    assert first is not None and second is not None and third is not None
    second.commit()
    assert store.load() == replace(BEGIN, point=Point(second.last, 2), asked=("public.*",))
    assert reading.stored == second.last
    first.commit()  # progress never moves backward
    assert reading.stored == second.last
    assert seq_of(reading.next(1.0)) == 4, "whoever asks for one at a time gets the next one"


def test_nothing_of_a_run_is_given_while_it_is_paused(eight: tuple[Subscription, KeptStore]) -> None:
    reading, _ = eight
    assert seq_of(reading.next(1.0)) == 1
    reading.pause()
    assert (reading._further(), reading.next(0.0)) == (None, None)
    reading.resume()
    assert [seq_of(reading.next(1.0)), seq_of(reading._further())] == [2, 3]


def test_nothing_of_a_run_is_given_behind_a_stop(eight: tuple[Subscription, KeptStore]) -> None:
    reading, _ = eight
    assert seq_of(reading.next(1.0)) == 1
    reading.stop()
    assert reading._further() is None


def test_a_rewind_within_a_run_gives_again_what_was_not_committed(eight: tuple[Subscription, KeptStore]) -> None:
    reading, _ = eight
    first = reading.next(1.0)
    assert first is not None
    first.commit()
    late = reading._further()
    assert seq_of(late) == 2 and late is not None
    reading.rewind()
    assert reading._further() is None
    assert [seq_of(reading.next(1.0)), seq_of(reading._further())] == [2, 3]
    late.commit()  # of before the rewind
    assert reading.stored == first.last


def test_nothing_of_a_run_is_given_when_the_lease_is_over(tmp_path: Path) -> None:
    relay, store = PortionedRelay(log_of([("small", 1)] * 4), ONE_PORTION), KeptStore()
    lease = PartLease(Part("0/2", 1), "runs.0-of-2", 1.0, 10.0, relay.clock.monotonic)
    reading = LeasedSubscription(
        session(relay, store.load()), cast(Any, store), cast(Reporter, Unheard()), Handing(tmp_path), lease
    )
    with reading:
        assert [seq_of(reading.next(1.0)), seq_of(reading._further())] == [1, 2]
        relay.clock.pause(9.5)
        assert reading._further() is None
        lease.renewed(30.0)
        assert seq_of(reading._further()) == 3


def test_what_was_read_when_the_lease_ran_out_comes_before_the_rest_of_its_run(tmp_path: Path) -> None:
    relay, store = PortionedRelay(log_of([("small", 1)] * 4), ONE_PORTION), KeptStore()
    lease = PartLease(Part("0/2", 1), "runs.0-of-2", 1.0, 10.0, relay.clock.monotonic)
    reading = LeasedSubscription(
        session(relay, store.load()), cast(Any, store), cast(Reporter, Unheard()), Handing(tmp_path), lease
    )
    with reading, mock.patch.object(lease, "may_hand_on", mock.Mock(side_effect=[True, True, False, True, True, True])):
        assert reading.next(1.0) is None  # the lease was over when it had been read
        assert reading._further() is None
        assert [seq_of(reading.next(1.0)), seq_of(reading._further())] == [1, 2]


class Counting(AsyncCallbacks):
    """Takes a millisecond for each change, and waits for nothing."""

    def __init__(self) -> None:
        self.changes = 0

    async def on_change(self, change: Change, window: Delivered) -> None:
        self.changes += 1
        time.sleep(0.001)


def test_windows_that_have_come_together_are_awaited_without_the_thread(tmp_path: Path) -> None:
    submitted: list[object] = []

    async def read(calls: Counting, reading: Subscription) -> int:
        turns, twin = 0, AsyncSubscription(reading)
        submit = twin._thread.submit

        async def others() -> None:
            nonlocal turns
            while not reading.ended:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        with mock.patch.object(twin._thread, "submit", lambda *given: submitted.append(given) or submit(*given)):
            await twin.run(calls)
        await other
        await twin.close()
        return turns

    calls, relay = Counting(), PortionedRelay(log_of([("small", 1)] * 300), ONE_PORTION)
    with subscription(relay, KeptStore(), tmp_path) as reading:
        relay.at_end = reading.stop
        turns = asyncio.run(read(calls, reading))
    assert calls.changes == 300
    assert len(submitted) < 30, "one for each reading and checkpoint"
    assert turns >= 20, "others have their turn now and then"


def test_a_window_that_has_been_read_is_not_lost_with_a_cancelled_asker(
    eight: tuple[Subscription, KeptStore],
) -> None:
    async def read() -> list[int | None]:
        twin = AsyncSubscription(eight[0])
        first = await twin.next(1.0)
        asked = asyncio.ensure_future(twin.next(1.0))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return [seq_of(first), seq_of(await twin.next(1.0)), seq_of(await twin.next(1.0))]

    assert asyncio.run(read()) == [1, 2, 3]


def test_nothing_is_handed_over_while_the_thread_of_a_subscription_may_lead_it_elsewhere(
    eight: tuple[Subscription, KeptStore],
) -> None:
    reading, _ = eight
    busy = threading.Event()

    async def read() -> list[int | None]:
        twin = AsyncSubscription(reading)
        first = await twin.next(1.0)
        moving = asyncio.wrap_future(twin._thread.submit(busy.wait, 60))
        waiting = asyncio.ensure_future(twin.next(1.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        busy.set()
        await moving
        return [seq_of(first), seq_of(await waiting), seq_of(await twin.next(1.0))]

    assert asyncio.run(read()) == [1, 2, 3]


def test_parked_changes_and_those_behind_them_are_the_same(tmp_path: Path) -> None:
    source = ModelSource()
    for id in range(1, 12):
        source.commit([insert(ITEMS, id)])
        source.commit([update(ITEMS, id, name="x")])
        if id % 4 == 0:
            source.commit([delete(ITEMS, id)])

    class Refuses(Acting):
        def on_change(self, change: Change, window: Delivered) -> None:
            super().on_change(change, window)
            if change.key is not None and change.key["id"] in (3, 8) and change.raw.op == 1:
                raise ValueError("poison")

    seen = []
    for way in ("together", "alone"):
        relay, store = PortionedRelay(source, [700]), KeptStore()
        calls = Refuses(relay, {})
        with taken(way), subscription(relay, store, tmp_path / way, "latest") as calls.subscription:
            calls.subscription.run(calls, Failures("dead-letter", attempts=1))
        letters = DeadLetters(tmp_path / way / "dead-letters.sqlite")
        seen.append((calls.calls, store.saved, [one.change.seq for one in letters.letters()]))
        letters.close()
    assert seen[0] == seen[1]
    assert len(seen[0][2]) == 5, "two that were refused, and three of their keys behind them"
