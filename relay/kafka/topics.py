"""The log's topics: made with the settings that it needs, or checked against them.

Kafka's own retention must not touch them: it would drop changes that a reader was promised, and knows nothing of
holds. The log's writer deletes by `relay.retention_hours` and `relay.retention_bytes` instead (DeleteRecords).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from walbus.errors import LogError, LogUnreachable
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings, error_of, missing

if TYPE_CHECKING:
    from confluent_kafka.admin import ConfigEntry, NewTopic, TopicDescription


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


class TopicState(NamedTuple):
    """A topic as it is.

    Attributes:
        name: of it.
        partitions: how many.
        replicas: copies of its first partition.
        in_sync: how many of these are in sync.
        settings: by name.
    """

    name: str
    partitions: int
    replicas: int
    in_sync: int
    settings: Mapping[str, str]


_LEAST_MESSAGE = 64 << 10
_LOOK_SECONDS = 1.0


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
        from confluent_kafka.admin import NewTopic  # noqa: PLC0415

        described = self._described()
        absent = [name for name in self._names if name not in described]
        if not absent:
            return
        replicas = plan.replicas or default_replicas(self._clients)
        made_with = {name: self._made_with(name, replicas, plan.largest) for name in absent}
        make_topics(self._clients, [NewTopic(name, 1, replicas, config=made_with[name]) for name in absent])

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
        settings = topic_settings(self._clients, self._names)
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
        compacted = name == self._clients.settings.meta
        needed = rules(compacted=compacted, replicas=len(topic.partitions[0].replicas), largest=1 << 20)
        check_settings(self._clients, name, found, needed)

    def states(self) -> list[TopicState]:
        """Those that are there, as they are.

        Raises:
            LogError: something may not be looked at.
            LogUnreachable: the cluster does not answer.
        """
        described = self._described()
        there = [name for name in self._names if name in described]
        settings = topic_settings(self._clients, there) if there else {}
        return [_state(described[name], settings[name]) for name in there]

    def _described(self) -> dict[str, TopicDescription]:
        return describe_topics(self._clients, self._names)


class SameTopic:
    """Sees, about once a second, that the log's topic was not deleted and made again.

    Args:
        clients: of the cluster.
        topic_id: of the topic that holds the log.
        monotonic: seconds.
    """

    def __init__(self, clients: ClusterClients, topic_id: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clients, self._topic_id, self._monotonic = clients, topic_id, monotonic
        self._looked = monotonic()

    def check(self) -> None:
        """Asks, if that was a while ago. A cluster that does not answer, or has no such topic, is told by others.

        Raises:
            LogError: it was made again.
        """
        now, topic = self._monotonic(), self._clients.settings.topic
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            found = describe_topics(self._clients, [topic]).get(topic)
        except LogUnreachable:
            return
        if found is not None and str(found.topic_id) != self._topic_id:
            self._looked = now - _LOOK_SECONDS
            raise made_again(self._clients.settings)


def made_again(cluster: ClusterSettings) -> LogError:
    """The error for a topic that is not the one that held the log."""
    return LogError(
        f"topic {cluster.topic} was deleted and made again: what the log held is lost",
        where=cluster.bootstrap,
        mend=f"delete {cluster.topic}, {cluster.meta} and {cluster.large}: capture begins a new log, and consumers "
        "bootstrap",
    )


def check_settings(clients: ClusterClients, name: str, found: Mapping[str, str], needed: Iterable[Rule]) -> None:
    """Sees that a topic has the settings that it needs.

    Raises:
        LogError: names the topic, the setting, and the command that mends it.
    """
    wrong = [rule for rule in needed if not rule.holds(found[rule.name])]
    if wrong:
        what = "; ".join(f"{rule.name} is {found[rule.name]}: {rule.why}" for rule in wrong)
        where = f"topic {name} at {clients.settings.bootstrap}"
        raise LogError(what, where=where, mend=f"run {mending(name, wrong)}")


def mending(name: str, wrong: Iterable[Rule]) -> str:
    """The command that mends settings of a topic."""
    change = ",".join(f"{rule.name}={rule.value}" for rule in wrong)
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {change}"


def describe_topics(clients: ClusterClients, names: Iterable[str]) -> dict[str, TopicDescription]:
    """Those of the topics that are there.

    Raises:
        LogError, LogUnreachable
    """
    from confluent_kafka import KafkaError, KafkaException, TopicCollection  # noqa: PLC0415

    asked = clients.admin.describe_topics(
        TopicCollection(list(names)), request_timeout=clients.settings.answer_seconds
    )  # fmt: skip
    found = {}
    for name, answer in asked.items():
        try:
            found[name] = answer.result()
        except KafkaException as error:
            told = error_of(error)
            if told is None or told.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise clients.told(f"topic {name} is not described", told, f"Describe on the topic {name}") from error
    return found


def make_topics(clients: ClusterClients, topics: Iterable[NewTopic]) -> None:
    """Makes topics that are not there; one that somebody else has made meanwhile will do.

    Raises:
        LogError, LogUnreachable
    """
    from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415

    made = clients.admin.create_topics(list(topics), request_timeout=clients.settings.answer_seconds)
    for name, done in made.items():
        try:
            done.result()
        except KafkaException as error:
            told = error_of(error)
            if told is None or told.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise clients.told(f"topic {name} cannot be made", told, f"Create on the topic {name}") from error
    clients.admin.poll(0)


def default_replicas(clients: ClusterClients) -> int:
    """Copies of a topic of which nobody has said how many: as many as there are brokers, three at most.

    Raises:
        LogUnreachable
    """
    with clients.asking("the brokers are not told"):
        return min(len(clients.admin.list_topics(timeout=clients.settings.answer_seconds).brokers), 3)


def topic_settings(clients: ClusterClients, names: Iterable[str], *, own: bool = False) -> dict[str, dict[str, str]]:
    """The settings of topics that are there.

    Args:
        clients: of the cluster.
        names: of the topics.
        own: those alone that a topic was given itself.

    Raises:
        LogError, LogUnreachable
    """
    from confluent_kafka.admin import ConfigResource, ResourceType  # noqa: PLC0415

    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    needs = f"DescribeConfigs on the topics {', '.join(resource.name for resource in resources)}"
    with clients.asking("the settings of topics are not told", needs):
        asked = clients.admin.describe_configs(resources, request_timeout=clients.settings.answer_seconds)
        found = {resource.name: answer.result() for resource, answer in asked.items()}
    return {
        name: {key: entry.value or "" for key, entry in entries.items() if not own or _is_own(entry)}
        for name, entries in found.items()
    }


def _is_own(entry: ConfigEntry) -> bool:
    from confluent_kafka.admin import ConfigSource  # noqa: PLC0415

    return ConfigSource(entry.source) is ConfigSource.DYNAMIC_TOPIC_CONFIG


def _state(topic: TopicDescription, settings: Mapping[str, str]) -> TopicState:
    first = topic.partitions[0]
    return TopicState(topic.name, len(topic.partitions), len(first.replicas), len(first.isr), settings)
