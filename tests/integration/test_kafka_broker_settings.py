"""What settings of brokers do: topics that are made for whoever asks, and transactions that are given up soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import IsolationLevel, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from support.kafka_log import KafkaEngine
from support.kafka_server import local_kafka, or_missing
from support.model_source import ITEMS, ModelSource, delete, insert, update
from support.rebuild_rig import dropped, filled, rebuilt
from support.relay_log import commits, fill, piece, read_all, transaction
from support.running_consumer import consumer, followed
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, following, windows
from support.sink_writing import fill as fill_sink
from support.sinks_under_test import kafka_under_test
from support.topic_rows import reader_of
from support.waiting import wait_for
from walbus.errors import LogMissing, LogUnreachable, SinkUnavailable
from walbus.records import Flag

pytestmark = pytest.mark.one_version

_QUICK = {"topic.metadata.refresh.interval.ms": "200"}  # of clients, which look for their topics so often


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    settings = {
        "auto.create.topics.enable": "true",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "100",
    }
    with or_missing(lambda: local_kafka(settings=settings)) as cluster:
        yield cluster.bootstrap


@contextmanager
def while_others_look(brokers: str) -> Iterator[AdminClient]:
    """Ends once a client as others have it, which looks as often, has made a topic again three times."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0, "allow.auto.create.topics": False})
    producer, name = Producer({"bootstrap.servers": brokers, "log_level": 0, **_QUICK}), "canary"
    producer.produce(name, b"")
    assert not producer.flush(30)

    def number() -> str:
        return str(admin.describe_topics(TopicCollection([name]))[name].result().topic_id)

    yield admin
    for _ in range(3):
        before = number()
        admin.delete_topics([name])[name].result()
        wait_for(lambda before=before: number() != before, what="the topic of the other client comes back")


def known(admin: AdminClient) -> set[str]:
    """The topics that are there."""
    return set(admin.list_topics(timeout=30).topics)


