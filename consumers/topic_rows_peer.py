"""Table topics as where a consumer has its rows from: a second bootstrap, on the brokers.

The topics of the `kafka` sink are compacted by key, and their writer's checkpoint says of which state of the source
they are. So who reads a topic from its beginning to where it ends has each row as of that state or later, as from a
bootstrap server, and goes on behind that state in the log: what it meets there a second time has a seq that its rows
have already.

    place    the writer's checkpoint, read before anything else: all that was committed up to there is in the topics,
             though perhaps not marked as committed in each yet; an empty record tells it
    rows     of the keys' last records, gathered in a temporary file, and given in the order of the keys; they are as of
             that state or later, up to what the checkpoint says when the topic has been read, which their records tell

What the writer lacks (a table that it is to read again, rows that lack a value, a topic that was made anew) is not
given until it has it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from walbus.consumers.checkpoint import Following, Point, load_checkpoint
from walbus.consumers.kafka_asking import asking
from walbus.consumers.record_stream import RecordStream
from walbus.consumers.sinks.kafka_reading import Committed, read_committed
from walbus.consumers.sinks.kafka_restoring import RecordTaker, reading_maker
from walbus.consumers.sinks.kafka_rows import RowCopy
from walbus.consumers.sinks.kafka_state import SinkState, SinkTable
from walbus.consumers.transport import NOTHING_MORE, NotReady, TableList
from walbus.errors import PositionTrimmed, RelayUnavailable, RequestRefused
from walbus.kafka_address import KafkaAddress
from walbus.native.reading import WHOLE, Partition
from walbus.position import Position
from walbus.records import Flag, Kind, Op, key_hash, pack_change, pack_record
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings
from walbus.relay.kafka.topics import describe_topics
from walbus.relay.selection import parse_selection
from walbus.topics import TopicNames

_RECORD_BYTES: Final = 128 << 10
_LOOK_SECONDS: Final = 0.05
_BAD_REQUEST, _NOT_FOUND = 400, 404
_LOG_ID_HEADER: Final = "Walbus-Log-Id"
_OID_HEADER: Final = "Walbus-Oid"


class _Place(NamedTuple):
    """A state of the source that the topics have reached."""

    log_id: str
    point: Point
    log_generation: int


class TopicRowsPeer:
    """See the module, and `walbus.consumers.peers.RowsPeer`.

    Args:
        address: of the topics; their prefix stands in the place of the log's topic.

    Raises:
        ConfigError: there can be no such prefix, or librdkafka refuses an option.
    """

    def __init__(self, address: KafkaAddress) -> None:
        self._address, self._names = address, TopicNames(address.topic)
        self._clients = ClusterClients(ClusterSettings(address.servers, address.topic, address.options))

    @property
    def url(self) -> str:
        """Where the topics are."""
        return self._address.url

    def tables(self) -> TableList:
        """The tables that have topics.

        Raises:
            NotReady: the writer of the topics has not got to a state of the source, or there is none.
            RelayUnavailable: the cluster does not answer.
            SinkRefused: the topics are not Walbus's.
        """
        with asking(self.url):
            state = _TopicState(self._clients, self._names, self.url)
            place, there = state.place(), state.tables()
            return TableList(
                place.log_id,
                place.point.last_done,
                {name: table.layout.id for name, table in there.items()},
                frozenset(state.whole(there)),
                (),
                oids={name: table.oid for name, table in there.items()},
                applied_seq=place.point.seq,
            )

    def snapshot(
        self, table: str, after_key: bytes | None, narrowing: Mapping[str, str] = NOTHING_MORE
    ) -> RecordStream:
        """The table's rows in key order, behind a key.

        Raises:
            RequestRefused: there is no such table.
            NotReady, RelayUnavailable, SinkRefused: as `tables`.
        """
        partition = parse_selection(None, None, None, narrowing.get("partition")).partition
        with asking(self.url):
            state = _TopicState(self._clients, self._names, self.url)
            there = state.tables()
            if table not in there:
                raise RequestRefused(f"no topic has a table {table}", status=_NOT_FOUND, where=self.url)
            if table not in state.whole(there):
                raise NotReady(f"the writer of the topics has still to read rows of {table}", where=self.url)
            return _TopicStream(self._clients, state, there[table], _Wanted(after_key or b"", partition))

    def delta(self, table: str, since: Point, narrowing: Mapping[str, str] = NOTHING_MORE) -> RecordStream:
        """There is none: compaction forgets deletes."""
        del since, narrowing
        raise PositionTrimmed("topics tell no deltas", where=f"{self.url}, table {table}")

    def delta_cost(self, table: str, since: Point) -> int | None:
        """None: there is no delta."""
        del table, since
        return None

    def stream(
        self, after: Position, log_id: str, tables: tuple[str, ...], name: str, narrowing: Mapping[str, str]
    ) -> RecordStream:
        """See `RowsPeer.stream`; raises RequestRefused."""
        del after, log_id, name, narrowing
        raise self._not_complete(tables)

    def complete_from(self, log_id: str, tables: tuple[str, ...], narrowing: Mapping[str, str]) -> Position:
        """See `RowsPeer.complete_from`; raises RequestRefused."""
        del log_id, narrowing
        raise self._not_complete(tables)

    def _not_complete(self, tables: tuple[str, ...]) -> RequestRefused:
        what = f"topics give no complete changes of {', '.join(tables)}: a bootstrap server does"
        return RequestRefused(what, status=_BAD_REQUEST, where=self.url, mend="leave complete out, or name a server")

    def close(self) -> None:
        """Frees its connections; streams go on."""
        self._clients.close()


class _Wanted(NamedTuple):
    """Which rows are asked for."""

    after_key: bytes
    partition: Partition

    def has(self, key: bytes) -> bool:
        return key > self.after_key and (
            self.partition == WHOLE or key_hash(key) % self.partition.parts == self.partition.part
        )


class _TopicState:
    """What PREFIX.checkpoint says, as of when it was read; `read_on` takes what has come since.

    Args:
        clients: of the cluster.
        names: of the topics.
        where: for errors.
    """

    def __init__(self, clients: ClusterClients, names: TopicNames, where: str) -> None:
        self._clients, self._where, self.names = clients, where, names
        self._topic = f"{names.prefix}.checkpoint"
        if not describe_topics(clients, [self._topic]):
            raise NotReady(f"no consumer writes topics with the prefix {names.prefix}", where=where)
        self.state, self._read_to = SinkState(), 0
        self.read_at = 0  #: Unix microseconds of the last record
        self.read_on()

    def read_on(self) -> None:
        """Reads what was committed since the last time."""
        for record in read_committed(self._clients, {(self._topic, 0): self._read_to}):
            self.state.take(record.key, record.value, f"topic {self._topic}, offset {record.next - 1}")
            self._read_to, self.read_at = record.next, record.time * 1000

    def place(self) -> _Place:
        """Which state of the source the topics have reached.

        Raises:
            NotReady: none yet.
        """
        following = self._following()
        return _Place(following.log_id, following.point, following.marks.log_generation)

    def _following(self) -> Following:
        text = None if self.state.written is None else self.state.written.checkpoint
        checkpoint = None if text is None else load_checkpoint(text)
        if not isinstance(checkpoint, Following):
            raise NotReady("the writer of the topics is still reading rows itself", where=self._where)
        return checkpoint

    def tables(self) -> dict[str, SinkTable]:
        """Those that have a topic of their own name, and are of today's log."""
        generation = self.place().log_generation
        known = (table for table in self.state.tables.values() if not table.parked)
        return {table.layout.table: table for table in known if table.log_generation >= generation}

    def whole(self, tables: Mapping[str, SinkTable]) -> set[str]:
        """Those of which the topic has every row."""
        unread = self._following().unread
        found = describe_topics(self._clients, [table.topic for table in tables.values()])
        return {
            name
            for name, table in tables.items()
            if not (table.unknown or table.lacks or any(one.is_of(name, table.oid) for one in unread))
            and table.topic in found
            and str(found[table.topic].topic_id) == table.topic_id
        }


