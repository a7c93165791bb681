"""Redis rows under keys by a template of each table's own: written, moved, emptied, compared, rebuilt."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from support.model_source import (
    ITEMS,
    ModelSource,
    column,
    delete,
    insert,
    items_layout,
    truncate,
    update,
)
from support.rebuild_rig import config_for, dropped, rebuilt
from support.running_consumer import RunningConsumer, consumer, stored
from support.scripted_relay import ScriptedRelay
from support.sink_writing import fill
from support.sinks_under_test import SinkUnderTest, redis_under_test
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.resetting import read_again
from walbus.consumers.sink_verifying import verify_sink
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.errors import ConfigError, SinkRefused
from walbus.events import Change, Window, time_of
from walbus.position import parse_position
from walbus.records import Kind, Op, RawChange
from walbus.schema import TableSchema
from walbus.values import row_encoder

pytestmark = pytest.mark.one_version

THINGS = "public.things"  # without a template of its own
KEYS = {ITEMS: "item:{id}"}
POINTER = "shop:live"


@pytest.fixture
def source() -> ModelSource:
    source = ModelSource(layouts=[items_layout(), items_layout("things", oid=16401)])
    source.commit([*(insert(ITEMS, n, f"n{n}") for n in range(20)), *(insert(THINGS, n) for n in range(5))])
    return source


@pytest.fixture
def under_test(redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, "hash", keys=KEYS)


def names(client: redis.Redis, prefix: str = "") -> dict[str, str]:
    """All rows: their keys, and their `name`."""
    found = {}
    for key in client.scan_iter(match=f"{prefix}*"):
        if key.startswith(prefix) and not key.removeprefix(prefix).startswith("walbus:") and key != POINTER:
            found[key.removeprefix(prefix)] = str(client.hget(key, "name"))
    return found


def expected(source: ModelSource) -> dict[str, str]:
    items = {f"item:{id}": str(row["name"]) for id, row in source.rows(ITEMS).items()}
    return items | {f"{THINGS}:{id}": str(row["name"]) for id, row in source.rows(THINGS).items()}


def same(client: redis.Redis, source: ModelSource, prefix: str = "") -> None:
    wait_for(lambda: names(client, prefix) == expected(source), what="the rows lie where they belong")


def kept(running: RunningConsumer, client: redis.Redis, source: ModelSource) -> None:
    """Rows and checkpoint are there."""
    source.commit([update(ITEMS, 1, name="a")])
    same(client, source)
    stored(running, source)


def _line(layout: TableSchema, seq: int, a: str, b: str, name: str | None) -> Change:
    """A row of a table whose key is a and b, in whatever order: an insert, a delete without a name."""
    values = {"a": a, "b": b, "name": name}
    texts = [None if (text := values[one.name]) is None else text.encode() for one in layout.columns]
    encoder = row_encoder(layout)
    op, after = (Op.DELETE, None) if name is None else (Op.INSERT, encoder.encode(texts))
    raw = RawChange(op, 0, layout.oid, layout.id, 0, 0, 0, encoder.key(texts), None, b"", after, None)
    return Change(raw, layout, parse_position(f"1:0/1000:{seq}"), seq)


def _transaction(number: int, *changes: Change) -> Window:
    last = parse_position(f"1:0/{number}000:1")
    return Window(
        Kind.TRANSACTION, list(changes), 0, last.commit_lsn, time_of(0), last, changes[-1].seq, begins=True, ends=True
    )


def test_rows_lie_where_their_table_says(under_test: SinkUnderTest, source: ModelSource, client: redis.Redis) -> None:
    with closing(under_test.open()) as sink:
        fill(sink, source)
    assert names(client) == expected(source)
    done = source.end
    changes = [update(ITEMS, 1, name="left out"), delete(ITEMS, 2), update(ITEMS, 3, new_id=300, name="moved")]
    source.commit([*changes, update(THINGS, 1, name="a"), delete(THINGS, 2), insert(THINGS, 9)])
    with closing(under_test.open()) as sink:  # another process, which finds the rows that values are left out of
        fill(sink, source, done)
        assert sink.incomplete() == ()
    assert names(client) == expected(source)
    assert client.hgetall("item:1")["body"] == client.hgetall("item:300")["body"] == "body"
    assert not client.exists("item:2", "item:3", f"{ITEMS}:1")


@pytest.mark.parametrize("form", ["json", "string", "expiring"])
def test_texts_and_rows_that_expire_lie_there_too(
    form: str, redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    with closing(redis_under_test(tmp_path, redis_url, form, keys=KEYS).open()) as sink:
        fill(sink, source)
        done = source.end
        source.commit([update(ITEMS, 1, name="left out"), delete(ITEMS, 2)])
        fill(sink, source, done)
    if form == "expiring":
        assert client.hgetall("item:1")["body"] == "body"
        assert client.ttl("item:1") > 0
    else:
        assert "left out" in str(client.get("item:1"))
        assert "body" in str(client.get("item:1"))
    assert not client.exists("item:2")


def test_a_truncate_of_one_table_leaves_the_others_alone(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    client.hset("item:99", "name", "another program's")
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.commit([truncate(ITEMS), insert(ITEMS, 7, "behind it")])
        fill(sink, source, done)
        assert names(client) == expected(source) | {"item:99": "another program's"}
        done = source.end
        source.commit([truncate(THINGS)])
        fill(sink, source, done)
    assert names(client) == {"item:7": "behind it", "item:99": "another program's"}


def test_ghosts_of_one_table_go_behind_a_snapshot(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    with consumer(relay, under_test) as running:
        same(client, source)
        source.commit([update(ITEMS, 1, name="a")])
        wait_for(lambda: running.status().get("last_done") == str(source.end))
    client.hset("item:99", mapping=client.hgetall("item:6"))
    client.hset(f"{THINGS}:99", mapping=client.hgetall(f"{THINGS}:1"))
    client.delete("item:5")
    read_again("test", config_for(under_test), under_test.place.folder)
    with consumer(relay, under_test):
        same(client, source)


def test_what_somebody_did_to_rows_is_found_by_their_keys_and_mended(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    with consumer(relay, under_test) as running:
        source.commit([update(ITEMS, 1, name="a"), update(THINGS, 1, name="a")])
        same(client, source)
        wait_for(lambda: running.status().get("last_done") == str(source.end))

    def verified(*, repair: bool = False) -> dict[str, list[str]]:
        told = verify_sink("test", config_for(under_test), relay_url=relay.url, folder=tmp, repair=repair)
        return {table.table: sorted(key for _, keys in table.keys for key in keys) for table in told}

    tmp = under_test.place.folder
    assert verified() == {ITEMS: [], THINGS: []}
    client.hset("item:1", "name", "by hand")
    client.delete("item:2")
    client.hset("item:99", mapping=client.hgetall("item:6"))
    client.delete(f"{THINGS}:3")
    assert verified() == {ITEMS: ["1", "2", "99"], THINGS: ["3"]}
    verified(repair=True)
    assert names(client) == expected(source)
    assert verified() == {ITEMS: [], THINGS: []}


def test_a_rebuild_has_them_below_the_pointers_prefix(
    redis_url: str, tmp_path: Path, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash", keys=KEYS, pointer=POINTER)
    with consumer(relay, under_test) as running:
        kept(running, client, source)
        rebuilt(relay, under_test)
        source.commit([update(ITEMS, 1, name="goes on"), delete(ITEMS, 2), insert(ITEMS, 77), truncate(THINGS)])
        assert client.get(POINTER) == "walbus:test:rows:1:"
        same(client, source, "walbus:test:rows:1:")
    assert dropped(under_test)
    assert names(client) == {}, "what was replaced is dropped, by the keys that it had"


def test_a_rebuild_carries_over_the_rows_of_a_table_that_the_bootstrap_has_no_more(
    redis_url: str, tmp_path: Path, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash", keys=KEYS, pointer=POINTER)
    with consumer(relay, under_test) as running:
        kept(running, client, source)
    relay.unlisted.add(ITEMS)
    rebuilt(relay, under_test)
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="goes on"), update(ITEMS, 2, new_id=200), delete(ITEMS, 3)])
        same(client, source, "walbus:test:rows:1:")


@pytest.mark.parametrize("invalidate", [None, "delete"])
def test_changes_of_before_the_keys_columns_changed_their_order_lie_where_they_lay_when_they_come_again(
    invalidate: str | None, redis_url: str, tmp_path: Path, client: redis.Redis
) -> None:
    """The layout is stored as soon as it comes; a consumer that dies before its checkpoint gets older changes again."""
    options: dict[str, Any] = {} if invalidate is None else {"invalidate": invalidate}
    under_test = redis_under_test(tmp_path, redis_url, "hash", keys={ITEMS: "line:{a}:{b}"}, **options)
    a, b, name = column("a", 23, "int4", in_key=True), column("b", 23, "int4", in_key=True), column("name")
    one, other = items_layout("items", a, b, name), items_layout("items", b, a, name, schema_id=2)
    begun = [_line(one, 1, "1", "2", "first"), _line(one, 2, "2", "1", "its mirror"), _line(one, 3, "3", "4", "goes")]
    before = [_line(one, 4, "1", "2", "changed"), _line(one, 5, "3", "4", None), _line(one, 6, "5", "6", "new")]
    behind = [_line(other, 7, "1", "2", "ordered"), _line(other, 8, "8", "7", "newer")]
    marks, point = Marks(1, 1), Point(parse_position("1:0/1000:1"), 3)
    with closing(under_test.open()) as sink:
        sink.write([_transaction(1, *begun)], marks)
        sink.commit(Following("log-a", marks, point))
        sink.write([_transaction(2, *before), _transaction(3, *behind)], marks)  # and it dies
    for key in ("1:2", "2:1", "3:4", "4:3", "5:6", "6:5") if invalidate else ():
        client.set(f"line:{key}", "cached")
    with closing(under_test.open()) as sink:
        assert sink.checkpoint() == Following("log-a", marks, point)
        sink.write([_transaction(2, *before), _transaction(3, *behind)], marks)
        sink.commit(Following("log-a", marks, Point(parse_position("1:0/3000:1"), 8)))
        assert sink.incomplete() == ()
    if invalidate is None:
        of = {"1:2": "ordered", "2:1": "its mirror", "5:6": "new", "8:7": "newer"}
        assert names(client) == {f"line:{key}": name for key, name in of.items()}
    else:
        assert set(client.scan_iter("line:*")) == {"line:2:1", "line:4:3", "line:6:5"}


# What is refused


@pytest.mark.parametrize(
    ("options", "tables", "told"),
    [
        ({"keys": {ITEMS: "item"}}, ("public.*",), "each once"),
        ({"keys": {ITEMS: "{a}{b}"}}, ("public.*",), "needs a colon"),
        ({"keys": {ITEMS: "walbus:{id}"}}, ("public.*",), "the sinks' own"),
        ({"keys": {"public.*": "item:{id}"}}, ("public.*",), "none of the consumer's tables"),
        ({"keys": {"other.t": "item:{id}"}}, ("public.*",), "none of the consumer's tables"),
        ({"keys": {ITEMS: "x:{id}", THINGS: "x:y:{id}"}}, ("public.*",), "begin and end alike, and could be one key"),
        ({"keys": {ITEMS: "{id}"}}, (ITEMS, THINGS), f"this table and of {THINGS} begin and end alike"),
        ({"keys": KEYS, "pointer": "item:live"}, ("public.*",), f"a row of {ITEMS} may lie under this key"),
    ],
)
def test_templates_that_do_not_fit_are_refused_before_anything_is_connected(
    options: dict[str, Any], tables: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        open_sink("redis", {"url": "redis://127.0.0.1:1/0", **options}, SinkPlace("test", tmp_path, tables))


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("item:{number}", "names number, which is no column of it"),
        ("item:{id}:{name}", "names name, which is not in its key"),
        ("{id}", f"keys of its rows and of those of {ITEMS} begin and end alike"),
    ],
)
def test_templates_that_do_not_fit_a_table_are_refused_before_a_row_is_written(
    template: str, told: str, redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash", keys={ITEMS: template})
    with closing(under_test.open()) as sink, pytest.raises(SinkRefused, match=told):
        fill(sink, source)
    assert names(client) == {}


def test_a_template_that_lacks_a_column_of_the_key_is_refused(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    with closing(under_test.open()) as sink:
        fill(sink, source)
        before, done = names(client), source.end
        wider = (column("id", 23, "int4", in_key=True), column("name", in_key=True), column("body"))
        source.add_layout(items_layout("items", *wider))
        source.commit([insert(ITEMS, 50)])
        with pytest.raises(SinkRefused, match="lacks name of its key, so that rows would share a key"):
            fill(sink, source, done)
    assert names(client) == before


def test_a_table_that_is_called_otherwise_is_refused(under_test: SinkUnderTest, source: ModelSource) -> None:
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.add_layout(items_layout("goods"))
        source.commit([insert("public.goods", 50)])
        with pytest.raises(SinkRefused, match=r"public\.items is called public\.goods now"):
            fill(sink, source, done)


def test_rows_stay_where_they_are_and_other_tables_may_get_a_template(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    with closing(under_test.open()) as sink:
        fill(sink, source)
    for keys in ({}, {ITEMS: "goods:{id}"}, KEYS | {THINGS: "thing:{id}"}):
        with pytest.raises(SinkRefused, match="lies under another key"):
            under_test.open(keys=keys)
    done = source.end
    source.add_layout(items_layout("orders", oid=16402))
    source.commit([insert("public.orders", 1, "new")])
    with closing(under_test.open(keys=KEYS | {"public.orders": "order:{{id}}"})) as sink:
        fill(sink, source, done)
    assert names(client) == expected(source) | {"order:{1}": "new"}


def test_keys_of_a_cache_are_told_by_the_tables_template(
    redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash", keys=KEYS, invalidate="delete")
    client.mset({"item:1": "from before", f"{THINGS}:1": "from before", f"{ITEMS}:1": "another program's"})
    with closing(under_test.open()) as sink:
        fill(sink, source)
        assert not client.exists("item:1", f"{THINGS}:1")
        assert client.get(f"{ITEMS}:1") == "another program's"
        client.mset({f"item:{n}": "cached" for n in range(4)})
        done = source.end
        source.commit([update(ITEMS, 1, name="a"), update(ITEMS, 2, new_id=200)])
        fill(sink, source, done)
        assert [n for n in range(4) if client.exists(f"item:{n}")] == [0, 3]
        done = source.end
        source.commit([truncate(ITEMS)])
        fill(sink, source, done)
    assert not client.exists("item:0", "item:3")
