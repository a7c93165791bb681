"""The topics of the sink: made with the settings that they need, or checked against them.

PREFIX.SCHEMA.TABLE   rows by key; compacted
PREFIX.transactions   ends of transactions; Kafka's retention may drop old ones
PREFIX.checkpoint     where the writer is; one partition, compacted

Behind a rebuild the first two have the prefix of their generation (`kafka_generations`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from walbus.consumers.sinks.kafka_cluster import SinkClients
from walbus.consumers.sinks.kafka_options import KafkaOptions
from walbus.consumers.sinks.kafka_reading import read_committed
from walbus.errors import LogError
from walbus.relay.kafka.topics import (
    Rule,
    check_settings,
    default_replicas,
    describe_topics,
    make_topics,
    topic_settings,
)
from walbus.topics import TopicNames

if TYPE_CHECKING:
    from confluent_kafka.admin import TopicDescription

_LOOK_SECONDS = 0.05
_SEGMENT, _MOST_SEGMENT = 4 << 20, 64 << 20


class TopicFacts(NamedTuple):
    """A topic that is there.

    Attributes:
        id: that a topic of the same name which is made later does not have.
        partitions: how many it has.
        made: whether it was made just now.
    """

    id: str
    partitions: int
    made: bool


def needed_settings(*, compacted: bool, replicas: int, largest: int) -> list[Rule]:
    """What the settings of a topic have to be.

    Args:
        compacted: whether it is one of rows, or of checkpoints.
        replicas: copies that it has.
        largest: bytes of a message that it has to take.
    """
    needed = 2 if replicas > 2 else 1
    policy = "compact" if compacted else "delete"
    why = "Kafka would drop rows that nothing writes again" if compacted else "no two ends have one key"
    clock, told = (
        ("CreateTime", "a record's time is that of its commit")
        if compacted
        else ("LogAppendTime", "Kafka's retention would drop ends of transactions that are old already")
    )
    return [
        Rule("min.insync.replicas", str(needed), lambda v: needed <= int(v) <= replicas,
             f"what is committed must be on {needed} of its {replicas} brokers"),
        Rule("unclean.leader.election.enable", "false", lambda v: v == "false",
             "a broker that was left behind could become the leader, and rows would be gone"),
        Rule("max.message.bytes", str(largest), lambda v: int(v) >= largest,
             f"the sink's max_message_bytes is {largest}"),
        Rule("message.timestamp.type", clock, lambda v: v == clock, told),
        Rule("cleanup.policy", policy, lambda v: v == policy, why),
    ]  # fmt: skip


class SinkTopics:
    """Makes and checks topics.

    Args:
        clients: of the cluster.
        options: of the sink.
        prefix: of topics of rows and ends.
        home: prefix of the topic of checkpoints; None: that of the sink.
    """

    def __init__(self, clients: SinkClients, options: KafkaOptions, prefix: str, home: str | None = None) -> None:
        self._clients, self._options = clients, options
        self._names, self._home = TopicNames(prefix), home or options.prefix

    @property
    def transactions(self) -> str:
        """The topic of transactions' ends."""
        return self._names.transactions

    @property
    def checkpoint(self) -> str:
        """The topic of checkpoints; no table has it, since it has one dot behind the prefix."""
        return f"{self._home}.checkpoint"

    def of_table(self, namespace: str, name: str) -> str:
        """The topic of a table, whose names are unquoted."""
        return self._names.of_table(namespace, name)

    def ensure(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        """Makes what is missing of these, and checks all.

        Raises:
            LogError: the cluster refuses, or a setting is wrong; names the topic, and the command that mends it.
            LogUnreachable: it does not answer.
        """
        wanted = list(dict.fromkeys(names))
        there = describe_topics(self._clients, wanted)
        absent = [name for name in wanted if name not in there]
        if absent:
            self._make(absent)
            there = self._seen(wanted)
        settings = topic_settings(self._clients, wanted)
        for name in wanted:
            self._check(there[name], settings[name])
        return {
            name: TopicFacts(str(there[name].topic_id), len(there[name].partitions), name in absent) for name in wanted
        }

    def has_records(self, topic: str, partitions: int) -> bool:
        """Whether anything is committed to a topic.

        Raises:
            LogError, LogUnreachable
        """
        places = {(topic, number): 0 for number in range(partitions)}
        return any(True for _ in read_committed(self._clients, places))

    def _make(self, names: list[str]) -> None:
        from confluent_kafka.admin import NewTopic  # noqa: PLC0415

        replicas = self._options.replication or default_replicas(self._clients)
        made = []
        for name in names:
            settings = {rule.name: rule.value for rule in self._needed(name, replicas)}
            partitions = 1 if name in {self.transactions, self.checkpoint} else self._options.partitions
            made.append(NewTopic(name, partitions, replicas, config=settings))
        make_topics(self._clients, made)

    def _seen(self, names: list[str]) -> dict[str, TopicDescription]:
        """Topics that were made, once the broker that is asked knows them and their leaders."""
        deadline = time.monotonic() + self._options.answer_seconds
        while True:
            there = describe_topics(self._clients, names)
            if len(there) == len(names) and all(_led(topic) for topic in there.values()):
                return there
            if time.monotonic() > deadline:
                missing = [name for name in names if name not in there or not _led(there[name])]
                raise self._clients.unreachable(f"topic {missing[0]} was made, and has no leader")
            time.sleep(_LOOK_SECONDS)

    def _check(self, topic: TopicDescription, found: dict[str, str]) -> None:
        name = str(topic.name)
        check_settings(self._clients, name, found, self._needed(name, len(topic.partitions[0].replicas)))
        if name == self.checkpoint and len(topic.partitions) != 1:
            what = f"topic {name} has {len(topic.partitions)} partitions, and one checkpoint has one place"
            mend = "give the sink another prefix, or delete this topic if nothing of this prefix is in use"
            raise LogError(what, where=self._options.bootstrap_servers, mend=mend)

    def _needed(self, name: str, replicas: int) -> list[Rule]:
        compacted = name != self.transactions
        found = needed_settings(compacted=compacted, replicas=replicas, largest=self._options.max_message_bytes)
        if name == self.checkpoint:
            found.append(
                Rule("segment.bytes", str(_SEGMENT), lambda v: int(v) <= _MOST_SEGMENT,
                     "each start reads it, and the last segment is not compacted")
            )  # fmt: skip
        return found


def _led(topic: TopicDescription) -> bool:
    return bool(topic.partitions) and all(partition.leader is not None for partition in topic.partitions)
