"""Where checkpoints are kept: one suite for each place, and what several processes do to each other there."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

import walbus
from support.calling import Recorder, calling
from support.database import Database, fresh_database
from support.model_source import ITEMS, ModelSource, insert
from support.scripted_relay import ScriptedRelay
from support.services import RedisServer
from support.waiting import wait_for
from walbus.consumer_reports import checked_name
from walbus.consumers import (
    CheckpointStore,
    FileCheckpointStore,
    PostgresCheckpointStore,
    RedisCheckpointStore,
    SharedFileCheckpointStore,
    SqliteCheckpointStore,
    checkpoint_shared,
)
from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Lacking,
    Marks,
    Part,
    Point,
    Snapshotting,
    TableProgress,
    last_done_of,
)
from walbus.errors import CheckpointTaken, CheckpointUnavailable, ConfigError, InvalidText, UsageError
from walbus.position import Position

pytestmark = pytest.mark.one_version

Make = Callable[..., Any]


@pytest.fixture(params=["sqlite", "postgres", "redis", "files"])
def make(request: pytest.FixtureRequest, tmp_path: Path, pg_version: str) -> Iterator[Make]:
    """Makes stores that share a place: `make("name")`. `database` needs `pg_version` to be asked for by name."""
    kind, opened = request.param, []
    place = {"postgres": "database", "redis": "redis_url"}.get(kind)
    server: Any = request.getfixturevalue(place) if place else None

    def made(name: str = "orders") -> Any:
        if kind == "sqlite":
            opened.append(SqliteCheckpointStore(tmp_path / "new" / "own.sqlite", name))
        elif kind == "files":
            opened.append(SharedFileCheckpointStore(tmp_path / "new" / checked_name(name) / "checkpoint.json"))
        elif kind == "postgres":
            opened.append(PostgresCheckpointStore(server.dsn, name))
        else:
            opened.append(RedisCheckpointStore(server, name))
        return opened[-1]

    yield made
    for store in opened:
        store.close()


def at(lsn: int, log_id: str = "log-a") -> Following:
    return Following(log_id, Marks(1, 1), Point(Position(1, lsn, 1), lsn))


EVERY_PHASE: list[Checkpoint] = [
    Snapshotting("log-a", Marks(2, 1), (TableProgress("public.it\u00e9ms", b"\x00\xff"), TableProgress("public.b"))),
    CatchingUp(
        "log-a",
        Marks(2, 1),
        Point(Position(1, 5, 1), 9),
        Position(1, 9, 1),
        (Lacking("public.b", 7),),
        7,
        asked=("public.*",),
    ),
    at(16),
]


def test_what_was_saved_is_loaded_by_the_next_process(make) -> None:
    assert make().load() is None
    store = make()
    store.load()
    for checkpoint in EVERY_PHASE:
        store.save(checkpoint)
        assert make().load() == checkpoint


def test_names_have_each_their_own(make) -> None:
    for name, lsn in (("a", 16), ("b", 32)):
        store = make(name)
        store.load()
        store.save(at(lsn))
    assert [make(name).load() for name in ("a", "b", "c")] == [at(16), at(32), None]


def test_progress_goes_backward_where_its_own_process_says_so(make) -> None:
    store = make()
    store.load()
    store.save(at(32))
    store.save(at(16))
    assert make().load() == at(16)


def test_a_process_that_another_one_has_passed_is_refused(make) -> None:
    first, second = make(), make()
    first.load()
    first.save(at(16))
    second.load()
    second.save(at(32))
    with pytest.raises(CheckpointTaken) as taken:
        first.save(at(24))
    assert "orders" in str(taken.value)
    assert taken.value.mend
    assert make().load() == at(32)
    second.save(at(48))
    begins_too = make("new")
    other = make("new")
    begins_too.load(), other.load()
    other.save(at(8))
    with pytest.raises(CheckpointTaken):
        begins_too.save(at(8, "log-b"))


def test_the_member_that_has_a_part_later_stands_wherever_it_is(make) -> None:
    def has(lsn: int, token: int) -> Following:
        return replace(at(lsn), part=Part("0/4", token))

    first, second = make(), make()
    first.load()
    first.save(has(32, 5))
    second.load()
    second.save(has(32, 6))
    for lsn in (24, 32, 48):
        with pytest.raises(CheckpointTaken):
            first.save(has(lsn, 5))
    assert make().load() == has(32, 6)
    third = make()
    third.load()
    with pytest.raises(CheckpointTaken):
        third.save(has(48, 5))
    first._last = make()._read()
    first.save(has(16, 6))
    first.save(has(24, 7))
    with pytest.raises(CheckpointTaken):
        second.save(has(40, 6))
    assert make().load() == has(24, 7), "an earlier place under a higher token is no place that lost its last writes"


def test_a_shared_file_is_not_written_under_the_lock_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.json"
    alone, shared = FileCheckpointStore(path), SharedFileCheckpointStore(path)
    alone.take()
    shared.load()
    monkeypatch.setattr(checkpoint_shared, "_LOCK_SECONDS", 0.1)
    with pytest.raises(CheckpointUnavailable, match="stands still"):
        shared.save(at(16))
    alone.release()
    shared.save(at(16))
    assert alone.load() == at(16)


def test_an_answer_that_was_lost_is_no_other_process(make) -> None:
    store, answered = make(), make()
    store.load(), answered.load()
    answered.save(at(16))  # what the first attempt did, whose answer never came
    store.save(at(16))
    store.save(at(32))
    assert make().load() == at(32)


def losing_answers(store: Any, monkeypatch: pytest.MonkeyPatch, *, stored: bool) -> None:
    """The next attempts come through (or not), and their answers do not."""
    replace = store._replace

    def lost(before: str | None, text: str) -> None:
        if stored:
            replace(before, text)
        raise CheckpointUnavailable("no answer", where="here")

    monkeypatch.setattr(store, "_replace", lost)


@pytest.mark.parametrize("before", [None, 8])
def test_a_rollback_behind_a_lost_answer_is_no_other_process(make, monkeypatch, before: int | None) -> None:
    store = make()
    store.load()
    if before is not None:
        store.save(at(before))
    with monkeypatch.context() as patched:
        losing_answers(store, patched, stored=True)
        with pytest.raises(CheckpointUnavailable):
            store.save(at(32))
    with monkeypatch.context() as patched:
        losing_answers(store, patched, stored=False)
        for lsn in (40, 48):
            with pytest.raises(CheckpointUnavailable):
                store.save(at(lsn))
    store.save(at(16))  # the consumer was rolled back, and fewer windows came before this checkpoint
    assert make().load() == at(16)
    store.save(at(24))
    assert make().load() == at(24)


def test_what_was_tried_before_the_last_success_is_another_process_own(make, monkeypatch) -> None:
    store, other = make(), make()
    store.load()
    with monkeypatch.context() as patched:
        losing_answers(store, patched, stored=False)
        with pytest.raises(CheckpointUnavailable):
            store.save(at(32))
    store.save(at(16))
    other.load()
    other.save(at(32))
    with pytest.raises(CheckpointTaken):
        store.save(at(24))


def test_a_place_that_lost_its_last_writes_gets_them_again(make) -> None:
    store = make()
    store.load()
    store.save(at(16))
    older = make()
    older.load()
    store.save(at(32))
    older._last = make()._read()
    older.save(at(16))  # the server came back from an older state
    store.save(at(48))
    assert make().load() == at(48)


def test_what_is_no_checkpoint_is_named(make) -> None:
    store = make()
    store.load()
    assert store._replace(None, "{}").done
    with pytest.raises(InvalidText) as invalid:
        make().load()
    assert "orders" in str(invalid.value.where)


def test_a_name_that_is_none_is_refused(make) -> None:
    with pytest.raises(UsageError):
        make("../orders")


@pytest.mark.parametrize("way", ["threads", "asyncio"])
def test_consumers_go_on_behind_it(make, tmp_path: Path, way: str) -> None:
    source = ModelSource()
    with ScriptedRelay(source) as relay:
        source.commit([insert(ITEMS, 1)])
        first = Recorder()
        with calling(way, relay.url, tmp_path, first, checkpoints=make("caller")) as run:
            wait_for(lambda: len(first.durable) == 1)
        assert run.error is None
        source.commit([insert(ITEMS, 2)])
        second = Recorder()
        with calling(way, relay.url, tmp_path, second, checkpoints=make("caller")) as run:
            wait_for(lambda: second.ids == [2])
        assert run.error is None
    assert not list(tmp_path.glob("caller/checkpoint.json"))


def test_of_two_consumers_with_one_name_the_one_that_was_passed_ends(make, tmp_path: Path) -> None:
    source = ModelSource()
    with ScriptedRelay(source) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        subscriptions = [bus.subscribe(name=name, start="earliest", checkpoints=make("shared")) for name in ("a", "b")]
        for n in (1, 2):
            source.commit([insert(ITEMS, n)])
        slow, fast = (iter(subscription) for subscription in subscriptions)
        held = next(slow)
        next(fast).commit()
        next(fast).commit()
        with pytest.raises(CheckpointTaken):
            held.commit()


def test_sqlite_beside_the_consumers_own_tables(tmp_path: Path) -> None:
    path = tmp_path / "own.sqlite"
    with closing(sqlite3.connect(path)) as own, closing(SqliteCheckpointStore(path, "orders")) as store:
        own.execute("CREATE TABLE rows (id)")
        store.load()
        store.save(at(16))
        own.execute("INSERT INTO rows VALUES (1)")
        own.commit()
        store.save(at(32))
        assert own.execute("SELECT name FROM walbus_checkpoints").fetchall() == [("orders",)]


def test_sqlite_says_which_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "text.sqlite"
    path.write_text("no database" * 100)
    with pytest.raises(CheckpointUnavailable) as refused:
        SqliteCheckpointStore(path, "orders").load()
    assert str(path) in str(refused.value)


def test_postgresql_takes_a_table_of_another_schema_and_needs_no_right_to_make_one(database: Database) -> None:
    role = f"reader_{database.name}"[:60]
    database.execute('CREATE SCHEMA "Own"')
    with closing(PostgresCheckpointStore(database.dsn, "orders", "Own.places")) as store:
        store.load()
        store.save(at(16))
    database.execute(f'CREATE ROLE "{role}"')
    database.execute(f'GRANT USAGE ON SCHEMA "Own" TO "{role}"')
    database.execute(f'GRANT SELECT, INSERT, UPDATE ON "Own".places TO "{role}"')
    dsn = psycopg.conninfo.make_conninfo(database.dsn, options=f"-c role={role}")
    try:
        with closing(PostgresCheckpointStore(dsn, "other", "Own.places")) as store:
            assert store.load() is None
            store.save(at(16))
        missing = PostgresCheckpointStore(dsn, "other", "Own.missing")
        with closing(missing), pytest.raises(ConfigError) as error:
            missing.load()
        assert "Own.missing" in str(error.value)
    finally:
        database.execute(f'DROP OWNED BY "{role}"')
        database.execute(f'DROP ROLE "{role}"')


def test_a_postgresql_that_goes_away_is_away_and_comes_back(own_pg_server) -> None:
    server = own_pg_server()
    with fresh_database(server) as database, closing(PostgresCheckpointStore(database.dsn, "orders")) as store:
        store.load()
        store.save(at(16))
        server.stop("immediate")
        with pytest.raises(CheckpointUnavailable):
            store.save(at(32))
        server.start()
        store.save(at(32))
        assert store.load() == at(32)


def test_a_redis_that_goes_away_is_away_and_one_that_comes_back_empty_is_filled_again(own_redis: RedisServer) -> None:
    with closing(RedisCheckpointStore(own_redis.url, "orders")) as store:
        store.load()
        store.save(at(16))
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            with pytest.raises(CheckpointUnavailable):
                store.save(at(32))
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        store.save(at(32))
        store._connected().flushall()
        store.save(at(48))
        assert store.load() == at(48)


def test_a_redis_that_may_evict_it_is_refused(own_redis: RedisServer) -> None:
    with closing(RedisCheckpointStore(own_redis.url, "orders")) as store:
        store._connected().config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ConfigError, match="evict"):
            store.load()


def last_stored(redis: RedisServer) -> Position:
    with closing(RedisCheckpointStore(redis.url, "caller")) as store:
        return last_done_of(store.load())


@pytest.mark.parametrize("way", ["threads", "asyncio"])
def test_a_run_waits_for_a_place_that_is_away(own_redis: RedisServer, tmp_path: Path, way: str) -> None:
    source = ModelSource()
    with ScriptedRelay(source) as relay, closing(RedisCheckpointStore(own_redis.url, "caller")) as store:
        first = source.commit([insert(ITEMS, 1)])
        calls = Recorder()
        with calling(way, relay.url, tmp_path, calls, checkpoints=store) as run:
            wait_for(lambda: last_stored(own_redis) == first)  # which comes behind on_checkpoint
            os.kill(own_redis.pid, signal.SIGSTOP)
            try:
                source.commit([insert(ITEMS, 2)])
                wait_for(lambda: 2 in calls.ids and calls.rolled_back, 60)
            finally:
                os.kill(own_redis.pid, signal.SIGCONT)
            wait_for(lambda: calls.ids.count(2) >= 2, 60)
        assert run.error is None
        assert any(isinstance(error, CheckpointUnavailable) for error, _ in calls.errors)


def test_an_idle_consumer_waits_for_a_place_that_is_away(own_redis: RedisServer, tmp_path: Path) -> None:
    source, store = ModelSource(), RedisCheckpointStore(own_redis.url, "idle")
    with closing(store), ScriptedRelay(source) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="idle", start="latest", checkpoints=store)
        assert subscription.next(0.3) is None
        begun = store.load()
        store._connected().config_set("maxmemory", 1)  # refuses writes: OOM
        for _ in range(40):
            source.progress()
            assert subscription.next(0.05) is None
        store._connected().config_set("maxmemory", 0)

        def stored() -> bool:
            source.progress()
            assert subscription.next(0.05) is None
            return store.load() != begun

        wait_for(stored)


def test_files_keep_the_contract_of_the_protocol(tmp_path: Path) -> None:
    store: CheckpointStore = FileCheckpointStore(tmp_path / "checkpoint.json")
    assert store.load() is None
    for checkpoint in EVERY_PHASE:
        store.save(checkpoint)
        assert store.load() == checkpoint