class _TopicStream(RecordStream):
    """The rows of a table, from its topic."""

    def __init__(self, clients: ClusterClients, state: _TopicState, table: SinkTable, wanted: _Wanted) -> None:
        self._clients, self._state, self._table, self._wanted = clients, state, table, wanted
        self._place, self._maker = state.place(), reading_maker(state.state, state.names.prefix)
        self._over = threading.Event()
        where = f"topic {table.topic} at {clients.settings.bootstrap}"
        super().__init__(where, {_LOG_ID_HEADER: self._place.log_id, _OID_HEADER: str(table.oid)})

    def _came(self) -> Generator[bytes, None, None]:
        with (
            tempfile.TemporaryDirectory(prefix="walbus-topic-") as folder,
            asking(self._where),
            closing(RowCopy(Path(folder) / "rows")) as rows,
        ):
            yield self._record(self._place.point, Flag.BEGIN, [])  # from here the log is read on
            self._gather(rows)
            yield from self._records(rows, self._state.place().point)

    def _gather(self, rows: RowCopy) -> None:
        """The last record of each key, up to where the topic ends now."""
        taking = RecordTaker(self._state.state, rows, self._maker)
        begin = {(self._table.topic, number): 0 for number in range(self._table.partitions)}
        for record in read_committed(self._clients, begin, open_too=True):
            if self._over.is_set():
                return
            key = record.headers.get("walbus.key", b"")
            if key and not self._wanted.has(key):
                continue
            self._await_layout(record)
            taking.take(record, self._table)
        self._state.read_on()
        if rows.tables_with_strays():
            what = "the topic has records that its writer did not write"
            mend = "stop the writer, and have `walbus verify --sink` of it repair that"
            raise RelayUnavailable(what, where=self._where, mend=mend)
        if self._state.place().log_id != self._place.log_id:
            raise RelayUnavailable("the topics are written from another log by now", where=self._where)

    def _await_layout(self, record: Committed) -> None:
        """Until a record's layout is known: that is told in the same transaction, in another partition."""
        told, generation = (record.headers.get(f"walbus.{name}", b"") for name in ("layout", "generation"))
        if not told.isdigit() or not generation.isdigit():
            return  # without a row, or nobody's
        deadline = time.monotonic() + self._clients.settings.answer_seconds
        while int(told) not in self._state.state.layouts:
            if int(generation) < self._place.log_generation:
                return  # of another log
            if time.monotonic() > deadline or self._over.wait(_LOOK_SECONDS):
                raise RelayUnavailable(f"layout {int(told)} of a record is not told", where=self._where)
            self._state.read_on()

    def _records(self, rows: RowCopy, reached: Point) -> Iterator[bytes]:
        changes: list[bytes] = []
        size = 0
        for row in rows.all(self._table.oid):
            if row.mark < self._place.log_generation:
                continue  # of another log
            changes.append(
                pack_change(
                    Op.INSERT,
                    table=self._table.oid,
                    schema_id=row.layout,
                    seq_delta=row.seq,
                    ordinal_delta=0,
                    key=row.key,
                    after=row.row,
                )
            )
            size += len(changes[-1])
            if size >= _RECORD_BYTES:
                yield self._record(reached, Flag(0), changes)
                changes, size = [], 0
        if not self._over.is_set():
            yield self._record(reached, Flag.END, changes)

    def _record(self, place: Point, flags: Flag, changes: list[bytes]) -> bytes:
        at, seq = place
        return pack_record(
            Kind.SNAPSHOT,
            flags=flags,
            epoch=at.epoch,
            commit_lsn=at.commit_lsn,
            first_ordinal=at.ordinal,
            last_ordinal=at.ordinal,
            first_seq=0,
            last_seq=seq,
            commit_time=self._state.read_at,
            count=len(changes),
            tables=1 << self._table.oid % 64,
            body=b"".join(changes),
        )

    def _stop_waiting(self) -> None:
        self._over.set()
