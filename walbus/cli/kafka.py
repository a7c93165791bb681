"""The log on Kafka, as the commands open it."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

from walbus.config import Settings
from walbus.errors import SourceUnavailable
from walbus.log import LogWriter, SourceIdentity
from walbus.relay.kafka import open_kafka_reader, open_kafka_writer
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.relay.kafka.followed import FollowedLog
from walbus.relay.kafka.hold import ClusterHold
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.topics import TopicPlan
from walbus.topics import TopicNames

#: A thread of the bootstrap that waits for the cluster has to end soon; what it asked for is asked again.
_BOOTSTRAP_SECONDS = 3.0


def cluster_of(settings: Settings) -> ClusterSettings:
    """Where the log is, by the configuration."""
    kafka = settings.relay.kafka
    return ClusterSettings(
        ",".join(kafka.bootstrap_servers),
        settings.kafka_topic,
        {name: value.get_secret_value() for name, value in kafka.options.items()},
        transaction_seconds=kafka.transaction_seconds,
    )


def topic_names(settings: Settings) -> TopicNames:
    """What table topics are called; a name that the log has for a topic of its own is refused.

    Raises:
        ConfigError: the topic of transactions' ends would be one of the log's.
    """
    return TopicNames(settings.relay.topic_prefix, frozenset(cluster_of(settings).topics))


def check_topics_apart(settings: Settings) -> None:
    """Sees that no captured table has a topic that is one of the log's own; a source that is away is not waited for.

    Raises:
        ConfigError: one has; names the table and the keys.
    """
    from walbus.capture.publication import matched_tables  # noqa: PLC0415 - not every command captures
    from walbus.capture.sessions import open_session  # noqa: PLC0415

    names = topic_names(settings)
    with suppress(SourceUnavailable), closing(open_session(settings.source.dsn)) as session:
        for table in matched_tables(session, settings.source):
            names.of_table(table.namespace, table.name)


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


def open_bootstrap_reader(settings: Settings) -> FollowedLog:
    """Opens the log for a bootstrap that reads the cluster; as `open_kafka_reader`."""
    reader = open_kafka_reader(replace(cluster_of(settings), answer_seconds=_BOOTSTRAP_SECONDS))
    with ExitStack() as undo:
        undo.callback(reader.close)
        followed = FollowedLog(reader)
        undo.pop_all()
    return followed


def open_hold(settings: Settings, replaces: Path) -> ClusterHold:
    """The hold of such a bootstrap.

    Args:
        settings: the configuration.
        replaces: the file of the hold that it had beside a relay, which goes once there is one on the cluster.

    Raises:
        ConfigError: confluent-kafka is not installed, or librdkafka refuses an option.
    """
    return ClusterHold(cluster_of(settings), replaces=replaces)
