"""The log's topics: made with the settings that it needs, or checked against them.

Kafka's own retention must not touch them: it would drop changes that a reader was promised, and knows nothing of
holds. The log's writer deletes by `relay.retention_hours` and `relay.retention_bytes` instead (DeleteRecords).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from walbus.errors import LogError
from walbus.relay.kafka.cluster import ClusterClients, error_of, missing

if TYPE_CHECKING:
    from confluent_kafka.admin import TopicDescription


class TopicPlan(NamedTuple):
    """How topics are made.

    Attributes:
        replicas: copies of each; None: as many as there are brokers, three at most.
        largest: bytes of a message.
    """

    replicas: int | None = None
    largest: int = 1 << 20


class Rule(NamedTuple):
    """What a setting of a topic has to be.

    Attributes:
        name: of the setting.
        value: that the topic is made with, and that a wrong one is to be changed to.
        holds: whether a value will do.
        why: what happens otherwise.
    """

    name: str
    value: str
    holds: Callable[[str], bool]
    why: str


class TopicFacts(NamedTuple):
    """What is known of the log's topics.

    Attributes:
        topic_id: of the log's topic, which a topic of the same name that is made later does not have.
        largest: bytes of a batch that all of them take.
    """

    topic_id: str
    largest: int


_LEAST_MESSAGE = 64 << 10


def _is(value: str) -> Callable[[str], bool]:
    return lambda found: found == value


def rules(*, compacted: bool, replicas: int, largest: int) -> list[Rule]:
    """What the settings of a topic have to be.

    Args:
        compacted: whether it is the one of what is known about the log.
        replicas: copies that it has.
        largest: bytes of a message that it is made for.
    """
    needed = 2 if replicas > 2 else 1
    found = [
        Rule("min.insync.replicas", str(needed), lambda v: needed <= int(v) <= replicas,
             f"what is confirmed to the source must be on {needed} of its {replicas} brokers"),
        Rule("unclean.leader.election.enable", "false", _is("false"),
             "a broker that was left behind could become the leader, and what was confirmed would be gone"),
        Rule("max.message.bytes", str(largest), lambda v: int(v) >= _LEAST_MESSAGE, "blocks of records are larger"),
        Rule("message.timestamp.type", "LogAppendTime", _is("LogAppendTime"),
             "a clock that is ahead of the broker's would make it refuse records"),
    ]  # fmt: skip
    if compacted:
        return [
            *found,
            Rule("cleanup.policy", "compact", _is("compact"), "layouts would be dropped, which rows are read with"),
        ]  # fmt: skip
    return [
        *found,
        Rule("cleanup.policy", "delete", _is("delete"), "compaction would drop changes"),
        Rule("retention.ms", "-1", _is("-1"), "Kafka would drop what is promised; relay.retention_hours does it"),
        Rule("retention.bytes", "-1", _is("-1"), "Kafka would drop what is promised; relay.retention_bytes does it"),
    ]  # fmt: skip


class Topics:
    """The three topics of a log.

    Args:
        clients: of the cluster.
    """

    def __init__(self, clients: ClusterClients) -> None:
        self._clients = clients
        self._names = clients.settings.topics

    def make_missing(self, plan: TopicPlan) -> None:
        """Makes those that are not there.

        Raises:
            LogError: the cluster refuses; says why.
            LogUnreachable: it does not answer.
        """
        from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415
        from confluent_kafka.admin import NewTopic  # noqa: PLC0415

        described = self._described()
        absent = [name for name in self._names if name not in described]
        if not absent:
            return
        with self._clients.asking("the brokers are not told"):
            brokers = len(self._clients.admin.list_topics(timeout=self._clients.settings.answer_seconds).brokers)
        replicas = plan.replicas or min(brokers, 3)
        made = self._clients.admin.create_topics(  # no name for it here: a future's error would keep it with this frame
            [NewTopic(name, 1, replicas, config=self._made_with(name, replicas, plan.largest)) for name in absent],
            request_timeout=self._clients.settings.answer_seconds,
        )
        for name, done in made.items():
            try:
                done.result()
            except KafkaException as error:
                told = error_of(error)
                if told is None or told.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._clients.told(f"topic {name} cannot be made", told) from error
        self._clients.admin.poll(0)

    def _made_with(self, name: str, replicas: int, largest: int) -> dict[str, str]:
        compacted = name == self._clients.settings.meta
        return {rule.name: rule.value for rule in rules(compacted=compacted, replicas=replicas, largest=largest)}

    def check(self) -> TopicFacts:
        """Sees that all are there and have the settings that the log needs.

        Raises:
            LogMissing: one is not there.
            LogError: names the topic, the setting, and the command that mends it.
            LogUnreachable: the cluster does not answer.
        """
        described = self._described()
        if any(name not in described for name in self._names):
            raise missing(self._clients.settings)
        settings = self._settings_of(self._names)
        for name in self._names:
            self._check(described[name], settings[name])
        largest = min(int(settings[name]["max.message.bytes"]) for name in self._names)
        return TopicFacts(str(described[self._names[0]].topic_id), largest)

    def _check(self, topic: TopicDescription, found: dict[str, str]) -> None:
        name = topic.name
        if len(topic.partitions) != 1:
            raise LogError(
                f"topic {name} has {len(topic.partitions)} partitions, and the log is one order, which has one",
                where=self._clients.settings.bootstrap,
                mend="name another topic with relay.kafka.topic, or delete this one if it is not in use",
            )
        replicas = len(topic.partitions[0].replicas)
        compacted = name == self._clients.settings.meta
        wrong = [
            r for r in rules(compacted=compacted, replicas=replicas, largest=1 << 20) if not r.holds(found[r.name])
        ]
        if wrong:
            what = "; ".join(f"{rule.name} is {found[rule.name]}: {rule.why}" for rule in wrong)
            change = ",".join(f"{rule.name}={rule.value}" for rule in wrong)
            command = f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {change}"
            raise LogError(what, where=f"topic {name} at {self._clients.settings.bootstrap}", mend=f"run {command}")

    def _described(self) -> dict[str, TopicDescription]:
        from confluent_kafka import KafkaError, KafkaException, TopicCollection  # noqa: PLC0415

        asked = self._clients.admin.describe_topics(
            TopicCollection(list(self._names)), request_timeout=self._clients.settings.answer_seconds
        )  # fmt: skip
        found = {}
        for name, answer in asked.items():
            try:
                found[name] = answer.result()
            except KafkaException as error:
                told = error_of(error)
                if told is None or told.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._clients.told(f"topic {name} is not described", told) from error
        return found

    def _settings_of(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        from confluent_kafka.admin import ConfigResource, ResourceType  # noqa: PLC0415

        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        with self._clients.asking("the settings of topics are not told"):
            asked = self._clients.admin.describe_configs(
                resources, request_timeout=self._clients.settings.answer_seconds
            )
            return {
                r.name: {k: entry.value or "" for k, entry in answer.result().items()} for r, answer in asked.items()
            }
