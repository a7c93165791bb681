"""Consumers that are paused, or set to another place, and `walbus consumers`: real sinks, relays and processes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

import walbus
from support.model_source import ITEMS, delete, insert, update
from support.relay_log import SOURCE, FileEngine, table_schema, transaction
from support.running_consumer import consumer, equal, followed
from support.serving_relay import ServingRelay
from support.sinks_under_test import SinkUnderTest, postgres_under_test, redis_under_test, sqlite_under_test
from support.waiting import wait_for
from support.walbus_command import Ended, write_config
from support.walbus_command import walbus as command
from walbus.config import ConsumerConfig
from walbus.consumers.checkpoint import Marks, Snapshotting, dump_checkpoint
from walbus.consumers.clock import Clock
from walbus.consumers.pausing import Pause
from walbus.consumers.resetting import read_again
from walbus.errors import UsageError
from walbus.position import Position

pytestmark = pytest.mark.one_version

Tamper = Callable[[], None]


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def tampered(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SinkUnderTest, Tamper]:
    """A sink, and what somebody does to it by hand: changes row 1, deletes row 2, makes a row 99 of row 3."""
    if request.param == "redis":
        return _tampered_redis(tmp_path, request.getfixturevalue("redis_url"))
    statements = (
        "UPDATE items SET name = 'by hand' WHERE id = 1",
        "DELETE FROM items WHERE id = 2",
        "UPDATE items SET id = 99 WHERE id = 3",
    )
    if request.param == "postgres":
        dsn = request.getfixturevalue("target_database").dsn
        return postgres_under_test(tmp_path, dsn), lambda: _in_postgres(dsn, statements)
    return sqlite_under_test(tmp_path), lambda: _in_sqlite(tmp_path / "replica.sqlite", statements)


def _in_postgres(dsn: str, statements: tuple[str, ...]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def _in_sqlite(path: Path, statements: tuple[str, ...]) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def _tampered_redis(folder: Path, url: str) -> tuple[SinkUnderTest, Tamper]:
    import redis

    def tamper() -> None:
        with redis.Redis.from_url(url) as client:
            client.hset("public.items:1", "name", "by hand")
            client.delete("public.items:2")
            client.hset("public.items:3", "id", "99")
            client.rename("public.items:3", "public.items:99")

    return redis_under_test(folder, url, "hash"), tamper


def reread(under_test: SinkUnderTest, **keys: Any) -> Position:
    config = ConsumerConfig(sink=under_test.name, **{"tables": ("public.*",), **under_test.options, **keys})
    return read_again("test", config, under_test.place.folder)


def test_a_sink_that_reads_all_rows_again_has_the_sources_whatever_was_done_to_it(tampered, relay, source):
    under_test, tamper = tampered
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(10)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 6, name="behind the snapshot"))
    tamper()
    rows = under_test.rows()
    assert rows["1"]["name"] == "by hand"
    assert "2" not in rows
    assert "99" in rows
    source.commit([update(ITEMS, 4, name="while it was down"), delete(ITEMS, 5)])
    reread(under_test)
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, insert(ITEMS, 50))
    assert len(relay.asked("/v1/snapshot")) == 2
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, insert(ITEMS, 51))
    assert len(relay.asked("/v1/snapshot")) == 2, "once is enough"


def test_a_sink_without_rows_of_a_snapshot_has_none_to_read_again(tmp_path):
    under_test = sqlite_under_test(tmp_path)
    with pytest.raises(UsageError, match="no rows yet"):
        reread(under_test)
    with pytest.raises(UsageError, match="begins at earliest"):
        reread(under_test, start="earliest")


def test_a_paused_consumer_stays_where_it_is_over_restarts_and_says_so(relay, source, tmp_path):
    under_test = sqlite_under_test(tmp_path)
    pause = Pause(tmp_path, Clock())
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        pause.ask()
        wait_for(lambda: running.status().get("phase") == "paused")
        before = under_test.rows()
        source.commit([insert(ITEMS, 10)])
    streams = len(relay.asked("/v1/stream"))
    with consumer(relay, under_test) as running:
        wait_for(lambda: running.status().get("phase") == "paused")
        assert "walbus consumers resume test" in running.status()["waiting_for"]
        told = running.status()["time"]
        wait_for(lambda: running.status()["time"] > told, what="it goes on telling that it is there")
        assert under_test.rows() == before
        assert len(relay.asked("/v1/stream")) == streams, "nothing is read"
        assert pause.end()
        equal(under_test, relay)
        wait_for(lambda: running.status().get("phase") == "online")
    assert not pause.end()


def test_a_pause_that_comes_inside_a_transaction_waits_for_its_end(relay, source, tmp_path):
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        relay.break_after = 2
        Pause(tmp_path, Clock()).ask()
        source.commit([insert(ITEMS, 100 + n) for n in range(30)], pieces=5)
        wait_for(lambda: running.status().get("phase") == "paused")
        assert len(under_test.rows()) in (5, 35)
        relay.break_after = None
        Pause(tmp_path, Clock()).end()
        equal(under_test, relay)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    with closing(FileEngine(tmp_path / "log")) as engine:
        yield engine


@pytest.fixture
def served(engine: FileEngine) -> Iterator[ServingRelay]:
    """A log of ten transactions of two changes each."""
    writer = engine.open_writer(SOURCE)
    writer.schemas.register(table_schema("orders", 1))
    for lsn in range(0x10, 0xB0, 0x10):
        writer.append(transaction(lsn, 2, table=1, schema_id=1))
    writer.sync()
    with ServingRelay(engine.folder) as relay:
        yield relay


class Operator:
    """Types `walbus consumers …` where `walbus.toml` names a relay and a sink `cache`."""

    def __init__(self, folder: Path, relay: ServingRelay) -> None:
        sections: dict[str, dict[str, object]] = {
            "source": {"dsn": "host=nowhere"},
            "relay": {"listen": f"127.0.0.1:{relay.port}"},
            "consumer.cache": {"sink": "sqlite", "tables": ["public.orders"]},
        }
        self.data = folder / "data"
        self._config = str(write_config(folder / "walbus.toml", sections, self.data))

    def __call__(self, *arguments: str) -> Ended:
        return command("consumers", *arguments, "-c", self._config)


@pytest.fixture
def operator(tmp_path: Path, served: ServingRelay) -> Operator:
    return Operator(tmp_path, served)


def read(relay: ServingRelay, folder: Path, windows: int) -> list[Position]:
    """Reads on as a consumer `reader` that would begin at the log's beginning; where each window ended."""
    with walbus.connect(relay.url, folder=folder) as bus:
        subscription = bus.subscribe(name="reader", start="earliest")
        ends = []
        for _ in range(windows):
            window = subscription.next(60)
            assert window is not None
            window.commit()
            ends.append(window.last)
        return ends


