"""Logs of the Kafka engine for tests, in topics of their own on a real broker; as `relay_log.FileEngine`.

engine = KafkaEngine(kafka, tmp_path)
writer = engine.open_writer()
engine.kill(writer)                      # buffers are lost, an open transaction stays open
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from support.relay_log import SOURCE
from walbus.errors import LogUnreachable
from walbus.log import SourceIdentity
from walbus.relay.kafka import open_kafka_reader, open_kafka_writer
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.topics import TopicPlan
from walbus.relay.kafka.writer import KafkaLogWriter
from walbus.relay.lease import Clock


class KafkaEngine:
    """The Kafka engine on a cluster.

    Args:
        bootstrap: addresses of brokers.
        folder: for the log's local files.
        block_bytes: small, so that a test meets several messages; and so is what cursors fetch ahead.
    """

    name = "kafka"

    def __init__(self, bootstrap: str, folder: Path, *, block_bytes: int = 64 << 10) -> None:
        self.folder = folder
        self.cluster = ClusterSettings(bootstrap, f"walbus-test-{secrets.token_hex(6)}", ahead_bytes=64 << 10)
        self.block_bytes = block_bytes
        self.large_bytes = 8 << 20
        self.kept_bytes = 32 << 20
        self.plan = TopicPlan()
        self.retention_hours = 1.0
        self.retention_bytes: int | None = None
        self.compression_level: int | None = None
        self.lease_seconds = 10.0
        self.ask_seconds = 60.0  # for its hold; a writer that found the cluster slow would trim nothing
        self.clock = Clock()
        self._opened: list[KafkaLogWriter | KafkaLogReader] = []

    def open_writer(self, source: SourceIdentity = SOURCE) -> KafkaLogWriter:
        writer = open_kafka_writer(
            self.cluster,
            source,
            folder=self.folder,
            retention_hours=self.retention_hours,
            retention_bytes=self.retention_bytes,
            compression_level=self.compression_level,
            plan=self.plan,
            lease_seconds=self.lease_seconds,
            block_bytes=self.block_bytes,
            large_bytes=self.large_bytes,
            kept_bytes=self.kept_bytes,
            clock=self.clock,
        )
        writer._settings.trimming._ask_seconds = self.ask_seconds
        self._opened.append(writer)
        return writer

    def open_reader(self) -> KafkaLogReader:
        reader = open_kafka_reader(self.cluster)
        self._opened.append(reader)
        return reader

    def kill(self, writer: KafkaLogWriter) -> None:
        """As the death of a process of this machine: nothing is committed or aborted, and the lock does not hold."""
        writer._broken = "killed by the test"
        writer.close()

    def close(self) -> None:
        for opened in reversed(self._opened):
            if isinstance(opened, KafkaLogWriter):
                self.kill(opened)
            else:
                opened.close()

    def units(self) -> int:
        """Of how many messages the log consists."""
        reader = self.open_reader()
        view, offset, count = reader.view(), -1, 0
        while found := reader.places.first(view.ends._replace(first=max(offset + 1, view.ends.first)), lambda _: True):
            offset, count = found[0], count + 1
        return count

    def another(self) -> KafkaEngine:
        """The same engine with a log of its own."""
        made = KafkaEngine(self.cluster.bootstrap, self.folder.with_name("another"))
        made.cluster = dataclasses.replace(made.cluster, options=self.cluster.options)
        return made


def patiently(action: Callable[[], object]) -> None:
    """Does it as capture does: again, as long as the cluster is away."""
    deadline = time.monotonic() + 120
    while True:
        try:
            action()
        except LogUnreachable:
            assert time.monotonic() < deadline
        else:
            return
