"""A log on Kafka as its consumers read it themselves: what `RelayPeer` is where a relay is between.

The records are the log's own, made into a stream by what makes one of a file's (`walbus.relay.delivery`): the same
windows under the same positions, so a consumer may go from one to the other. The cluster knows nothing of consumers:
nobody is told where they are. Its coordinator of groups hands parts out (`walbus.consumers.kafka_lessor`).

Each stream has connections of its own, and so has each look at what the log holds: a topic that was made again is
another log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from walbus.consumer_reports import ConsumerReport
from walbus.consumers.checkpoint import Point
from walbus.consumers.kafka_asking import asking
from walbus.consumers.peers import RowsPeer
from walbus.consumers.record_stream import RecordStream
from walbus.consumers.steps import LogSeen
from walbus.consumers.tables import of_tables
from walbus.consumers.topic_rows_peer import TopicRowsPeer
from walbus.consumers.transport import NOTHING_MORE, BootstrapPeer, HttpPeer, LogMismatch, NotReady, RelayInfo
from walbus.credentials import Credentials
from walbus.errors import PositionTrimmed, PositionUnknown, RelayUnavailable, UsageError
from walbus.kafka_address import SCHEME, KafkaAddress, parse_kafka_address
from walbus.position import Position
from walbus.relay.delivery import ENDLESS, Bound, RecordDelivery, StreamForm
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.relay.kafka.cursor import KafkaCursor
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.stream_query import AtSeq, AtTime, StreamQuery, parse_stream_query
from walbus.schema import TableSchema

_LOG_ID_HEADER: Final = "Walbus-Log-Id"
_HEARTBEAT_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 0.5
_QUEUED: Final = 16  # blocks of 256 KiB that wait for the consumer


class KafkaPeer:
    """See the module, and `walbus.consumers.peers.LogPeer`.

    Args:
        address: of the log.
        credentials: what is shown to the bootstrap server.
    """

    def __init__(self, address: KafkaAddress, credentials: Credentials) -> None:
        self._address, self._credentials = address, credentials
        self._cluster = ClusterSettings(address.servers, address.topic, address.options)
        self._reader: KafkaLogReader | None = None

    @property
    def url(self) -> str:
        """Where the log is."""
        return self._address.url

    @property
    def cluster(self) -> ClusterSettings:
        """Where the log is, and how its cluster is reached."""
        return self._cluster

    def info(self, place: Point | None = None) -> RelayInfo:
        """See `LogPeer.info`; how far the log goes on is not told.

        Raises:
            RelayUnavailable: the cluster does not answer, or has no log yet.
            LogError: its topics were deleted and made again.
        """
        del place
        self.close()
        with asking(self.url):
            bounds = self._opened().bounds()
        seen = LogSeen(bounds.log_id, bounds.trimmed, bounds.end, bounds.last_seq)
        return RelayInfo(seen, self._address.bootstrap)

    def schema(self, schema_id: int) -> TableSchema:
        """See `LogPeer.schema`."""
        with asking(self.url):
            try:
                return self._opened().schemas.get(schema_id)
            except KeyError:
                raise NotReady(f"the log does not have layout {schema_id} yet", where=self.url) from None

    def schemas(self) -> list[TableSchema]:
        """See `LogPeer.schemas`."""
        with asking(self.url):
            return self._opened().schemas.all()

    def stream(
        self,
        after: Position,
        log_id: str,
        tables: tuple[str, ...],
        name: str,
        narrowing: Mapping[str, str] = NOTHING_MORE,
    ) -> RecordStream:
        """See `LogPeer.stream`.

        Raises:
            PositionTrimmed: the log no longer holds what comes after the position.
            LogMismatch: the cluster has another log.
            NotReady: the log does not go so far, as after a broker lost what it had confirmed.
            RelayUnavailable: the cluster does not answer.
        """
        query = parse_stream_query({"after": str(after), "name": name, **of_tables(tables), **narrowing}, {})
        with asking(self.url), self._given_on() as reader:
            if reader.bounds().log_id != log_id:
                raise LogMismatch("the cluster has another log", where=self.url)
            try:
                return _stream(reader, after, query, ENDLESS, self.url)
            except PositionUnknown as error:
                raise NotReady(error.what, where=self.url) from None

    def stream_from(self, place: str, tables: tuple[str, ...], narrowing: Mapping[str, str]) -> RecordStream:
        """See `LogPeer.stream_from`; the place is a time, or a seq.

        Raises:
            PositionTrimmed, PositionUnknown: the log does not hold it.
            RelayUnavailable: the cluster does not answer.
        """
        query = parse_stream_query({"from": place, "follow": "false", **of_tables(tables), **narrowing}, {})
        with asking(self.url), self._given_on() as reader:
            match query.start:
                case AtTime(time=at):
                    after = reader.position_at(at)
                case AtSeq(seq=seq):
                    after = reader.position_at_seq(seq)
                case _:
                    raise ValueError(place)
            return _stream(reader, after, query, Bound(reader.bounds().end), self.url)

    def bootstrap(self, url: str) -> RowsPeer:
        """See `LogPeer.bootstrap`; table topics are a bootstrap too, at `kafka://HOST:PORT,…/PREFIX`."""
        if url.startswith(SCHEME):
            return TopicRowsPeer(parse_kafka_address(url, self._address.options, None))
        return BootstrapPeer(HttpPeer(url, self._credentials))

    def report(self, name: str, report: ConsumerReport) -> None:
        """Nobody is told."""

    def forget(self, name: str) -> None:
        """See `LogPeer.forget`; raises UsageError."""
        raise self._no_relay(f"nobody knows of the consumer {name}")

    def wait(self, name: str, seconds: float, goal: dict[str, str]) -> tuple[bool, dict[str, Any]]:
        """See `LogPeer.wait`; raises UsageError."""
        del seconds, goal
        raise self._no_relay(f"nobody knows where the consumer {name} is")

    def _no_relay(self, what: str) -> UsageError:
        mend = "have it read from a relay, and ask that"
        return UsageError(f"{what}: the log is read from Kafka, without a relay", where=self.url, mend=mend)

    def twin(self) -> KafkaPeer:
        """See `LogPeer.twin`."""
        return KafkaPeer(self._address, self._credentials)

    def close(self) -> None:
        """Closes the connections of looks; streams have their own."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _opened(self) -> KafkaLogReader:
        if self._reader is None:
            self._reader = open_kafka_reader(self._cluster)
        return self._reader

    @contextmanager
    def _given_on(self) -> Iterator[KafkaLogReader]:
        """A reader that is closed if it comes to nothing."""
        reader = open_kafka_reader(self._cluster)
        try:
            yield reader
        except BaseException:
            reader.close()
            raise