def listed(operator: Operator) -> dict[str, dict[str, Any]]:
    ended = operator("list", "--json")
    assert ended.code == 0, ended.stderr
    return {one["name"]: one for one in json.loads(ended.stdout)["consumers"]}


def test_consumers_are_listed_shown_and_forgotten(operator, served, tmp_path):
    read(served, tmp_path / "readers", 4)
    wait_for(lambda: served.json("GET", "/v1/consumers/reader")[1]["last_done"] == "1:0/40:2", what="its report")
    told = listed(operator)
    assert list(told) == ["cache", "reader"]
    assert (told["cache"]["configured"], told["cache"]["last_seen"]) == (True, None)
    assert (told["reader"]["configured"], told["reader"]["lag"]["changes"]) == (False, 12)
    lines = operator("list").stdout.splitlines()
    assert " ".join(lines[0].split()) == "consumer phase position changes bytes seconds last seen sink tables"
    assert "1:0/40:2" in lines[2]
    assert "never" in lines[1]
    shown = operator("show", "reader")
    assert "lag.changes" in shown.stdout
    assert json.loads(operator("show", "reader", "--json").stdout)["name"] == "reader"
    assert operator("forget", "reader").stdout == "reader is forgotten\n"
    assert list(listed(operator)) == ["cache"]
    for act in ("show", "forget"):
        ended = operator(act, "reader")
        assert ended.code != 0
        assert "there is no consumer 'reader'" in ended.one_line()


@pytest.mark.parametrize(("place", "first"), [("1:0/30:1", 0x30), ("earliest", 0x10), ("start", 0x10)])
def test_a_consumer_of_the_library_goes_on_where_it_is_set(operator, served, tmp_path, place, first):
    folder = tmp_path / "readers"
    assert read(served, folder, 6)[-1] == Position(1, 0x60, 2)
    ended = operator("reset", "reader", "--to", place, "--folder", str(folder))
    assert ended.code == 0, ended.stderr
    assert read(served, folder, 1) == [Position(1, first, 2)]


def test_pausing_is_shown_and_refused_where_nobody_would_look(operator):
    assert operator("pause", "cache").code == 0
    assert listed(operator)["cache"]["paused"]
    assert "paused" in operator("list").stdout
    assert operator("resume", "cache").stdout == "cache goes on\n"
    assert not listed(operator)["cache"]["paused"]
    assert operator("resume", "cache").stdout == "cache was not paused\n"
    assert "did you mean cache?" in operator("pause", "cahce").one_line()


def test_a_reset_that_makes_no_sense_is_refused(operator, served, tmp_path):
    folder = str(tmp_path / "readers")
    read(served, tmp_path / "readers", 2)

    def refused(*arguments: str) -> str:
        ended = operator("reset", *arguments)
        assert ended.code != 0
        return ended.one_line()

    assert "a sink holds rows" in refused("cache", "--to", "latest")
    assert "the sink has no rows yet" in refused("cache", "--to", "snapshot")
    assert "only a configured sink" in refused("reader", "--to", "snapshot", "--folder", folder)
    assert "there is no checkpoint of a consumer 'reeder'" in refused("reeder", "--to", "latest", "--folder", folder)
    assert "--to" in refused("reader", "--to", "yesterday", "--folder", folder)
    assert "the log ends at" in refused("reader", "--to", "1:0/FFFF:1", "--folder", folder)
    half = tmp_path / "readers" / "half" / "checkpoint.json"
    half.parent.mkdir()
    half.write_text(dump_checkpoint(Snapshotting("log", Marks(1, 1), ())))
    assert "still reads its snapshot" in refused("half", "--to", "latest", "--folder", folder)
    with walbus.connect(served.url, folder=folder) as bus:
        subscription = bus.subscribe(name="reader", start="earliest")
        assert subscription.next(60) is not None
        assert "is running" in refused("reader", "--to", "earliest", "--folder", folder)
    assert read(served, tmp_path / "readers", 1) == [Position(1, 0x30, 2)], "none of them moved it"
