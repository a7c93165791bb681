"""A rebuild, or what drops its copy, is stopped while it waits for others, or goes over very many keys."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

from support import plain_http
from support.model_source import ITEMS, ModelSource, insert, items_layout
from support.rebuild_rig import config_for, dropped, filled, rebuilt, stopped_while_it_reads
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import (
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from walbus.consumers.rebuilding import discard, drop_kept, rebuild
from walbus.consumers.sinks import postgres_session, redis_copy
from walbus.position import Position

pytestmark = pytest.mark.one_version

GUARD_SECONDS = 60.0
FOR_EVER = 3600.0
SINKS = "walbus.consumers.sinks"

#: By kind: what waits, and how long it does by itself.
WAITS = {
    "sqlite": (f"{SINKS}.sqlite_copy", "SqliteCopy", "hold", f"{SINKS}.sqlite._BUSY_SECONDS"),
    "tantivy": (f"{SINKS}.tantivy_copy", "TantivyCopy", "hold", f"{SINKS}.tantivy_folders._BUSY_SECONDS"),
    "postgres": (f"{SINKS}.postgres_copy", "PostgresCopy", "hold", None),
    "opensearch": (
        f"{SINKS}.opensearch_copy",
        "OpenSearchCopy",
        "checkpoint",
        f"{SINKS}.opensearch_swaps.HELD_AT_MOST",
    ),
}


@pytest.fixture(params=sorted(WAITS))
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    match request.param:
        case "sqlite":
            return sqlite_under_test(tmp_path)
        case "tantivy":
            return tantivy_under_test(tmp_path)
        case "postgres":
            return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
        case _:
            return opensearch_under_test(tmp_path, request.getfixturevalue("opensearch_url"))


@contextmanager
def in_the_way(under_test: SinkUnderTest) -> Iterator[None]:
    """Somebody else writes the live sink, or swaps it, and does not come to an end."""
    match under_test.name:
        case "sqlite":
            with closing(sqlite3.connect(under_test.options["path"], isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                yield
        case "tantivy":
            path = under_test.options["path"]
            with path.with_name(f"{path.name}~swap.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        case "postgres":
            with psycopg.connect(under_test.options["dsn"]) as connection:
                connection.execute("SELECT FROM _walbus.checkpoints FOR UPDATE")
                yield
        case _:
            hold = f"{under_test.options['url']}/walbus-consumers%25hold-test~other"
            body = {"mappings": {"_meta": {"walbus": {"writers": {}}}}, "settings": {"hidden": True}}
            plain_http.put(hold, json=body, timeout=60).raise_for_status()
            try:
                yield
            finally:
                plain_http.delete(hold, timeout=60).raise_for_status()


def test_a_rebuild_that_waits_for_others_ends_when_it_is_stopped(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, under_test, source)
    module, owner, method, bound = WAITS[under_test.name]
    if bound is None:
        monkeypatch.setitem(postgres_session._SETTINGS, "lock_timeout", "0")
    else:
        monkeypatch.setattr(bound, FOR_EVER)
    options = {"statement_seconds": FOR_EVER} if under_test.name == "postgres" else {}
    waits = getattr(import_module(module), owner)
    original: Callable[..., Any] = getattr(waits, method)
    stop, waiting, over = threading.Event(), threading.Event(), threading.Event()

    def blocked(copy: object) -> object:
        with in_the_way(under_test):
            waiting.set()
            stop.set()
            return original(copy)

    ended: list[Position | None] = []

    def run() -> None:
        config, folder = config_for(under_test, **options), under_test.place.folder
        ended.append(rebuild("test", config, relay_url=relay.url, folder=folder, stop=stop))
        over.set()

    with monkeypatch.context() as patch:
        patch.setattr(waits, method, blocked)
        threading.Thread(target=run, daemon=True).start()
        assert waiting.wait(GUARD_SECONDS)
        assert over.wait(GUARD_SECONDS), "it waits on"
    assert ended == [None]
    rebuilt(relay, under_test, **options)
    assert under_test.rows() == source.rows()


@pytest.mark.parametrize("dropping", [discard, drop_kept])
@pytest.mark.parametrize("under_test", ["opensearch", "postgres", "sqlite"], indirect=True)
def test_what_drops_a_copy_and_waits_for_others_ends_when_it_is_stopped(
    dropping: Callable[..., bool | None],
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    if dropping is discard:
        dropped(under_test)
        stopped_while_it_reads(relay, under_test)
    elif under_test.name == "opensearch":
        pytest.skip("indices that were replaced are nobody's, and are not waited for")
    if under_test.name == "postgres":
        monkeypatch.setitem(postgres_session._SETTINGS, "lock_timeout", "0")
    else:
        monkeypatch.setattr(WAITS[under_test.name][3] or "", FOR_EVER)
    options = {"statement_seconds": FOR_EVER} if under_test.name == "postgres" else {}
    config, folder, stop = config_for(under_test, **options), under_test.place.folder, threading.Event()
    stop.set()
    reads = under_test.name == "postgres" and dropping is drop_kept
    with reads_what_goes(under_test) if reads else in_the_way(under_test):
        assert within_the_guard(lambda: dropping("test", config, folder, stop)) is None
    assert dropping("test", config, folder)
    assert not dropping("test", config, folder)
    assert under_test.rows() == source.rows()


@contextmanager
def reads_what_goes(under_test: SinkUnderTest) -> Iterator[None]:
    """Somebody reads tables that are to be dropped, in a transaction that stays open."""
    with psycopg.connect(under_test.options["dsn"]) as connection:
        found = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'public~old'"
        for place in connection.execute(found).fetchall():
            connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*place)))
        yield


def within_the_guard(doing: Callable[[], object]) -> object:
    given: list[object] = []
    thread = threading.Thread(target=lambda: given.append(doing()), daemon=True)
    thread.start()
    thread.join(GUARD_SECONDS)
    assert given, "it waits on, or raised"
    return given[0]


# Redis: nobody is waited for, but there may be very many keys


@pytest.fixture
def in_redis(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> SinkUnderTest:
    monkeypatch.setattr(redis_copy, "SCRIPT_ENTRIES", 1)
    return redis_under_test(tmp_path, redis_url, "hash", pointer="items:live")


def stopping_at(script: str, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """Set when a script is run for the third time; and what was run of it."""
    stop, run, ran = threading.Event(), redis_copy.BesideServer.run, list[str]()

    def noted(server: redis_copy.BesideServer, what: str, *arguments: Any) -> int:
        if what == script:
            ran.append(what)
        if len(ran) == 3:
            stop.set()
        return run(server, what, *arguments)

    monkeypatch.setattr(redis_copy.BesideServer, "run", noted)
    return stop, ran


@pytest.mark.parametrize("dropping", [discard, drop_kept])
def test_what_drops_very_many_keys_ends_when_it_is_stopped_and_goes_on(
    dropping: Callable[..., bool | None],
    in_redis: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(relay, in_redis, source)
    rebuilt(relay, in_redis)
    goes = "public.items:*"
    if dropping is discard:
        dropped(in_redis)
        stopped_while_it_reads(relay, in_redis)
        goes = "walbus:test:rows:2:*"
        for number in range(20):
            client.hset(f"walbus:test:rows:2:public.items:{number}", "name", "of the copy")
    before = len(set(client.scan_iter(goes)))  # a key may be told twice
    config, folder = config_for(in_redis), in_redis.place.folder
    with monkeypatch.context() as patch:
        stop, _ = stopping_at(redis_copy.DROP, patch)
        assert dropping("test", config, folder, stop) is None
    assert before - 3 <= len(set(client.scan_iter(goes))) < before
    assert dropping("test", config, folder)
    assert not list(client.scan_iter(goes))
    assert not dropping("test", config, folder)
    assert in_redis.rows() == source.rows()


def test_a_rebuild_that_carries_very_many_rows_over_ends_when_it_is_stopped(
    in_redis: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.add_layout(items_layout("things", oid=16401))
    source.commit([insert("public.things", 1)])
    filled(relay, in_redis, source)
    relay.unlisted.add(ITEMS)
    config, folder = config_for(in_redis), in_redis.place.folder
    with monkeypatch.context() as patch:
        stop, ran = stopping_at(redis_copy.CARRY, patch)
        assert rebuild("test", config, relay_url=relay.url, folder=folder, stop=stop) is None
        assert len(ran) == 3, "it carries on"
    rebuilt(relay, in_redis)
    assert in_redis.rows() == source.rows()
