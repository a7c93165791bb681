"""Reads what is committed to topics, from given offsets up to their ends as they are now."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from walbus.errors import LogUnreachable
from walbus.relay.kafka.cluster import ClusterClients

if TYPE_CHECKING:
    from confluent_kafka import Message

_WAIT_SECONDS = 0.05  # of a broker, at the end

#: A partition of a topic.
Place = tuple[str, int]


class Committed(NamedTuple):
    """A committed record.

    Attributes:
        place: where it lies.
        next: the offset behind it.
        key, value: its bytes; no value deletes the key.
        headers: by name.
        time: Unix milliseconds.
    """

    place: Place
    next: int
    key: bytes
    value: bytes | None
    headers: Mapping[str, bytes]
    time: int


def ends_of(
    clients: ClusterClients, places: Collection[Place], *, committed: bool, needs: str = ""
) -> dict[Place, int]:
    """Where partitions end now; negative where no leader told it.

    Args:
        clients: of the cluster.
        places: asked for.
        committed: for those who read what is committed; else with what is open yet.
        needs: what it takes, for the error.

    Raises:
        LogUnreachable: the cluster does not answer.
        LogError: it refuses.
    """
    from confluent_kafka import IsolationLevel, TopicPartition  # noqa: PLC0415
    from confluent_kafka.admin import OffsetSpec  # noqa: PLC0415

    with clients.asking("the ends of partitions are not told", needs):
        asked = clients.admin.list_offsets(
            {TopicPartition(topic, number): OffsetSpec.latest() for topic, number in places},
            isolation_level=IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED,
            request_timeout=clients.settings.answer_seconds,
        )
        found = {(at.topic, at.partition): answer.result().offset for at, answer in asked.items()}
    if min(found.values()) < 0:  # a leader that died before it answered is no error to librdkafka
        clients.forget_leaders()
    return found


def read_committed(
    clients: ClusterClients, begin: Mapping[Place, int], *, open_too: bool = False
) -> Iterator[Committed]:
    """All committed records of partitions from offsets on, of each partition in its order, up to where they end now.

    The ends are asked for first: a broker that has just become a leader may not know yet how far its partition is
    committed, and tells that to who asks, but not to who reads.

    Args:
        clients: of the cluster.
        begin: the first offset of each.
        open_too: up to the end of what is not committed yet, which is waited for, as who is not the writer needs: what
            is committed is in one partition before it is in another.

    Raises:
        LogUnreachable: nothing comes.
        LogError: the cluster refuses.
    """
    from confluent_kafka import KafkaError, TopicPartition  # noqa: PLC0415

    if not begin:
        return
    needs = f"Read on the topics {', '.join(sorted({topic for topic, _ in begin}))}"
    through = _told_ends(clients, begin, committed=not open_too, needs=needs)
    left = set(begin)
    seconds = clients.settings.answer_seconds
    consumer = clients.consumer(wait_seconds=_WAIT_SECONDS)
    try:
        with clients.asking("topics cannot be read", needs):
            consumer.assign([TopicPartition(topic, number, offset) for (topic, number), offset in begin.items()])
            deadline = time.monotonic() + seconds
            while left:
                message = consumer.poll(0.1)
                if message is None:
                    if time.monotonic() > deadline:
                        raise clients.unreachable(f"{len(left)} partitions are not read to their ends")
                    continue
                error = message.error()
                if error is None:
                    deadline = time.monotonic() + seconds
                    yield _committed(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    place = (str(message.topic()), int(message.partition() or 0))
                    if int(message.offset() or 0) >= through[place]:
                        left.discard(place)
                elif error.fatal() or error.code() not in _passing():
                    if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                        needs = f"Describe on the group {clients.settings.readers_group}"
                    raise clients.told("topics cannot be read", error, needs)
    finally:
        consumer.close()


def _told_ends(clients: ClusterClients, places: Collection[Place], *, committed: bool, needs: str) -> dict[Place, int]:
    """As `ends_of`, once every leader has told it; one of a topic that was just made says first that it is none."""
    deadline = time.monotonic() + clients.settings.answer_seconds
    while True:
        try:
            ends = ends_of(clients, places, committed=committed, needs=needs)
            why = clients.unreachable("the ends of partitions are not told")
        except LogUnreachable as error:
            ends, why = {}, error
        if ends and min(ends.values()) >= 0:
            return ends
        if time.monotonic() > deadline:
            raise why
        time.sleep(_WAIT_SECONDS)


def _committed(message: Message) -> Committed:
    headers = {name: value for name, value in dict(message.headers() or ()).items() if isinstance(value, bytes)}
    key, value = message.key(), message.value()
    return Committed(
        (str(message.topic()), int(message.partition() or 0)),
        int(message.offset() or 0) + 1,
        key if isinstance(key, bytes) else b"",
        value if isinstance(value, bytes) else None,
        headers,
        message.timestamp()[1],
    )


def _passing() -> frozenset[int]:
    """Codes of what librdkafka tells, and tries again by itself."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    return frozenset(
        (
            KafkaError._ALL_BROKERS_DOWN,
            KafkaError._TRANSPORT,
            KafkaError._RESOLVE,
            KafkaError._TIMED_OUT,
            KafkaError.NOT_LEADER_FOR_PARTITION,
            KafkaError.LEADER_NOT_AVAILABLE,
        )
    )
