"""Answers of a cluster that librdkafka passes on without an error though they tell no offset."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException

from walbus.consumers.sinks import kafka_reading
from walbus.consumers.sinks.kafka_reading import read_committed
from walbus.consumers.sinks.kafka_sender import Sender
from walbus.errors import Fenced, LogUnreachable
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings, told_by
from walbus.relay.kafka.partition import Ends, ends_of
from walbus.relay.kafka.transactions import Transactions


class Clients(ClusterClients):
    """Clients of no cluster.

    Args:
        offsets: told to one question after the other; ends are two: the first offset and the stable one.
        delivered: offset of each message.
        answer_seconds: how long an answer is waited for.
    """

    def __init__(self, offsets: Iterable[int], delivered: int = 0, answer_seconds: float = 60.0) -> None:
        super().__init__(ClusterSettings("127.0.0.1:1", "log", answer_seconds=answer_seconds))
        self._offsets, self.delivered = iter(offsets), delivered
        self.committed = self.flushed = 0  # how often
        self.slow = False  # nothing is acknowledged in time

    @property
    def admin(self):
        return self

    def list_offsets(self, asked, **_):
        told = {at: Future() for at in asked}
        for answer in told.values():
            answer.set_result(SimpleNamespace(offset=next(self._offsets)))
        return told

    def producer(self, _largest):
        return _Producer(self)

    writer = partialmethod(producer, 0)


class _Producer:
    """Takes everything, and commits it."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._reports = []

    def produce(self, topic, _value, _key, partition, *, on_delivery, **__):
        offset = self._clients.delivered
        message = SimpleNamespace(topic=lambda: topic, partition=lambda: partition, offset=lambda: offset)
        self._reports.append(lambda: on_delivery(None, message))

    def flush(self, _seconds):
        self._clients.flushed += 1
        if self._clients.slow:
            return len(self._reports)
        while self._reports:
            self._reports.pop(0)()
        return 0

    def commit_transaction(self, _seconds):
        self._clients.committed += 1

    def __getattr__(self, name):
        return lambda *_, **__: None


@pytest.mark.parametrize("none", [(OFFSET_INVALID, 7), (3, OFFSET_INVALID), (OFFSET_INVALID, OFFSET_INVALID)])
def test_an_end_of_a_topic_that_is_not_told_is_asked_for_again(none):
    assert ends_of(Clients([*none, 3, 7]), "log") == [Ends(3, 7)]


def test_an_end_of_a_topic_that_is_never_told_is_a_cluster_out_of_reach():
    with pytest.raises(LogUnreachable, match="the ends of log are not told"):
        ends_of(Clients(itertools.cycle([0, OFFSET_INVALID]), answer_seconds=0.0), "log")


class NewTopic(Clients):
    """Clients of a cluster whose leaders of a topic do not know yet that they are."""

    def __init__(self, answers: Iterable[int | Exception], **more: float) -> None:
        super().__init__([], **more)
        self._answers = iter(answers)

    def list_offsets(self, asked, **_):
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        self._offsets = itertools.repeat(answer)
        return super().list_offsets(asked)


NO_LEADER = KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))


def test_ends_of_a_topic_that_was_just_made_are_asked_for_again():
    answers = [NO_LEADER, OFFSET_INVALID, NO_LEADER, 7, 8]
    clients = NewTopic(answers)
    assert kafka_reading._told_ends(clients, [("log", 0)], committed=True, needs="") == {("log", 0): 7}
    assert list(clients._answers) == [8]


def test_ends_of_a_topic_that_nobody_leads_for_good_are_a_cluster_out_of_reach():
    clients = NewTopic(itertools.repeat(NO_LEADER), answer_seconds=0.1)
    with pytest.raises(LogUnreachable, match=r"the ends of partitions are not told: .*[Nn]ot leader"):
        kafka_reading._told_ends(clients, [("log", 0)], committed=True, needs="")


