"""Compacted table topics as a consumer's bootstrap: real topics, written by the sink, on a real broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

import walbus
from support.compare import assert_sinks_equal
from support.database import Database
from support.kafka_server import Cluster
from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.seed import announced_seed
from support.single_rooms import SingleRooms
from support.sink_writing import MARKS, fill, following
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import TopicReader
from support.waiting import wait_for
from support.walbus_command import Running
from support.whole_system import make_marker
from walbus.consumers import topic_rows_peer
from walbus.consumers.checkpoint import Lacking, Snapshotting, TableProgress
from walbus.consumers.record_stream import RecordStream
from walbus.consumers.topic_rows_peer import TopicRowsPeer
from walbus.consumers.transport import NotReady
from walbus.demo.load import ShopLoad
from walbus.errors import PositionTrimmed, RelayUnavailable, RequestRefused, SinkUnavailable, UsageError
from walbus.kafka_address import KafkaAddress
from walbus.position import parse_position
from walbus.records import Flag, Kind, RecordHeader, body_of, iter_changes
from walbus.values import row_texts

pytestmark = pytest.mark.one_version

DEBEZIUM = {"format": "debezium", "database": "shop"}


@pytest.fixture
def source() -> ModelSource:
    return ModelSource()


@pytest.fixture(params=["rows", "debezium"])
def under_test(request: pytest.FixtureRequest, kafka: str, tmp_path: Path) -> SinkUnderTest:
    return kafka_under_test(tmp_path, kafka, **(DEBEZIUM if request.param == "debezium" else {}))


def address_of(under_test: SinkUnderTest) -> KafkaAddress:
    return KafkaAddress(under_test.options["bootstrap_servers"], under_test.options["prefix"])


@pytest.fixture
def peer(under_test: SinkUnderTest) -> Iterator[TopicRowsPeer]:
    with closing(TopicRowsPeer(address_of(under_test))) as made:
        yield made


def records_of(stream: RecordStream) -> list[tuple[RecordHeader, bytes]]:
    """All records of a snapshot up to its end."""
    found: list[tuple[RecordHeader, bytes]] = []
    with closing(stream):
        while not (found and found[-1][0].flags & Flag.END):
            came = stream.records(60)
            assert came, "no more of the snapshot comes"
            found += came
    return found


def rows_of(stream: RecordStream, source: ModelSource) -> dict[str, dict[str, str | None]]:
    """The rows of a snapshot by id, in the order in which they came."""
    return rows_in(records_of(stream), source)


def rows_in(records: list[tuple[RecordHeader, bytes]], source: ModelSource) -> dict[str, dict[str, str | None]]:
    rows: dict[str, dict[str, str | None]] = {}
    for header, record in records:
        for change in iter_changes(body_of(record, header)):
            layout = source.layouts[change.schema_id]
            texts = row_texts(layout, change.after or b"")
            row = {column.name: text for column, text in zip(layout.columns, texts, strict=True)}
            rows[str(row["id"])] = row
    return rows


def test_rows_are_those_of_the_source_as_of_the_writers_checkpoint(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer
) -> None:
    source.commit([insert(ITEMS, n, f"name {n}", "toasted") for n in range(200)])
    source.commit([update(ITEMS, 3, name="b"), update(ITEMS, 4, new_id=500, name="c"), delete(ITEMS, 5)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    listed = peer.tables()
    assert (listed.log_id, listed.applied) == (source.log_id, source.end)
    assert (listed.tables, listed.consistent) == ({ITEMS: 1}, {ITEMS})
    rows = rows_of(peer.snapshot(ITEMS, None), source)
    assert rows == source.rows()
    assert list(rows) == sorted(rows, key=int)
    (header, *_), *_ = records_of(peer.snapshot(ITEMS, None))
    assert (header.kind, header.last, header.last_seq) == (Kind.SNAPSHOT, source.end, source.last_seq)
    assert header.flags & Flag.BEGIN


def test_a_snapshot_goes_on_behind_a_key_and_is_had_in_parts(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer
) -> None:
    source.commit([insert(ITEMS, n) for n in range(300)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    changes = [
        change
        for header, record in records_of(peer.snapshot(ITEMS, None))
        for change in iter_changes(body_of(record, header))
    ]
    rest = rows_of(peer.snapshot(ITEMS, changes[99].key), source)
    assert set(rest) == {str(n) for n in range(100, 300)}
    parts = [set(rows_of(peer.snapshot(ITEMS, None, {"partition": f"{n}/3"}), source)) for n in range(3)]
    assert sum(map(len, parts)) == 300 and set().union(*parts) == set(source.rows())
    assert all(len(part) > 50 for part in parts)


def test_a_key_whose_columns_have_another_type_has_one_row(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer
) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2), insert(ITEMS, 3)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.add_layout(items_layout("items", column("id", 20, "int8", in_key=True), column("name"), column("body")))
        source.commit([update(ITEMS, 1, name="x", body="y"), delete(ITEMS, 2)])
        fill(sink, source, done)
    assert rows_of(peer.snapshot(ITEMS, None), source) == source.rows()


def test_a_layout_that_comes_while_the_topic_is_read_is_waited_for(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    described, asked = topic_rows_peer.describe_topics, []
    with closing(under_test.open()) as sink:
        fill(sink, source)
        before = source.end

        def written_meanwhile(*arguments: Any) -> Any:
            asked.append(arguments)
            if len(asked) == 2:  # the state has been read, and the topic has not
                done = source.end
                key = column("id", 23, "int4", in_key=True)
                source.add_layout(items_layout("items", key, column("name"), column("body"), column("more")))
                source.commit([update(ITEMS, 1, name="x", body="y", more="z"), truncate(ITEMS), insert(ITEMS, 3)])
                fill(sink, source, done)
            return described(*arguments)

        monkeypatch.setattr(topic_rows_peer, "describe_topics", written_meanwhile)
        found = records_of(peer.snapshot(ITEMS, None))
    assert len(asked) == 2
    assert rows_in(found, source) == source.rows()
    places = [header.last for header, _ in found]
    assert (places[0], places[-1]) == (before, source.end)  # from where the log is read on, and where all is consistent


def test_what_the_writer_lacks_is_not_given(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer
) -> None:
    with pytest.raises(NotReady, match="no consumer writes topics"):
        peer.tables()
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    with closing(under_test.open()) as sink:
        with pytest.raises(NotReady, match="still reading rows itself"):
            peer.tables()
        sink.commit(Snapshotting(source.log_id, MARKS, (TableProgress(ITEMS),), None, None))
        with pytest.raises(NotReady, match="still reading rows itself"):
            peer.tables()
        fill(sink, source)
        sink.commit(replace(following(source), unread=(Lacking(ITEMS, 16400),)))
        assert peer.tables().consistent == frozenset()
        with pytest.raises(NotReady, match="still to read rows"):
            peer.snapshot(ITEMS, None)
        sink.commit(following(source))
        assert peer.tables().consistent == {ITEMS}
        with pytest.raises(RequestRefused, match="no topic has a table"):
            peer.snapshot("public.nothing", None)
        with pytest.raises(PositionTrimmed):
            peer.delta(ITEMS, following(source).point)
        with pytest.raises(RequestRefused, match="no complete changes"):
            peer.complete_from(source.log_id, (ITEMS,), {})


def test_a_row_that_lacks_a_value_holds_its_table_back(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
        assert peer.tables().consistent == frozenset()


def test_topics_of_another_log_are_not_mixed_with_rows_of_the_first(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    described, asked = topic_rows_peer.describe_topics, []
    with closing(under_test.open()) as sink:
        fill(sink, source)
        other = ModelSource(log_id="another")
        other.commit([insert(ITEMS, 7)])

        def replaced_meanwhile(*arguments: Any) -> Any:
            asked.append(arguments)
            if len(asked) == 2:
                fill(sink, other, marks=MARKS._replace(generation=2, log_generation=2))
            return described(*arguments)

        monkeypatch.setattr(topic_rows_peer, "describe_topics", replaced_meanwhile)
        stream = peer.snapshot(ITEMS, None)
        with pytest.raises(RelayUnavailable, match="another log"):
            records_of(stream)


def test_rows_are_waited_for_that_the_checkpoint_tells_of_and_that_a_partition_does_not_show_yet(
    under_test: SinkUnderTest, source: ModelSource, peer: TopicRowsPeer, kafka: str
) -> None:
    source.commit([insert(ITEMS, n) for n in range(30)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    done, prefix = source.end, under_test.options["prefix"]
    other = Producer({"bootstrap.servers": kafka, "transactional.id": f"other-{prefix}"})
    other.init_transactions(30)
    other.begin_transaction()  # what is committed behind it is shown when it has ended
    for partition in range(3):
        other.produce(TopicReader(kafka, prefix).of_table(ITEMS), b"", b"", partition)
    assert not other.flush(30)
    source.commit([update(ITEMS, n, name="new") for n in range(30)])
    with closing(under_test.open(answer_seconds=2.0)) as sink, pytest.raises(SinkUnavailable, match="is not seen"):
        fill(sink, source, done)
    assert peer.tables().applied == source.end
    threading.Timer(0.5, other.abort_transaction).start()
    assert rows_of(peer.snapshot(ITEMS, None), source) == source.rows()


def test_topics_are_a_bootstrap_of_who_reads_the_log_from_kafka_alone() -> None:
    with pytest.raises(UsageError, match="reads the log from Kafka"):
        walbus.connect("http://127.0.0.1:1", bootstrap="kafka://127.0.0.1:1/shop")


@pytest.mark.timeout(400)
def test_a_consumer_is_filled_from_topics_and_goes_on_from_the_cluster_with_no_server_of_walbus(
    database: Database, own_kafka: Cluster, open_folder: Path
) -> None:
    shop = ShopLoad(database.dsn, rate=100, seed=announced_seed("the shop"))
    shop.prepare(300)
    make_marker(database)
    topics = {"sink": "kafka", "bootstrap_servers": own_kafka.bootstrap, "prefix": "shop", "read_from": "kafka"}
    sections: dict[str, dict[str, object]] = {
        "source": {"slot": f"s_{database.name}"},
        "relay": {"engine": "kafka", "topic_prefix": "shop"},
        "relay.kafka": {"bootstrap_servers": own_kafka.bootstrap.split(","), "topic": "the-log"},
    }
    with SingleRooms(open_folder, database.dsn, {"topics": topics}, **sections) as system:
        system.start()
        system.wait_until_at_rest(database)
        for room in ("bootstrap", "relay"):
            assert system._rooms.pop(room).stop() == 0
        shop.start()
        wait_for(lambda: shop.transactions > 50, what="the shop trades")
        with system.config.open("a") as file:
            file.write('[consumer.cache]\nsink = "sqlite"\nread_from = "kafka"\nrows_from = "topics"\n')
        system._rooms["consumer-cache"] = Running("consume", "cache", "-c", str(system.config), log=system._log_path)
        wait_for(lambda: system.status("consumer-cache").get("phase") == "online", what="it follows the log")
        own_kafka.brokers[0].kill()
        own_kafka.brokers[0].start()
        own_kafka.await_answer()
        shop.stop()
        end = database.insert_lsn()
        wait_for(
            lambda: parse_position(system.status("consumer-cache")["last_done"]).commit_lsn >= end,
            180,
            what="the consumer is at the end",
        )
        assert_sinks_equal(database.dsn, cache=system.data_dir / "consumers" / "cache" / "cache.sqlite")
        assert "event=consumer.phase consumer=cache phase=snapshot" in system.log()
