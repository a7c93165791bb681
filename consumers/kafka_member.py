"""What a member of a group says to Kafka's coordinator, and what it hears, in Walbus's own terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from walbus.consumers.part_tokens import CommitRefused
from walbus.errors import LogError, LogUnreachable, UsageError, WalbusError
from walbus.relay.kafka.cluster import ClusterClients, error_of

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition


class KafkaOffsets:
    """The offsets of a group; see `walbus.consumers.part_tokens.Offsets`.

    Args:
        consumer: the member.
        clients: of the cluster.
        topic: whose partitions are the parts.
        seconds: for which an answer is waited for.
    """

    def __init__(self, consumer: Consumer, clients: ClusterClients, topic: str, seconds: float) -> None:
        self._consumer, self._clients, self._topic, self._seconds = consumer, clients, topic, seconds

    def committed(self, parts: Sequence[int]) -> Mapping[int, int]:
        """See `Offsets.committed`."""
        from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra

        asked = [TopicPartition(self._topic, part) for part in parts]
        what = f"the tokens of {self._topic} are not told"
        with self._asking(what):
            found = self._consumer.committed(asked, timeout=self._seconds)
        for one in found:
            if one.error is not None:
                raise self._told(what, one.error)
        return {one.partition: one.offset for one in found if one.offset >= 0}

    def commit(self, offsets: Mapping[int, int]) -> None:
        """See `Offsets.commit`."""
        from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415

        given = [TopicPartition(self._topic, part, offset) for part, offset in offsets.items()]
        try:
            answers = self._consumer.commit(offsets=given, asynchronous=False)
        except KafkaException as error:
            raise self._refused(error_of(error)) from error
        for one in answers or ():
            if one.error is not None:
                raise self._refused(one.error)

    def partitions(self) -> int:
        """How many the topic has.

        Raises:
            LogUnreachable: the cluster does not answer, or the topic is gone.
        """
        what = f"topic {self._topic} is not described"
        with self._asking(what):
            topic = self._consumer.list_topics(self._topic, timeout=self._seconds).topics[self._topic]
        if topic.error is not None:
            raise self._told(what, topic.error)
        return len(topic.partitions)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        from confluent_kafka import KafkaException  # noqa: PLC0415

        try:
            yield
        except KafkaException as error:
            raise self._told(what, error_of(error)) from error

    def _refused(self, error: KafkaError | None) -> Exception:
        from confluent_kafka import KafkaError  # noqa: PLC0415

        none_any_more = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION)
        if error is not None and error.code() in (*none_any_more, KafkaError.REBALANCE_IN_PROGRESS):
            return CommitRefused(error.str(), is_gone=error.code() in none_any_more)
        return self._told(f"the tokens of {self._topic} are not taken", error)

    def _told(self, what: str, error: KafkaError | None) -> WalbusError:
        if error is not None and _names_no_topic(error):
            return gone(self._clients)
        return self._clients.told(what, error, _needed(error, self._topic))


def partitions_of(partitions: Sequence[TopicPartition]) -> list[int]:
    """Their numbers."""
    return [one.partition for one in partitions]


def heed(message: Message, clients: ClusterClients, topic: str) -> None:
    """What the client tells of the membership; what comes right by itself is left to it.

    Args:
        message: came in the place of one.
        clients: of the cluster.
        topic: of the parts, as the group is called too.

    Raises:
        LogUnreachable: this membership leads to nothing, and another one may.
        UsageError, LogError: the cluster does not let it be a member.
    """
    error = message.error()
    if error is not None and (told := _told(error, clients, topic)) is not None:
        raise told


def _told(error: KafkaError, clients: ClusterClients, topic: str) -> WalbusError | None:
    from confluent_kafka import KafkaError  # noqa: PLC0415

    what = f"the cluster does not let it be a member: {error.str()}"
    where = f"group {topic} at {clients.settings.bootstrap}"
    if error.code() == KafkaError.INVALID_SESSION_TIMEOUT:
        mend = (
            "take a longer lease (lease_seconds; 5 is enough for a broker with the settings that Kafka comes with), "
            "or set group.min.session.timeout.ms and group.max.session.timeout.ms of the brokers"
        )
        return UsageError(what, where=where, mend=mend)
    if error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
        mend = "end the other programs that are members of this group: it is Walbus's own, or take another name"
        return LogError(what, where=where, mend=mend)
    if error.code() == KafkaError.GROUP_MAX_SIZE_REACHED:
        return LogError(what, where=where, mend="let fewer processes join, or raise group.max.size of the brokers")
    away = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT)
    if error.code() in away or error.code() == KafkaError._MAX_POLL_EXCEEDED:
        return None
    return gone(clients) if _names_no_topic(error) else clients.told(what, error, _needed(error, topic))


def _needed(error: KafkaError | None, topic: str) -> str:
    """What it takes; the group is called as its topic."""
    on_group = error is not None and error.code() == error.GROUP_AUTHORIZATION_FAILED
    return f"Read on the {'group' if on_group else 'topic'} {topic}"


def _names_no_topic(error: KafkaError) -> bool:
    from confluent_kafka import KafkaError  # noqa: PLC0415

    kinds = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
    return error.code() in kinds


def gone(clients: ClusterClients) -> LogUnreachable:
    """The error for a topic that somebody deleted: another membership makes it anew."""
    return clients.unreachable("the topic of the group's parts is gone")
