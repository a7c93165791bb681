"""The sending half of the sink: one Kafka transaction at a time, which has rows, ends and the checkpoint.

Records go to librdkafka as they come, which sends them while more are made. Whatever fails is told by the next call,
and gives the producer up: then nothing is known of the transaction. Who takes the transactional id again (`begin`)
ends it, one way or the other, and reads in PREFIX.checkpoint which.

**An acknowledgement without an offset is none.** A broker that knows nothing of a producer yet takes any batch as its
first one (KAFKA-15591). Where it has just made a partition, it may refuse the first batch, as not being its leader yet,
and take the one behind that; librdkafka concludes that the first one must be there too, and tells it as delivered,
without an offset. So the first record of a partition goes alone, and a transaction with such a record is given up.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from walbus.consumers.sinks.kafka_cluster import SinkClients
from walbus.consumers.sinks.kafka_reading import Place, ends_of
from walbus.errors import Fenced, LogUnreachable, WalbusError
from walbus.relay.kafka.cluster import producer_errors, told_by
from walbus.topics.records import Headers

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer
    from confluent_kafka import Message as KafkaMessage

_QUEUE_SECONDS = 0.1
_LOOK_SECONDS = 0.002


class Sender:
    """See the module.

    Args:
        clients: of the cluster.
    """

    def __init__(self, clients: SinkClients) -> None:
        self._clients = clients
        self._producer: Producer | None = None
        self._open = False  # whether a transaction is
        self._failure: KafkaError | None = None
        self._topics: set[str] = set()  # which the transaction has records for
        self._begun: set[Place] = set()  # partitions that know the producer
        self._untold = False  # whether a record was told as delivered, but not where it lies
        self.ends: dict[Place, int] = {}  #: offsets behind what the transaction has in each partition

    @property
    def leads(self) -> bool:
        """Whether it has the transactional id, as far as it knows."""
        return self._producer is not None

    @property
    def topics(self) -> set[str]:
        """Those that the open transaction has records for."""
        return self._topics if self._open else set()

    def begin(self) -> None:
        """Takes the transactional id: what another process sends under it from now on is refused.

        A transaction that was open under it is over then: committed, if its commit had been asked for, or aborted.

        Raises:
            LogError, LogUnreachable
        """
        producer = self._clients.writer()
        seconds = self._clients.settings.answer_seconds
        try:
            producer.list_topics(timeout=seconds)  # without a connection the next call begins with a pause
            producer.init_transactions(seconds)
        except producer_errors() as error:
            needs = f"Write on the transactional id {self._clients.transactional_id}"
            told = told_by(error, producer)
            raise self._clients.told("the cluster does not begin transactions", told, needs) from None
        self._producer, self._open, self.ends, self._failure, self._begun = producer, False, {}, None, set()

    def send(  # noqa: PLR0913, PLR0917 - what a record has
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers = (), when: int = 0
    ) -> None:
        """Hands a record over, and waits for no answer.

        Args:
            topic: where it goes.
            partition: likewise.
            key: its bytes.
            value: likewise; None deletes the key.
            headers: names and values.
            when: Unix milliseconds; 0 for now.

        Raises:
            LogUnreachable: the cluster takes nothing.
            LogError: it refuses.
            Fenced: another process may have the transactional id.
        """
        if self._failure is not None:
            raise self._given_up("a record was not taken", self._failure)
        producer = self._required()
        deadline = time.monotonic() + self._clients.settings.answer_seconds
        while True:
            try:
                if not self._open:
                    self._open, self._topics, self._untold, self.ends = True, set(), False, {}
                    producer.begin_transaction()
                producer.produce(
                    topic,
                    value,
                    key,
                    partition,
                    on_delivery=self._delivered,
                    timestamp=when,
                    headers=list(headers),
                )
                self._topics.add(topic)
                producer.poll(0)
            except BufferError:
                if time.monotonic() > deadline:
                    self._drop()
                    raise self._clients.unreachable("the cluster takes no records") from None
                self._serve(producer)
            except producer_errors() as error:
                raise self._given_up("a record was not taken", told_by(error, producer)) from None
            else:
                break
        if (topic, partition) not in self._begun:
            self._await_taken(producer)
            self._begun.add((topic, partition))

    def _await_taken(self, producer: Producer) -> None:
        """Waits until all that was sent is acknowledged."""
        try:
            left = producer.flush(self._clients.settings.answer_seconds)
        except producer_errors() as error:
            raise self._given_up("records are not taken", told_by(error, producer)) from None
        if left or self._failure is not None:
            raise self._given_up("records are not taken", self._failure)

    def _serve(self, producer: Producer) -> None:
        """Waits a moment for room in the queue."""
        try:
            producer.poll(_QUEUE_SECONDS)
        except producer_errors() as error:
            raise self._given_up("records are not taken", told_by(error, producer)) from None

    def _delivered(self, error: KafkaError | None, message: KafkaMessage) -> None:
        if error is not None:
            if error.code() not in _taken_back():
                self._failure = self._failure or error
            return
        offset, place = message.offset(), (str(message.topic()), int(message.partition() or 0))
        if offset is None or offset < 0:
            self._untold = True
            return
        self.ends[place] = max(self.ends.get(place, 0), offset + 1)

    def commit(self) -> None:
        """Makes all that was sent durable and seen, at once; blocks until it is.

        Raises:
            LogUnreachable: it is not known whether it is.
            LogError: the cluster refuses a record.
            Fenced: another process may have the transactional id.
        """
        producer, seconds = self._required(), self._clients.settings.answer_seconds
        self._await_taken(producer)
        if self._untold:
            raise self._given_up("a record is acknowledged, but not where it lies", None)
        try:
            producer.commit_transaction(seconds)
            producer.poll(0)
        except producer_errors() as error:
            raise self._given_up("a commit is not acknowledged", self._failure or told_by(error, producer)) from None
        self._open = False
        try:
            self._await_sight(time.monotonic() + seconds)
        except BaseException:
            self._drop()  # else who reads what was committed may do so before it is seen, and take it for lost
            raise

    def _await_sight(self, deadline: float) -> None:
        """Waits until readers see it: the partitions are told of a commit a moment later."""
        places = set(self.ends)
        while places:
            stable = ends_of(self._clients, places, committed=True)
            places = {place for place in places if stable[place] < self.ends[place]}
            if places and time.monotonic() > deadline:
                raise self._clients.unreachable(f"what was committed to {min(places)[0]} is not seen")
            time.sleep(_LOOK_SECONDS if places else 0)

    def abort(self) -> None:
        """Takes back what was sent since the last commit. Never raises.

        What is still on its way is sent first: an abort that meets it there may wait for it in vain, until its own time
        is over.
        """
        if not self._open or self._producer is None:
            return
        seconds = self._clients.settings.answer_seconds
        try:
            if self._producer.flush(seconds):
                self._drop()
            else:
                self._producer.abort_transaction(seconds)
                self._producer.poll(0)
        except producer_errors():
            self._drop()  # whoever begins again ends it
        self._open, self._failure, self.ends = False, None, {}

    def close(self) -> None:
        """Takes back what was sent, and frees the connections. Never raises."""
        self.abort()
        self._drop()

    def _required(self) -> Producer:
        if self._producer is None:
            raise self._clients.unreachable("the transaction broke off")
        return self._producer

    def _given_up(self, what: str, error: KafkaError | None) -> WalbusError:
        """The error for a transaction that came to nothing, or of which nothing is known."""
        if error is not None and self._producer is not None:
            error = told_by(error, self._producer)
        self._drop()
        if error is not None and error.code() in _refusals():
            return Fenced(f"{what}: {error.str()}", where=self._clients.settings.bootstrap, mend="end this process")
        told = self._clients.told(what, error, f"Write on the topics {self._clients.settings.topic}.*")
        if error is None and not isinstance(told, LogUnreachable):
            return self._clients.unreachable(what)
        return told

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        self._open, self._failure = False, None
        if producer is not None:
            producer.purge()


def _refusals() -> frozenset[int]:
    """Codes by which the cluster refuses a process that another one has followed, or a transaction that timed out."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    return frozenset(
        (
            KafkaError._FENCED,
            KafkaError._STATE,
            KafkaError.PRODUCER_FENCED,
            KafkaError.INVALID_PRODUCER_EPOCH,
            KafkaError.INVALID_TXN_STATE,
            KafkaError.INVALID_PRODUCER_ID_MAPPING,
        )
    )


def _taken_back() -> frozenset[int]:
    """Codes of records that were not sent any more."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    return frozenset((KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT))
