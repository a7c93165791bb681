"""The Kafka sink on a real broker: what stands in topics, what is refused, and how its copy of the rows comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from support.compare import told
from support.database import Database
from support.kafka_settings import give_settings
from support.kafka_writing import LosesExceptions
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
from support.odd_names import SCHEMAS, fill_odd_tables, make_odd_tables
from support.running_consumer import consumer, equal, stored
from support.scripted_relay import ScriptedRelay
from support.single_rooms import SingleRooms
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import Message, TopicReader, TopicRows, forget_copy, read_by_confluent, reader_of
from support.waiting import wait_for
from support.whole_system import make_marker
from support.zoo import build_zoo
from support.zoo_herd import build_herd
from walbus.consumers.refused_rows import RowRefused
from walbus.consumers.sinks.kafka_rows import RowCopy
from walbus.consumers.sinks.kafka_topics import needed_settings
from walbus.demo.compare import compare_sinks
from walbus.errors import ConfigError, SinkRefused, SinkUnavailable
from walbus.records import key_hash

pytestmark = pytest.mark.one_version

KEY = column("id", 23, "int4", in_key=True)


@pytest.fixture
def source() -> ModelSource:
    return ModelSource()


@pytest.fixture
def under_test(kafka: str, tmp_path: Path) -> SinkUnderTest:
    return kafka_under_test(tmp_path, kafka)


@pytest.fixture
def reader(under_test: SinkUnderTest) -> TopicReader:
    return reader_of(under_test)


@pytest.fixture
def admin(kafka: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka, "log_level": 0})


def elsewhere(under_test: SinkUnderTest, folder: Path, **place: Any) -> SinkUnderTest:
    """The same sink on another machine."""
    import dataclasses

    return dataclasses.replace(under_test, place=dataclasses.replace(under_test.place, folder=folder, **place))


def ops(messages: list[Message]) -> list[tuple[str, bool]]:
    """What was done, and whether the record has a value, in the order of seqs; of one, the old key's first."""
    ordered = sorted(messages, key=lambda m: (int(m.headers["walbus.seq"]), m.value is not None))
    return [(m.headers["walbus.op"].decode(), m.value is not None) for m in ordered]


# What stands in the topics


