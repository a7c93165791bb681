"""`verify_sink` against a scripted relay: what somebody did to a sink's rows is found, named and mended."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import (
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from support.tampering import RedisHand, beside, hand_of
from support.waiting import wait_for
from support.walbus_command import walbus
from walbus.config import ConsumerConfig
from walbus.consumers.checkpoint import Marks, Point
from walbus.consumers.row_spool import RowSpool
from walbus.consumers.sink_verifying import TableVerdict, verify_sink
from walbus.consumers.sinks.base import HeldRow
from walbus.consumers.steps import Sweep
from walbus.errors import SinkRefused, UsageError

pytestmark = pytest.mark.one_version


@pytest.fixture(params=["sqlite", "postgres", "redis-hash", "redis-json", "redis-string", "opensearch", "tantivy"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    if request.param == "opensearch":
        return opensearch_under_test(tmp_path, request.getfixturevalue("opensearch_url"))
    if request.param == "postgres":
        return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
    if request.param == "tantivy":
        return tantivy_under_test(tmp_path)
    _, _, form = request.param.partition("-")
    if form:
        return redis_under_test(tmp_path, request.getfixturevalue("redis_url"), form)
    return sqlite_under_test(tmp_path)


@pytest.fixture(params=["hash", "json", "string"])
def redis_sink(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, request.getfixturevalue("redis_url"), request.param)


def verified(relay: ScriptedRelay, under_test: SinkUnderTest, **options: object) -> list[TableVerdict]:
    chosen = {name: options.pop(name) for name in ("repair", "tables") if name in options}
    config = ConsumerConfig(sink=under_test.name, **{"tables": ("public.*",), **under_test.options, **options})
    return verify_sink("test", config, relay_url=relay.url, folder=under_test.place.folder, **chosen)


def filled(relay: ScriptedRelay, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(12)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.commit([update(ITEMS, 3, name="changed"), delete(ITEMS, 4), update(ITEMS, 5, new_id=50, name=None)])
        equal(under_test, relay)


def tamper(under_test: SinkUnderTest) -> None:
    hand = hand_of(under_test)
    hand.rename(1, "by hand")
    hand.remove(2)
    hand.move(6, 99)


def test_rows_that_somebody_changed_are_found_named_and_mended(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    (clean,) = verified(relay, under_test)
    assert (clean.table, clean.reason, clean.rows, clean.differing) == (ITEMS, None, 11, 0)
    tamper(under_test)
    (found,) = verified(relay, under_test)
    assert sorted(found.keys) == [("different", ["1"]), ("ghost", ["99"]), ("missing", ["2"]), ("missing", ["6"])]
    assert (found.differing, found.mended) == (4, 0)
    assert under_test.rows() != source.rows(), "without repair nothing is written"
    (mended,) = verified(relay, under_test, repair=True)
    assert (mended.differing, mended.mended) == (4, 4)
    assert under_test.rows() == source.rows()
    (again,) = verified(relay, under_test)
    assert again.differing == 0
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="goes on"), delete(ITEMS, 2)])
        equal(under_test, relay)


def test_a_column_that_came_since_the_sink_stopped_is_no_difference(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    columns = [*source.layouts[1].columns, column("note")]
    source.add_layout(items_layout("items", *columns, schema_id=2))
    source.commit([update(ITEMS, 1, name="anew")])
    (found,) = verified(relay, under_test)
    assert (found.reason, found.rows, found.differing) == (None, 11, 0)


def test_what_was_written_since_the_sink_stopped_is_no_difference(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    source.commit([update(ITEMS, 1, name="while it was down"), delete(ITEMS, 2), insert(ITEMS, 70)])
    source.commit([insert(ITEMS, 80 + n) for n in range(6)], pieces=3)
    assert [one.differing for one in verified(relay, under_test)] == [0]


def test_a_row_of_an_older_version_is_stale(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    hand = hand_of(under_test)
    hand.rename(8, "older")
    hand.set_seq(8, 1)
    (found,) = verified(relay, under_test, repair=True)
    assert (found.keys, found.mended) == ([("stale", ["8"])], 1)


def test_each_table_is_compared_for_itself_and_only_those_that_are_named(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    others = source.add_layout(items_layout("things", oid=16500)).table
    source.commit([insert(others, n) for n in range(3)])
    filled(relay, under_test, source)
    hand_of(under_test).remove(1, others)
    assert [(one.table, one.differing) for one in verified(relay, under_test)] == [(ITEMS, 0), (others, 1)]
    assert [one.table for one in verified(relay, under_test, tables=[ITEMS])] == [ITEMS]
    with pytest.raises(UsageError, match="is no table that the consumer reads"):
        verified(relay, under_test, tables=["public.nothing"])


def test_a_mapping_stands_between(relay: ScriptedRelay, source: ModelSource, tmp_path: Path) -> None:
    under_test = sqlite_under_test(tmp_path)
    mapping = {ITEMS: {"columns": ["id", "name"], "rename": {"name": "title"}, "constants": {"shop": "a"}}}
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(5)])
    with consumer(relay, under_test, table=mapping) as running:
        source.commit([update(ITEMS, 4, name="behind the snapshot")])
        wait_for(lambda: running.status().get("last_done") == str(source.end), what="its checkpoint is stored")
    assert [one.differing for one in verified(relay, under_test, table=mapping)] == [0]
    with closing(sqlite3.connect(under_test.options["path"])) as database:
        database.execute("UPDATE items SET title = 'x' WHERE id = 2")
        database.commit()
    (found,) = verified(relay, under_test, table=mapping, repair=True)
    assert (found.keys, found.mended) == ([("different", ["2"])], 1)


def test_a_sink_without_rows_and_one_that_cannot_be_read_are_refused(
    relay: ScriptedRelay, tmp_path: Path, redis_url: str
) -> None:
    with pytest.raises(UsageError, match="the sink has no rows yet"):
        verified(relay, sqlite_under_test(tmp_path))
    unreadable = SinkUnderTest("stdout", {}, sqlite_under_test(tmp_path).place, lambda _: {})
    with pytest.raises(UsageError, match="the sink stdout cannot be read back"):
        verified(relay, unreadable)
    invalidation = redis_under_test(tmp_path, redis_url, "hash", invalidate="both")
    with pytest.raises(UsageError, match="the sink redis with invalidate writes no rows"):
        verified(relay, invalidation)
    with pytest.raises(UsageError, match="begins at latest"):
        verified(relay, sqlite_under_test(tmp_path), start="latest")


def test_a_key_that_the_sink_did_not_write_is_told_and_left_unless_a_row_belongs_there(
    redis_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, redis_sink, source)
    with RedisHand(redis_sink).client() as client:
        client.set(f"{ITEMS}:others", "1")
        client.rpush(f"{ITEMS}:list", "1")
        client.set(b"public.items:\xff", "1")
        client.delete(f"{ITEMS}:1", beside(f"{ITEMS}:1"))
        client.hset(f"{ITEMS}:1", "id", "1")
        client.delete(f"{ITEMS}:2")
        client.rpush(f"{ITEMS}:2", "1")
        (found,) = verified(relay, redis_sink)
        foreign = [("foreign", ["list"]), ("foreign", ["others"])]
        assert sorted(found.keys) == [("different", ["1"]), ("different", ["2"]), *foreign]
        (mended,) = verified(relay, redis_sink, repair=True)
        assert (mended.differing, mended.foreign, mended.mended) == (4, 2, 2)
        assert client.exists(f"{ITEMS}:others", f"{ITEMS}:list") == 2
        client.delete(f"{ITEMS}:others", f"{ITEMS}:list", b"public.items:\xff")
    assert redis_sink.rows() == source.rows()
    assert [one.differing for one in verified(relay, redis_sink)] == [0]


def test_a_repair_reads_no_table_for_the_sake_of_keys_that_it_leaves(
    redis_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, redis_sink, source)
    with RedisHand(redis_sink).client() as client, closing(redis_sink.open()) as sink:
        client.rpush(f"{ITEMS}:99", "99")
        before = sink.checkpoint()
        (found,) = verified(relay, redis_sink, repair=True)
        assert (found.keys, found.mended) == ([("foreign", ["99"])], 0)
        assert sink.checkpoint().marks == before.marks


def test_rows_of_a_redis_are_read_some_at_a_time_and_the_server_never_stands_still(
    redis_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(1_200)])
    with consumer(relay, redis_sink):
        equal(redis_sink, relay)
    hand, chance = RedisHand(redis_sink), random.Random(announced_seed("sink_verifying"))
    ids = chance.sample(range(1_200), 30)
    for id in ids[:10]:
        hand.rename(id, "by hand")
    for id in ids[10:20]:
        hand.remove(id)
    for id in ids[20:]:
        hand.move(id, 5_000 + id)
    expected = [("different", [str(id)]) for id in ids[:10]] + [("missing", [str(id)]) for id in ids[10:]]
    expected += [("ghost", [str(5_000 + id)]) for id in ids[20:]]
    with hand.client() as client:
        client.config_resetstat()
        (found,) = verified(relay, redis_sink, repair=True)
        commands = client.info("commandstats")
    assert sorted(found.keys) == sorted(expected)
    assert (found.differing, found.mended) == (40, 40)
    assert "cmdstat_scan" in commands
    assert "cmdstat_keys" not in commands


def test_a_text_that_is_no_json_any_more_is_mended_and_hinders_no_change_of_layout(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, redis_url: str
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "json")
    filled(relay, under_test, source)
    with RedisHand(under_test).client() as client:
        client.set(f"{ITEMS}:1", "{")
        (found,) = verified(relay, under_test, repair=True)
        assert (found.keys, found.mended) == ([("different", ["1"])], 1)
        client.set(f"{ITEMS}:1", "{")
    source.add_layout(items_layout("items", *source.layouts[1].columns, column("note"), schema_id=2))
    source.commit([insert(ITEMS, 60, "n60")])
    expected = {id: {**row, "note": None} for id, row in source.rows().items()}
    with consumer(relay, under_test):
        wait_for(lambda: under_test.rows() == expected, what="the row is read again")


def test_a_row_that_expired_is_not_missed_and_one_that_somebody_changed_is_found(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, redis_url: str
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "expiring")
    filled(relay, under_test, source)
    hand = RedisHand(under_test)
    hand.rename(1, "by hand")
    hand.remove(2)
    hand.move(6, 99)
    (found,) = verified(relay, under_test, repair=True)
    assert sorted(found.keys) == [("different", ["1"]), ("ghost", ["99"])]
    assert found.mended == 2
    assert under_test.rows() == source.rows(), "what had expired came with the table's other rows"


def test_another_process_that_goes_on_fences_a_repair_off(
    redis_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, redis_sink, source)
    RedisHand(redis_sink).move(6, 99)
    with closing(redis_sink.open()) as late, closing(redis_sink.open()) as other:
        checkpoint = late.checkpoint()
        other.commit(replace(checkpoint, point=Point(source.commit([update(ITEMS, 1, name="n")]), source.last_seq)))
        anew = replace(checkpoint, marks=Marks(checkpoint.marks.generation + 1, checkpoint.marks.log_generation))
        with pytest.raises(SinkRefused, match="another consumer writes this Redis"):
            late.sweep(Sweep(ITEMS, source.last_seq, anew.marks, anew))
    with RedisHand(redis_sink).client() as client:
        assert client.exists(f"{ITEMS}:99")


def test_a_spool_tells_what_differs_whatever_the_order() -> None:
    with closing(RowSpool()) as spool:
        rows = [HeldRow((str(n),), n, (n, "x")) for n in range(5_000)]
        assert spool.expect(rows) == 5_000
        others = [HeldRow(("ghost",), 1, ()), HeldRow(("foreign",), None, ()), HeldRow(("1",), None, ())]
        spool.hold(reversed([*rows[2:-1], *others, rows[-1]._replace(seq=1, values=(None,))]))
        expected = [("different", ["1"]), ("foreign", ["foreign"]), ("ghost", ["ghost"])]
        assert sorted(spool.differences()) == [*expected, ("missing", ["0"]), ("stale", ["4999"])]


def test_the_command_names_mends_and_tells_by_its_exit_code(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    filled(relay, under_test, source)
    config = tmp_path / "walbus.toml"
    config.write_text(
        f'data_dir = "{tmp_path}/data"\n[source]\ndsn = "postgresql://nobody@localhost/none"\n'
        f'[consumer.test]\nsink = "sqlite"\ntables = ["public.*"]\npath = "{under_test.options["path"]}"\n'
        f'relay = "{relay.url}"\n'
    )
    tamper(under_test)
    found = walbus("verify", "--sink", "test", "-c", str(config))
    assert found.code == 3, found.stderr
    assert found.stdout.startswith("public.items: 11 rows, 4 differ\n")
    assert '  ghost     ["99"]' in found.stdout
    mended = walbus("verify", "--sink", "test", "--repair", "--json", "-c", str(config))
    assert mended.code == 0, mended.stderr
    (table,) = json.loads(mended.stdout)["tables"]
    assert (table["differing"], table["mended"]) == (4, 4)
    assert walbus("verify", "--sink", "test", "-c", str(config)).stdout == "public.items: 11 rows, 0 differ\n"
    unknown = walbus("verify", "--sink", "tst", "-c", str(config))
    assert unknown.code == 2
    assert "did you mean test?" in unknown.one_line()
