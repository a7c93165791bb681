"""Brings the copy of the rows to where the topics are: from the offsets up to which it has read, or from nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import replace

import structlog

from walbus.consumers.sinks.kafka_cluster import SinkClients
from walbus.consumers.sinks.kafka_ids import FirstLayoutIds
from walbus.consumers.sinks.kafka_reading import Committed, Place, read_committed
from walbus.consumers.sinks.kafka_rows import HeldRow, RowCopy, Stamp, Stray
from walbus.consumers.sinks.kafka_state import SinkState, SinkTable
from walbus.consumers.sinks.kafka_topics import SinkTopics
from walbus.errors import DamagedRecord, SinkRefused
from walbus.records import key_hash
from walbus.relay.kafka.cluster import missing
from walbus.relay.kafka.topics import describe_topics
from walbus.topics import RecordMaker, TopicNames
from walbus.topics.catalog import envelope_family, row_family
from walbus.topics.envelope_records import EnvelopeMaker

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0


def check_topics(state: SinkState, copy: RowCopy, topics: SinkTopics) -> None:
    """Sees that the tables' topics are what they were, and makes anew what is gone: its table is to be read again.

    Raises:
        SinkRefused: a topic has another number of partitions.
        LogError, LogUnreachable
    """
    facts = topics.ensure([topics.checkpoint, topics.transactions, *(table.topic for table in state.tables.values())])
    for oid, table in list(state.tables.items()):
        found = facts[table.topic]
        if found.id != table.topic_id:
            _log.warning("kafka_topic_was_made_anew", topic=table.topic, table=table.layout.table)
            state.tables[oid] = replace(table, topic_id=found.id, partitions=found.partitions, unknown=True)
            state.topics[table.topic] = found.id
            copy.forget(oid)
        elif found.partitions != table.partitions:
            raise SinkRefused(
                f"topic {table.topic} has {found.partitions} partitions now, and its rows lie in {table.partitions}",
                where=table.layout.table,
                mend="delete the topic: it is made and filled anew; or give the sink another prefix",
            )


class SameTopics:
    """Sees, about once a second, that topics which are written to are those that they were.

    Args:
        clients: of the cluster.
        monotonic: seconds.
    """

    def __init__(self, clients: SinkClients, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clients, self._monotonic = clients, monotonic
        self._looked = monotonic()

    def check(self, state: SinkState, written: Set[str]) -> None:
        """Asks, if that was a while ago.

        Args:
            state: what is known of the tables' topics.
            written: topics that have records which are not committed yet.

        Raises:
            LogMissing: one is gone, or was made again.
            LogError, LogUnreachable
        """
        now = self._monotonic()
        known = {table.topic: table.topic_id for table in state.tables.values() if table.topic in written}
        if not known or now - self._looked < _LOOK_SECONDS:
            return
        found = describe_topics(self._clients, known)
        if any(name not in found or str(found[name].topic_id) != number for name, number in known.items()):
            raise missing(self._clients.settings)
        self._looked = now


def bring_up(clients: SinkClients, state: SinkState, copy: RowCopy, maker: RecordMaker) -> None:
    """Reads what the copy lacks of the topics; it is of the state's commit then.

    Args:
        clients: of the cluster.
        state: as it is committed, its topics being checked; a table of whose rows some may be lost is marked.
        copy: the rows.
        maker: whose records they are.

    Raises:
        SinkRefused, SinkUnavailable, LogError, LogUnreachable
    """
    written = state.written
    if written is None:
        raise ValueError("nothing was written yet")
    stamp, wanted = copy.stamp(), Stamp(written.identity, written.number)
    if stamp is None or stamp.identity != wanted.identity:
        copy.clear()
    known = copy.topics()
    for oid in known:
        if oid not in state.tables:
            copy.forget(oid)
    tables = {table.topic: table for table in state.tables.values()}
    moved = [table for table in tables.values() if known.get(table.oid) != (table.topic, table.topic_id)]
    for table in moved:
        copy.forget(table.oid)
        copy.forget_offsets(table.topic)
        copy.has_topic(table.oid, table.topic, table.topic_id)
    if stamp == wanted and not moved:
        copy.rollback()
    else:
        _read_on(clients, state, copy, maker)
    lost = {oid for oid, table in state.tables.items() if table.lacks} - copy.tables_that_lack()
    for oid in (lost | copy.tables_with_strays()) & state.tables.keys():  # which rows lack a value the copy alone knew
        state.tables[oid] = replace(state.tables[oid], unknown=True)


def _read_on(clients: SinkClients, state: SinkState, copy: RowCopy, maker: RecordMaker) -> None:
    tables = {table.topic: table for table in state.tables.values()}
    begin = {
        place: copy.offset(place)
        for table in tables.values()
        for place in ((table.topic, number) for number in range(table.partitions))
    }
    count, ends = 0, dict[Place, int]()
    taking = RecordTaker(state, copy, maker)
    for record in read_committed(clients, begin):
        taking.take(record, tables[record.place[0]])
        ends[record.place] = record.next
        count += 1
    written = state.written
    if written is not None:
        copy.commit(Stamp(written.identity, written.number), ends)
    _log.info("kafka_rows_were_read_back", records=count, topics=len(tables))


def reading_maker(state: SinkState, prefix: str) -> RecordMaker:
    """Whose records a state's topics have; it is asked for rows alone.

    Args:
        state: of the topics.
        prefix: of the first generation of them.
    """
    names = TopicNames(prefix)
    if state.written is None or state.written.format == "rows":
        return RecordMaker(names, FirstLayoutIds(names, row_family(), {}), None)
    return EnvelopeMaker(names, FirstLayoutIds(names, envelope_family(prefix), {}), None, "", "")


class NotOursError(Exception):
    """A record was not written by this sink."""


class RecordTaker:
    """Puts records of tables' topics into a copy, in the order of each partition.

    A record that the sink did not write is noted there until the sink writes over it: the row that was there is not
    known then, and its table is to be read again.

    Args:
        state: with the layouts that the records name.
        copy: where the rows go.
        maker: whose records they are.
    """

    def __init__(self, state: SinkState, copy: RowCopy, maker: RecordMaker) -> None:
        self._state, self._copy, self._maker = state, copy, maker
        self._met = copy.tables_with_strays()

    def take(self, record: Committed, table: SinkTable) -> None:
        """Takes a record of a table's topic.

        Raises:
            SinkRefused, SinkUnavailable: of the copy.
        """
        oid, stray = table.oid, Stray(record.place[1], record.key)
        try:
            row = row_of_record(record, self._state, self._maker, table.partitions)
        except NotOursError:
            if oid not in self._met:
                _log.warning("kafka_record_of_another_hand", topic=table.topic, partition=stray.partition)
            self._met.add(oid)
            self._copy.note_strays(oid, [stray])
            return
        if oid in self._met:
            self._copy.forget_stray(oid, stray)
        if record.value is None:
            self._copy.delete(oid, record.headers["walbus.key"])
        elif row is not None:
            self._copy.put(oid, row)


def row_of_record(record: Committed, state: SinkState, maker: RecordMaker, partitions: int) -> HeldRow | None:
    """The row that a record puts under its key; None if it puts none there.

    Args:
        record: of a table's topic.
        state: with the layout that it names.
        maker: whose record it is.
        partitions: of the topic.

    Raises:
        NotOursError: it is no record of the sink's.
    """
    headers = record.headers
    try:
        key = headers["walbus.key"]
        if key and key_hash(key) % partitions != record.place[1]:
            raise NotOursError
        if record.value is None:
            return None
        told = headers.get("walbus.layout")
        if told is None:
            return None  # a delete's old row, before the record without a value
        known, mark = state.layouts.get(int(told)), int(headers["walbus.generation"])
        of_this_log = known is not None and mark >= known.log_generation
        row = maker.row_of(known.layout, record.value, headers) if known is not None and of_this_log else b""
        return HeldRow(key, int(headers["walbus.seq"]), mark, int(told), row or b"", b"", record.key)
    except (KeyError, ValueError, DamagedRecord):
        raise NotOursError from None
