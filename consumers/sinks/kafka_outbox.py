"""What leaves for the cluster: records of rows, and an end behind those of each transaction.

A sink learns with the checkpoint alone which log it is written from. Until it knows, records wait here for a commit,
so that their header names the log; what is too much to wait goes without that header.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

from walbus.consumers.sinks.kafka_rows import Stray
from walbus.consumers.sinks.kafka_sender import Sender
from walbus.events import Window
from walbus.position import Position
from walbus.records import Kind
from walbus.topics import Cause, RecordMaker, TopicRecord

_WAITING_BYTES: Final = 32 << 20


class Outbox:
    """See the module.

    Args:
        sender: of the transaction.
        maker: of the records.
        ended: up to where ends were told.
    """

    def __init__(self, sender: Sender, maker: RecordMaker, ended: Position) -> None:
        self._sender, self._maker = sender, maker
        self.ended = ended  #: up to where ends are told, with the next commit
        self._counts: Counter[str] = Counter()
        self._waiting: list[tuple[TopicRecord, int]] = []
        self._bytes = 0
        self._ends: list[tuple[Window, Counter[str]]] = []

    def begin(self, window: Window) -> None:
        """A window, or a piece of one, comes."""
        if window.begins:
            self._counts = Counter()

    def put(self, record: TopicRecord, partitions: int, *, counts: bool) -> None:
        """Sends a record.

        Args:
            record: what is sent.
            partitions: of its topic.
            counts: whether it is one of those that the transaction's end tells.
        """
        if counts:
            self._counts[record.topic] += 1
        partition = record.partition(partitions)
        if self._maker.log_id is not None or self._bytes > _WAITING_BYTES:
            self._send(record, partition)
            return
        self._waiting.append((record, partition))
        self._bytes += len(record.key) + len(record.value or b"")
        if self._bytes > _WAITING_BYTES:
            self._send_waiting()

    def bury(self, topic: str, stray: Stray, cause: Cause) -> None:
        """Deletes a key where it stands, whoever wrote it there; the log is known."""
        headers = self._maker.framed(topic, b"", stray.key, None, cause, (("walbus.key", b""),)).headers
        self._sender.send(topic, stray.partition, stray.key, None, headers, cause.time)

    def end(self, window: Window) -> None:
        """The window has been put. A transaction that was told before, and comes again, has no other end."""
        if window.kind is Kind.TRANSACTION and window.ends and self._counts:
            if window.last > self.ended:
                self._ends.append((window, self._counts))
                self.ended = window.last
            self._counts = Counter()

    def settle(self, log_id: str) -> None:
        """Sends what waits; all of it is of this log."""
        self._maker.log_id = log_id
        self._send_waiting()
        for window, counts in self._ends:
            self._send(self._maker.end(window, counts), 0)
        self._ends = []

    def _send_waiting(self) -> None:
        header = self._maker.log_header()
        for record, partition in self._waiting:
            self._send(replace(record, headers=(*record.headers, *header)), partition)
        self._waiting = []

    def _send(self, record: TopicRecord, partition: int) -> None:
        self._sender.send(record.topic, partition, record.key, record.value, record.headers, record.time)
