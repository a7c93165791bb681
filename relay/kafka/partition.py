"""A topic's only partition, as readers see it: what is committed, and where a place of the log lies in it.

Offsets have holes (the marks of transactions, and what was aborted), so a message is asked for as "the first at or
behind an offset". The marks of the log's messages rise, so a place is found by halving; what was seen on the way is
kept.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from walbus.errors import LogUnreachable, PositionTrimmed
from walbus.relay.kafka.cluster import ClusterClients, error_of, missing
from walbus.relay.kafka.mark import HEADER, Mark, parse_mark
from walbus.relay.kafka.topics import describe_topics

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, TopicPartition
    from confluent_kafka import Message as KafkaMessage

_SEEN = 8192  #: places that are kept
_LOOK_SECONDS = 0.05  #: between two looks at a cluster whose leaders change


class Received(NamedTuple):
    """A committed message."""

    offset: int
    key: bytes | None
    value: bytes
    header: bytes | None
    topic: str

    @property
    def where(self) -> str:
        """For errors."""
        return f"topic {self.topic}, offset {self.offset}"

    @property
    def mark(self) -> Mark:
        """What it says about itself; DamagedRecord if it is none of the log's."""
        return parse_mark(self.header, self.where)


class Partition:
    """Reads one partition; not thread-safe.

    Args:
        clients: of the cluster.
        topic: of which it is the partition 0.
        wait_seconds: how long the broker waits for messages at the end.
        fetch_bytes: asked for at a time; None: as the settings say.
    """

    def __init__(
        self, clients: ClusterClients, topic: str, *, wait_seconds: float = 0.01, fetch_bytes: int | None = None
    ) -> None:
        self._clients, self._topic = clients, topic
        self._wait_seconds, self._fetch_bytes = wait_seconds, fetch_bytes
        self._consumer: Consumer | None = None
        self.next = -1  #: the offset from which the consumer reads on; -1 before the first `seek`

    def seek(self, offset: int) -> None:
        """Reads on from an offset."""
        if offset == self.next:
            return
        if self._consumer is None:
            self._consumer = self._clients.consumer(
                wait_seconds=self._wait_seconds, fetch_bytes=self._fetch_bytes
            )  # fmt: skip
        self._consumer.assign([self._at(offset)])
        self.next = offset

    def read(self, end: int, seconds: float | None = None) -> Received | None:
        """The next message below an offset that is known to be committed; None if there is none.

        Raises:
            LogUnreachable: it did not come in time.
            PositionTrimmed: what lay here is gone.
        """
        seconds = self._clients.settings.answer_seconds if seconds is None else seconds
        deadline = time.monotonic() + seconds
        while self.next < end - 1:  # the last offset is that of the mark that ends a transaction
            found = self.poll(max(deadline - time.monotonic(), 0.001))
            if found is not None:
                if found.offset < end:
                    return found
                self.seek(end)
            elif time.monotonic() >= deadline and self.next < end - 1:
                raise self._clients.unreachable(f"no message of {self._topic} came for {seconds:.0f} s")
        return None

    def poll(self, seconds: float) -> Received | None:
        """The next message; None if none came, or there is none yet (`next` says up to where)."""
        if self._consumer is None:
            raise ValueError("nothing was sought yet")
        message = self._consumer.poll(seconds)
        if message is None:
            return None
        error = message.error()
        if error is not None:
            self._failed(message)
            return None
        offset = message.offset()
        assert offset is not None  # noqa: S101 - a message that came from the cluster has one
        self.next = offset + 1
        headers = dict(message.headers() or ())
        header = headers.get(HEADER)
        return Received(
            offset, _bytes(message.key()), _bytes(message.value()) or b"", _bytes(header), self._topic
        )  # fmt: skip

    def _failed(self, message: KafkaMessage) -> None:
        from confluent_kafka import KafkaError  # noqa: PLC0415

        error = message.error()
        assert error is not None  # noqa: S101
        if error.code() == KafkaError._PARTITION_EOF:
            offset = message.offset()
            self.next = max(self.next, offset if offset is not None else 0)
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise PositionTrimmed(
                "the log no longer holds what comes next",
                where=f"topic {self._topic}, offset {self.next}",
                mend="read a snapshot from the bootstrap server, or read from `earliest`",
            )
        elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION):
            raise missing(self._clients.settings)
        elif error.fatal() or not error.retriable():
            told = self._clients.told(f"{self._topic} cannot be read", error, self._needs(error))
            if error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE):
                raise told

    def _needs(self, error: KafkaError) -> str:
        if error.code() == error.GROUP_AUTHORIZATION_FAILED:
            return f"Describe on the group {self._clients.settings.readers_group}"
        return f"Read on the topic {self._topic}"

    def _at(self, offset: int) -> TopicPartition:
        from confluent_kafka import TopicPartition  # noqa: PLC0415

        return TopicPartition(self._topic, 0, offset)

    def close(self) -> None:
        """Frees its connections."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
            self.next = -1


class Ends(NamedTuple):
    """Offsets from and up to which committed messages may lie."""

    first: int
    stable: int


def ends_of(clients: ClusterClients, *topics: str) -> list[Ends]:
    """The ends of topics' partitions now, in one round trip.

    A leader that dies before it answers is no error to librdkafka: it gives a negative offset, which is no answer.

    Raises:
        LogMissing: a topic is not there.
        LogUnreachable: the cluster does not answer.
    """
    from confluent_kafka import KafkaException  # noqa: PLC0415

    what = f"the ends of {topics[0]} are not told"
    deadline = time.monotonic() + clients.settings.answer_seconds
    while True:
        try:
            found = _ends_of(clients, topics)
        except KafkaException as error:
            _check_there(clients, topics, error_of(error))
            told = clients.told(what, error_of(error), f"Describe on the topics {', '.join(topics)}")
            if not isinstance(told, LogUnreachable) or time.monotonic() > deadline:
                raise told from error
        else:
            if all(min(ends) >= 0 for ends in found):
                return found
            if time.monotonic() > deadline:
                raise clients.unreachable(what)
        clients.forget_leaders()
        time.sleep(_LOOK_SECONDS)


def _check_there(clients: ClusterClients, topics: tuple[str, ...], error: KafkaError | None) -> None:
    """Raises LogMissing where no leader is found of a topic since there is none of that name."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    if error is None or error.code() != KafkaError._NOENT:
        return
    with suppress(LogUnreachable):
        if describe_topics(clients, topics).keys() != set(topics):
            raise missing(clients.settings)


