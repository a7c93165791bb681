"""What the sections of consumers have to do with that of the relay, and where a consumer has its log from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from walbus.kafka_address import KafkaAddress

if TYPE_CHECKING:
    from walbus.config import ConsumerConfig, RelayConfig, Settings


def check_reading(name: str, consumer: ConsumerConfig, relay: RelayConfig) -> None:
    """Sees that a consumer can read where it is told to.

    Raises:
        ValueError: names the keys.
    """
    if consumer.read_from == "relay":
        if consumer.rows_from == "topics":
            raise ValueError(f'consumer.{name}.rows_from = "topics" needs consumer.{name}.read_from = "kafka"')
        return
    if relay.engine != "kafka":
        raise ValueError(f'consumer.{name}.read_from = "kafka" needs engine = "kafka" in the section relay')
    if consumer.relay:
        raise ValueError(f'consumer.{name}.relay names relays, and read_from = "kafka" is without one')


def with_registry(consumer: ConsumerConfig, relay: RelayConfig) -> ConsumerConfig:
    """A `kafka` sink registers schemas where `[relay.schema_registry]` says, unless it names a registry itself."""
    registry = relay.schema_registry
    if registry is None or consumer.sink != "kafka" or "schema_registry" in consumer.options:
        return consumer
    return consumer.model_copy(update={"schema_registry": registry})


def at_one_state(consumer: ConsumerConfig) -> ConsumerConfig:
    """The consumer with its rows from the bootstrap server, which are of one state; those of topics are of several."""
    return consumer.model_copy(update={"rows_from": "bootstrap"})


def log_address(settings: Settings, consumer: ConsumerConfig) -> Sequence[str] | KafkaAddress:
    """Where a consumer has the log from."""
    if consumer.read_from == "relay":
        return consumer.relay or (settings.relay_url,)
    kafka = settings.relay.kafka
    servers = ",".join(kafka.bootstrap_servers)
    options = {name: value.get_secret_value() for name, value in kafka.options.items()}
    topics = KafkaAddress(servers, settings.relay.topic_prefix).url
    rows = topics if consumer.rows_from == "topics" else settings.bootstrap_url
    return KafkaAddress(servers, settings.kafka_topic, options, rows)
