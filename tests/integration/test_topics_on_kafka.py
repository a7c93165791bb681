"""Table topics on a real broker: written by their page, read by Confluent's own consumer, deserializer and client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from support.apicurio_server import ApicurioServer
from support.capturing import capturing
from support.database import fresh_database
from support.table_topics import NAMES, records_of_log, relay_registry
from support.zoo import Zoo, build_zoo
from support.zoo_check import Rows
from support.zoo_topics import TopicRead, differences, live
from walbus.config import SchemaRegistryConfig
from walbus.consumers.registered_ids import RegisteredIds
from walbus.demo.postgres import EmbeddedPostgres
from walbus.topics import TopicRecord

pytestmark = [pytest.mark.one_version, pytest.mark.timeout(300)]


_LARGEST = 32 << 20  # some of the zoo's values are large


@dataclass(frozen=True)
class Captured:
    """A zoo's whole life, and the folder of its log."""

    zoo: Zoo
    inserted: dict[str, Rows]
    updated: dict[str, Rows]
    folder: Path


@pytest.fixture(scope="module")
def captured(pg_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    folder = tmp_path_factory.mktemp("zoo") / "relay"
    with fresh_database(pg_server) as database:
        zoo = build_zoo(database.connect())
        with capturing(database.dsn, folder, tables=("cage.*",)) as capture:
            inserted, updated = live(zoo)
            capture.caught_up(150)
        yield Captured(zoo, inserted, updated, folder)


def produce(bootstrap: str, records: Iterable[TopicRecord]) -> list[str]:
    """Writes records as they are, into topics that are made for them; their names."""
    given = list(records)
    topics = sorted({record.topic for record in given})
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wide = {"max.message.bytes": str(_LARGEST)}
    for done in admin.create_topics([NewTopic(topic, 1, 1, config=wide) for topic in topics]).values():
        done.result()
    sizes = {"message.max.bytes": _LARGEST, "queue.buffering.max.messages": len(given) + 1}
    ordered = {"enable.idempotence": True}  # else what a new topic refuses at first comes again behind what followed
    producer = Producer({"bootstrap.servers": bootstrap, **sizes, **ordered})
    for one in given:
        producer.produce(one.topic, one.value, one.key, one.partition(1), timestamp=one.time, headers=list(one.headers))
    assert producer.flush(120) == 0
    return topics


@contextmanager
def consumed(bootstrap: str, topics: list[str]) -> Iterator[Iterator[tuple[str, bytes, bytes | None, bytes]]]:
    """Topic, key, value and `walbus.op` of every message."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "readers", "enable.partition.eof": True}
    consumer = Consumer({**settings, "isolation.level": "read_committed", "enable.auto.commit": False})

    def messages() -> Iterator[tuple[str, bytes, bytes | None, bytes]]:
        consumer.assign([TopicPartition(topic, 0, 0) for topic in topics])
        left = set(topics)
        while left:
            message = consumer.poll(60)
            assert message is not None, "the broker does not answer"
            if (error := message.error()) is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                left.discard(str(message.topic()))  # an end may be told twice
            else:
                yield message.topic(), message.key(), message.value(), dict(message.headers())["walbus.op"]

    with closing(consumer):
        yield messages()


def check(captured: Captured, bootstrap: str, topics: list[str], registry: str) -> None:
    """Reads topics as a program does that knows a broker and a registry, and compares with the source."""
    with consumed(bootstrap, topics) as messages, SchemaRegistryClient({"url": registry}) as client:
        deserialize = AvroDeserializer(client)
        reads = (
            TopicRead(
                topic,
                key,
                op,
                deserialize(key, SerializationContext(topic, MessageField.KEY)),
                deserialize(value, SerializationContext(topic, MessageField.VALUE)),
            )
            for topic, key, value, op in messages
        )
        found, rows = differences(reads, captured.zoo, captured.inserted, captured.updated)
    assert not found, "\n".join([f"{len(found)} problems", *found[:40]])
    assert rows > 5000


def test_a_plain_consumer_reads_every_type_by_the_relays_schemas(
    captured: Captured, kafka: str, tmp_path: Path
) -> None:
    topics = produce(kafka, records_of_log(captured.folder))
    try:
        with relay_registry(tmp_path, captured.folder) as registry:
            check(captured, kafka, topics, registry)
    finally:
        forget(kafka, topics)


def test_a_plain_consumer_reads_every_type_by_the_schemas_of_another_registry(
    captured: Captured, kafka: str, apicurio: ApicurioServer
) -> None:
    with closing(RegisteredIds(NAMES, SchemaRegistryConfig(url=apicurio.url))) as ids:
        topics = produce(kafka, records_of_log(captured.folder, ids))
    try:
        check(captured, kafka, topics, apicurio.url)
    finally:
        forget(kafka, topics)


def forget(bootstrap: str, topics: list[str]) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    for done in client.delete_topics(topics).values():
        done.result()
