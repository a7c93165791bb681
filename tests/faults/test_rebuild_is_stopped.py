"""A rebuild is stopped while it waits for others: for a lock of the live sink, or for another's swap."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from support.model_source import ModelSource
from support.rebuild_rig import config_for, filled, rebuilt
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import (
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from walbus.consumers.rebuilding import rebuild
from walbus.consumers.sinks import postgres_session
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
            httpx.put(hold, json=body, timeout=60).raise_for_status()
            try:
                yield
            finally:
                httpx.delete(hold, timeout=60).raise_for_status()


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
