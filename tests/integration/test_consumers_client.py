"""The client library against a scripted relay: what a user's loop sees, and what a restart sees again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import walbus
from support.model_source import ITEMS, ModelSource, delete, insert, update
from support.scripted_relay import ScriptedRelay
from support.waiting import wait_for
from walbus.consumers import Delivery, MemoryCheckpointStore, Subscription
from walbus.errors import ConfigError, PositionUnknown, SourceMisconfigured, UsageError

pytestmark = pytest.mark.one_version


@pytest.fixture
def source() -> ModelSource:
    return ModelSource()


@pytest.fixture
def relay(source: ModelSource) -> Iterator[ScriptedRelay]:
    with ScriptedRelay(source) as relay:
        yield relay


def take(subscription: Subscription, count: int) -> list[Delivery]:
    """The next deliveries with changes of rows."""
    found: list[Delivery] = []
    while len(found) < count:
        delivery = subscription.next(10)
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
            if window.phase == "online" and not source.rows().keys() - {"1", "2"}:
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


def test_the_position_moves_on_without_rows(source: ModelSource, relay: ScriptedRelay, tmp_path: Path) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="idle", start="earliest")
        subscription.next(0.1)
        checkpoint = tmp_path / "idle" / "checkpoint.json"

        def stored() -> bool:
            source.progress()
            assert subscription.next(0.05) is None
            return checkpoint.exists() and str(source.records[0][0].last) <= checkpoint.read_text()

        wait_for(stored, 10)


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
            bus.subscribe(name="x").next(1)


def test_a_table_without_a_snapshot_is_a_clear_error(tmp_path: Path) -> None:
    with ScriptedRelay(ModelSource()) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        relay.refused.add(ITEMS)
        with pytest.raises(SourceMisconfigured, match=r"no snapshot of public\.items.*give the table a primary key"):
            bus.subscribe(ITEMS, name="x").next(1)


def test_a_table_that_nobody_knows_is_waited_for_by_name(tmp_path: Path) -> None:
    with ScriptedRelay(ModelSource()) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe("public.itmes", name="x")
        assert subscription.next(0.5) is None
        assert "public.itmes" in str(subscription.waiting_for)


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
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("walbus-stream")], 5)


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
