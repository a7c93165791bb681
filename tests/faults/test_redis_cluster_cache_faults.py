"""Caches on a Redis Cluster whose masters are killed: what was deleted there stays deleted, or is deleted again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from redis.exceptions import RedisClusterException

from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.redis_caches import Cache, cached, caching, in_slot
from support.redis_cluster import LocalCluster, local_cluster, rows_on
from support.running_consumer import RunningConsumer, consumer, stored
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import SinkUnderTest
from support.waiting import wait_for
from walbus.consumers.sinks.redis_slots import slot_of

pytestmark = pytest.mark.one_version

_ROWS = 60  # that all masters have keys of some of them is asserted


@pytest.fixture
def source() -> ModelSource:
    source = ModelSource()
    source.commit([insert(ITEMS, n, "0") for n in range(_ROWS)])
    return source


@pytest.fixture
def under_test(cluster: LocalCluster, tmp_path: Path) -> SinkUnderTest:
    return caching(tmp_path, cluster.url)


def key_of(n: int) -> str:
    return f"{ITEMS}:{n}"


def keys_on(cluster: LocalCluster, index: int) -> list[int]:
    """The rows whose keys a master has."""
    found = rows_on(cluster, index, _ROWS)
    assert 2 < len(found) < _ROWS
    return found


@contextmanager
def online(relay: ScriptedRelay, under_test: SinkUnderTest) -> Iterator[RunningConsumer]:
    """A consumer that began at the log's end, and has a checkpoint."""
    with consumer(relay, under_test, start="latest") as running:
        wait_for(lambda: running.status().get("phase") == "online")
        relay.source.commit([update(ITEMS, 0, name="1")])
        stored(running, relay.source)
        yield running


def cut_off(cluster: LocalCluster, index: int) -> None:
    """The replica of a master has what that has now, and gets nothing more."""
    cluster.settle(index)
    cluster.cut_off(index)


def fill(client: redis.cluster.RedisCluster, source: ModelSource, rows: list[int]) -> None:
    """A program caches rows as they are."""
    cache = Cache(client, in_slot)
    for n in rows:
        seen = cache.begin(key_of(n))
        assert cache.fill(key_of(n), seen, str(source.rows()[str(n)]["name"]))


def stale(client: redis.cluster.RedisCluster, source: ModelSource) -> dict[str, str]:
    """What is cached, and is not so at the source."""
    rows = {key_of(int(id)): str(row["name"]) for id, row in source.rows().items()}
    found = {key: str(client.get(key)) for key in cached(client)}
    return {key: value for key, value in found.items() if rows.get(key) != value}


