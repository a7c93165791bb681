"""Table topics as a plain reader has them: confluent-kafka with `read_committed`, compaction applied, Avro by fastavro.

rows = TopicReader(bootstrap, prefix).rows("public.items", layouts)
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import fastavro
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka import Message as KafkaMessage
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from support import plain_http
from support.sinks_under_test import SinkUnderTest
from support.waiting import wait_for
from walbus.demo.sink_rows import Found, key_of
from walbus.demo.source_rows import SourceTable
from walbus.schema import TableSchema
from walbus.topics import TopicNames
from walbus.topics.ends import END_KEY, END_VALUE
from walbus.topics.envelope import envelope_form, envelope_key_form
from walbus.topics.forms import key_form, row_form
from walbus.values import row_texts

WIRE = 5


class Message(NamedTuple):
    """A committed record."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None
    headers: dict[str, bytes]


class RegistrySchemas(dict[int, dict[str, Any]]):
    """Avro schemas by id, as a registry tells them."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __missing__(self, number: int) -> dict[str, Any]:
        answer = plain_http.get(f"{self._url}/schemas/ids/{number}").raise_for_status()
        self[number] = json.loads(answer.json()["schema"])
        return self[number]


@dataclass(frozen=True)
class TopicReader:
    """Reads the topics of one prefix.

    Attributes:
        bootstrap: addresses of brokers.
        prefix: of the topics.
        registry: address of the one that schemas are registered in; None where the relay is it.
        home: prefix of the topic of checkpoints, if that is another.
    """

    bootstrap: str
    prefix: str
    registry: str | None = None
    home: str | None = None

    def turned(self) -> TopicReader:
        """Reads the topics that a rebuild has put in the place of these, if one has."""
        home = self.home or self.prefix
        told = [m for m in self.messages(f"{home}.checkpoint") if m.key == b"checkpoint"]
        generation = json.loads(told[-1].value or b"")["generation"] if told else 0
        return replace(self, prefix=f"{home}-{generation}" if generation else home, home=home)

    def of_table(self, table: str) -> str:
        namespace, _, name = table.partition(".")
        return TopicNames(self.prefix).of_table(namespace, name)

    def topics(self) -> list[str]:
        consumer = self._consumer()
        try:
            found = consumer.list_topics(timeout=30).topics
        finally:
            consumer.close()
        return sorted(name for name in found if name.startswith(f"{self.prefix}."))

    def messages(self, *topics: str) -> list[Message]:
        """All committed records of topics that compaction has left, by topic, partition and offset."""
        return sorted(self._messages(topics), key=lambda m: (m.topic, m.partition, m.offset))

    def _messages(self, topics: Sequence[str]) -> Iterator[Message]:
        consumer = self._consumer()
        try:
            known = consumer.list_topics(timeout=30).topics
            left = {(topic, number) for topic in topics if topic in known for number in known[topic].partitions}
            consumer.assign([TopicPartition(topic, number, 0) for topic, number in left])
            while left:
                (message,) = wait_for(lambda: polled(consumer), what=f"the end of {left}")
                error, topic = message.error(), str(message.topic())
                if error is None:
                    headers = {name: bytes(value) for name, value in message.headers() or ()}  # type: ignore[arg-type]
                    yield Message(
                        topic, message.partition(), message.offset(), message.key(), message.value(), headers
                    )  # fmt: skip
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard((topic, message.partition()))
                else:
                    raise AssertionError(error.str())
        finally:
            consumer.close()

    def live(self, topic: str) -> dict[bytes, Message]:
        """The last record of each key, but for those without a value."""
        return {key: message for (_, key), message in compacted(self.messages(topic)).items()}

    def layouts(self) -> dict[int, TableSchema]:
        """The layouts that PREFIX.checkpoint tells, by number."""
        told = self.messages(f"{self.home or self.prefix}.checkpoint")
        documents = (m for m in told if m.key.startswith(b"layout/") and m.value is not None)
        layouts = [TableSchema.from_dict(json.loads(m.value or b"")["layout"]) for m in documents]
        return {layout.id: layout for layout in layouts}

    def schemas(self) -> dict[int, dict[str, Any]]:
        """Avro schemas by id, as the registry tells them, or the relay would."""
        if self.registry is not None:
            return RegistrySchemas(self.registry)
        found: dict[int, dict[str, Any]] = {1: END_KEY, 2: END_VALUE}
        for number, layout in self.layouts().items():
            found[8 * number] = row_form(layout)
            found[8 * number + 1] = key_form(layout)
            found[8 * number + 2] = envelope_form(layout, self.prefix)
            found[8 * number + 3] = envelope_key_form(layout, self.prefix)
        return found

    def ends(self) -> list[dict[str, Any]]:
        """The ends of transactions, in order."""
        found = self.messages(f"{self.prefix}.transactions")
        schemas = {1: END_KEY, 2: END_VALUE} if self.registry is None else self.schemas()
        return [decoded(m.key, schemas) | decoded(m.value or b"", schemas) for m in found]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table; of envelopes those behind the change."""
        live = self.live(self.of_table(table))
        schemas = self.schemas() if live else {}
        values = [decoded(message.value or b"", schemas) for message in live.values()]
        return [value["after"] if "walbus.row_at" in m.headers else value
                for value, m in zip(values, live.values(), strict=True)]  # fmt: skip

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "walbus-test",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,  # an end is told by an answer without records, which takes half a second else
                "auto.offset.reset": "earliest",
                "log_level": 0,
                "error_cb": lambda _: None,
            }
        )


