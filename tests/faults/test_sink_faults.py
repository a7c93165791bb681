"""Sinks that are away, come back empty, may lose keys, or are written by two."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import redis

from support.model_source import ITEMS, ModelSource, delete, insert, update
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.services import RedisServer
from support.sinks_under_test import (
    SinkUnderTest,
    of_kind,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink
from walbus.errors import ConfigError, SinkRefused, SinkUnavailable
from walbus.events import window_of

pytestmark = pytest.mark.one_version

MARKS = Marks(1, 1)


def fill(sink: Sink, source: ModelSource) -> None:
    sink.checkpoint()
    windows = [window_of(h, r, source.layouts.__getitem__) for h, r in source.records]
    sink.write(windows, MARKS)
    sink.commit(Following(source.log_id, MARKS, Point(source.end, source.last_seq)))


def test_a_redis_that_stands_still_is_waited_for(
    relay: ScriptedRelay, source: ModelSource, own_redis: RedisServer, tmp_path: Path
) -> None:
    under_test = redis_under_test(tmp_path, own_redis.url, "hash")
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 3, name="behind the snapshot"))
        snapshots = len(relay.asked("/v1/snapshot"))  # more than one where the server was slow
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGSTOP)
        source.commit([update(ITEMS, 1, name="meanwhile"), delete(ITEMS, 2)])
        wait_for(lambda: "Redis does not answer" in str(running.status().get("waiting_for")), 60)
        os.kill(own_redis.pid, signal.SIGCONT)
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == snapshots


def test_a_redis_that_comes_back_empty_is_filled_from_a_snapshot(
    relay: ScriptedRelay, source: ModelSource, redis_url: str, tmp_path: Path
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash")
    source.commit([insert(ITEMS, n) for n in range(5)])
    source.trim(source.end)
    with consumer(relay, under_test):
        equal(under_test, relay)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        source.commit([update(ITEMS, 1, name="x")])
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == 2


def test_a_redis_without_its_checkpoint_but_with_old_rows_keeps_no_ghost(
    relay: ScriptedRelay, source: ModelSource, redis_url: str, tmp_path: Path
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash")
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test):
        equal(under_test, relay)
    with redis.Redis.from_url(redis_url) as client:
        client.delete("walbus:test:checkpoint")
    source.commit([delete(ITEMS, 1), update(ITEMS, 2, new_id=9, name="m")])
    with consumer(relay, under_test):
        equal(under_test, relay)


def test_a_sink_that_was_never_there_is_told_by_a_status_that_stays_fresh(relay: ScriptedRelay, tmp_path: Path) -> None:
    under_test = redis_under_test(tmp_path, "redis://127.0.0.1:1/0", "hash")
    with consumer(relay, under_test) as running:
        first = wait_for(lambda: running.status().get("waiting_for") and running.status())
        assert "Redis does not answer" in first["waiting_for"]
        wait_for(lambda: running.status()["time"] > first["time"] + 4)  # pauses are longer than a second by now
        assert running.status()["phase"] == "waiting"


def test_a_redis_that_may_evict_is_refused(redis_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(SinkRefused, match="may evict keys"):
                redis_under_test(tmp_path, redis_url, "hash").open()
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_a_redis_without_memory_is_waited_for(redis_url: str, tmp_path: Path, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, "x" * 1000) for n in range(50)])
    under_test = redis_under_test(tmp_path, redis_url, "hash")
    sink = under_test.open()
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(SinkUnavailable, match="cannot write now"):
                fill(sink, source)
        finally:
            client.config_set("maxmemory", 0)
    sink.rollback()
    fill(sink, source)
    sink.close()
    assert under_test.rows() == source.rows()


def test_a_redis_without_its_replicas_is_waited_for(redis_url: str, tmp_path: Path, source: ModelSource) -> None:
    """As with a full disk (MISCONF): what an operator of Redis mends must not end the consumer for good."""
    source.commit([insert(ITEMS, 1, "canary of a row")])
    sink = redis_under_test(tmp_path, redis_url, "hash").open()
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(SinkUnavailable, match="NOREPLICAS") as caught:
                fill(sink, source)
        finally:
            client.config_set("min-replicas-to-write", 0)
    assert "canary" not in str(caught.value)
    sink.close()


def test_a_wrong_password_of_redis_ends_the_consumer_with_a_mend(redis_url: str, tmp_path: Path) -> None:
    url = redis_url.replace("redis://", "redis://nobody:hunter2canary@")
    with pytest.raises(SinkRefused, match="mend user and password") as caught:
        redis_under_test(tmp_path, url, "hash").open()
    assert "canary" not in str(caught.value)


def test_a_zombie_that_writes_redis_late_changes_nothing(redis_url: str, tmp_path: Path, source: ModelSource) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "json")
    source.commit([insert(ITEMS, 1, "old")])
    zombie = under_test.open()
    windows = [window_of(h, r, source.layouts.__getitem__) for h, r in source.records]
    zombie.write(windows, MARKS)  # it stops here, and another process takes over
    source.commit([update(ITEMS, 1, name="new", body="b"), delete(ITEMS, 1), insert(ITEMS, 2)])
    other = under_test.open()
    fill(other, source)
    with pytest.raises(SinkRefused, match="another consumer writes"):
        zombie.commit(Following(source.log_id, MARKS, Point(windows[-1].last, 1)))
    other.close()
    zombie.close()
    assert under_test.rows() == source.rows()


def test_a_password_of_redis_is_in_no_error(tmp_path: Path) -> None:
    secret = "hunter2canary"
    with pytest.raises(SinkUnavailable) as caught:
        redis_under_test(tmp_path, f"redis://:{secret}@127.0.0.1:1/0", "hash").open()
    assert secret not in str(caught.value) + repr(caught.value)
    with pytest.raises(ConfigError) as wrong:
        redis_under_test(tmp_path, f"redis://:{secret}@127.0.0.1:1/0", "hash").open(key="{nothing}")
    assert secret not in str(wrong.value)
    for url in (f"redis://:{secret}/x@127.0.0.1:1", f"http://:{secret}@127.0.0.1"):
        with pytest.raises(ConfigError, match=r"consumer\.test\.url") as no_url:
            redis_under_test(tmp_path, url, "hash").open()
        assert secret not in str(no_url.value)


@pytest.mark.parametrize("make", [sqlite_under_test, tantivy_under_test])
def test_a_folder_that_cannot_be_made_is_an_error_with_a_mend(
    make: Callable[[Path], SinkUnderTest], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SinkRefused, match="name another path"):
        make(tmp_path).open(path=tmp_path / "file" / "deep" / "sink")


def test_readers_of_sqlite_see_whole_transactions_while_it_is_written(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, n, "0") for n in range(4)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        with closing(sqlite3.connect(f"file:{under_test.options['path']}?mode=ro", uri=True)) as reader:
            for version in range(1, 60):
                source.commit([update(ITEMS, n, name=str(version), body="b") for n in range(4)], pieces=2)
                names = {row[0] for row in reader.execute("SELECT name FROM items")}
                assert len(names) == 1
        equal(under_test, relay)


def test_sqlite_locked_by_someone_else_is_waited_for(relay: ScriptedRelay, source: ModelSource, tmp_path: Path) -> None:
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, 1)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        with closing(sqlite3.connect(under_test.options["path"], timeout=60, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            source.commit([insert(ITEMS, 2)])
            wait_for(lambda: "SQLITE_BUSY" in str(running.status().get("waiting_for")), 60)
            other.execute("ROLLBACK")
        equal(under_test, relay)


@pytest.mark.parametrize("becomes", ["nothing", "another file", "its copy of before"])
def test_a_replica_whose_file_somebody_takes_away_is_noticed_and_goes_on_where_readers_look(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, becomes: str
) -> None:
    under_test = sqlite_under_test(tmp_path)
    path, aside = Path(under_test.options["path"]), tmp_path / "aside.sqlite"
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 4, name="behind the snapshot"))
        with closing(sqlite3.connect(path)) as live, closing(sqlite3.connect(aside)) as copy:
            live.backup(copy)
        followed(running, under_test, relay, update(ITEMS, 1, name="since", body="b"), delete(ITEMS, 2))
        with closing(sqlite3.connect(path, timeout=60)) as live:  # its WAL would be taken for the other file's
            assert live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        if becomes == "nothing":
            path.unlink()
        elif becomes == "another file":
            (tmp_path / "empty").touch()
            (tmp_path / "empty").replace(path)
        else:
            aside.replace(path)
        source.commit([update(ITEMS, 3, name="meanwhile", body="b")])
        equal(under_test, relay)
        source.commit([insert(ITEMS, 9)])
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == (1 if becomes == "its copy of before" else 2)


def test_a_second_writer_of_a_search_index_waits_for_the_lock(tmp_path: Path) -> None:
    under_test = tantivy_under_test(tmp_path)
    sink = under_test.open()
    with pytest.raises(SinkUnavailable, match="another process writes this index"):
        under_test.open()
    sink.close()
    under_test.open().close()


CONSUME = """
import sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from walbus.config import ConsumerConfig
from walbus.consumers import run_consumer
config = ConsumerConfig(sink={kind!r}, tables=("public.*",), **{options!r})
run_consumer("test", config, relay_url={url!r}, folder=Path({folder!r}), status_path=None, stop=threading.Event())
"""


def reads(relay: ScriptedRelay) -> int:
    return len(relay.asked("/v1/stream")) + len(relay.asked("/v1/snapshot"))


@pytest.mark.parametrize(
    "kind", ["sqlite", "postgres", "tantivy", "redis-hash", "redis-string", "cluster-hash", "opensearch"]
)
def test_a_consumer_killed_again_and_again_ends_equal(
    kind: str, relay: ScriptedRelay, source: ModelSource, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    under_test = of_kind(kind, tmp_path, request.getfixturevalue)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in under_test.options.items()}
    code = CONSUME.format(
        tests=str(Path(__file__).parents[1]), kind=under_test.name, options=options, url=relay.url, folder=str(tmp_path)
    )
    source.commit([insert(ITEMS, n, "start", "toasted") for n in range(300)])
    asked = 0
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        wait_for(lambda before=asked: reads(relay) > before, 60, what="the consumer reads")
        for n in range(20):
            source.commit(
                [
                    update(ITEMS, n + 20 * round_, name=f"r{round_}"),
                    update(ITEMS, 280 + n if round_ == 0 else 1000 * round_ + n, 1000 * (round_ + 1) + n, name="m"),
                ],
                pieces=2,
            )
        process.kill()
        process.wait()
        asked = reads(relay)
    with consumer(relay, under_test):
        wait_for(lambda: under_test.rows() == source.rows(), 60, what="the sink equals the source")
