"""`run_consumer` against a scripted relay: each sink from an empty start to the live tail."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import structlog

from support.database import Database
from support.in_the_way import put_a_folder_at
from support.model_source import ITEMS, ModelSource, StoredRow, delete, insert, items_layout, truncate, update
from support.running_consumer import RunningConsumer, consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import (
    SinkUnderTest,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from support.waiting import wait_for
from walbus.consumers.sink_feed import SinkFeed
from walbus.consumers.sinks import postgres_session, sink_names, sqlite
from walbus.consumers.sinks.base import Batching
from walbus.consumers.sinks.sqlite import SqliteSink
from walbus.consumers.steps import Deliver, DeliverRun, Output
from walbus.errors import ConfigError, PositionUnknown, SinkRefused
from walbus.position import Position

pytestmark = pytest.mark.one_version


@pytest.fixture(params=["sqlite", "postgres", "tantivy", "redis-hash"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    if request.param == "postgres":
        return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
    if request.param == "redis-hash":
        return redis_under_test(tmp_path, request.getfixturevalue("redis_url"), "hash")
    return sqlite_under_test(tmp_path) if request.param == "sqlite" else tantivy_under_test(tmp_path)


def test_an_empty_sink_is_filled_from_the_snapshot_and_follows_live(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(20)])
    source.trim(source.end)
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.commit([update(ITEMS, 1, name="one"), update(ITEMS, 2, new_id=50, name="moved"), delete(ITEMS, 3)])
        source.commit([insert(ITEMS, 60 + n) for n in range(10)], pieces=3)
        equal(under_test, relay)
        source.commit([truncate(ITEMS), insert(ITEMS, 1, "after")])
        equal(under_test, relay)


def test_a_restart_goes_on_where_the_sink_says(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    for n in range(3):
        with consumer(relay, under_test) as running:
            equal(under_test, relay)
            followed(running, under_test, relay, update(ITEMS, n, name="while it was up"))
        source.commit([update(ITEMS, n, name=f"while it was down {n}"), insert(ITEMS, 100 + n)])
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == 1


def test_what_is_whole_is_committed_when_a_consumer_is_stopped(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteSink, "batching", Batching(linger=300.0, max_changes=5_000))
    taken, take = list[Position](), SinkFeed.take

    def noted(feed: SinkFeed, output: Output, now: float) -> None:
        take(feed, output, now)
        match output:
            case Deliver(window=window) | DeliverRun(windows=[*_, window]):
                taken.append(window.last)

    monkeypatch.setattr(SinkFeed, "take", noted)
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.commit([update(ITEMS, 1, name="waits for others", body="b"), delete(ITEMS, 2)])
        wait_for(lambda: source.end in taken, 60, what="the consumer has it")
        assert under_test.rows() != source.rows()
    assert under_test.rows() == source.rows()


def test_a_sink_too_far_behind_is_swept(under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n) for n in range(10)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 4, name="behind the snapshot"))
    source.commit([delete(ITEMS, 1), delete(ITEMS, 2), update(ITEMS, 3, name="x")])
    source.trim(source.end)
    source.horizon = source.end
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == 2


def test_a_sink_asleep_past_retention_reads_what_changed_and_no_more(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, "v1", "toasted") for n in range(10)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 9, name="behind the snapshot"))
    for n in range(20):
        source.commit(
            [update(ITEMS, 3, name=f"v{n}"), update(ITEMS, 4, new_id=40 + n) if n == 5 else delete(ITEMS, n + 50)]
        )
    source.commit([delete(ITEMS, 1), update(ITEMS, 5, 50, body="new"), insert(ITEMS, 1, "again")])
    source.trim(source.end)
    with structlog.testing.capture_logs() as said, consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 9, name="behind the delta"))
        assert running.status()["snapshot_rows"] == 0
        assert 0 < running.status()["delta_changes"] <= 30
    readings = [(line["table"], line["reading"]) for line in said if line["event"] == "consumer.table"]
    assert readings == [(ITEMS, "delta")]
    assert len(relay.asked("/v1/snapshot")) == 1
    source.commit([truncate(ITEMS), insert(ITEMS, 7, "behind the truncate")])
    source.trim(source.end)
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == 1


def test_another_log_is_noticed_and_the_sink_filled_anew(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, "old") for n in range(10)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        relay.source = ModelSource("log-b")
        relay.source.commit([insert(ITEMS, 3, "new"), insert(ITEMS, 77, "new")])
        equal(under_test, relay)
        relay.source.commit([update(ITEMS, 77, name="newer")])
        equal(under_test, relay)


def test_a_lagging_bootstrap_and_broken_snapshots_end_consistent(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    for n in range(8):
        source.commit([insert(ITEMS, n, "v1", "toasted"), insert(ITEMS, 100 + n)])
    relay.applied = 5
    relay.break_after = 2
    source.commit([update(ITEMS, 1, new_id=200, name="moved"), delete(ITEMS, 102)])
    with consumer(relay, under_test):
        wait_for(lambda: relay.asked("/v1/snapshot"))
        relay.applied = -1
        equal(under_test, relay)


def test_rows_that_lack_a_value_have_their_table_read_again(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "one", "toasted")])
    with consumer(relay, under_test, start="latest") as running:
        wait_for(lambda: running.status().get("phase") == "online")
        source.commit([update(ITEMS, 1, name="uno")])
        equal(under_test, relay)
    assert relay.asked("/v1/snapshot")


def test_a_table_that_the_bootstrap_does_not_serve_holds_nothing_up(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """It may have been dropped since, or lost its key; or it is being seeded, for an hour."""
    source.commit([insert(ITEMS, 1, "one", "toasted")])
    relay.unlisted.add(ITEMS)
    with consumer(relay, under_test, start="latest") as running:
        wait_for(lambda: running.status().get("phase") == "online")
        source.commit([update(ITEMS, 1, name="uno")])
        wait_for(lambda: relay.asked("/v1/tables"))
        source.commit([insert(ITEMS, 2)])
        wait_for(lambda: "2" in under_test.rows())
        assert not relay.asked("/v1/snapshot")
        relay.unlisted.clear()
        equal(under_test, relay)


def test_rows_that_a_table_had_before_it_was_published_come_from_the_bootstrap(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    late = "public.late"
    source.commit([insert(ITEMS, 1)])
    relay.unlisted.add(late)
    with consumer(relay, under_test):
        equal(under_test, relay)
        layout = source.add_layout(items_layout("late", oid=16900))
        source.state[late]["7"] = StoredRow({"id": "7", "name": "before", "body": "b"}, 0, layout)
        source.commit([insert(late, 8)])
        wait_for(lambda: "8" in under_test.rows(late))  # the log is followed on until the bootstrap has the table
        assert len(relay.asked("/v1/snapshot")) == 1
    relay.unlisted.clear()
    with consumer(relay, under_test):
        wait_for(lambda: under_test.rows(late) == source.rows(late))
        equal(under_test, relay)
    assert [parameters["table"] for parameters in relay.asked("/v1/snapshot")] == [ITEMS, late]


def test_a_layout_that_is_told_again_is_no_new_table(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """A writer whose segment with the SCHEMA record was trimmed tells it again when it starts."""
    source.commit([insert(ITEMS, n) for n in range(4)])
    source.add_layout(items_layout())  # the first of two equal ones
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 1, name="behind the snapshot"))
    source.tell_again(1)
    source.commit([insert(ITEMS, 9)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.commit([insert(ITEMS, 10)])
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == 1


def test_a_layout_change_under_way_is_followed(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(4)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.add_layout(items_layout("things"))
        source.commit([insert("public.things", 9)])
        wait_for(lambda: under_test.rows("public.things") == source.rows("public.things"))
        assert under_test.rows(ITEMS) == {}


def test_the_status_file_tells_where_it_is_and_how_late(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(4)])
    with consumer(relay, under_test) as running:
        wait_for(lambda: running.status().get("phase") == "online")
        source.commit([insert(ITEMS, 10), insert(ITEMS, 11)])
        status = wait_for(lambda: (s := running.status()).get("walbus_consumer_changes_total") == 2 and s)
        assert status["last_done"] == str(source.end)
        assert status["walbus_consumer_last_done_lsn"] == source.end.commit_lsn
        assert status["snapshot_rows"] == 4
        assert status["latency_p50_seconds"] >= 0
        relay.away = True
        assert wait_for(lambda: running.status().get("waiting_for"))
        relay.away = False
        wait_for(lambda: running.status().get("waiting_for") is None)


def test_a_log_that_does_not_continue_ends_the_consumer(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(6)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 1, name="behind the snapshot"))
    relay.source = ModelSource()
    relay.source.commit([insert(ITEMS, 1)])
    relay.source.commit([insert(ITEMS, 2)])
    running = RunningConsumer(relay, under_test.name, under_test.options, under_test.place.folder)
    assert isinstance(running.ended(), PositionUnknown)


def test_a_change_without_a_key_is_refused_by_table_and_position(
    relay: ScriptedRelay, source: ModelSource, redis_url: str, tmp_path: Path
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash")
    layout = items_layout()
    keyless = items_layout(
        "items", *(type(c)(c.name, c.type_oid, c.type_name, -1, in_key=False) for c in layout.columns)
    )
    source.commit([insert(ITEMS, 1)])
    running = RunningConsumer(relay, "redis", {**under_test.options, "start": "latest"}, tmp_path)
    wait_for(lambda: running.status().get("phase") == "online")
    source._key = lambda *_: None  # type: ignore[method-assign,assignment]
    source.add_layout(keyless)
    source.commit([insert(ITEMS, 5)])
    error = running.ended()
    assert isinstance(error, SinkRefused)
    assert error.where == f"public.items at {source.end}"
    assert "primary key" in str(error.mend)


def test_an_unknown_sink_is_answered_with_those_there_are(relay: ScriptedRelay, tmp_path: Path) -> None:
    error = RunningConsumer(relay, "sqllite", {}, tmp_path).ended()
    assert isinstance(error, ConfigError)
    assert error.where == "key consumer.test.sink"
    assert all(name in str(error.mend) for name in ("redis", "sqlite", "tantivy"))
    assert sink_names() == [
        "elasticsearch",
        "kafka",
        "opensearch",
        "postgres",
        "redis",
        "sqlite",
        "stdout",
        "tantivy",
        "webhook",
    ]


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(
    relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tantivy", None)
    for name in ("walbus.consumers.sinks.tantivy", "walbus.consumers.sinks.tantivy_index"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    error = RunningConsumer(relay, "tantivy", {}, tmp_path).ended()
    assert isinstance(error, ConfigError)
    assert error.mend == "pip install 'walbus[search]'"


def test_a_table_that_is_added_later_brings_the_rows_that_it_had(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """The log no longer has them, and the stream of the tables so far told nothing of it."""
    others = source.add_layout(items_layout("others", oid=16500)).table
    source.commit([insert(ITEMS, n) for n in range(3)])
    source.commit([insert(others, n, f"old {n}") for n in range(5)])
    with consumer(relay, under_test, tables=(ITEMS,)) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 1, name="behind the snapshot"))
    source.trim(source.end)
    source.commit([delete(others, 1), insert(others, 7, "while it was down")])
    relay.unlisted = {others}
    with consumer(relay, under_test, tables=(ITEMS, others)):
        source.commit([insert(ITEMS, 4, "the log goes on meanwhile")])
        source.commit([update(others, 2, name="changed meanwhile", body="body")])
        equal(under_test, relay)
        relay.unlisted = set()
        wait_for(lambda: under_test.rows(others) == source.rows(others), 60, what="its rows have come")
        source.commit([update(others, 3, name="live"), delete(others, 4)])
        wait_for(lambda: under_test.rows(others) == source.rows(others), 60, what="it is followed")
        equal(under_test, relay)
    asked = [parameters["table"] for parameters in relay.asked("/v1/snapshot")]
    assert asked.count(others) == 1
    with consumer(relay, under_test, tables=(ITEMS, others)):
        source.commit([insert(others, 8, "behind it")])
        wait_for(lambda: under_test.rows(others) == source.rows(others), 60, what="it is followed")
    assert [parameters["table"] for parameters in relay.asked("/v1/snapshot")] == asked


def test_a_table_that_is_renamed_before_it_is_read_is_read_by_its_new_name(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """It is quiet, so that the log does not tell the name, and the bootstrap has it by no other one."""
    source.commit([insert(ITEMS, n, "old") for n in range(3)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 0, name="behind the snapshot"))
        relay.unlisted = {ITEMS}
        source.lose(ITEMS, "1")
        renamed = source.add_layout(items_layout("renamed"), told=False).table
        source.progress()  # so much is there that the bootstrap has it by its new name
        relay.unlisted = set()
        wait_for(lambda: under_test.rows(renamed) == source.rows(renamed), 60, what="it is read anew")
    assert sorted(source.rows(renamed)) == ["0", "2"]


def test_a_status_file_that_cannot_be_written_is_told_once_and_ends_nothing(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, n) for n in range(5)])
    with structlog.testing.capture_logs() as said, consumer(relay, under_test) as running:
        equal(under_test, relay)
        put_a_folder_at(running.status_path)
        wait_for(lambda: unwritten(said), what="it says that it cannot write its status")
        source.commit([update(ITEMS, 1, name="behind that")])
        equal(under_test, relay)
        running.status_path.rmdir()
        wait_for(lambda: running.status().get("last_done") == str(source.end), what="it can again")
        put_a_folder_at(running.status_path)
        wait_for(lambda: len(unwritten(said)) == 2, what="and cannot once more")


def unwritten(said: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    return [line for line in said if line["event"] == "status.not_written"]


def test_behind_a_restart_the_status_tells_what_was_done_before_the_snapshot_that_is_read(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 4, name="behind the snapshot"))
    done = str(source.end)
    with consumer(relay, under_test) as running:
        wait_for(lambda: running.status().get("last_done") == done, what="nothing has come since")
    source.commit([update(ITEMS, 3, name="x")])
    source.trim(source.end)
    source.horizon, relay.seeding = source.end, True
    for _ in range(2):
        with consumer(relay, under_test) as running:
            wait_for(lambda: running.status().get("phase") == "snapshot", what="it begins to read all rows")
            assert running.status()["last_done"] == done
    relay.seeding = False
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 4, name="behind the second one"))


def test_a_consumer_that_waits_for_the_lock_of_its_file_stops_at_once(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild that swaps has it; here it is never let go of, and would be waited for longer than the test takes."""
    under_test, lock = sqlite_under_test(tmp_path), SqliteSink.lock
    waits = threading.Event()

    def noted(sink: SqliteSink) -> None:
        waits.set()
        lock(sink)
        waits.clear()

    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 600.0)
    monkeypatch.setattr(SqliteSink, "lock", noted)
    source.commit([insert(ITEMS, n) for n in range(5)])
    running = RunningConsumer(relay, "sqlite", under_test.options, tmp_path)
    equal(under_test, relay)
    with closing(sqlite3.connect(under_test.options["path"], timeout=60, isolation_level=None)) as hold:
        hold.execute("BEGIN IMMEDIATE")
        source.commit([update(ITEMS, 1, name="held back")])
        wait_for(waits.is_set, what="it wants to write")
        assert running.stop() is None
    assert under_test.rows()["1"]["name"] != "held back"


def test_a_consumer_that_waits_for_the_lock_of_its_checkpoint_stops_at_once(
    relay: ScriptedRelay,
    source: ModelSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target_database: Database,
) -> None:
    monkeypatch.setitem(postgres_session._SETTINGS, "lock_timeout", "600s")
    under_test = postgres_under_test(tmp_path, target_database.dsn)
    source.commit([insert(ITEMS, n) for n in range(5)])
    running = RunningConsumer(relay, "postgres", {**under_test.options, "statement_seconds": 900}, tmp_path)
    equal(under_test, relay)
    waits = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'walbus test' AND wait_event_type = 'Lock'"
    with psycopg.connect(target_database.dsn) as hold:
        hold.execute("SELECT FROM _walbus.checkpoints FOR UPDATE")
        source.commit([update(ITEMS, 1, name="held back")])
        wait_for(lambda: target_database.execute(waits), what="it waits for the checkpoint's row")
        assert running.stop() is None
    assert under_test.rows()["1"]["name"] != "held back"
