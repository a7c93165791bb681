"""Sends messages in Kafka transactions, and knows of each what became of it.

A message is kept until its transaction is known to be committed. When a commit's answer is lost (the broker died, the
connection broke, the transaction timed out) nobody can say by the answer alone whether it happened. So the next attempt
begins under the same transactional id, which makes the cluster bring the old transaction to its end, and reads back the
last committed message of a topic that it wrote to: where it is this transaction's, all of it was committed and nothing
is sent again; else nothing of it was, and all of it is sent once more.

A message that is acknowledged without an offset may be nowhere (see `walbus.consumers.sinks.kafka_sender`): no commit
is asked for then, and all of it is sent once more.

Being refused as a zombie can mean that another writer took over, or that a transaction of ours timed out: TOPIC.meta
says who writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import structlog

from walbus.errors import Fenced, LogUnreachable
from walbus.relay.kafka.cluster import ClusterClients, producer_errors, told_by
from walbus.relay.kafka.mark import HEADER, pack_mark
from walbus.relay.kafka.messages import Message
from walbus.relay.kafka.partition import Places, ends_of

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer
    from confluent_kafka import Message as KafkaMessage

_log = structlog.get_logger(__name__)

_QUEUE_SECONDS = 0.1
_TOOK_OVER = "another capture took the log over"


class _Kept(NamedTuple):
    """What was given to be sent."""

    topic: str
    value: bytes
    header: bytes | None
    key: bytes | None


class Transactions:
    """The writer's sending half: one transaction at a time.

    Args:
        clients: of the cluster.
        largest: bytes of a batch that the topics take.
        writer: a random number that names this writer.
        who_writes: reads TOPIC.meta anew, and says which writer it names; None before the first.
    """

    def __init__(
        self, clients: ClusterClients, largest: int, writer: int, who_writes: Callable[[], int | None]
    ) -> None:
        self._clients, self._largest, self._who_writes = clients, largest, who_writes
        self.writer = writer  #: names this writer
        self._attempts = 0
        self._producer: Producer | None = None
        self._kept: list[_Kept] = []
        self._number = 1  # of the transaction that is being gathered
        self._sent = 0  # how many of the kept ones the producer has, in an open transaction
        self.doubtful = False  #: whether the last commit may have happened, so that nothing can be added now
        self._failure: KafkaError | None = None
        self._offsets: dict[str, int] = {}  # of the last message of each topic in the transaction
        self._untold = False  # whether a message was told as delivered, but not where it lies
        self.bytes = 0  #: of the messages that are kept

    def begin(self) -> None:
        """Takes the transactional id: what another writer under it does from now on is refused.

        Raises:
            LogUnreachable: the cluster does not answer.
        """
        producer = self._clients.producer(self._largest)
        try:
            producer.list_topics(
                timeout=self._clients.settings.answer_seconds
            )  # without a connection the next call begins with a pause
            producer.init_transactions(self._clients.settings.answer_seconds)
        except producer_errors() as error:
            needs = f"Write on the transactional id {self._clients.settings.transactional_id}"
            told = told_by(error, producer)
            raise self._clients.told("the cluster does not begin transactions", told, needs) from None
        self._producer, self._sent = producer, 0

    def add(self, topic: str, message: Message) -> None:
        """Takes a message of the log, and sends it on without waiting for it."""
        mark = message.mark._replace(writer=self.writer, number=self._number)
        self._add(_Kept(topic, message.value, pack_mark(mark), None))

    def add_document(self, topic: str, document: tuple[bytes, bytes]) -> None:
        """Takes a document of TOPIC.meta, as key and value."""
        self._add(_Kept(topic, document[1], None, document[0]))

    def _add(self, kept: _Kept) -> None:
        if self.doubtful:
            raise ValueError("it is not known whether the last transaction was committed")
        self._kept.append(kept)
        self.bytes += len(kept.value)

    def next_attempt(self) -> int:
        """A number for a try at a large transaction, which no other one has."""
        self._attempts += 1
        return (self.writer + self._attempts) % (1 << 63)

    def send(self) -> None:
        """Hands what is kept to librdkafka, which sends it while more is gathered; what fails is told by `commit`."""
        if self.doubtful or self._producer is None:
            return
        try:
            self._send(self._producer)
        except BufferError:
            return  # the queue is bounded: the rest goes with the commit
        except producer_errors() as error:
            self._failure = told_by(error, self._producer)
            self._give_up_producer()

    def _send(self, producer: Producer) -> None:
        if self._sent == 0 and self._kept:
            self._failure, self._offsets, self._untold = None, {}, False
            producer.begin_transaction()
        for kept in self._kept[self._sent :]:
            self._produce(producer, kept)
            self._sent += 1
        producer.poll(0)

    def _produce(self, producer: Producer, kept: _Kept) -> None:
        headers: dict[str, str | bytes | None] | None = None if kept.header is None else {HEADER: kept.header}
        producer.produce(kept.topic, kept.value, kept.key, 0, on_delivery=self._delivered, headers=headers)

    def _send_all(self, producer: Producer) -> None:
        """As `_send`; waits while the queue is full."""
        deadline = time.monotonic() + self._clients.settings.answer_seconds
        while True:
            try:
                self._send(producer)
            except BufferError:
                if time.monotonic() > deadline:
                    raise self._clients.unreachable("the cluster takes no records") from None
                producer.poll(_QUEUE_SECONDS)
            else:
                return

    def _delivered(self, error: KafkaError | None, message: KafkaMessage) -> None:
        offset, topic = message.offset(), message.topic()
        if error is not None:
            if error.code() not in _taken_back():
                self._failure = self._failure or error
        elif topic is None or offset is None or offset < 0:
            self._untold = True
        else:
            self._offsets[topic] = max(self._offsets.get(topic, -1), offset)

    def commit(self) -> None:
        """Makes everything that was added since the last time durable and seen, all at once.

        Raises:
            LogUnreachable: it is not known to be durable; everything is kept, and the next call goes on.
            Fenced: another writer took over.
        """
        if not self._kept:
            return
        if (self.doubtful or self._producer is None) and self._settled():
            self._forget()
            return
        self._commit()
        self._forget()

    def check(self) -> None:
        """Sees that nobody took over; Fenced if somebody did."""
        if self._who_writes() != self.writer:
            raise Fenced(_TOOK_OVER, where=self._where(), mend="end this process")

    def _commit(self) -> None:
        producer = self._producer
        assert producer is not None  # noqa: S101 - `_settled` made one
        try:
            self._send_all(producer)
            if producer.flush(self._clients.settings.answer_seconds):  # what of these is told later would be missed
                raise self._clients.unreachable("messages are not acknowledged")
            if self._untold:
                raise self._clients.unreachable("a message is acknowledged, but not where it lies")
            self.doubtful = True
            producer.commit_transaction(self._clients.settings.answer_seconds)
        except LogUnreachable:
            self._give_up_producer()
            raise
        except producer_errors() as error:
            told = told_by(error, producer)
            why = told if self._failure is None else told_by(self._failure, producer)
            self._give_up_producer()
            if any(one is not None and one.code() in _refusals() for one in (why, told)):
                self.check()  # else a transaction of ours timed out
            needs = f"Write on the topics {', '.join(sorted({kept.topic for kept in self._kept}))}"
            raise self._clients.told("a commit is not acknowledged", why, needs) from None
        self._await_sight()
        self.doubtful = False

    def _settled(self) -> bool:
        """Brings the transaction that is in doubt to its end; whether it was committed."""
        self.check()
        self.begin()
        self.check()  # whoever took over in between is fenced now, and begins anew: it has read where the log ends
        if not self.doubtful:
            return False
        committed = self._is_last()
        _log.info("kafka_commit_settled", transaction=self._number, committed=committed)
        self.doubtful = False
        return committed

    def _is_last(self) -> bool:
        """Whether the last committed message of a topic that it wrote to is of this transaction."""
        topics = [kept.topic for kept in self._kept if kept.header is not None]
        if not topics:
            return False  # documents are written again: the same ones under the same keys
        places = Places(self._clients, topics[-1])
        try:
            (ends,) = ends_of(self._clients, topics[-1])
            last = places.last(ends)
        finally:
            places.close()
        return last is not None and (last[1].writer, last[1].number) == (self.writer, self._number)

    def _await_sight(self) -> None:
        """Waits until readers see the last message, whose transaction is marked as ended shortly after the commit."""
        deadline = time.monotonic() + self._clients.settings.answer_seconds
        topics = list(self._offsets)
        while any(
            ends.stable <= self._offsets[topic]
            for topic, ends in zip(topics, ends_of(self._clients, *topics), strict=True)
        ):
            if time.monotonic() > deadline:
                raise self._clients.unreachable(f"what was committed to {topics[0]} is not seen")
            time.sleep(0.001)

    def _forget(self) -> None:
        self._kept, self._sent, self.bytes, self._offsets = [], 0, 0, {}
        self._number += 1

    def _give_up_producer(self) -> None:
        producer, self._producer, self._sent = self._producer, None, 0
        if producer is not None:
            producer.purge()

    def close(self) -> None:
        """Frees its connections; what is not committed is not sent any more."""
        self._give_up_producer()

    def _where(self) -> str:
        settings = self._clients.settings
        return f"topic {settings.topic} at {settings.bootstrap}"


def _taken_back() -> tuple[int, ...]:
    """Codes of messages that were not sent any more, as what was told of another one is why."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    return KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT


def _refusals() -> frozenset[int]:
    """Codes by which the cluster refuses a zombie, or a transaction that timed out."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    return frozenset(
        (
            KafkaError._FENCED,
            KafkaError.PRODUCER_FENCED,
            KafkaError.INVALID_PRODUCER_EPOCH,
            KafkaError.INVALID_TXN_STATE,
            KafkaError.INVALID_PRODUCER_ID_MAPPING,
        )
    )
