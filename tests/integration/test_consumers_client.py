"""The client library against a scripted relay: what a user's loop sees, and what a restart sees again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import walbus
from support.model_source import ITEMS, ModelSource, delete, insert, update
from support.scripted_relay import ScriptedRelay
from support.waiting import wait_for
from walbus.consumers import Delivery, MemoryCheckpointStore, PhaseEvent, Subscription
from walbus.consumers.checkpoint import last_done_of, load_checkpoint
from walbus.errors import ConfigError, PositionUnknown, SourceMisconfigured, UsageError
from walbus.position import ORIGIN
from walbus.records import Kind, Op

pytestmark = pytest.mark.one_version


def take(subscription: Subscription, count: int) -> list[Delivery]:
    """The next deliveries with changes of rows."""
    found: list[Delivery] = []
    while len(found) < count:
        delivery = subscription.next(60)
        assert delivery is not None, f"only {len(found)} of {count}"
        if any(change.raw.after or change.raw.key for change in delivery):
            found.append(delivery)
    return found


def names(deliveries: list[Delivery]) -> list[object]:
    return [(change.after or {}).get("name") for delivery in deliveries for change in delivery]


def test_five_lines_read_every_row_and_then_every_change(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, 1, "one"), insert(ITEMS, 2, "two")])
    source.trim(source.end)
    seen: list[object] = []
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        for window in bus.subscribe("public.items", name="orders-cache"):
            for change in window:
                seen.append((change.op.name, change.key, change.after))
            window.commit()
            if window.sweep and not source.rows().keys() - {"1", "2"}:
                source.commit([insert(ITEMS, 3, "three"), delete(ITEMS, 1)])
            if len(seen) >= 5:
                break
    assert [entry for entry in seen if entry[0] != "SCHEMA"] == [  # type: ignore[index]
        ("INSERT", {"id": 1}, {"id": 1, "name": "one", "body": "body"}),
        ("INSERT", {"id": 2}, {"id": 2, "name": "two", "body": "body"}),
        ("INSERT", {"id": 3}, {"id": 3, "name": "three", "body": "body"}),
        ("DELETE", {"id": 1}, None),
    ]


def test_a_restart_goes_on_behind_the_last_commit(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="reader", start="earliest")
        for n in range(4):
            source.commit([insert(ITEMS, n, f"n{n}")])
        first, second, _third = take(subscription, 3)
        second.commit()
        first.commit()  # progress never moves backward
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert names(take(bus.subscribe(name="reader"), 2)) == ["n2", "n3"]


@pytest.mark.parametrize(
    ("choice", "where"),
    [
        ({"start": "snapshots"}, "start"),
        ({"ops": "insert", "start": "latest"}, "ops"),
        ({"delta_above": 0}, "delta_above"),
        ({"delta_above": "5"}, "delta_above"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_by_its_name(
    relay: ScriptedRelay, tmp_path: Path, choice: dict[str, Any], where: str
) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus, pytest.raises(UsageError) as refused:
        bus.subscribe("public.items", name="reader", **choice)
    assert refused.value.where == where
    assert refused.value.mend


def test_each_window_says_the_phase_that_it_was_read_in(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe("public.items", name="reader")
        deliveries = until_present(subscription, source)
        source.commit([insert(ITEMS, 2, "two")])
        deliveries += take(subscription, 1)
    assert [(delivery.kind, delivery.phase) for delivery in deliveries if delivery.changes] == [
        (Kind.SCHEMA, "snapshot"),
        (Kind.SNAPSHOT, "snapshot"),
        (Kind.TRANSACTION, "online"),
    ]
    assert [delivery.phase for delivery in deliveries if delivery.sweep] == ["snapshot"]


def test_a_relay_that_has_still_to_get_a_rows_layout_is_waited_for(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    """A copy of the log, beside which the bootstrap of the first relay is ahead."""
    source.commit([insert(ITEMS, 1, "one")])
    relay.knows_layouts = False
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe("public.items", name="reader")
        wait_for(lambda: subscription.next(0.05) is None and subscription.waiting_for is not None, what="it waits")
        assert "layout" in str(subscription.waiting_for)
        relay.knows_layouts = True
        assert names(take(subscription, 1)) == ["one"]


def test_a_loop_ends_when_another_thread_closes_its_bus(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    seen: list[object] = []
    ended: list[BaseException | None] = []

    def read(subscription: Subscription) -> None:
        try:
            for window in subscription:
                seen.extend(change.key for change in window)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    before = set(threading.enumerate())
    for round_ in range(5):
        source.commit([insert(ITEMS, round_)])
        bus = walbus.connect(relay.url, folder=tmp_path)
        subscription = bus.subscribe("public.items", name="reader")
        reader = threading.Thread(target=read, args=(subscription,))
        reader.start()
        wait_for(lambda: {"id": round_} in seen, what="it reads")  # noqa: B023  # called in this round alone
        (bus if round_ % 2 else subscription).close()
        reader.join(60)
        bus.close()
        assert len(ended) == round_ + 1
    assert ended == [None] * 5
    wait_for(
        lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("walbus-")], what="all end"
    )


def test_what_is_closed_says_so(relay: ScriptedRelay, tmp_path: Path) -> None:
    bus = walbus.connect(relay.url, folder=tmp_path)
    subscription = bus.subscribe("public.items", name="reader")
    subscription.close()
    with pytest.raises(UsageError, match="subscription is closed"):
        subscription.next(0.1)
    assert list(subscription) == []
    bus.close()
    bus.close()
    with pytest.raises(UsageError, match="bus is closed"):
        bus.subscribe("public.items", name="reader")
    with pytest.raises(UsageError, match="bus is closed"):
        bus.wait_for("reader", "0/1")


def test_two_names_are_two_consumers(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        for name in ("a", "b"):
            subscription = bus.subscribe(name=name, start="earliest")
            (delivery,) = take(subscription, 1)
            assert names([delivery]) == ["one"]
            delivery.commit()


def test_a_latest_start_sees_what_commits_from_now_on(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, 1, "before")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="late", start="latest")
        assert subscription.next(0.3) is None
        source.commit([update(ITEMS, 1, name="after", body="b")])
        assert names(take(subscription, 1)) == ["after"]


def test_latest_is_where_it_was_asked_for_first(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1, "before")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert bus.subscribe(name="late", start="latest").next(0.3) is None
    source.commit([insert(ITEMS, 2, "while it was down")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert names(take(bus.subscribe(name="late", start="latest"), 1)) == ["while it was down"]


def test_the_position_moves_on_without_rows(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="idle", start="earliest")
        subscription.next(0.1)
        checkpoint = tmp_path / "idle" / "checkpoint.json"

        def stored() -> bool:
            source.progress()
            assert subscription.next(0.05) is None
            return last_done_of(load_checkpoint(checkpoint.read_text())) >= source.records[0][0].last

        wait_for(stored)


def test_what_was_not_committed_is_never_skipped(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="careless", start="earliest")
        take(subscription, 1)
        for _ in range(30):
            source.progress()
            subscription.next(0.05)
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert names(take(bus.subscribe(name="careless", start="earliest"), 1)) == ["one"]


def test_a_broken_stream_repeats_and_loses_nothing(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    for n in range(10):
        source.commit([insert(ITEMS, n * 10 + i, f"{n}-{i}") for i in range(4)], pieces=2)
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="broken", start="earliest")
        seen: list[object] = []
        for _ in range(20):
            relay.break_after = 3
            seen += names(take(subscription, 1))
    assert seen == [f"{n}-{i}" for n in range(10) for i in range(4)]


def test_a_broken_snapshot_is_resumed_behind_its_last_row(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(8)])
    source.trim(source.end)
    relay.break_after = 2
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert names(take(bus.subscribe(name="broken"), 4)) == [f"n{n}" for n in range(8)]
    first, second = relay.asked("/v1/snapshot")
    assert "after_key" not in first
    assert second["after_key"]


def test_a_restart_in_the_middle_of_a_snapshot_goes_on_there(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(6)])
    source.trim(source.end)
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        take(bus.subscribe(name="restart"), 1)[0].commit()
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert names(take(bus.subscribe(name="restart"), 2)) == ["n2", "n3", "n4", "n5"]


def test_the_end_of_a_tables_snapshot_says_what_is_gone(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, 1)])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        for delivery in bus.subscribe(name="sweeper"):
            if delivery.sweep:
                assert (delivery.sweep.table, delivery.sweep.seq, len(delivery)) == (ITEMS, 1, 0)
                break


def test_a_relay_that_is_away_is_waited_for(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    relay.away = True
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="patient", start="earliest")
        assert subscription.next(0.3) is None
        relay.away = False
        assert names(take(subscription, 1)) == ["one"]
        relay.away = True
        assert subscription.next(0.3) is None
        relay.away = False
        source.commit([insert(ITEMS, 2, "two")])
        assert names(take(subscription, 1)) == ["two"]


def test_a_table_that_is_being_seeded_is_waited_for(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    relay.seeding = True
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="patient")
        assert subscription.next(0.3) is None or subscription.phase == "snapshot"
        relay.seeding = False
        assert names(take(subscription, 1)) == ["one"]


def test_a_log_that_does_not_continue_stops_the_loop(relay: ScriptedRelay, tmp_path: Path) -> None:
    store = MemoryCheckpointStore()
    relay.source.commit([insert(ITEMS, n) for n in range(5)])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        take(bus.subscribe(name="r", start="earliest", checkpoints=store), 1)[0].commit()
    restored = ModelSource()  # the same log_id, another history
    restored.commit([insert(ITEMS, 1)])
    restored.commit([insert(ITEMS, 2)])
    relay.source = restored
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="r", checkpoints=store)
        with pytest.raises(PositionUnknown, match="does not continue"):
            take(subscription, 1)


def test_a_snapshot_without_a_bootstrap_is_a_clear_error(tmp_path: Path) -> None:
    with ScriptedRelay(ModelSource()) as relay:
        relay.names_bootstrap = False
        with walbus.connect(relay.url, folder=tmp_path) as bus, pytest.raises(ConfigError, match="names no bootstrap"):
            bus.subscribe(name="x").next(60)


def test_a_table_without_a_snapshot_is_a_clear_error(tmp_path: Path) -> None:
    with ScriptedRelay(ModelSource()) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        relay.refused.add(ITEMS)
        with pytest.raises(SourceMisconfigured, match=r"no snapshot of public\.items.*give the table a primary key"):
            bus.subscribe(ITEMS, name="x").next(60)


def test_a_table_that_nobody_knows_is_waited_for_by_name(tmp_path: Path) -> None:
    with ScriptedRelay(ModelSource()) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe("public.itmes", name="x")

        def waited_for() -> str:
            assert subscription.next(0.1) is None
            return str(subscription.waiting_for)

        wait_for(lambda: "public.itmes" in waited_for(), what="it says what it waits for")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 64])
def test_a_name_that_could_leave_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with walbus.connect("http://127.0.0.1:1", folder=tmp_path) as bus, pytest.raises(UsageError, match="no consumer's"):
        bus.subscribe(name=name)


@pytest.mark.parametrize("pattern", ["orders", "*.orders", "a.b,c.d", ".x", "x."])
def test_a_pattern_that_names_no_table_is_refused(pattern: str, tmp_path: Path) -> None:
    with (
        walbus.connect("http://127.0.0.1:1", folder=tmp_path) as bus,
        pytest.raises(UsageError, match="names no table"),
    ):
        bus.subscribe(pattern, name="x")


def test_closing_ends_the_loop_at_once(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1)])
    bus = walbus.connect(relay.url, folder=tmp_path)
    subscription = bus.subscribe(name="closing", start="earliest")
    take(subscription, 1)
    bus.close()
    assert list(subscription) == []
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("walbus-stream")])


def test_windows_come_as_arrow_batches_and_are_committed_together(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    for n in range(6):
        source.commit([insert(ITEMS, n, f"n{n}")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        for batches in bus.subscribe(name="reader", start="earliest").batches(rows=3, seconds=10):
            rows = [row for batch in batches.batches for row in batch.to_pylist()]
            if rows:
                break
        batches.commit()
        assert [row["name"] for row in rows] == [f"n{n}" for n in range(len(rows))]
        assert {row["_walbus_op"] for row in rows} == {"insert"}
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        (delivery,) = take(bus.subscribe(name="reader"), 1)
        (batch,) = delivery.to_arrow()
        assert batch.column("name").to_pylist() == [f"n{len(rows)}"]


# Deltas


Wake = Callable[..., Subscription]


@pytest.fixture
def wake(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> Iterator[Wake]:
    """Opens a subscription that had ten rows, of which two changed, one of them often, while it slept."""
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(10)])
    with ExitStack() as opened:

        def subscription(**options: Any) -> Subscription:
            bus = opened.enter_context(walbus.connect(relay.url, folder=tmp_path))
            return bus.subscribe(name="sleeper", **options)

        first = subscription()
        until_present(first, source)
        source.commit([insert(ITEMS, 99, "last")])
        take(first, 1)[0].commit()
        first.close()
        for n in range(50):
            source.commit([update(ITEMS, 1, name=f"v{n}")])
        source.commit([delete(ITEMS, 2)])
        relay.requests.clear()
        yield subscription


def until_present(subscription: Subscription, source: ModelSource) -> list[Delivery]:
    """Takes and commits everything up to the present."""
    taken: list[Delivery] = []

    def present() -> bool:
        delivery = subscription.next(0.05)
        if delivery is not None:
            taken.append(delivery)
            delivery.commit()
        reached = max((delivery.last for delivery in taken), default=ORIGIN)
        return delivery is None and subscription.phase == "online" and reached >= source.end

    wait_for(present)
    return taken


def test_a_reader_asleep_past_retention_is_told_what_changed_and_no_more(
    source: ModelSource, relay: ScriptedRelay, wake: Wake
) -> None:
    told: list[PhaseEvent] = []
    source.trim(source.end)
    deliveries = until_present(wake(on_phase=told.append), source)
    assert {delivery.phase for delivery in deliveries if delivery.kind == Kind.DELTA} == {"delta"}
    changes = [change for delivery in deliveries if delivery.kind == Kind.DELTA for change in delivery]
    assert [(c.op, c.key) for c in changes] == [(Op.INSERT, {"id": 1}), (Op.DELETE, {"id": 2})]
    assert dict(changes[0].after or {})["name"] == "v49"
    assert relay.asked("/v1/snapshot") == []
    assert told == [
        PhaseEvent("bootstrap_begins"),
        PhaseEvent("table_begins", ITEMS, "delta"),
        PhaseEvent("table_ends", ITEMS, "delta"),
        PhaseEvent("bootstrap_ends"),
    ]
    assert not any(delivery.sweep for delivery in deliveries)


def test_a_reader_asleep_past_the_horizon_reads_a_snapshot_and_sweeps(source: ModelSource, wake: Wake) -> None:
    source.trim(source.end)
    source.horizon = source.end
    deliveries = until_present(wake(), source)
    assert {delivery.kind for delivery in deliveries} == {Kind.SCHEMA, Kind.SNAPSHOT}
    assert [delivery.sweep.table for delivery in deliveries if delivery.sweep] == [ITEMS]


def test_a_bootstrap_of_before_that_has_no_deltas_is_asked_for_a_snapshot(
    source: ModelSource, relay: ScriptedRelay, wake: Wake
) -> None:
    relay.has_deltas = False
    source.trim(source.end)
    assert Kind.SNAPSHOT in {delivery.kind for delivery in until_present(wake(), source)}


def test_a_delta_that_breaks_or_whose_reader_restarts_goes_on_behind_its_last_seq(
    source: ModelSource, relay: ScriptedRelay, wake: Wake
) -> None:
    source.commit([update(ITEMS, n, name="again") for n in range(3, 9)])
    source.trim(source.end)
    subscription = wake()
    first = next(d for d in iter(lambda: subscription.next(60), None) if d.kind == Kind.DELTA)
    first.commit()
    subscription.close()
    wait_for(lambda: not relay.sending, what="the first answer takes no break of the second")
    relay.break_after = 1
    rest = [c.key["id"] for d in until_present(wake(), source) if d.kind == Kind.DELTA for c in d if c.key is not None]
    assert [c.key["id"] for c in first if c.key is not None] + rest == [1, 2, *range(3, 9)]
    seqs = [int(asked["seq"]) for asked in relay.asked("/v1/delta") if "count" not in asked]
    assert seqs == sorted(set(seqs)) and len(seqs) == 3


@pytest.mark.parametrize(
    ("above", "kinds"),
    [(None, {Kind.TRANSACTION}), (20, {Kind.DELTA, Kind.SCHEMA}), (1000, {Kind.TRANSACTION})],
)
def test_a_reader_that_is_far_behind_takes_a_delta_if_it_asks_for_it(
    source: ModelSource, wake: Wake, above: int | None, kinds: set[Kind]
) -> None:
    assert {delivery.kind for delivery in until_present(wake(delta_above=above), source)} == kinds


def test_a_reader_that_is_far_behind_does_not_wait_for_a_bootstrap(
    source: ModelSource, relay: ScriptedRelay, wake: Wake
) -> None:
    relay.seeding = True
    first = wake(delta_above=20)
    assert {delivery.kind for delivery in until_present(first, source)} == {Kind.TRANSACTION}
    first.close()
    relay.names_bootstrap = False
    source.commit([update(ITEMS, 3, name="x"), update(ITEMS, 4, name="x")])
    assert {delivery.kind for delivery in until_present(wake(delta_above=1), source)} == {Kind.TRANSACTION}


# Choices


def test_what_a_subscription_chooses_reaches_the_relay_and_the_bootstrap(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, 1, "one", "long")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="part", partition="0/1", columns={ITEMS: ["name"]})
        (row,) = [change for delivery in until_present(subscription, source) for change in delivery if change.key]
        assert dict(row.after or {}) == {"id": 1, "name": "one"}
        assert row.left_out == {"body"}
        wait_for(lambda: subscription.next(0.05) is None and relay.asked("/v1/stream"))
    (asked,) = relay.asked("/v1/stream")
    assert relay.asked("/v1/snapshot")[0]["partition"] == "0/1"
    assert (asked["partition"], asked["columns"]) == ("0/1", f"{ITEMS}(name)")


def test_single_operations_are_a_choice_of_the_log_alone(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        with pytest.raises(UsageError, match="single operations"):
            bus.subscribe(name="ops", ops=["delete"])
        subscription = bus.subscribe(name="ops", ops=["insert", "delete"], start="earliest")
        take(subscription, 1)[0].commit()
        assert relay.asked("/v1/stream")[0]["ops"] == "insert,delete"
    source.commit([insert(ITEMS, 2, "two")])
    source.trim(source.end)
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="ops", ops=["insert", "delete"], start="earliest")
        with pytest.raises(PositionUnknown, match="some operations"):
            take(subscription, 1)


@pytest.mark.parametrize(
    "choice",
    [{"partition": "4/4"}, {"ops": ["upsert"]}, {"columns": {"items": ["id"]}}, {"columns": {ITEMS: "id"}},
     {"columns": {ITEMS: []}}],
)  # fmt: skip
def test_a_choice_that_makes_no_sense_is_refused_at_once(choice: dict[str, Any], tmp_path: Path) -> None:
    with walbus.connect("http://127.0.0.1:1", folder=tmp_path) as bus, pytest.raises(UsageError):
        bus.subscribe(name="x", **choice)


def test_a_second_subscription_of_a_name_is_refused_while_there_is_a_first(
    source: ModelSource, relay: ScriptedRelay, tmp_path: Path
) -> None:
    """Each would store its own checkpoint over the other's."""
    source.commit([insert(ITEMS, 1, "one")])
    with walbus.connect(relay.url, folder=tmp_path) as bus, walbus.connect(relay.url, folder=tmp_path) as other:
        first = bus.subscribe("public.items", name="cache")
        for taker in (bus, other):
            with pytest.raises(UsageError, match=r"another subscription .* \(at .*cache/checkpoint.json\); close"):
                taker.subscribe("public.items", name="cache")
        other.subscribe("public.items", name="another").close()
        assert names(take(first, 1)) == ["one"]
        first.close()
        first.close()
        assert names(take(other.subscribe("public.items", name="cache"), 1)) == ["one"]
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert names(take(bus.subscribe("public.items", name="cache"), 1)) == ["one"]


def test_a_checkpoint_in_memory_has_one_subscription_at_a_time(relay: ScriptedRelay, tmp_path: Path) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        store = MemoryCheckpointStore()
        first = bus.subscribe("public.items", name="cache", checkpoints=store)
        with pytest.raises(UsageError, match="another subscription"):
            bus.subscribe("public.items", name="cache", checkpoints=store)
        first.close()
        bus.subscribe("public.items", name="cache", checkpoints=store)


def test_a_checkpoint_that_cannot_be_read_is_free_when_it_is_mended(relay: ScriptedRelay, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "checkpoint.json"
    path.parent.mkdir()
    path.write_text("{")
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        with pytest.raises(UsageError, match="not a checkpoint"):
            bus.subscribe("public.items", name="cache")
        path.unlink()
        bus.subscribe("public.items", name="cache")