def _ends_of(clients: ClusterClients, topics: tuple[str, ...]) -> list[Ends]:
    from confluent_kafka import IsolationLevel, TopicPartition  # noqa: PLC0415
    from confluent_kafka.admin import OffsetSpec  # noqa: PLC0415

    partitions = [TopicPartition(topic, 0) for topic in topics]
    asked = [
        clients.admin.list_offsets(
            dict.fromkeys(partitions, spec),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=clients.settings.answer_seconds,
        )
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
    ]
    firsts, stables = ({tp.topic: answer.result().offset for tp, answer in each.items()} for each in asked)
    return [Ends(firsts[topic], stables[topic]) for topic in topics]


class Places:
    """Finds messages of the log by their marks; thread-safe.

    Args:
        clients: of the cluster.
        topic: of the log, or of large transactions.
    """

    def __init__(self, clients: ClusterClients, topic: str) -> None:
        self._lock = threading.Lock()
        self._topic = topic
        self._probe = Partition(clients, topic, fetch_bytes=64 << 10)
        self._seen: list[tuple[int, Mark]] = []

    def first(self, ends: Ends, wanted: Callable[[Mark], bool]) -> tuple[int, Mark] | None:
        """Offset and mark of the first message that is wanted, as all behind it are; None if there is none."""
        with self._lock:
            low, high, found = self._narrowed(ends, wanted)
            while low < high:
                middle = (low + high) // 2
                at = self._at(middle, ends.stable)
                if at is None or at[0] >= high:
                    high = middle
                elif wanted(at[1]):
                    high, found = middle, at
                else:
                    low = at[0] + 1
            return found

    def last(self, ends: Ends) -> tuple[int, Mark] | None:
        """Offset and mark of the last message; None if there is none."""
        with self._lock:
            step = 2  # behind the last message stands the mark of its transaction
            while True:
                begin = max(ends.stable - step, ends.first)
                found = None
                at = self._at(begin, ends.stable)
                while at is not None:
                    found, at = at, self._at(at[0] + 1, ends.stable)
                if found is not None or begin == ends.first:
                    return found
                step *= 4

    def close(self) -> None:
        """Frees its connections."""
        with self._lock:
            self._probe.close()

    def _narrowed(self, ends: Ends, wanted: Callable[[Mark], bool]) -> tuple[int, int, tuple[int, Mark] | None]:
        """Between which offsets the message lies, by what was seen before."""
        seen = self._seen[bisect_left(self._seen, ends.first, key=lambda at: at[0]) :]
        after = bisect_left(seen, True, key=lambda at: wanted(at[1]))
        low = seen[after - 1][0] + 1 if after else ends.first
        found = seen[after] if after < len(seen) else None
        return max(low, ends.first), ends.stable if found is None else found[0], found

    def _at(self, offset: int, end: int) -> tuple[int, Mark] | None:
        """The first message at or behind an offset and before the end."""
        if offset >= end - 1:
            return None
        self._probe.seek(offset)
        message = self._probe.read(end)
        if message is None:
            return None
        found = message.offset, message.mark
        at = bisect_left(self._seen, found[0], key=lambda seen: seen[0])
        if at == len(self._seen) or self._seen[at][0] != found[0]:
            if len(self._seen) >= _SEEN:
                del self._seen[::2]
            insort(self._seen, found, key=lambda seen: seen[0])
        return found


def _bytes(value: object) -> bytes | None:
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else None
