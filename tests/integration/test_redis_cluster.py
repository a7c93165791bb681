"""The Redis sink on a cluster: where its rows lie, and that what somebody did to them is found and mended."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.model_source import ITEMS, ModelSource, delete, insert, update
from support.redis_cluster import LocalCluster
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import SinkUnderTest, redis_cluster_under_test
from support.waiting import wait_for
from walbus.config import ConsumerConfig
from walbus.consumers.checkpoint import Following, Marks, Point, dump_checkpoint
from walbus.consumers.resetting import read_again
from walbus.consumers.sink_verifying import verify_sink
from walbus.consumers.sinks.redis_slots import slot_of
from walbus.events import window_of

pytestmark = pytest.mark.one_version

MARKS = Marks(1, 1)


@pytest.fixture
def source() -> ModelSource:
    source = ModelSource()
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(60)])
    return source


@pytest.fixture(params=["hash", "string"])
def under_test(request: pytest.FixtureRequest, redis_cluster: LocalCluster, tmp_path: Path) -> SinkUnderTest:
    return redis_cluster_under_test(tmp_path, redis_cluster, request.param)


def config(under_test: SinkUnderTest) -> ConsumerConfig:
    options: dict[str, Any] = {"tables": ("public.*",), **under_test.options}
    return ConsumerConfig(sink=under_test.name, **options)


def tamper(cluster: LocalCluster, under_test: SinkUnderTest) -> None:
    """Row 1 is another, 2 is gone, and 99 is none of the source's."""
    with cluster.client() as client:
        client.delete(f"{ITEMS}:2")
        if under_test.options["format"] == "hash":
            client.hset(f"{ITEMS}:1", "name", "by hand")
            client.hset(f"{ITEMS}:99", mapping={**client.hgetall(f"{ITEMS}:6"), "id": "99"})
            return
        client.set(f"{ITEMS}:1", "1|by hand|body")
        client.set(f"{ITEMS}:99", "99|n99|body")


def test_rows_are_on_all_masters_and_each_has_the_checkpoint(
    under_test: SinkUnderTest, redis_cluster: LocalCluster, source: ModelSource
) -> None:
    with closing(under_test.open()) as sink:
        sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.records], MARKS)
        sink.commit(done := Following(source.log_id, MARKS, Point(source.end, source.last_seq)))
    for node in redis_cluster.masters:
        with node.client() as client:
            [anchor] = set(client.scan_iter(match="walbus:test:at:*"))
            assert client.hget(anchor, "checkpoint") == dump_checkpoint(done)
            rows = set(client.scan_iter(match=f"{ITEMS}:*"))
            assert rows and len(rows) < len(source.rows())
            assert all(redis_cluster.owner(slot_of(row)) is node for row in rows)
    assert under_test.rows() == source.rows()


def test_braces_around_a_part_of_the_key_decide_on_its_slot(
    redis_cluster: LocalCluster, tmp_path: Path, relay: ScriptedRelay, source: ModelSource
) -> None:
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "hash", key="{{table}}:{key}")
    with consumer(relay, under_test), redis_cluster.client() as client:
        source.commit([update(ITEMS, 1, name="x"), delete(ITEMS, 2), update(ITEMS, 3, new_id=300)])
        match = "{" + ITEMS + "}:*"

        def names() -> dict[str, str]:
            return {row["id"]: row["name"] for row in map(client.hgetall, client.scan_iter(match=match)) if row}

        wait_for(lambda: names() == {id: row["name"] for id, row in source.rows().items()}, what="rows are there")
        assert {slot_of(key) for key in client.scan_iter(match=match)} == {slot_of(ITEMS)}


def test_what_somebody_did_to_rows_of_a_cluster_is_found_and_mended(
    under_test: SinkUnderTest, redis_cluster: LocalCluster, relay: ScriptedRelay, source: ModelSource
) -> None:
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 3, name="changed"), delete(ITEMS, 4))

    def verified(*, repair: bool = False) -> tuple[list[str], int]:
        [told] = verify_sink(
            "test", config(under_test), relay_url=relay.url, folder=under_test.place.folder, repair=repair
        )
        assert told.reason is None
        return [key for _, keys in told.keys for key in keys], told.mended

    assert verified() == ([], 0)
    tamper(redis_cluster, under_test)
    keys, _ = verified()
    assert set(keys) >= {"1", "2"} and len(keys) <= 3
    assert under_test.rows() != source.rows(), "without repair nothing is written"
    verified(repair=True)
    if under_test.options["format"] == "string":  # a text without a version is another's
        with redis_cluster.client() as client:
            client.delete(f"{ITEMS}:99")
    assert under_test.rows() == source.rows()
    with consumer(relay, under_test) as again:
        followed(again, under_test, relay, update(ITEMS, 1, name="goes on"), insert(ITEMS, 2000))


def test_a_consumer_of_a_cluster_that_is_reset_reads_all_rows_again(
    under_test: SinkUnderTest, redis_cluster: LocalCluster, relay: ScriptedRelay, source: ModelSource
) -> None:
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 3, name="changed"))
    tamper(redis_cluster, under_test)
    read_again("test", config(under_test), under_test.place.folder)
    if under_test.options["format"] == "string":  # a text without a version is another's
        with redis_cluster.client() as client:
            client.delete(f"{ITEMS}:99")
    with consumer(relay, under_test):
        equal(under_test, relay)