def test_a_replica_that_takes_over_without_the_last_deletes_gets_them_again(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    with online(relay, under_test) as running:
        lost = keys_on(cluster, 1)
        with cluster.client() as client:
            fill(client, source, lost)
        cut_off(cluster, 1)
        source.commit([update(ITEMS, n, name="2") for n in lost])
        stored(running, source)
        cluster.fail_over(1)
        with cluster.client() as client:
            assert set(stale(client, source)) == {key_of(n) for n in lost}, "nothing was lost"
            source.progress()  # without a change: that the log goes on is enough to notice it
            wait_for(lambda: not stale(client, source), what="no stale value is left")
            assert not cached(client), "they were deleted once more, and nothing else had been cached"


def test_a_value_from_before_a_change_is_not_let_in_on_a_master_that_lost_its_version(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    with online(relay, under_test) as running:
        n, other = keys_on(cluster, 1)[:2]
        with cluster.client() as client:
            cache = Cache(client, in_slot)
            seen, read = cache.begin(key_of(n)), str(source.rows()[str(n)]["name"])
        cut_off(cluster, 1)
        source.commit([update(ITEMS, n, name="2"), update(ITEMS, other, name="2")])
        stored(running, source)
        cluster.fail_over(1)
        with cluster.client() as client:
            Cache(client, in_slot).fill(key_of(n), seen, read)  # it may be let in: nobody there knows of the change yet
            source.progress()
            stored(running, source)
            wait_for(lambda: not stale(client, source), what="no stale value is left")


def test_a_truncate_that_a_master_lost_is_told_again(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    with online(relay, under_test) as running:
        lost = keys_on(cluster, 0)
        with cluster.client() as client:
            fill(client, source, lost)
            seen = Cache(client, in_slot).begin(key_of(lost[0]))
        cut_off(cluster, 0)
        source.commit([truncate(ITEMS)])
        stored(running, source)
        cluster.fail_over(0)
        with cluster.client() as client:
            assert stale(client, source), "nothing was lost"
            source.progress()
            stored(running, source)
            wait_for(lambda: not cached(client), what="the table is forgotten there too")
            assert not Cache(client, in_slot).fill(key_of(lost[0]), seen, "read before")


@pytest.mark.parametrize("runs", [True, False], ids=["while a consumer runs", "while none runs"])
def test_a_master_that_comes_back_empty_has_all_that_is_cached_forgotten(
    runs: bool, tmp_path: Path, relay: ScriptedRelay, source: ModelSource
) -> None:
    """Versions are gone with it: a value on its way from before could not be told from a fresh one."""
    with local_cluster() as cluster:
        under_test = caching(tmp_path, cluster.masters[0].server.url)
        with online(relay, under_test) as running:
            n = keys_on(cluster, 1)[0]
            with cluster.client() as client:
                fill(client, source, list(range(_ROWS)))
                seen = Cache(client, in_slot).begin(key_of(n))
            source.commit([update(ITEMS, n, name="2")])
            stored(running, source)
            if runs:
                cluster.come_back_empty(1)
                source.progress()
                forgotten(cluster, n, seen)
        if not runs:
            cluster.come_back_empty(1)
            with consumer(relay, under_test, start="latest"):
                source.progress()
                forgotten(cluster, n, seen)


def forgotten(cluster: LocalCluster, n: int, seen: tuple[str, str]) -> None:
    with cluster.client() as client:
        wait_for(lambda: not cached(client), what="all is forgotten")
        assert not Cache(client, in_slot).fill(key_of(n), seen, "read before the change")


def test_slots_that_move_under_programs_that_cache_leave_nothing_stale(
    tmp_path: Path, relay: ScriptedRelay, source: ModelSource
) -> None:
    with local_cluster(spare=1) as cluster:
        under_test = caching(tmp_path, cluster.masters[0].server.url)
        with online(relay, under_test) as running:
            with programs(cluster, source):
                for n in range(0, _ROWS, 4):
                    cluster.move(slot_of(key_of(n)), cluster.masters[3])
                    source.commit([update(ITEMS, m, name=f"{n}") for m in range(n, n + 4)])
                cluster.move(16, cluster.masters[3])
                wait_for(lambda: all_cached(cluster, source), what="programs cache behind the moves")
            quiet(cluster, running, source)


def test_masters_that_are_replaced_under_programs_that_cache_leave_nothing_stale(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    with online(relay, under_test) as running:
        with programs(cluster, source):
            for round_, index in enumerate((0, 1)):
                wait_for(lambda: all_cached(cluster, source), what="programs cache")
                cluster.cut_off(index)
                for n in range(_ROWS):
                    edit = delete(ITEMS, n) if n % 10 == round_ else update(ITEMS, n, name=f"{round_ + 2}")
                    if str(n) in source.rows():
                        source.commit([edit])
                cluster.fail_over(index)
                source.commit([insert(ITEMS, 1000 + round_, "new")])
        quiet(cluster, running, source)


def all_cached(cluster: LocalCluster, source: ModelSource) -> bool:
    with cluster.client() as client:
        return cached(client) >= {key_of(int(id)) for id in source.rows() if int(id) < _ROWS}


def quiet(cluster: LocalCluster, running: RunningConsumer, source: ModelSource) -> None:
    """Nothing is written any more: once all is told, nothing stale is there, and stays."""
    source.commit([update(ITEMS, 59, name="the last")])
    stored(running, source)
    with cluster.client() as client:
        wait_for(lambda: not stale(client, source), what="no stale value is left")
        fill(client, source, [int(id) for id in source.rows()])
        assert len(cached(client)) == len(source.rows())


@contextmanager
def programs(cluster: LocalCluster, source: ModelSource) -> Iterator[None]:
    """Two programs that cache rows which are not cached."""
    stop = threading.Event()

    def run(which: int) -> None:
        while not stop.is_set():
            # redis-py raises AttributeError where a slot is on its way to a node that it does not know yet
            with suppress(redis.RedisError, RedisClusterException, OSError, AttributeError), cluster.client() as client:
                cache = Cache(client, in_slot)
                while not stop.is_set():
                    for n in range(which, _ROWS, 2):
                        seen = cache.begin(key_of(n))
                        row = source.rows().get(str(n))
                        if row is not None and client.get(key_of(n)) is None:
                            cache.fill(key_of(n), seen, str(row["name"]))

    threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