def test_records_say_what_was_done_where_and_in_which_transaction(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a"), insert(ITEMS, 2, "b"), insert(ITEMS, 3, "c")])
    source.commit([update(ITEMS, 1, name="x"), update(ITEMS, 2, new_id=9, name="y"), delete(ITEMS, 3)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    topic = reader.of_table(ITEMS)
    messages = reader.messages(topic)
    assert ops(messages) == [
        *[("insert", True)] * 3,
        ("update", True),
        ("update", False),  # the old key
        ("update", True),
        ("delete", False),
    ]
    assert all(m.headers["walbus.log_id"] == source.log_id.encode() for m in messages)
    assert all(m.partition == key_hash(m.headers["walbus.key"]) % 3 for m in messages)
    positions = Counter(m.headers["walbus.position"].decode().rpartition(":")[0] for m in messages)
    ends = {end["transaction"]: end for end in reader.ends()}
    assert {at: [(t["topic"], t["records"]) for t in end["topics"]] for at, end in ends.items()} == {
        at: [(topic, count)] for at, count in positions.items()
    }
    assert [end["log_id"] for end in reader.ends()] == [source.log_id] * 2


def test_a_truncate_deletes_each_key_that_is_live_and_no_other(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(4)])
    source.commit([delete(ITEMS, 0)])
    source.commit([truncate(ITEMS), insert(ITEMS, 8)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    found = [m for m in reader.messages(reader.of_table(ITEMS)) if m.headers["walbus.op"] == b"truncate"]
    assert len(found) == 3 and all(m.value is None for m in found)
    assert reader.ends()[-1]["topics"] == [{"topic": reader.of_table(ITEMS), "records": 4}]


def test_a_rows_old_key_goes_when_its_columns_have_another_type(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        wide = column("id", 20, "int8", in_key=True)
        source.add_layout(items_layout("items", wide, column("name"), column("body")))
        source.commit([update(ITEMS, 1, name="x", body="y"), delete(ITEMS, 2)])
        fill(sink, source, done)
    assert under_test.rows() == source.rows()
    live = reader.live(reader.of_table(ITEMS))
    assert len(live) == 1
    (key,) = live
    assert int.from_bytes(key[1:5], "big") == 8 * 2 + 1


def test_a_new_column_leaves_the_bytes_of_keys_alone(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    (before,) = reader.live(reader.of_table(ITEMS))
    done = source.end
    source.add_layout(items_layout("items", KEY, column("name"), column("body"), column("more")))
    source.commit([update(ITEMS, 1, name="x", body="y", more="z")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
    assert set(reader.live(reader.of_table(ITEMS))) == {before}
    assert under_test.rows()["1"]["more"] == "z"


def test_a_row_of_which_a_value_is_unknown_is_held_back(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
        assert sink.incomplete() == (ITEMS,)
    assert reader.messages(reader.of_table(ITEMS)) == []
    with closing(under_test.open()) as sink:
        assert sink.incomplete() == (ITEMS,)


# The copy of the rows


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_copy_that_is_gone_is_made_of_the_topics(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource, damage: str
) -> None:
    source.commit([insert(ITEMS, n, "a", f"toasted {n}") for n in range(40)])
    source.commit([update(ITEMS, 3, new_id=50, name="b", body="c"), delete(ITEMS, 4)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    forget_copy(under_test)
    if damage == "damaged":
        (under_test.place.folder / "kafka.rows").write_bytes(b"no database at all, but as long as one" * 100)
    done = source.end
    source.commit([update(ITEMS, 5, name="without its body"), delete(ITEMS, 50)])
    with closing(under_test.open()) as sink:
        assert sink.checkpoint() is not None
        fill(sink, source, done)
        assert sink.incomplete() == ()
        assert under_test.rows() == source.rows()
        done = source.end
        source.commit([truncate(ITEMS)])
        fill(sink, source, done)
    assert under_test.rows() == {}
    assert sum(1 for m in reader.messages(reader.of_table(ITEMS)) if m.headers["walbus.op"] == b"truncate") == 38


def test_a_table_that_lacked_values_is_read_again_when_the_copy_is_gone(
    under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
    forget_copy(under_test)
    with closing(under_test.open()) as sink:
        assert sink.incomplete() == (ITEMS,)


def test_a_commit_that_the_copy_did_not_get_is_read_back(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a full disk: the cluster has the commit, and the copy has not."""
    source.commit([insert(ITEMS, n, "a", "toasted") for n in range(10)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.commit([update(ITEMS, 1, name="b"), delete(ITEMS, 2), update(ITEMS, 3, new_id=30, name="c")])

        def full(*_: object) -> None:
            raise SinkUnavailable("no room")

        with monkeypatch.context() as patched:
            patched.setattr(RowCopy, "commit", full)
            with pytest.raises(SinkUnavailable):
                fill(sink, source, done)
        sink.rollback()
        assert sink.checkpoint() == following(source)
        done = source.end
        source.commit([update(ITEMS, 1, name="d"), update(ITEMS, 30, name="e")])
        fill(sink, source, done)
        assert sink.incomplete() == ()
    assert under_test.rows() == source.rows()
    assert len(reader.messages(reader.of_table(ITEMS))) == 10 + 4 + 2


# Two processes


@pytest.mark.parametrize("kept", [pytest.param(True, id="told"), pytest.param(False, id="the exception is lost")])
def test_a_process_that_was_followed_is_fenced_and_says_so(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource, tmp_path: Path, *, kept: bool
) -> None:
    source.commit([insert(ITEMS, 1)])
    done = source.end
    with closing(under_test.open()) as first:
        fill(first, source)
        source.commit([insert(ITEMS, 2)])
        first.write(windows(source, done), MARKS)
        with closing(elsewhere(under_test, tmp_path / "other").open()) as second:
            assert second.checkpoint() is not None
            sender = first._sender  # type: ignore[attr-defined]
            sender._producer = sender._producer if kept else LosesExceptions(sender._producer)
            with pytest.raises(SinkRefused, match="another process of this consumer has taken over") as caught:
                first.commit(following(source))
            assert caught.value.mend is not None
            first.rollback()
            with pytest.raises(SinkRefused, match="taken over"):
                first.checkpoint()
            fill(second, source, done)
            assert second.incomplete() == ()
        assert len(reader.messages(reader.of_table(ITEMS))) == 2
    assert under_test.rows() == source.rows()


def test_a_second_process_of_one_machine_is_refused(under_test: SinkUnderTest) -> None:
    with closing(under_test.open()), pytest.raises(SinkRefused, match="another process has this copy"):
        under_test.open()


def test_another_consumer_of_the_prefix_is_refused(under_test: SinkUnderTest, tmp_path: Path) -> None:
    under_test.open().close()
    with pytest.raises(SinkRefused, match="are those of the consumer test") as caught:
        elsewhere(under_test, tmp_path / "other", consumer="other").open()
    assert caught.value.where == "key consumer.other.prefix"


# Topics


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"cleanup_policy": "delete"}, "cleanup.policy is delete"),
        ({"max_message_bytes": "1000"}, "max.message.bytes is 1000"),
        ({"unclean_leader_election_enable": "true"}, "unclean.leader.election.enable is true"),
        ({"min_insync_replicas": "2"}, "min.insync.replicas is 2"),
    ],
)
def test_a_topic_with_wrong_settings_is_refused_with_what_mends_it(
    under_test: SinkUnderTest,
    reader: TopicReader,
    source: ModelSource,
    admin: AdminClient,
    settings: dict[str, str],
    why: str,
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    topic = reader.of_table(ITEMS)
    give_settings(admin, topic, {name.replace("_", "."): value for name, value in settings.items()})
    with pytest.raises(SinkRefused, match=why) as caught:
        under_test.open()
    (name,) = settings
    assert f"--entity-name {topic} --add-config {name.replace('_', '.')}=" in (caught.value.mend or "")


def test_a_topic_with_records_of_somebody_else_is_refused(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource, admin: AdminClient, kafka: str
) -> None:
    topic = reader.of_table(ITEMS)
    made = NewTopic(topic, 3, 1, config={"cleanup.policy": "compact", "unclean.leader.election.enable": "false"})
    admin.create_topics([made])[topic].result()
    producer = Producer({"bootstrap.servers": kafka, "log_level": 0})
    producer.produce(topic, b"value", b"key")
    assert producer.flush(30) == 0
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        with pytest.raises(SinkRefused, match="records that this consumer did not write"):
            fill(sink, source)
        sink.rollback()


def test_a_topic_that_got_more_partitions_is_refused(
    under_test: SinkUnderTest, reader: TopicReader, source: ModelSource, admin: AdminClient
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    topic = reader.of_table(ITEMS)
    admin.create_partitions([NewPartitions(topic, 5)])[topic].result()
    wait_for(lambda: len(admin.list_topics(topic, timeout=30).topics[topic].partitions) == 5)
    with pytest.raises(SinkRefused, match="5 partitions now, and its rows lie in 3"):
        under_test.open()


def test_a_transaction_that_was_rolled_back_leaves_a_topic_that_can_be_used(
    under_test: SinkUnderTest, source: ModelSource
) -> None:
    """Aborted records, which nobody sees, are not somebody else's."""
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        sink.write(windows(source), MARKS)
        sink._outbox.settle(source.log_id)  # type: ignore[attr-defined]  # so that they are sent
        sink._sender._producer.flush(30)  # type: ignore[attr-defined]
        sink.rollback()
        fill(sink, source)
    assert under_test.rows() == source.rows()


def test_a_row_that_is_too_large_is_refused_by_name_and_others_are_taken(
    under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "small")])
    source.commit([insert(ITEMS, 2, "large", "x" * 70_000)])
    small = {"max_message_bytes": 65536}
    with closing(under_test.open(**small)) as sink:
        with pytest.raises(RowRefused, match="larger than max_message_bytes") as caught:
            fill(sink, source)
        assert ITEMS in (caught.value.where or "") and "xxx" not in str(caught.value)
        assert caught.value.row is not None
        sink.rollback()
        first = windows(source)[:1]
        sink.write(first, MARKS)
        sink.commit(following(source))
    assert set(under_test.rows()) == {"1"}


def test_a_table_without_a_key_is_refused(under_test: SinkUnderTest, source: ModelSource) -> None:
    keyless = items_layout("items", column("id", 23, "int4"), column("name"), column("body"))
    source = ModelSource(layouts=[keyless])
    source._key = lambda *_: None  # type: ignore[assignment,method-assign,return-value]
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink, pytest.raises(RowRefused, match="without a key has no topic"):
        fill(sink, source)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"options": {"no.such.option": "1"}}, "librdkafka refuses the options"),
        ({"prefix": "a b"}, "cannot be what names of topics begin with"),
        ({"partitions": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_option_is_named(under_test: SinkUnderTest, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        under_test.open(**options)
    (name,) = options
    assert caught.value.where == f"key consumer.test.{name}"


def test_a_mapping_is_refused(under_test: SinkUnderTest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a mapping changes them"):
        elsewhere(under_test, tmp_path / "mapped", mapped=True).open()


def test_a_cluster_that_was_never_there_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(SinkUnavailable):
        kafka_under_test(tmp_path, "127.0.0.1:1", answer_seconds=1).open()


# Under the consumer


@pytest.fixture
def relay(source: ModelSource) -> Iterator[ScriptedRelay]:
    with ScriptedRelay(source) as serving:
        yield serving


def test_a_new_topic_is_filled_from_a_snapshot_and_follows(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, reader: TopicReader
) -> None:
    source.commit([insert(ITEMS, n) for n in range(7)])
    source.trim(source.end)
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        source.commit([update(ITEMS, 1, name="x"), delete(ITEMS, 2), insert(ITEMS, 20)])
        equal(under_test, relay)
        stored(running, source)
    assert [end["position"] for end in reader.ends()] == [str(source.end)]


def test_a_topic_that_was_deleted_is_made_and_filled_anew(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, reader: TopicReader, admin: AdminClient
) -> None:
    source.commit([insert(ITEMS, n) for n in range(7)])
    topic = reader.of_table(ITEMS)
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        stored(running, source)
    admin.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in reader.topics(), what="the topic is gone")
    source.commit([update(ITEMS, 1, name="x")])
    with consumer(relay, under_test):
        equal(under_test, relay)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_a_topic_that_is_deleted_under_a_running_consumer_is_filled_anew(
    again: bool,
    relay: ScriptedRelay,
    source: ModelSource,
    under_test: SinkUnderTest,
    reader: TopicReader,
    admin: AdminClient,
) -> None:
    source.commit([insert(ITEMS, n) for n in range(30)])
    topic = reader.of_table(ITEMS)
    settings = {rule.name: rule.value for rule in needed_settings(compacted=True, replicas=1, largest=1 << 20)}
    with consumer(relay, under_test, answer_seconds=3) as running:
        equal(under_test, relay)
        stored(running, source)
        admin.delete_topics([topic])[topic].result()
        if again:
            wait_for(lambda: admin.create_topics([NewTopic(topic, 3, 1, config=settings)])[topic].result() is None)

        def is_filled() -> bool:
            source.commit([update(ITEMS, 2, name="goes on")])
            return under_test.rows().keys() == source.rows(ITEMS).keys()

        wait_for(is_filled, what="all rows are there again", every=0.3)
        equal(under_test, relay)


def test_a_topic_that_was_made_anew_lacks_its_rows_until_they_are_swept(
    under_test: SinkUnderTest, source: ModelSource, reader: TopicReader, admin: AdminClient
) -> None:
    source.commit([insert(ITEMS, n) for n in range(7)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    topic = reader.of_table(ITEMS)
    admin.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in reader.topics(), what="the topic is gone")
    with closing(under_test.open()) as sink:
        assert sink.incomplete() == (ITEMS,)
        sink.rollback()
        assert sink.incomplete() == (ITEMS,)
        sink.commit(following(source))
    with closing(under_test.open()) as sink:
        assert sink.incomplete() == (ITEMS,)


def test_rows_that_are_refused_are_left_out(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest
) -> None:
    source.commit([insert(ITEMS, 1)])
    with consumer(relay, under_test, max_message_bytes=65536, on_error="skip", on_error_attempts=1) as running:
        equal(under_test, relay)
        source.commit([insert(ITEMS, 2, "large", "x" * 70_000), insert(ITEMS, 3)])
        stored(running, source)
    assert set(under_test.rows()) == {"1", "3"}


# The whole


@pytest.mark.timeout(300)
def test_every_type_and_every_name_reach_the_topics_with_zero_differences(
    database: Database, open_folder: Path, kafka: str
) -> None:
    make_marker(database)
    zoo = build_zoo(database.connect())
    zoo.insert()
    odd = make_odd_tables(zoo.connection)
    fill_odd_tables(zoo.connection, odd, 1)
    herd = build_herd(zoo)
    tables = {"tables": ["herd.*", "public.marker", *(f"{schema}.*" for schema in SCHEMAS)]}
    prefix = f"zoo-{database.name}"
    section: dict[str, object] = {"sink": "kafka", "bootstrap_servers": kafka, "prefix": prefix, "partitions": 2}
    section |= {"max_message_bytes": 8 << 20}
    relay = {"topic_prefix": prefix}
    with SingleRooms(open_folder, database.dsn, {"topics": section}, source=tables, relay=relay) as system:
        system.start()
        system.wait_until_at_rest(database)  # the rows from before came by the bootstrap
        zero(database, kafka, prefix)
        fill_odd_tables(zoo.connection, odd, 2)
        herd.update()
        herd.repeat()
        herd.delete()
        system.wait_until_at_rest(database)
        zero(database, kafka, prefix)
        read_by_confluent(system.relay_url, TopicReader(kafka, prefix))


def test_rows_of_a_table_that_never_changed_are_read_by_the_relays_schemas(
    database: Database, open_folder: Path, kafka: str
) -> None:
    make_marker(database)
    database.execute("CREATE TABLE still (id int PRIMARY KEY, n text)")
    database.execute("INSERT INTO still SELECT n, 'row ' || n FROM generate_series(1, 150) n")
    prefix = f"still-{database.name}"
    section: dict[str, object] = {"sink": "kafka", "bootstrap_servers": kafka, "prefix": prefix, "partitions": 2}
    with SingleRooms(open_folder, database.dsn, {"topics": section}, relay={"topic_prefix": prefix}) as system:
        system.start()
        system.wait_until_at_rest(database)
        zero(database, kafka, prefix)
        read_by_confluent(system.relay_url, TopicReader(kafka, prefix))


def zero(database: Database, kafka: str, prefix: str) -> None:
    differences = compare_sinks(database.dsn, [TopicRows(kafka, prefix)]).differences
    assert not differences, told(differences)