class KafkaStream(RecordStream):
    """The log behind a place, from the cluster; the reader is closed with it."""

    def __init__(self, reader: KafkaLogReader, delivery: RecordDelivery[KafkaCursor], log_id: str, where: str) -> None:
        self._reader, self._delivery = reader, delivery
        self._over = threading.Event()
        super().__init__(where, {_LOG_ID_HEADER: log_id}, _QUEUED)

    def _came(self) -> Generator[bytes, None, None]:
        try:
            with asking(self._where):
                yield from self._blocks()
        except PositionTrimmed as error:  # whoever asks again for what comes next is told so
            raise RelayUnavailable(f"retention overtook the stream: {error.what}", where=self._where) from None
        finally:
            self._delivery.close()
            self._reader.close()

    def _blocks(self) -> Generator[bytes, None, None]:
        """Blocks, and a sign of life where none came for a second, until the end if there is one."""
        told = time.monotonic()
        while not self._over.is_set():
            step = self._delivery.step()
            data = step.data
            if not data and time.monotonic() - told >= _HEARTBEAT_SECONDS:
                data = self._delivery.heartbeat()
            if data:
                yield data
                told = time.monotonic()
            if step.finished:
                return
            if step.at_end:
                self._reader.wait(self._delivery.scanned, _WAIT_SECONDS)

    def _stop_waiting(self) -> None:
        self._over.set()


def _stream(reader: KafkaLogReader, after: Position, query: StreamQuery, bound: Bound, where: str) -> KafkaStream:
    delivery = RecordDelivery[KafkaCursor](reader, after, bound=bound, form=StreamForm("binary", query.selection))
    return KafkaStream(reader, delivery, reader.bounds().log_id, where)
