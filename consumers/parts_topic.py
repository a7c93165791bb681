"""The topic whose partitions are the parts of a group that reads from Kafka: `TOPIC.parts.GROUP`.

Nothing is written to it. It is there for the coordinator, which hands partitions out to the members of a group; so
none of its settings matters but the number of partitions.
"""

from __future__ import annotations

import time
from typing import Final

from walbus.errors import LogError, UsageError
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings, error_of
from walbus.relay.kafka.lock import members_of
from walbus.relay.kafka.topics import default_replicas, describe_topics, make_topics

_LONGEST: Final = 249  # which Kafka allows
_LOOK_SECONDS: Final = 0.05


def parts_topic(topic: str, group: str) -> str:
    """What a group's topic is called, and what the cluster calls the group.

    Args:
        topic: of the log.
        group: its name.

    Raises:
        UsageError: the name is too long for Kafka.
    """
    name = f"{topic}.parts.{group}"
    if len(name) > _LONGEST:
        what = f"the topic of the group's parts would have a name of {len(name)} letters, and Kafka allows {_LONGEST}"
        raise UsageError(what, where=f"group {group}", mend="take a shorter name for the group")
    return name


def members_in(cluster: ClusterSettings, group: str) -> list[str]:
    """Who is a member of a group now; one that died counts until its session is over.

    Args:
        cluster: that has the log.
        group: its name.

    Raises:
        LogError, LogUnreachable: it is not told.
    """
    clients = ClusterClients(cluster)
    try:
        return [member.client_id for member in members_of(clients, parts_topic(cluster.topic, group))]
    finally:
        clients.close()


def have_parts(clients: ClusterClients, name: str, parts: int) -> None:
    """Sees to it that the topic is there, and has the right number of partitions; makes it if it is missing.

    Args:
        clients: of the cluster.
        name: of the topic.
        parts: how many partitions it has to have.

    Raises:
        UsageError: it has another number.
        LogError: it may not be made or looked at, or Kafka does not take the name.
        LogUnreachable: the cluster does not answer.
    """
    from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415 - an extra
    from confluent_kafka.admin import NewTopic  # noqa: PLC0415

    deadline = time.monotonic() + clients.settings.answer_seconds
    while True:
        found = describe_topics(clients, [name]).get(name)
        if found is not None:
            require_parts(name, clients.settings.bootstrap, len(found.partitions), parts)
            return
        if time.monotonic() > deadline:
            raise clients.unreachable(f"topic {name} was made, and is not there")
        try:
            make_topics(clients, [NewTopic(name, parts, default_replicas(clients))])
        except LogError as error:
            told = error_of(cause) if isinstance(cause := error.__cause__, KafkaException) else None
            if told is None or told.code() != KafkaError.TOPIC_EXCEPTION:
                raise
            mend = "take another name for the group: Kafka takes . and _ for the same in the names of topics"
            raise LogError(error.what, where=f"topic {name}", mend=mend) from error
        time.sleep(_LOOK_SECONDS)


def require_parts(name: str, servers: str, found: int, parts: int) -> None:
    """Sees to it that the topic has as many partitions as the group has parts.

    Raises:
        UsageError: it has not; says what to change.
    """
    if found == parts:
        return
    raise UsageError(
        f"the group has {found} parts, and this member is to be one of a group of {parts}",
        where=f"topic {name} at {servers}",
        mend=f"give {found} parts, as all members do, or take another name for the group; to have {parts} under this "
        "one, end all of its members, delete the topic, and have all rows read again",
    )