def compacted(messages: Iterable[Message]) -> dict[tuple[str, bytes], Message]:
    """The last record of each topic and key, but for those without a value."""
    last = {(message.topic, message.partition, message.key): message for message in messages}
    live = [message for message in last.values() if message.value is not None]
    found = {(message.topic, message.key): message for message in live}
    assert len(found) == len(live), "a key in two partitions"
    return found


def polled(consumer: Consumer) -> tuple[KafkaMessage, ...]:
    """What comes next, if anything; a message without a value is false by itself."""
    message = consumer.poll(0.5)
    return () if message is None else (message,)


def decoded(data: bytes, schemas: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Avro in the Confluent wire format."""
    assert data[0] == 0
    schema = fastavro.parse_schema(schemas[int.from_bytes(data[1:WIRE], "big")])
    stream = io.BytesIO(data[WIRE:])
    value = fastavro.schemaless_reader(stream, schema)
    assert not stream.read(), "bytes behind the record"
    return value  # type: ignore[return-value]


class TopicRows:
    """Topics as texts by column; see `walbus.demo.sink_rows.SinkRows`."""

    name = "kafka"

    def __init__(self, bootstrap: str, prefix: str) -> None:
        reader = TopicReader(bootstrap, prefix)
        self._layouts = reader.layouts()
        names = TopicNames(prefix)
        tables = {names.of_table(one.namespace, one.name): one.table for one in self._layouts.values()}
        self._live: dict[str, list[Message]] = {}
        for message in compacted(reader.messages(*tables)).values():
            self._live.setdefault(tables[message.topic], []).append(message)

    def tables(self) -> set[str]:
        return set(self._live)

    def rows(self, table: SourceTable) -> Iterator[Found]:
        for message in self._live.get(table.table, ()):
            assert message.value is not None
            layout = self._layouts[int(message.headers["walbus.layout"])]
            texts = row_texts(layout, message.value[WIRE:])
            values = {column.name: text for column, text in zip(layout.columns, texts, strict=True)}
            yield key_of(table, values), values

    def close(self) -> None:
        """Nothing is open."""


def reader_of(under_test: SinkUnderTest) -> TopicReader:
    """Reads what a sink writes."""
    registry = under_test.options.get("schema_registry", {}).get("url")
    return TopicReader(under_test.options["bootstrap_servers"], under_test.options["prefix"], registry)


def forget_copy(under_test: SinkUnderTest) -> None:
    """Loses the copy of the rows beside a sink."""
    for path in under_test.place.folder.glob("kafka.rows*"):
        path.unlink()


def read_by_confluent(registry_url: str, reader: TopicReader) -> None:
    """Confluent's own deserializer reads every record that is left, by the schemas that a registry serves."""
    with SchemaRegistryClient({"url": registry_url}) as client:
        deserialize: Callable[..., Any] = AvroDeserializer(client)
        topics = [topic for topic in reader.topics() if topic != f"{reader.prefix}.checkpoint"]
        messages = reader.messages(*topics)
        for message in messages:
            assert deserialize(message.key, SerializationContext(message.topic, MessageField.KEY))
            if message.value is not None:
                assert deserialize(message.value, SerializationContext(message.topic, MessageField.VALUE))
        assert len(messages) > 100
