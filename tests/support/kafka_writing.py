"""Writing into Kafka while it is disturbed, and a judge of what is committed that shares no code with the engine.

writing = Writing(small(cluster.bootstrap, folder), rng)
...                                                # brokers are killed
writing.stop()
assert commits(committed(engine.cluster)) == writing.written
"""

from __future__ import annotations

import dataclasses
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from support.kafka_log import KafkaEngine, patiently
from support.relay_log import piece, transaction
from support.waiting import wait_for
from walbus.records import Flag, RecordHeader, check_record
from walbus.relay.kafka.cluster import ClusterSettings, producer_errors

_REFERENCE = 1


class LosesExceptions:
    """A producer whose first exception is lost, as confluent-kafka loses some: the call fails and does not say why.

    Args:
        producer: does all of it, and knows why.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer, self._lost = producer, False

    def __getattr__(self, name: str) -> Any:
        given = getattr(self._producer, name)
        if self._lost:
            return given

        def called(*arguments: Any, **options: Any) -> object:
            try:
                return given(*arguments, **options)
            except producer_errors():
                self._lost = True
                raise SystemError("returned NULL without setting an exception") from None

        return called


def committed(settings: ClusterSettings) -> list[RecordHeader]:
    """The headers of all records of the log, by a plain consumer and the page that describes the topics alone."""
    return [check_record(record) for record in _records(settings)]


def _records(settings: ClusterSettings) -> Iterator[bytes]:
    parts: list[bytes] = []
    for value, mark in _messages(settings, settings.topic, 0, None):
        if mark[1] == _REFERENCE:
            first, end = struct.unpack("<QQ", value)
            values = [v for v, m in _messages(settings, settings.large, first, end) if m[28:36] == mark[28:36]]
            yield from _split(b"".join(values))
            continue
        parts.append(value)
        part, of = struct.unpack_from("<II", mark, 4)
        if part + 1 == of:
            yield from _split(b"".join(parts))
            parts = []


def _split(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset + 4)
        yield data[offset : offset + length]
        offset += length


def _messages(settings: ClusterSettings, topic: str, first: int, end: int | None) -> Iterator[tuple[bytes, bytes]]:
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap,
            "group.id": "judge",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            "log_level": 0,
        }
    )
    with closing(consumer):
        consumer.assign([TopicPartition(topic, 0, first)])
        while True:
            message = consumer.poll(60)
            assert message is not None, "the cluster does not answer"
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                return
            if end is not None and message.offset() >= end:
                return
            yield message.value(), dict(message.headers())["walbus"]


class Writing:
    """A thread that writes transactions of different sizes until it is told to stop."""

    def __init__(self, engine: KafkaEngine, rng: random.Random) -> None:
        self.engine, self._rng = engine, rng
        self.writer = engine.open_writer()
        self.written: list[int] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._write(len(self.written) * 16 + 16)
            patiently(self.writer.sync)
        except BaseException as error:
            self.error = error

    def _write(self, lsn: int) -> None:
        if self._rng.random() < 0.05:
            for first in range(1, 201, 10):
                flags = (Flag.BEGIN if first == 1 else 0) | (Flag.END if first == 191 else 0)
                given = piece(lsn, first, 10, flags, size=1000)
                patiently(lambda given=given: self.writer.append(given))
        else:
            patiently(lambda: self.writer.append(transaction(lsn, self._rng.randrange(1, 30))))
        self.written.append(lsn)
        if self._rng.random() < 0.3:
            patiently(self.writer.sync)

    def wait_for_more(self, count: int) -> None:
        """Until so many more transactions were written."""
        wanted = len(self.written) + count
        wait_for(lambda: len(self.written) >= wanted or self.error is not None, 120, what="the writer goes on")
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(180)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def small(bootstrap: str, folder: Path) -> KafkaEngine:
    """An engine that meets large transactions and full buffers soon, and notices soon that the cluster is away."""
    engine = KafkaEngine(bootstrap, folder, block_bytes=8 << 10)
    engine.large_bytes, engine.kept_bytes = 50_000, 150_000
    engine.cluster = dataclasses.replace(engine.cluster, answer_seconds=4.0)
    return engine
