"""Opening the Kafka engine: the composition of its parts."""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from walbus.compression import Compressor
from walbus.errors import LogError, LogMissing, SourceReplaced
from walbus.log import SourceIdentity
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings, missing
from walbus.relay.kafka.lock import WriterLock
from walbus.relay.kafka.meta import LogDocument, Meta, log_document, writer_document
from walbus.relay.kafka.partition import ends_of
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.topics import TopicFacts, TopicPlan, Topics, made_again
from walbus.relay.kafka.transactions import Transactions
from walbus.relay.kafka.trimming import Trimming
from walbus.relay.kafka.writer import KafkaLogWriter, KafkaWriterSettings, WriterParts
from walbus.relay.lease import Clock
from walbus.relay.retention import Retention

LEASE_SECONDS = 10.0  #: after so long a writer that stands still may be followed; brokers allow 6 at least
_SIGHT_SECONDS = 30.0
_P = TypeVar("_P", Meta, Transactions, KafkaLogReader)


def open_kafka_writer(  # noqa: PLR0913  # the log's settings, and what tests pass in
    cluster: ClusterSettings,
    source: SourceIdentity,
    *,
    folder: Path,
    retention_hours: float,
    retention_bytes: int | None,
    compression_level: int | None = None,
    plan: TopicPlan | None = None,
    lease_seconds: float = LEASE_SECONDS,
    block_bytes: int = 256 << 10,
    large_bytes: int = 8 << 20,
    kept_bytes: int = 32 << 20,
    clock: Clock | None = None,
) -> KafkaLogWriter:
    """Opens the log for writing; makes it when there is none.

    Args:
        cluster: where it is.
        source: the database that is captured.
        folder: of the log's local files; holds in it are respected.
        retention_hours: age from which records may be dropped.
        retention_bytes: size of the log from which its oldest records may be dropped; None: by age alone.
        compression_level: of zstd, for the bodies of records; None: they are left as they are.
        plan: how topics are made.
        lease_seconds: how long this writer may stand still before another one may take over.
        block_bytes: from how many bytes on a block of records is a message.
        large_bytes: from how many bytes on a transaction that has not ended leaves memory.
        kept_bytes: of records that are not known to be committed, at most.
        clock: time.

    Raises:
        LogBusy: another live process writes this log.
        SourceReplaced: the log belongs to another database or slot.
        LogError: a topic cannot be made, or has settings that will not do; says what to change.
        LogUnreachable: the cluster does not answer.
    """
    clock, clients = clock or Clock(), ClusterClients(cluster)
    with ExitStack() as undo:
        undo.callback(clients.close)
        topics = Topics(clients)
        topics.make_missing(plan or TopicPlan())
        facts = _checked_when_seen(topics)
        meta = _entered(undo, Meta(clients))
        meta.refresh()
        if meta.log is not None:
            _check_log(meta.log, source, facts, cluster)
        lock = WriterLock(clients, lease_seconds)
        undo.callback(lock.release)
        sender = _entered(undo, _sender(clients, facts, meta))
        sender.begin()
        log = _begin(clients, sender, meta, source, facts, clock)
        reader = _entered(undo, KafkaLogReader(clients, meta, log))
        trimming = Trimming(clients, Retention(retention_hours, retention_bytes), folder)
        compressor = None if compression_level is None else Compressor(compression_level)
        settings = KafkaWriterSettings(trimming, clock, compressor, block_bytes, large_bytes, kept_bytes)
        writer = KafkaLogWriter(WriterParts(clients, lock, sender, reader, facts.largest), settings)
        undo.pop_all()
        return writer


def open_kafka_reader(cluster: ClusterSettings) -> KafkaLogReader:
    """Opens the log for reading.

    Raises:
        LogMissing: there is no log yet.
        LogError: its topics were deleted and made again.
        LogUnreachable: the cluster does not answer.
    """
    clients = ClusterClients(cluster)
    with ExitStack() as undo:
        undo.callback(clients.close)
        facts = Topics(clients).check()
        meta = _entered(undo, Meta(clients))
        meta.refresh()
        if meta.log is None:
            raise missing(cluster)
        _check_topic(meta.log, facts, cluster)
        reader = KafkaLogReader(clients, meta, meta.log)
        undo.pop_all()
        return reader


def _entered(undo: ExitStack, part: _P) -> _P:
    """A part that is closed if the opening fails behind it."""
    undo.callback(part.close)
    return part


def _checked_when_seen(topics: Topics) -> TopicFacts:
    """The topics' facts, once brokers know of those that were made just now."""
    deadline = time.monotonic() + _SIGHT_SECONDS
    while True:
        try:
            return topics.check()
        except LogMissing:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _sender(clients: ClusterClients, facts: TopicFacts, meta: Meta) -> Transactions:
    def who_writes() -> int | None:
        meta.refresh()
        return meta.writer

    return Transactions(clients, facts.largest, secrets.randbits(63), who_writes)


def _begin(  # noqa: PLR0913, PLR0917 - what a log is made of
    clients: ClusterClients,
    sender: Transactions,
    meta: Meta,
    source: SourceIdentity,
    facts: TopicFacts,
    clock: Clock,
) -> LogDocument:
    """Says in TOPIC.meta who writes from now on; and which log this is, if it is new."""
    now, name = int(clock.now() * 1e6), clients.settings.meta
    meta.refresh()
    log = meta.log
    if log is None:
        _check_empty(clients)
        log = LogDocument(secrets.token_hex(16), source, now, facts.topic_id)
        sender.add_document(name, log_document(log))
    else:
        _check_log(log, source, facts, clients.settings)
    sender.add_document(name, writer_document(sender.writer, now))
    sender.commit()
    meta.refresh()
    return log


def _check_empty(clients: ClusterClients) -> None:
    """A log's records without what is known about it are nobody's."""
    (ends,) = ends_of(clients, clients.settings.topic)
    if ends.stable > 0:
        raise LogError(
            f"{clients.settings.topic} holds records, and {clients.settings.meta} does not say of which log",
            where=clients.settings.bootstrap,
            mend="name another topic with relay.kafka.topic, or delete both topics and begin a new log",
        )


def _check_log(log: LogDocument, source: SourceIdentity, facts: TopicFacts, cluster: ClusterSettings) -> None:
    if log.source != source:
        raise SourceReplaced(
            f"the log belongs to {log.source}, and the source is {source}",
            where=f"topic {cluster.topic} at {cluster.bootstrap}",
            mend="name another topic with relay.kafka.topic, or the database that the log belongs to",
        )
    _check_topic(log, facts, cluster)


def _check_topic(log: LogDocument, facts: TopicFacts, cluster: ClusterSettings) -> None:
    if log.topic_id != facts.topic_id:
        raise made_again(cluster)
