"""Which schema registry a consumer's table topics are registered in."""

from __future__ import annotations

from walbus.config import SchemaRegistryConfig, Settings
from walbus.consumers.sinks.kafka_options import KafkaOptions

SOURCE = {"dsn": "postgresql://nowhere/shop"}
OURS = {"url": "http://registry", "password": "secret", "user": "walbus"}


def test_the_kafka_sink_registers_schemas_where_the_relays_section_says() -> None:
    consumers = {"topics": {"sink": "kafka", "bootstrap_servers": "there:9092"}, "cache": {"sink": "redis"}}
    settings = Settings(source=SOURCE, consumer=consumers, relay={"schema_registry": OURS})
    options = KafkaOptions(**settings.consumer["topics"].options)
    assert options.schema_registry == SchemaRegistryConfig(**OURS)
    assert settings.consumer["cache"].options == {}
    without = Settings(source=SOURCE, consumer=consumers)
    assert KafkaOptions(**without.consumer["topics"].options).schema_registry is None


def test_a_consumer_may_name_a_registry_of_its_own() -> None:
    topics = {"sink": "kafka", "bootstrap_servers": "there:9092", "schema_registry": {"url": "http://other"}}
    settings = Settings(source=SOURCE, consumer={"topics": topics}, relay={"schema_registry": OURS})
    options = KafkaOptions(**settings.consumer["topics"].options)
    assert options.schema_registry == SchemaRegistryConfig(url="http://other")
