"""The reading half of the Kafka engine, for any process that reaches the cluster."""

from __future__ import annotations

import time

from walbus.log import Bounds, SourceIdentity
from walbus.position import Position
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.cursor import KafkaCursor
from walbus.relay.kafka.layouts import KafkaLayouts
from walbus.relay.kafka.meta import LogDocument, Meta
from walbus.relay.kafka.partition import Partition, Places
from walbus.relay.kafka.view import View, Views

_WATCH_SECONDS = 0.5  #: the broker answers a watch at the latest after this


class KafkaLogReader:
    """See `walbus.log.LogReader`. `wait` may be called by one thread at a time, everything else by any.

    Args:
        clients: of the cluster.
        meta: what is known about the log.
        log: which one it is.
    """

    def __init__(self, clients: ClusterClients, meta: Meta, log: LogDocument) -> None:
        self._clients, self._log = clients, log
        self.meta = meta  #: what is known about the log
        self._places = Places(clients, clients.settings.topic)
        self._views = Views(clients, self._places, log)
        self._watch = Partition(clients, clients.settings.topic, wait_seconds=_WATCH_SECONDS)
        self._schemas = KafkaLayouts(meta)

    @property
    def schemas(self) -> KafkaLayouts:
        """The log's table layouts."""
        return self._schemas

    @property
    def source(self) -> SourceIdentity:
        """Which database the log belongs to."""
        return self._log.source

    @property
    def topic_id(self) -> str:
        """Of the log's topic."""
        return self._log.topic_id

    def bounds(self) -> Bounds:
        """What is durable now; one round trip to the cluster."""
        return self.view().bounds()

    @property
    def places(self) -> Places:
        """Finds the log's messages."""
        return self._places

    def view(self) -> View:
        """The log now."""
        return self._views.view()

    def cursor(self, after: Position) -> KafkaCursor:
        """A cursor behind a "last done" position; see `walbus.log.LogReader.cursor`."""
        cursor = self.any_cursor()
        try:
            cursor.seek(after)
        except BaseException:
            cursor.close()
            raise
        return cursor

    def any_cursor(self) -> KafkaCursor:
        """A cursor that is to be sent somewhere."""
        return KafkaCursor(self._clients, self._places, self.view)

    def position_at(self, time: float) -> Position:
        """The position to read `after` so as to get every transaction committed at or after a time (Unix seconds).

        Raises:
            PositionTrimmed: some of them are no longer held.
        """
        cursor = self.any_cursor()
        try:
            cursor.seek_time(int(time * 1e6))
            return cursor.done
        finally:
            cursor.close()

    def position_at_seq(self, seq: int) -> Position:
        """The position to read `after` so as to get every change from a seq on; see `walbus.log.LogReader`."""
        cursor = self.any_cursor()
        try:
            return cursor.seek_seq(seq)
        finally:
            cursor.close()

    def wait(self, seen: Position, timeout: float) -> bool:
        """Blocks until the durable end is past `seen`; False after `timeout` seconds without that."""
        deadline = time.monotonic() + timeout
        while True:
            view = self.view()
            if view.tip.tip.position > seen:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._watch.seek(view.ends.stable)
            self._watch.poll(min(left, _WATCH_SECONDS))

    def close(self) -> None:
        """Frees its connections."""
        self._watch.close()
        self._places.close()
        self.meta.close()
        self._clients.close()
