"""What `walbus doctor` looks at on the cluster of a log on Kafka, and of a schema registry. I/O; nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from walbus.capture.doctor import Finding
from walbus.cli.doctor_kafka_rules import KafkaFacts, kafka_findings, registry_findings
from walbus.cli.kafka import check_topics_apart, cluster_of
from walbus.config import SchemaRegistryConfig, Settings
from walbus.errors import SourceError, WalbusError
from walbus.relay.kafka.cluster import ClusterClients, error_of
from walbus.relay.kafka.held_offset import Held, held_on
from walbus.relay.kafka.lock import holders_of
from walbus.relay.kafka.topics import Topics, TopicState
from walbus.topics import TopicNames

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient, DescribeClusterResult

_PATIENCE = 5.0  #: seconds until a cluster counts as away


def elsewhere(settings: Settings) -> Iterator[Finding]:
    """What is so of the servers that the configuration names beside the source."""
    if settings.relay.engine == "kafka":
        yield from kafka_findings(_read(settings))
    if (registry := settings.relay.schema_registry) is not None:
        yield from registry_findings(registry.url, _registry_problem(settings.relay.topic_prefix, registry))


def _read(settings: Settings) -> KafkaFacts | WalbusError:
    """The facts, or what keeps them from being read."""
    cluster = replace(cluster_of(settings), answer_seconds=_PATIENCE)
    try:
        clients = ClusterClients(cluster)
        with closing(clients):
            topics = tuple(Topics(clients).states())
            with clients.asking("the cluster is not described"):
                described = clients.admin.describe_cluster(request_timeout=_PATIENCE).result()
                most = _most_seconds(clients.admin, described)
                ahead = _ahead(clients.admin, topics)
            return KafkaFacts(
                place=cluster.bootstrap,
                brokers=len(described.nodes),
                names=cluster.topics,
                topics=topics,
                writers=tuple(holders_of(clients, cluster.writer_group)),
                transaction_seconds=cluster.transaction_seconds,
                most_seconds=most,
                ahead=ahead,
                taken=_taken(settings),
                hold=_hold(clients),
                holders=tuple(holders_of(clients, cluster.hold_group)),
                group=cluster.hold_group,
            )
    except WalbusError as problem:
        return problem


def _hold(clients: ClusterClients) -> Held | WalbusError | None:
    try:
        return held_on(clients, _PATIENCE)
    except WalbusError as problem:
        return problem


def _most_seconds(admin: AdminClient, cluster: DescribeClusterResult) -> float | None:
    """How long a broker lets a transaction last; None where it does not tell, as without DescribeConfigs on it."""
    from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415 - an extra
    from confluent_kafka.admin import ConfigResource, ResourceType  # noqa: PLC0415

    broker = ConfigResource(ResourceType.BROKER, str(cluster.nodes[0].id))
    (asked,) = admin.describe_configs([broker], request_timeout=_PATIENCE).values()
    try:
        entry = asked.result().get("transaction.max.timeout.ms")
    except KafkaException as error:
        told = error_of(error)
        if told is None or told.code() != KafkaError.CLUSTER_AUTHORIZATION_FAILED:
            raise
        return None
    return None if entry is None or entry.value is None else int(entry.value) / 1000


def _ahead(admin: AdminClient, topics: tuple[TopicState, ...]) -> float | None:
    """By how many seconds the newest message's time, which its broker gave it, is ahead of ours."""
    from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra
    from confluent_kafka.admin import OffsetSpec  # noqa: PLC0415

    if not topics:
        return None
    partitions = {TopicPartition(topic.name, 0): OffsetSpec.max_timestamp() for topic in topics}
    asked = admin.list_offsets(partitions, request_timeout=_PATIENCE)
    newest = max(answer.result().timestamp for answer in asked.values())
    return None if newest < 0 else newest / 1000 - time.time()


def _taken(settings: Settings) -> WalbusError | None:
    try:
        check_topics_apart(settings)
    except SourceError:
        return None  # what keeps the source from answering is said where it is looked at
    except WalbusError as problem:
        return problem
    return None


def _registry_problem(prefix: str, registry: SchemaRegistryConfig) -> WalbusError | None:
    from walbus.consumers.registered_ids import RegisteredIds  # noqa: PLC0415

    try:
        with closing(RegisteredIds(TopicNames(prefix), registry)) as ids:
            ids.check()
    except WalbusError as problem:
        return problem
    return None
