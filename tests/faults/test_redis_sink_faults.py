"""A Redis whose scripts fail half way, that has no memory or other keys in the way; texts, and rows that expire."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.connection import AbstractConnection

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, truncate, update
from support.redis_cluster import LocalCluster
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import SinkUnderTest, redis_cluster_under_test, redis_under_test
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.consumers.steps import Sweep
from walbus.errors import SinkRefused, SinkUnavailable

pytestmark = pytest.mark.one_version

_GONE = -2  # what PTTL gives of a key that is not there
FORMS = ["hash", "json", "string", "expiring"]


@pytest.fixture(params=FORMS)
def under_test(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, request.param)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"invalidate": "publish"}, r"nodes of a cluster pass messages on and may lose some.*or use a Redis without"),
        ({"invalidate": "both"}, r"nodes of a cluster pass messages on and may lose some.*invalidate = \"delete\""),
        ({"pointer": "test:live"}, r"a node of a cluster.*use a Redis without"),
    ],
)
def test_a_cluster_takes_neither_messages_nor_a_pointer(
    options: dict[str, Any], told: str, redis_cluster: LocalCluster, tmp_path: Path
) -> None:
    with pytest.raises(SinkRefused, match=told):
        open_sink("redis", {"url": redis_cluster.url, **options}, SinkPlace("test", tmp_path, ("public.*",)))


# Half way


def test_no_checkpoint_passes_rows_that_a_script_did_not_write(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    """Redis goes on with a MULTI behind a script that failed: the row behind the bad key is not there."""
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2), insert(ITEMS, 3)])
    client.rpush(f"walbus:test:v:{ITEMS}:2", "not a version")
    with closing(under_test.open()) as sink, pytest.raises(SinkRefused, match="WRONGTYPE"):
        fill(sink, source)
    with closing(under_test.open()) as sink:
        assert sink.checkpoint() is None
        client.delete(f"walbus:test:v:{ITEMS}:2")
        fill(sink, source)
    assert under_test.rows() == source.rows()


def test_a_key_of_another_type_gives_way_to_its_row(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    client.rpush(f"{ITEMS}:1", "a list")
    client.rpush(f"{ITEMS}:7", "another's, which looks like a row")
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    source.commit([update(ITEMS, 1, name="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        assert client.type(f"{ITEMS}:1") == ("hash" if under_test.options["format"] == "hash" else "string")
        done = source.end
        source.commit([truncate(ITEMS)])
        fill(sink, source, done)
    assert client.lrange(f"{ITEMS}:7", 0, -1) == ["another's, which looks like a row"]
    assert not client.exists(f"{ITEMS}:1")


def test_a_redis_out_of_memory_takes_neither_rows_nor_checkpoint(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    source.commit([insert(ITEMS, n, "x" * 1000) for n in range(50)])
    with closing(under_test.open()) as sink:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(SinkUnavailable, match="cannot write now"):
                fill(sink, source)
        finally:
            client.config_set("maxmemory", 0)
        assert under_test.rows() == {}
        sink.rollback()
        assert sink.checkpoint() is None
        fill(sink, source)
    assert under_test.rows() == source.rows()


@pytest.mark.parametrize("text", ["garbage", "[1]", '{"log_generation": 1, "layouts": 3}', '{"key": 1}'])
@pytest.mark.parametrize("own", ["layouts", "shape"])
def test_what_no_sink_writes_under_its_own_keys_is_told(
    own: str, text: str, source: ModelSource, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash")
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    client.set(f"walbus:test:{own}", text)
    with pytest.raises(SinkRefused, match=rf"own key walbus:test:{own} holds something else.*consumers reset"):
        under_test.open()
    client.delete(f"walbus:test:{own}")
    with closing(under_test.open()) as sink:
        assert sink.checkpoint() == following(source)


@pytest.mark.parametrize("field", ["number", "vouches", "layouts", "shape"])
def test_what_no_sink_writes_on_a_master_is_told(
    field: str, source: ModelSource, redis_cluster: LocalCluster, tmp_path: Path
) -> None:
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "hash")
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    with redis_cluster.client() as client:
        (anchor, *_) = client.keys("walbus:test:at:*")
        client.hset(anchor, field, "garbage")
    with pytest.raises(SinkRefused, match=r"own key walbus:test:\S+ holds something else"):
        under_test.open()


# Late writers


def test_a_deleted_row_is_remembered_for_as_long_as_is_asked(
    redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    """Longer than a request may take (5 s), and than a lease lasts."""
    source.commit([insert(ITEMS, 1)])
    source.commit([delete(ITEMS, 1)])
    with closing(redis_under_test(tmp_path, redis_url, "hash", tombstone_seconds=600).open()) as sink:
        fill(sink, source)
    assert 590_000 < client.pttl(f"walbus:test:v:{ITEMS}:1") <= 600_000


def test_a_consumer_goes_on_behind_what_comes_late_of_its_own(
    under_test: SinkUnderTest, source: ModelSource, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that was cut delivers what it was given, while the sender has long looked what is stored."""
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        first, done = following(source), source.end
        source.commit([insert(ITEMS, 2)])
        on_its_way: list[bytes] = []

        def cut(_: AbstractConnection, command: list[bytes], *__: Any, **___: Any) -> None:
            on_its_way.extend(command)
            raise redis.TimeoutError

        with monkeypatch.context() as patch, pytest.raises(SinkUnavailable, match="does not answer"):
            patch.setattr(AbstractConnection, "send_packed_command", cut)
            fill(sink, source, done)
        sink.rollback()
        assert sink.checkpoint() == first
        address = urlsplit(redis_url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as late:
            late.sendall(b"".join(on_its_way))
            wait_for(lambda: under_test.rows() == source.rows())
        with pytest.raises(SinkUnavailable, match="has come to it late"):
            fill(sink, source, done)
        sink.rollback()
        assert sink.checkpoint() == following(source)
        done = source.end
        source.commit([update(ITEMS, 1, name="on")])
        fill(sink, source, done)
    assert under_test.rows() == source.rows()


def test_a_consumer_goes_on_from_what_a_redis_has_that_lost_its_last_writes(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis, redis_url: str
) -> None:
    """A replica that takes over may know the scripts already, and then nothing else tells."""
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink, redis.Redis.from_url(redis_url) as binary:
        fill(sink, source)
        first, done = following(source), source.end
        kept = {key: binary.dump(key) for key in binary.scan_iter()}
        source.commit([insert(ITEMS, 2)])
        fill(sink, source, done)
        source.commit([insert(ITEMS, 3)])
        client.flushdb()
        for key, value in kept.items():
            binary.restore(key, 0, value)
        with pytest.raises(SinkUnavailable, match="has lost writes that it had acknowledged"):
            fill(sink, source, done)
        sink.rollback()
        assert sink.checkpoint() == first
        fill(sink, source, done)
    assert under_test.rows() == source.rows()


# Another key, another form


@pytest.mark.parametrize(
    "other",
    [
        {"key": "rows:{table}:{key}"},
        {"format": "json"},
        {"format": "string", "values": {ITEMS: "{name}"}},
    ],
)
def test_rows_are_not_gone_on_with_under_another_key_or_in_another_form(
    other: dict[str, Any], redis_url: str, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash")
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    with pytest.raises(SinkRefused, match="lies under another key, or in another form"):
        under_test.open(**other)
    under_test.open().close()


def test_another_template_of_a_tables_values_is_refused_and_that_of_a_new_table_is_not(
    redis_url: str, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "string")
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open(values={ITEMS: "{name}"})) as sink:
        fill(sink, source)
    under_test.open(values={ITEMS: "{name}", "public.more": "{x}"}).close()
    with pytest.raises(SinkRefused, match="in another form"):
        under_test.open(values={ITEMS: "{name}!"})


# Texts


def test_a_text_is_what_its_template_makes_of_the_row(
    redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "string", values={ITEMS: "{{{name}}} {body}%"})
    source.commit([insert(ITEMS, 1, "ü {name}", "toasted"), insert(ITEMS, 2, None, "b\n1:1")])
    source.commit([update(ITEMS, 1, name="é"), update(ITEMS, 2, name="n")])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        assert (client.get(f"{ITEMS}:1"), client.get(f"{ITEMS}:2")) == ("{é} toasted%", "{n} b\n1:1%")
        done = source.end
        source.commit([update(ITEMS, 1, new_id=3, name="moved")])
        fill(sink, source, done)
        assert sink.incomplete() == ()
    assert client.get(f"{ITEMS}:3") == "{moved} toasted%" and client.get(f"{ITEMS}:1") is None


def test_a_text_of_one_column_is_kept_once(
    redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "string", values={ITEMS: "{body}"})
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.commit([update(ITEMS, 1, name="b")])
        fill(sink, source, done)
        assert sink.incomplete() == ()
    assert client.get(f"{ITEMS}:1") == "toasted"
    assert client.get(f"walbus:test:v:{ITEMS}:1") == "2:1"


def test_a_table_without_a_template_or_without_its_columns_is_refused(
    redis_url: str, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "string")
    source.commit([insert(ITEMS, 1)])
    for values, told in [
        ({"public.more": "{name}"}, f"no template for this table's values .*{ITEMS}.*add one to values"),
        ({ITEMS: "{name} {tilte}"}, "names tilte, which is no column of it"),
    ]:
        with closing(under_test.open(values=values)) as sink, pytest.raises(SinkRefused, match=told):
            fill(sink, source)


# Rows that expire


def test_a_row_expires_and_no_late_writer_brings_it_back(
    redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash", ttl={ITEMS: 1})
    source.commit([insert(ITEMS, 1, "old")])
    first = windows(source)
    source.commit([update(ITEMS, 1, name="new", body="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        left = client.pttl(f"{ITEMS}:1")
        assert 0 < left <= 1_000 or left == _GONE
        assert client.pttl(f"walbus:test:v:{ITEMS}:1") > 3_600_000
        wait_for(lambda: under_test.rows() == {}, what="the row expires")
        sink.write(first, MARKS)
        sink.commit(Following(source.log_id, MARKS, Point(source.end, source.last_seq)))
        assert under_test.rows() == {}


@pytest.mark.parametrize("form", ["hash", "json", "string"])
def test_a_row_that_has_expired_is_not_read_again_for_a_value_that_was_left_out(
    form: str, redis_url: str, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, form, ttl={ITEMS: 1})
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        wait_for(lambda: under_test.rows() == {}, what="the row expires")
        done = source.end
        source.commit([update(ITEMS, 1, name="b")])
        fill(sink, source, done)
        assert under_test.rows() == {} and sink.incomplete() == ()

        def comes_back() -> bool:
            done = source.end
            source.commit([update(ITEMS, 1, name="c", body="d")])
            fill(sink, source, done)
            return under_test.rows() == source.rows()  # if it has not expired by now

        wait_for(comes_back, what="a whole row is there again")


def test_a_sweep_and_a_truncate_meet_rows_that_expire(
    redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "expiring")
    source.commit([insert(ITEMS, n) for n in range(3)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        marks = Marks(2, 1)
        after = Following(source.log_id, marks, Point(source.end, source.last_seq))
        sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
        sink.commit(after)
    assert under_test.rows() == {}


def test_a_table_with_a_time_to_live_does_not_lose_it_by_a_rename(
    redis_url: str, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash", ttl={ITEMS: 3600})
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.add_layout(items_layout("things"))
        source.commit([update("public.things", 1, name="x", body="y")])
        with pytest.raises(SinkRefused, match="name it so in ttl"):
            fill(sink, source, done)
    with closing(under_test.open(ttl={"public.things": 3600})) as sink:
        fill(sink, source, done)
    assert under_test.rows("public.things") == source.rows("public.things")
