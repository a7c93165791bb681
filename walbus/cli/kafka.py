"""The log on Kafka, as the commands open it."""

from __future__ import annotations

from walbus.config import Settings
from walbus.log import LogWriter, SourceIdentity
from walbus.relay.kafka import open_kafka_reader, open_kafka_writer
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.topics import TopicPlan


def cluster_of(settings: Settings) -> ClusterSettings:
    """Where the log is, by the configuration."""
    kafka = settings.relay.kafka
    return ClusterSettings(
        ",".join(kafka.bootstrap_servers),
        settings.kafka_topic,
        {name: value.get_secret_value() for name, value in kafka.options.items()},
        transaction_seconds=kafka.transaction_seconds,
    )


def open_log(settings: Settings, source: SourceIdentity) -> LogWriter:
    """Opens the log for capture; as `open_kafka_writer`."""
    relay = settings.relay
    settings.holds_dir.mkdir(parents=True, exist_ok=True)
    return open_kafka_writer(
        cluster_of(settings),
        source,
        folder=settings.relay_dir,
        retention_hours=relay.retention_hours,
        retention_bytes=relay.retention_bytes,
        compression_level=relay.compression_level if relay.compression == "zstd" else None,
        plan=TopicPlan(relay.kafka.replication_factor, relay.kafka.max_message_bytes),
    )


def open_log_reader(settings: Settings) -> KafkaLogReader:
    """Opens the log for reading; as `open_kafka_reader`."""
    return open_kafka_reader(cluster_of(settings))