def test_what_a_rebuild_dropped_stays_gone_whoever_has_not_noticed_the_swap(
    brokers: str, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = kafka_under_test(tmp_path, brokers, options=_QUICK)
    reader = reader_of(under_test)
    filled(relay, under_test, source)
    with consumer(relay, under_test, answer_seconds=3) as running:
        followed(running, under_test, relay, update(ITEMS, 3, name="by one that has the old topics open"))
        old = [topic for topic in reader.topics() if not topic.endswith(".checkpoint")]
        rebuilt(relay, under_test)
        with while_others_look(brokers) as admin:
            assert dropped(under_test)
            assert known(admin).isdisjoint(old)
        assert known(admin).isdisjoint(old)
        followed(running, under_test, relay, update(ITEMS, 3, name="by one that has noticed"))
        with while_others_look(brokers) as admin:
            pass
        assert known(admin).isdisjoint(old)
    assert reader.turned().prefix == f"{reader.prefix}-1"


def again_while_away(act: Callable[[], object]) -> None:
    """Does it again while the cluster is said to be away."""
    while True:
        with suppress(LogUnreachable):
            act()
            return


def test_a_log_that_was_deleted_is_not_made_again_by_who_writes_or_reads_it(brokers: str, tmp_path: Path) -> None:
    engine = KafkaEngine(brokers, tmp_path / "log")
    engine.cluster = replace(engine.cluster, options=_QUICK)
    with closing(engine):
        with pytest.raises(LogMissing):
            engine.open_reader()
        writer, reader = engine.open_writer(), engine.open_reader()
        fill(writer, 3)
        assert commits(read_all(reader)) == [16, 32, 48]
        writer._parts.clients.settings = reader._clients.settings = replace(engine.cluster, answer_seconds=3)
        with while_others_look(brokers) as admin:
            assert known(admin) >= set(engine.cluster.topics)
            for done in admin.delete_topics(list(engine.cluster.topics)).values():
                done.result()
            wait_for(lambda: known(admin).isdisjoint(engine.cluster.topics), what="the log is gone")
        assert known(admin).isdisjoint(engine.cluster.topics)
        with pytest.raises(LogMissing):
            again_while_away(reader.view)
        with pytest.raises(LogMissing, match=r"somebody deleted the log .* start capture again"):
            writer.append(transaction(64))
            again_while_away(writer.sync)
        assert known(admin).isdisjoint(engine.cluster.topics)


# Transactions that the cluster gives up


def wait_until_given_up(brokers: str, topic: str, begin: Callable[[], object]) -> None:
    """Begins something in a Kafka transaction, and waits until the cluster has aborted that."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})

    def end(isolation: IsolationLevel) -> int:
        asked = {TopicPartition(topic, 0): OffsetSpec.latest()}
        (answer,) = admin.list_offsets(asked, isolation_level=isolation).values()
        return int(answer.result().offset)

    before = end(IsolationLevel.READ_UNCOMMITTED)
    begin()
    wait_for(
        lambda: before < end(IsolationLevel.READ_UNCOMMITTED) == end(IsolationLevel.READ_COMMITTED),
        what="the transaction is given up",
    )


def test_a_transaction_that_takes_longer_than_kafka_lets_one_take_is_in_the_log_once(
    brokers: str, tmp_path: Path
) -> None:
    engine = KafkaEngine(brokers, tmp_path / "log")
    engine.cluster = replace(engine.cluster, transaction_seconds=1.0)
    engine.large_bytes, engine.kept_bytes = 50_000, 1 << 20
    with closing(engine):
        writer = wait_for(engine.open_writer, what="the log takes a writer in time")
        for lsn in (16, 32):
            again_while_away(lambda lsn=lsn: writer.append(transaction(lsn)))
        again_while_away(writer.sync)

        def begins() -> None:
            for first in range(1, 301, 10):
                writer.append(piece(48, first, 10, Flag.BEGIN if first == 1 else 0, size=1000))

        wait_until_given_up(brokers, engine.cluster.large, begins)
        for first in range(301, 501, 10):
            again_while_away(lambda first=first: writer.append(piece(48, first, 10, 0, size=1000)))
        again_while_away(lambda: writer.append(piece(48, 501, 5, Flag.END)))
        again_while_away(lambda: writer.append(transaction(64)))
        again_while_away(writer.sync)
        headers = read_all(engine.open_reader())
        assert commits(headers) == [16, 32, 48, 64]
        assert [header.count for header in headers if header.commit_lsn == 48] == [10] * 50 + [5]


def test_a_transaction_of_the_sink_that_is_given_up_says_so_and_is_written_again(
    brokers: str, source: ModelSource, tmp_path: Path
) -> None:
    under_test = kafka_under_test(tmp_path, brokers, partitions=1)
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    with closing(under_test.open()) as sink:
        fill_sink(sink, source)
    hasty = {"transaction.timeout.ms": "1000"}
    with closing(wait_for(lambda: under_test.open(options=hasty), what="the sink is open in time")) as sink:
        before, done = sink.checkpoint(), source.end
        source.commit([update(ITEMS, 1, name="late"), delete(ITEMS, 2), insert(ITEMS, 3)])
        topic = reader_of(under_test).of_table(ITEMS)
        wait_until_given_up(brokers, topic, lambda: sink.write(windows(source, done), MARKS))
        with pytest.raises(
            SinkUnavailable, match=r"gave a transaction up, .* raise consumer\.test\.transaction_seconds"
        ):
            sink.commit(following(source))
        sink.rollback()
        assert sink.checkpoint() == before

        def written() -> bool:
            sink.rollback()
            sink.checkpoint()
            fill_sink(sink, source, done)
            return True

        wait_for(written, what="it is written again in time")
        assert under_test.rows() == source.rows(ITEMS)
    assert len({end["transaction"] for end in reader_of(under_test).ends()}) == 2