def sending(clients: Clients) -> Transactions:
    """A sender that is to commit a message next."""
    sender = Transactions(clients, 1 << 20, 1, lambda: 1)
    sender.begin()
    sender.add_document("log.meta", (b"key", b"value"))
    return sender


def test_a_commit_is_over_when_readers_see_the_last_message():
    clients = Clients([0, 5, 0, 5, 0, 6], delivered=5)
    sender = sending(clients)
    sender.commit()
    assert (sender.doubtful, sender.bytes, list(clients._offsets)) == (False, 0, [])


def test_a_transaction_whose_messages_were_acknowledged_without_offsets_is_not_committed():
    clients = Clients(itertools.cycle([0, 5]), delivered=OFFSET_INVALID)
    sender = sending(clients)
    with pytest.raises(LogUnreachable, match="not where it lies"):
        sender.commit()
    assert (sender.doubtful, sender.bytes, clients.committed) == (False, 5, 0)
    clients.delivered = 4
    sender.commit()
    assert (sender.doubtful, sender.bytes, clients.committed) == (False, 0, 1)


def test_a_transaction_whose_messages_are_acknowledged_too_late_is_not_committed():
    clients = Clients(itertools.cycle([0, 5]), delivered=4)
    sender, clients.slow = sending(clients), True
    with pytest.raises(LogUnreachable, match="messages are not acknowledged"):
        sender.commit()
    assert (sender.doubtful, sender.bytes, clients.committed) == (False, 5, 0)
    clients.slow = False
    sender.commit()
    assert (sender.doubtful, sender.bytes, clients.committed) == (False, 0, 1)


def test_a_sinks_commit_is_over_when_readers_see_the_last_record_though_a_leader_did_not_answer():
    clients = Clients([5, OFFSET_INVALID, 6], delivered=5)
    sender = Sender(clients)
    sender.begin()
    sender.send("topic", 0, b"key", b"value")
    sender.commit()
    assert (sender.leads, sender.ends, list(clients._offsets)) == (True, {("topic", 0): 6}, [])


def test_a_sinks_transaction_whose_records_were_acknowledged_without_offsets_is_not_committed():
    clients = Clients([], delivered=OFFSET_INVALID)
    sender = Sender(clients)
    sender.begin()
    sender.send("topic", 0, b"key", b"value")
    with pytest.raises(LogUnreachable, match="not where it lies"):
        sender.commit()
    assert (sender.leads, clients.committed) == (False, 0)


def test_a_sink_sends_the_first_record_of_a_partition_alone():
    clients = Clients([], delivered=3)
    sender = Sender(clients)
    sender.begin()
    waited = []
    for partition in (0, 0, 1, 0, 1):
        sender.send("topic", partition, b"key", b"value")
        waited.append(clients.flushed)
    assert waited == [1, 1, 2, 2, 2]
    sender.begin()
    sender.send("topic", 0, b"key", b"value")
    assert clients.flushed == 3


def out_of_reach() -> Iterator[int]:
    """A cluster that goes away behind a commit."""
    raise KafkaException(KafkaError(KafkaError._TRANSPORT))
    yield 0


@pytest.mark.parametrize("offsets", [itertools.repeat(5), out_of_reach()], ids=["not seen", "not told"])
def test_a_sinks_commit_that_nobody_has_seen_is_ended_before_it_is_read_whether_it_was(offsets: Iterator[int]):
    sender = Sender(Clients(offsets, delivered=5, answer_seconds=0.1))
    sender.begin()
    sender.send("topic", 0, b"key", b"value")
    with pytest.raises(LogUnreachable):
        sender.commit()
    assert not sender.leads  # who has to begin again waits for the end of what was before


