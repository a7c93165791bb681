"""Rules about the cluster of a log on Kafka, and about a schema registry: facts in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from walbus.amounts import counted, human_seconds
from walbus.capture.doctor import Finding, Mend
from walbus.capture.doctor.findings import advice, error, ok, refused, shell, warning
from walbus.errors import WalbusError
from walbus.relay.kafka.held_offset import Held
from walbus.relay.kafka.topics import TopicState, mending, rules

#: Seconds that the brokers' clock may be ahead of ours.
_AHEAD = 2.0
_COPIES = 3


@dataclass(frozen=True, slots=True)
class KafkaFacts:
    """The cluster of a log.

    Attributes:
        place: addresses of brokers.
        brokers: how many answer.
        names: of the log's topics; the last one is compacted.
        topics: those that are there.
        writers: who writes the log now.
        transaction_seconds: that are configured.
        most_seconds: that the brokers allow a transaction; None: they do not tell.
        ahead: seconds that the brokers' clock is ahead of ours at least, by the newest message; None without one.
        taken: the refusal of a table whose topic would be the log's.
        hold: what a bootstrap that reads the cluster holds, or what keeps that from being told; None: nothing.
        holders: which bootstrap does so now.
        group: by whose offset.
    """

    place: str
    brokers: int
    names: tuple[str, str, str]
    topics: tuple[TopicState, ...]
    writers: tuple[str, ...]
    transaction_seconds: float
    most_seconds: float | None
    ahead: float | None
    taken: WalbusError | None = None
    hold: Held | WalbusError | None = None
    holders: tuple[str, ...] = ()
    group: str = ""


def kafka_findings(facts: KafkaFacts | WalbusError) -> Iterator[Finding]:
    """All about the cluster; or why it cannot be asked."""
    if isinstance(facts, WalbusError):
        yield refused("kafka-cluster", facts)
        return
    yield ok("kafka-cluster", f"{counted(facts.brokers, 'broker')} at {facts.place} answer")
    there = {topic.name: topic for topic in facts.topics}
    for name in facts.names:
        yield from _topic(name, there.get(name), facts)
    yield from _transactions(facts)
    yield ok("kafka-writer", " and ".join(facts.writers) + " writes the log" if facts.writers else "nobody writes it")
    yield from _hold(facts)
    yield from _clock(facts)
    if facts.taken is None:
        yield ok("kafka-topic-names", "no table has a topic that is one of the log's")
    else:
        yield refused("kafka-topic-names", facts.taken)


def registry_findings(url: str, problem: WalbusError | None) -> Iterator[Finding]:
    """Whether the schema registry lets us in."""
    if problem is None:
        yield ok("schema-registry", f"{url} answers")
    else:
        yield refused("schema-registry", problem)


def _topic(name: str, topic: TopicState | None, facts: KafkaFacts) -> Iterator[Finding]:
    if topic is None:
        yield ok("kafka-topics", f"{name} is made at the start")
        return
    if topic.partitions != 1:
        mend = advice("name another topic with relay.kafka.topic, or delete this one if it is not in use")
        yield error("kafka-topics", f"it has {topic.partitions} partitions, and the log is one order", mend, of=[name])
        return
    needed = rules(compacted=name == facts.names[-1], replicas=topic.replicas, largest=1 << 20)
    wrong = [rule for rule in needed if not rule.holds(topic.settings[rule.name])]
    for rule in wrong:
        found = f"{rule.name} is {topic.settings[rule.name]}: {rule.why}"
        yield error("kafka-topics", found, shell(mending(name, [rule])), of=[name])
    yield from _copies(topic, facts)
    if not wrong:
        yield ok("kafka-topics", f"{name} has the settings that the log needs")


def _copies(topic: TopicState, facts: KafkaFacts) -> Iterator[Finding]:
    needed = int(topic.settings["min.insync.replicas"])
    if topic.in_sync < needed:
        found = f"{topic.in_sync} of {topic.replicas} copies are in sync, and a commit takes {needed}"
        yield error("kafka-copies", found, advice("start the brokers that are away"), of=[topic.name])
    elif topic.in_sync < topic.replicas:
        found = f"{topic.in_sync} of {topic.replicas} copies are in sync"
        yield warning("kafka-copies", found, advice("start the brokers that are away"), of=[topic.name])
    elif topic.replicas < min(facts.brokers, _COPIES):
        found = f"it lies on {topic.replicas} of {facts.brokers} brokers: what is confirmed is gone with them"
        yield warning("kafka-copies", found, advice("add copies with kafka-reassign-partitions.sh"), of=[topic.name])
    else:
        yield ok("kafka-copies", f"{topic.name} is in sync on {counted(topic.replicas, 'broker')}")


def _transactions(facts: KafkaFacts) -> Iterator[Finding]:
    if facts.most_seconds is None:
        return
    if facts.most_seconds < facts.transaction_seconds:
        found = (
            f"the brokers allow a transaction {facts.most_seconds:g} s, and {facts.transaction_seconds:g} are asked for"
        )
        lower = Mend("config", f"relay.kafka.transaction_seconds = {facts.most_seconds:g}")
        yield error("kafka-transactions", found, lower, advice("or raise transaction.max.timeout.ms on the brokers"))
    else:
        yield ok("kafka-transactions", f"the brokers allow a transaction {facts.most_seconds:g} s")


def _hold(facts: KafkaFacts) -> Iterator[Finding]:
    hold = facts.hold
    if isinstance(hold, WalbusError):
        yield refused("kafka-hold", hold)
    elif hold is None:
        yield ok("kafka-hold", "no bootstrap that reads the cluster holds the log")
    elif facts.holders:
        yield ok("kafka-hold", f"{' and '.join(facts.holders)} holds what comes behind {hold.text or hold.offset}")
    else:
        found = f"what comes behind {hold.text or hold.offset} is held for a bootstrap that does not run"
        let_go = f"kafka-consumer-groups.sh --bootstrap-server {facts.place} --delete --group {facts.group}"
        yield warning("kafka-hold", found, advice("start it; if it is gone for good, let go"), shell(let_go))


def _clock(facts: KafkaFacts) -> Iterator[Finding]:
    if facts.ahead is None:
        return
    if facts.ahead > _AHEAD:
        found = f"the brokers' clock is {human_seconds(facts.ahead)} ahead of this machine's, or more"
        yield warning("kafka-clock", found, advice("run NTP on both"))
    else:
        yield ok("kafka-clock", "the brokers' clock is not ahead of this machine's")
