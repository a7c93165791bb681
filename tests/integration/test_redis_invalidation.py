"""Caches that others fill: changed keys are deleted or published, and no value read before a change is let in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.redis_caches import Cache, cached, caching, in_slot
from support.redis_cluster import LocalCluster
from support.running_consumer import consumer
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, fill, windows
from support.sinks_under_test import SinkUnderTest, redis_under_test
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink, SinkPlace, open_sink
from walbus.consumers.sinks.redis_scripts import FILL
from walbus.consumers.steps import Sweep
from walbus.errors import ConfigError, SinkRefused, SinkUnavailable
from walbus.events import Window
from walbus.position import Position

pytestmark = pytest.mark.one_version

DOCS = Path(__file__).parents[2] / "docs" / "consumers.md"


@dataclass(frozen=True)
class Where:
    """A server, or a cluster.

    Attributes:
        beside: the keys that a key's version and epoch lie under.
        nodes: that have keys.
    """

    url: str
    client: Any
    beside: Callable[[str], tuple[str, str]]
    nodes: Sequence[redis.Redis]


def on_server(key: str) -> tuple[str, str]:
    return f"walbus:test:v:{key}", "walbus:test:epoch"


@pytest.fixture(params=["server", "cluster"])
def where(request: pytest.FixtureRequest) -> Iterator[Where]:
    if request.param == "server":
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url, decode_responses=True) as client:
            yield Where(url, client, on_server, [client])
        return
    cluster: LocalCluster = request.getfixturevalue("redis_cluster")
    with ExitStack() as stack:
        nodes = [stack.enter_context(node.client()) for node in cluster.masters]
        yield Where(cluster.url, stack.enter_context(cluster.client()), in_slot, nodes)


@pytest.fixture
def client(where: Where) -> Any:
    return where.client


@pytest.fixture
def cache(where: Where) -> Cache:
    return Cache(where.client, where.beside)


@pytest.fixture
def under_test(where: Where, tmp_path: Path) -> SinkUnderTest:
    return caching(tmp_path, where.url)


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def sink(under_test: SinkUnderTest, source: ModelSource) -> Iterator[Sink]:
    """One that has its first checkpoint: from here on it tells what changes."""
    source.commit([insert(ITEMS, n) for n in range(5)])
    with closing(under_test.open()) as sink:
        sink.checkpoint()
        fill(sink, source)
        yield sink


def accept(sink: Sink, source: ModelSource, after: Position) -> None:
    sink.write(windows(source, after), MARKS)


def put(client: Any, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        client.set(key, value)


# Keys that go


def test_the_keys_of_changed_rows_go_and_no_other(sink: Sink, source: ModelSource, client: Any, where: Where) -> None:
    for n in range(6):
        client.set(f"{ITEMS}:{n}", "cached")
    done = source.end
    source.commit([update(ITEMS, 0, name="a"), delete(ITEMS, 1), update(ITEMS, 2, new_id=5, name="m")])
    accept(sink, source, done)
    assert len(cached(client)) == 6  # nothing goes before the commit that tells it
    sink.commit(Following(source.log_id, MARKS, Point(source.end, source.last_seq)))
    assert cached(client) == {f"{ITEMS}:3", f"{ITEMS}:4"}
    assert client.get(where.beside(f"{ITEMS}:1")[0]) == "7:1"  # a version, and nothing of the row


def test_what_a_crash_kept_from_being_told_is_told_by_the_next(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource, client: Any
) -> None:
    client.set(f"{ITEMS}:1", "cached")
    done = source.end
    source.commit([update(ITEMS, 1, name="a")])
    accept(sink, source, done)
    sink.close()
    with closing(under_test.open()) as again:
        assert again.checkpoint() == Following(source.log_id, MARKS, Point(done, 5))
        fill(again, source, done)
    assert cached(client) == set()


def test_a_truncate_a_sweep_and_another_layout_empty_the_table_alone(
    sink: Sink, source: ModelSource, client: Any, where: Where
) -> None:
    def cache_some() -> str:
        put(client, {f"{ITEMS}:1": "cached", f"{ITEMS}:99": "of a row that is no more", "public.other:1": "stays"})
        return str(client.get(where.beside(f"{ITEMS}:1")[1]))

    epoch, done = cache_some(), source.end
    source.commit([truncate(ITEMS)])
    fill(sink, source, done)
    assert cached(client) == {"public.other:1"}
    assert (again := cache_some()) != epoch
    marks = Marks(2, 1)
    after = Following(source.log_id, marks, Point(source.end, source.last_seq))
    sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
    sink.commit(after)
    assert cached(client) == {"public.other:1"}
    assert cache_some() != again
    done = source.end
    source.add_layout(items_layout("things", column("id", 23, "int4", in_key=True), column("name"), column("body")))
    source.commit([insert("public.things", 1)])
    fill(sink, source, done)
    assert cached(client) == {"public.other:1"}


def test_before_the_first_checkpoint_nobody_told_what_changed(
    under_test: SinkUnderTest, source: ModelSource, client: Any
) -> None:
    theirs = {"session:1": "x", "other.items:1": "x", "walbus:other:checkpoint": "x", "public": "x"}
    put(client, {**theirs, "public.items:77": "stale", "public.things:a:b": "stale"})
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    assert {key: client.get(key) for key in theirs} == theirs
    assert not client.exists("public.items:77", "public.things:a:b")


def test_a_cache_that_comes_back_empty_is_noticed_and_emptied_again(
    sink: Sink, source: ModelSource, client: Any, where: Where
) -> None:
    for node in where.nodes:
        node.flushall()
    client.set(f"{ITEMS}:3", "read before the crash, stored behind it")
    done = source.end
    source.commit([update(ITEMS, 1, name="a")])
    with pytest.raises(SinkUnavailable, match=r"came back empty|has lost what was written"):
        fill(sink, source, done)
    sink.rollback()
    assert sink.checkpoint() is None
    fill(sink, source, done)
    assert cached(client) == set()


def test_a_redis_that_evicts_is_good_enough_for_a_cache(
    under_test: SinkUnderTest, source: ModelSource, where: Where
) -> None:
    for node in where.nodes:
        node.config_set("maxmemory-policy", "allkeys-lru")
    try:
        source.commit([insert(ITEMS, 1)])
        with closing(under_test.open()) as sink:
            fill(sink, source)
    finally:
        for node in where.nodes:
            node.config_set("maxmemory-policy", "noeviction")


def test_two_processes_under_one_name_are_not_let_in(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    done = source.end
    source.commit([update(ITEMS, 1, name="a")])
    with closing(under_test.open()) as other:
        fill(other, source, done)
    with pytest.raises(SinkRefused, match="another consumer writes"):
        fill(sink, source, done)


def test_a_consumer_keeps_a_cache_fresh_from_its_beginning(
    source: ModelSource, under_test: SinkUnderTest, client: Any
) -> None:
    client.set(f"{ITEMS}:1", "from before")
    source.commit([insert(ITEMS, n) for n in range(3)])
    with ScriptedRelay(source) as relay, consumer(relay, under_test) as running:
        wait_for(lambda: not cached(client) and running.status().get("phase") == "online")
        source.commit([update(ITEMS, 0, name="behind the snapshot")])  # at whose end the cache is emptied
        wait_for(lambda: running.status().get("last_done") == str(source.end))
        put(client, {f"{ITEMS}:1": "fresh", f"{ITEMS}:2": "fresh"})
        source.commit([update(ITEMS, 1, name="a")])
        wait_for(lambda: cached(client) == {f"{ITEMS}:2"})


def test_a_consumer_that_begins_at_the_end_forgets_what_was_cached_before_it(
    source: ModelSource, under_test: SinkUnderTest, client: Any
) -> None:
    client.set(f"{ITEMS}:1", "from before")
    source.commit([insert(ITEMS, n) for n in range(3)])
    with ScriptedRelay(source) as relay, consumer(relay, under_test, start="latest") as running:
        wait_for(lambda: running.status().get("phase") == "online")
        source.commit([update(ITEMS, 2, name="a")])
        wait_for(lambda: not cached(client))
        put(client, {f"{ITEMS}:1": "fresh", f"{ITEMS}:2": "fresh"})
        source.commit([update(ITEMS, 2, name="b")])
        wait_for(lambda: cached(client) == {f"{ITEMS}:1"})
        assert relay.asked("/v1/snapshot") == []


# Values on their way into the cache


def test_a_value_that_was_read_before_the_change_is_stored_behind_it_unless_it_is_filled_by_version(
    sink: Sink, source: ModelSource, client: Any, cache: Cache
) -> None:
    key, done = f"{ITEMS}:1", source.end
    seen = cache.begin(key)
    read = json.dumps(source.rows()["1"])  # the program reads, and is slow
    source.commit([update(ITEMS, 1, name="new", body="b")])
    fill(sink, source, done)
    client.set(key, read)
    assert json.loads(client.get(key) or "")["name"] == "name"  # the race: stale, and nothing will delete it
    client.delete(key)
    assert not cache.fill(key, seen, read)
    assert client.get(key) is None
    seen = cache.begin(key)
    assert cache.fill(key, seen, json.dumps(source.rows()["1"]), 60_000)
    assert json.loads(client.get(key) or "")["name"] == "new"
    assert 0 < client.pttl(key) <= 60_000


def test_a_value_that_was_read_before_a_truncate_is_not_let_in(
    sink: Sink, source: ModelSource, client: Any, cache: Cache
) -> None:
    key, done = f"{ITEMS}:1", source.end
    seen = cache.begin(key)
    source.commit([truncate(ITEMS)])
    fill(sink, source, done)
    assert not cache.fill(key, seen, "read before")
    assert cached(client) == set()


def test_a_replay_never_brings_a_version_back_that_a_reader_has_seen(
    sink: Sink, source: ModelSource, client: Any, cache: Cache, where: Where
) -> None:
    """Or a value from between two changes would pass for one from behind the second."""
    key, done = f"{ITEMS}:1", source.end
    source.commit([update(ITEMS, 1, name="a")])
    first = windows(source, done)
    tell(sink, first)
    seen = cache.begin(key)
    source.commit([update(ITEMS, 1, name="b")])
    tell(sink, windows(source, first[0].last))
    sink.rollback()  # a crash before the checkpoint: both come again, and the first is told before the second
    sink.checkpoint()
    tell(sink, first)
    assert client.get(where.beside(key)[0]) == "7:1"
    assert not cache.fill(key, seen, "of a")


def tell(sink: Sink, windows: Sequence[Window]) -> None:
    """What is many, or of another snapshot, is told before it is committed."""
    sink.write(windows, MARKS)
    sink.write([], Marks(2, 1))


def test_a_version_outlives_the_reading(sink: Sink, source: ModelSource, client: Any, where: Where) -> None:
    done = source.end
    source.commit([update(ITEMS, 1, name="a")])
    fill(sink, source, done)
    assert 3_590_000 < client.pttl(where.beside(f"{ITEMS}:1")[0]) <= 3_600_000


def test_the_page_has_the_very_script_that_fills() -> None:
    lines = [line.strip() for line in DOCS.read_text().splitlines()]
    assert all(line in lines for line in FILL.strip().splitlines())


# Keys that are published


def test_changed_keys_are_published_without_values(
    source: ModelSource, redis_url: str, tmp_path: Path, server: redis.Redis
) -> None:
    server.set(f"{ITEMS}:1", "of another cache")
    listener = server.pubsub(ignore_subscribe_messages=True)
    listener.subscribe("changes")
    wait_for(lambda: server.pubsub_numsub("changes") == [("changes", 1)])
    source.commit([insert(ITEMS, 1, "hunter2canary")])
    with closing(caching(tmp_path, redis_url).open(invalidate="publish", channel="changes")) as sink:
        fill(sink, source)
        done = source.end
        source.commit([update(ITEMS, 1, new_id=2, name="hunter2canary"), truncate(ITEMS)])
        fill(sink, source, done)
    told = [json.loads(str(data)) for data in messages(listener, 4)]
    assert told == [
        {"table": ITEMS, "keys": [f"{ITEMS}:1"], "seq": 1},
        {"table": None, "keys": None, "seq": None},  # the first checkpoint
        {"table": ITEMS, "keys": [f"{ITEMS}:2", f"{ITEMS}:1"], "seq": 2},
        {"table": ITEMS, "keys": None, "seq": None},
    ]
    assert cached(server) == {f"{ITEMS}:1"}
    assert not server.exists(f"walbus:test:v:{ITEMS}:1")
    listener.close()


def messages(listener: Any, count: int) -> list[Any]:
    found: list[Any] = []

    def enough() -> bool:
        message = listener.get_message(timeout=0.1)
        found.extend([message["data"]] if message else [])
        return len(found) >= count

    wait_for(enough, what=f"{count} messages")
    return found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"invalidate": "delete", "format": "json"}, "no rows are written"),
        ({"invalidate": "delete", "ttl": {ITEMS: 5}}, "no rows are written"),
        ({"invalidate": "delete", "channel": "x"}, "a channel is for"),
        ({"format": "string"}, "needs them"),
        ({"values": {ITEMS: "{name}"}}, "needs them"),
        ({"format": "string", "values": {ITEMS: "{name"}}, "written twice"),
        ({"format": "string", "values": {ITEMS: "name"}}, "needs a column in braces"),
        ({"ttl": {"public.*": 5}}, "none of the consumer's tables"),
        ({"ttl": {"other.t": 5}}, "none of the consumer's tables"),
        ({"ttl": {ITEMS: 0}}, "greater than or equal to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    place = SinkPlace("test", tmp_path, ("public.*",))
    with pytest.raises(ConfigError, match=told):
        open_sink("redis", {"url": "redis://127.0.0.1:1/0", **options}, place)


def test_rows_and_invalidation_do_not_take_over_from_each_other(
    where: Where, tmp_path: Path, source: ModelSource, under_test: SinkUnderTest
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(redis_under_test(tmp_path, where.url, "hash").open()) as rows:
        fill(rows, source)
    with pytest.raises(SinkRefused, match="in another form"):
        under_test.open()
