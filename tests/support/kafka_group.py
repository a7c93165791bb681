"""A group whose members read from Kafka, and have their parts from its coordinator; see `support.group_rig`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription

from support.group_rig import Group
from support.kafka_log import KafkaEngine

#: The shortest that a broker takes with the settings that Kafka comes with: its sessions are of six seconds at least.
LEASE = 5.0

#: In which the coordinator hands out what somebody had who was not heard of any more.
SESSION = LEASE * 1.1 + 1

LONG_LEASE = 30.0  # which is over for nobody, be the machine as busy as it may


class KafkaGroup(Group):
    """Members of one group on a cluster.

    Args:
        folder: for the files of all.
        bootstrap: addresses of brokers.
        lease: of members.
    """

    def __init__(self, folder: Path, bootstrap: str, lease: float = LEASE) -> None:
        super().__init__(folder, KafkaEngine(bootstrap, folder / "log"), lease)
        self.bootstrap = bootstrap
        self.asked = Asked(bootstrap)
        self.topic = f"{self.source.engine.cluster.topic}.parts.orders"

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}/{self.source.engine.cluster.topic}"

    def close_server(self) -> None:
        """The cluster is that of others too."""

    def held(self) -> dict[str, list[int]]:
        return self.asked.held(self.topic)

    @property
    def admin(self) -> AdminClient:
        return self.asked.admin

    def told(self) -> str:
        return f"--- the coordinator\n{self.asked.described(self.topic)}\n{super().told()}"

    def tokens(self) -> dict[int, int]:
        """The last one of each part, by the coordinator's word."""
        with closing(Consumer({**self.asked.options, "group.id": self.topic})) as client:
            parts = client.list_topics(self.topic, timeout=30).topics[self.topic].partitions
            told = client.committed([TopicPartition(self.topic, number) for number in parts], timeout=30)
        return {one.partition: one.offset for one in told if one.offset >= 0}


class Asked:
    """A cluster that is asked about groups.

    Args:
        bootstrap: addresses of brokers.
    """

    def __init__(self, bootstrap: str) -> None:
        self.options: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": lambda _: None}
        self.admin = AdminClient(self.options)

    def held(self, group: str) -> dict[str, list[int]]:
        """The parts of each member that the coordinator counts; none while it does not answer."""
        try:
            told = self._told(group)
        except KafkaException:
            return {}
        return {one.client_id: [part.partition for part in one.assignment.topic_partitions] for one in told.members}

    def described(self, group: str) -> str:
        """What the coordinator says of a group, to be read."""
        try:
            told = self._told(group)
        except KafkaException as error:
            return str(error)
        members = [(one.client_id, one.member_id, one.assignment.topic_partitions) for one in told.members]
        return f"{told.state}: {members}"

    def _told(self, group: str) -> ConsumerGroupDescription:
        try:
            return self.admin.describe_consumer_groups([group], request_timeout=15)[group].result()
        except KafkaException:
            self.admin = AdminClient(self.options)  # one that knew a broker that died may wait for it for good
            raise