@pytest.mark.parametrize(
    ("left", "steps", "leads"), [(0, ["flush", "abort", "poll"], True), (3, ["flush", "purge"], False)]
)
def test_what_a_sink_takes_back_is_sent_first_for_an_abort_may_wait_for_it_in_vain(
    left: int, steps: list[str], leads: bool
):
    sender, done = Sender(Clients([])), list[str]()
    sender.begin()
    sender.send("topic", 0, b"key", b"value")
    producer = SimpleNamespace(
        flush=lambda _: done.append("flush") or left,
        abort_transaction=lambda _: done.append("abort"),
        poll=lambda _: done.append("poll"),
        purge=lambda: done.append("purge"),
    )
    sender._producer = producer
    sender.abort()
    assert (done, sender.leads) == (steps, leads)


def test_a_fatal_error_that_a_record_meets_is_asked_for_and_told_as_what_it_is():
    fenced, fatal = KafkaError(KafkaError._FENCED), KafkaError(KafkaError._FATAL)

    def begin_transaction() -> None:
        raise KafkaException(fenced)

    producer: Any = SimpleNamespace(begin_transaction=begin_transaction)
    told = [told_by(error, producer) for error in (KafkaException(fatal), fatal, SystemError())]
    assert [error and error.code() for error in told] == [KafkaError._FENCED] * 3
    other = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    found = told_by(other, producer)
    assert found is not None
    assert found.code() == KafkaError._TIMED_OUT


class _Followed:
    """A producer that another one has followed: its message is told no more than that there is a fatal error."""

    def __init__(self) -> None:
        self._report = None

    def produce(self, topic, *_, on_delivery, **__):
        message = SimpleNamespace(topic=lambda: topic, partition=lambda: 0, offset=lambda: OFFSET_INVALID)
        self._report = lambda: on_delivery(KafkaError(KafkaError._FATAL), message)

    def begin_transaction(self):
        if self._report is not None:
            raise KafkaException(KafkaError(KafkaError._FENCED, "it was followed"))

    def commit_transaction(self, _seconds):
        self._report()
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def __getattr__(self, name):
        return lambda *_, **__: None


@pytest.mark.parametrize(
    ("writes", "kind", "why"),
    [
        (2, Fenced, "another capture took the log over"),
        (1, LogUnreachable, "a commit is not acknowledged: it was followed"),
    ],
    ids=["another one writes", "its own transaction was given up"],
)
def test_a_fatal_error_that_a_message_meets_is_asked_for_and_told_as_what_it_is(writes, kind, why):
    clients = Clients([])
    clients.producer = lambda _largest: _Followed()
    sender = Transactions(clients, 1 << 20, 1, lambda: writes)
    sender.begin()
    sender.add_document("log.meta", (b"key", b"value"))
    with pytest.raises(kind, match=why):
        sender.commit()
    assert (sender.doubtful, sender.bytes) == (True, 5)


class _Leader:
    """A consumer of a leader that learns late how far its partition is committed; `offsets` of what it gives."""

    def __init__(self, *offsets: int, ends: Iterable[int]) -> None:
        self._told = [*((offset, None) for offset in offsets), *((end, KafkaError._PARTITION_EOF) for end in ends)]
        self._told.sort(key=lambda one: (one[0], one[1] is None))

    def poll(self, _seconds):
        offset, error = self._told.pop(0)
        return SimpleNamespace(
            topic=lambda: "topic",
            partition=lambda: 0,
            offset=lambda: offset,
            error=lambda: error and KafkaError(error),
            key=lambda: b"key",
            value=lambda: b"value",
            headers=lambda: (),
            timestamp=lambda: (1, 0),
        )

    def __getattr__(self, name):
        return lambda *_, **__: None


@pytest.mark.parametrize("told", [[5], [OFFSET_INVALID, 5]], ids=["at once", "by the next leader"])
def test_a_partition_is_read_to_the_end_that_its_leader_tells_and_not_to_where_that_one_reads_yet(told):
    clients = Clients(told)
    clients.consumer = lambda **_: _Leader(0, 1, 3, ends=[2, 5])
    assert [record.next for record in read_committed(clients, {("topic", 0): 0})] == [1, 2, 4]
