"""The records that a log's table topics would have, and Confluent's deserializer on them.

with registry_reader(tmp_path, folder) as read:     # a relay serves the log and its schemas
    for record in records_of_log(folder):
        read(record).key["id"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from support.log_view import log_records
from support.relay_server import Relay
from support.waiting import wait_for
from walbus.events import window_of
from walbus.relay import open_reader
from walbus.topics import Catalog, LogIds, SchemaIds, TableTopics, TopicNames, TopicRecord

NAMES = TopicNames("walbus")


class Read(NamedTuple):
    """A record's key and value; None as its value for a deleted key."""

    key: dict[str, Any]
    value: dict[str, Any] | None


def records_of_log(folder: Path, ids: SchemaIds | None = None) -> Iterator[TopicRecord]:
    """The records of all tables, without the ends of transactions; a TRUNCATE finds no key live.

    Args:
        folder: of the log.
        ids: of the schemas; None: those of the relay as a registry.
    """
    with closing(open_reader(folder)) as reader:
        ids = ids or LogIds(Catalog(NAMES, reader.schemas.all()))
        topics = TableTopics(NAMES, ids, log_id=reader.bounds().log_id, live_keys=lambda _: ())
        for header, record in log_records(reader):
            for one in topics.take(window_of(header, record, reader.schemas.get)):
                if one.topic != NAMES.transactions:
                    yield one


@contextmanager
def registry_reader(folder: Path, log: Path) -> Iterator[Callable[[TopicRecord], Read]]:
    """Reads records as a program does that knows Kafka and a relay's address.

    Args:
        folder: for the relay's files.
        log: folder of the log.
    """
    with relay_registry(folder, log) as url, SchemaRegistryClient({"url": url}) as client:
        deserialize = AvroDeserializer(client)

        def read(record: TopicRecord) -> Read:
            key, value = (
                deserialize(data, SerializationContext(record.topic, field))
                for data, field in ((record.key, MessageField.KEY), (record.value, MessageField.VALUE))
            )
            return Read(key, value)

        yield read


@contextmanager
def relay_registry(folder: Path, log: Path) -> Iterator[str]:
    """Address of a relay that serves a log and its schemas."""
    relay = Relay(folder / "relay", log=log)
    try:
        wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server to find the log")
        yield f"http://127.0.0.1:{relay.port}"
    finally:
        relay.close()
