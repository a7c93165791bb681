"""The writing half of the Kafka engine.

`append` gives a piece its seqs and packs it, as the file engine does. Whole transactions go into blocks, which are
handed to librdkafka as they become full, in one Kafka transaction; `sync` commits it, waits until readers see it, and
only then moves the durable end. Pieces of a transaction that has not ended are kept in memory, and go to TOPIC.large
where they become many (`large`).

Memory is bounded: what is not known to be committed never grows past `kept_bytes`, then `append` commits, or refuses
while the cluster is away. Whatever may fail for want of the cluster is done before a piece is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from walbus.compression import Compressor
from walbus.errors import Fenced, LogError, LogFull, LogMissing
from walbus.log import Bounds, Held, Piece, Run
from walbus.position import Position
from walbus.relay.held import TransactionFinder
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.large import LargeTransaction
from walbus.relay.kafka.layouts import KafkaLayoutWriter
from walbus.relay.kafka.lock import WriterLock
from walbus.relay.kafka.messages import Blocks, Message, Records
from walbus.relay.kafka.meta import layout_document
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.topics import SameTopic
from walbus.relay.kafka.transactions import Transactions
from walbus.relay.kafka.trimming import Trimming
from walbus.relay.lease import Clock
from walbus.relay.sequence import Packed, Sequence
from walbus.schema import TableSchema

_HEADROOM = 4096  # bytes that a batch takes beside a message's value, with its mark
_CHECK_SECONDS = 1.0  # so often an idle writer sees whether another one took over


@dataclass(frozen=True)
class KafkaWriterSettings:
    """How a writer behaves.

    Attributes:
        trimming: what `trim` drops.
        clock: time.
        compressor: of records' bodies; None leaves them as they are.
        block_bytes: from how many bytes on a block of records is a message.
        large_bytes: from how many bytes on a transaction that has not ended goes to TOPIC.large.
        kept_bytes: of records that are not known to be committed, at most.
    """

    trimming: Trimming
    clock: Clock
    compressor: Compressor | None = None
    block_bytes: int = 256 << 10
    large_bytes: int = 8 << 20
    kept_bytes: int = 32 << 20


@dataclass(frozen=True)
class WriterParts:
    """What a writer is put together from.

    Attributes:
        clients: of the cluster.
        lock: the right to write.
        sender: has the transactional id.
        reader: of the log as it is.
        largest: bytes of a batch that the topics take.
    """

    clients: ClusterClients
    lock: WriterLock
    sender: Transactions
    reader: KafkaLogReader
    largest: int


class KafkaLogWriter:
    """See `walbus.log.LogWriter`.

    Args:
        parts: of the log.
        settings: sizes, retention and time.
    """

    def __init__(self, parts: WriterParts, settings: KafkaWriterSettings) -> None:
        self._parts, self._settings = parts, settings
        self._sender, self._topics = parts.sender, parts.clients.settings
        view = parts.reader.view()
        self._log_id, self._base = view.log.log_id, view.base
        self._durable = self._sent = view.tip  # behind the last record that is committed; that was given to the sender
        first_seq = max(view.tip.tip.last_seq + 1, int(settings.clock.now() * 1e6))
        self._sequence = Sequence(view.tip, first_seq, settings.compressor)
        self._limit = parts.largest - _HEADROOM
        self._blocks = self._new_blocks()
        self._open: list[Records] = []  # of the transaction that has not ended, but for those in TOPIC.large
        self._open_bytes = 0
        self._large: LargeTransaction | None = None
        self._schemas = KafkaLayoutWriter(parts.reader.meta, view.tip.tip.announced_schema, self._write_layout)
        self._finder = TransactionFinder(parts.reader.any_cursor, self.bounds)
        self._checked = time.monotonic()
        self._same = SameTopic(parts.clients, view.log.topic_id)
        self._broken: str | None = None  # why nothing may be written any more
        self._closed = False

    @property
    def schemas(self) -> KafkaLayoutWriter:
        """The log's table layouts."""
        return self._schemas

    def bounds(self) -> Bounds:
        """What is durable now."""
        tip = self._durable.tip
        return Bounds(
            self._log_id, self._base.tip.position, tip.position, tip.end_lsn, tip.last_seq,
            self._durable.offset - self._base.offset, tip.commit_time,
        )  # fmt: skip

    def find(self, epoch: int, commit_lsn: int) -> Held | None:
        """The durable transaction at this place; quick when the LSNs of successive calls ascend."""
        return self._finder.find(epoch, commit_lsn)

    def records_after(self, after: Position) -> Iterator[bytes]:
        """The durable records behind a position; see `walbus.log.LogWriter.records_after`."""
        return self._finder.records_after(after)

    def append(self, piece: Piece) -> None:
        """Takes a piece; see `walbus.log.LogWriter.append`."""
        self._check_usable()
        sequence = self._sequence
        if sequence.abandons(piece):
            self._drop_unfinished()
        sequence.check(piece)
        self._make_room()
        records = self._put(sequence.pack(piece))
        sequence.note(piece)
        self._open.append(records)
        self._open_bytes += len(records.data)
        if not sequence.open and self._large is None:
            self._gather(self._taken_open())

    def append_run(self, run: Run) -> None:
        """Takes whole small transactions; see `walbus.log.LogWriter.append_run`."""
        self._check_usable()
        sequence = self._sequence
        if sequence.open:
            self._drop_unfinished()
        sequence.check_run(run)
        self._make_room()
        records = self._put(sequence.pack_run(run))
        sequence.note_whole()
        self._gather([records])

    def drop_unfinished(self) -> None:
        """Forgets the pieces of a transaction that has not ended; where there is none, nothing happens."""
        self._check_usable()
        if self._sequence.open:
            self._drop_unfinished()

    def sync(self) -> Bounds:
        """The group commit; see `walbus.log.LogWriter.sync`.

        Raises:
            LogUnreachable: the cluster did not acknowledge it; nothing of it counts as durable. Call again.
            LogMissing: somebody deleted the log.
            Fenced: another writer took over.
            LogError: the log's topic was deleted and made again.
        """
        self._check_usable()
        self._finish_large()
        if self._sequence.whole.tip != self._durable.tip or self._sender.bytes:
            self._commit()
        elif time.monotonic() - self._checked >= _CHECK_SECONDS:
            self._unless_lost(self._sender.check)
            self._checked = time.monotonic()
        self._unless_lost(self._same.check)
        return self.bounds()

    def trim(self, now: float) -> Position:
        """Drops the oldest messages; see `walbus.log.LogWriter.trim`."""
        self._check_usable()
        self._parts.lock.held()  # who never asks leaves the group after a day; whoever follows fences this writer
        self._base = self._settings.trimming.trim(self._parts.reader, now)
        return self._base.tip.position

    def close(self) -> None:
        """Syncs what is whole, and frees the log for the next writer."""
        if self._closed:
            return
        try:
            if self._broken is None:
                if self._sequence.open:
                    self._drop_unfinished()
                with suppress(LogFull, Fenced):  # it is as after a kill then: what was confirmed is in the log
                    self.sync()
        finally:
            self._closed = True
            self._finder.close()
            self._sender.close()
            self._parts.reader.close()
            self._parts.lock.release()

    # --- from pieces to messages ------------------------------------------------------------------------------------

    def _put(self, packed: Packed) -> Records:
        """Puts packed records behind all others."""
        before = self._sequence.here
        self._sequence.appended(packed, before.offset + len(packed.records))
        return Records(packed.records, before, self._sequence.here)

    def _taken_open(self) -> list[Records]:
        pieces, self._open, self._open_bytes = self._open, [], 0
        return pieces

    def _gather(self, transaction: list[Records]) -> None:
        """Takes the records of a whole transaction, or of a run."""
        self._add(self._blocks.add(transaction))
        self._sender.send()

    def _add(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._sender.add(self._topics.topic, message)
            self._sent = message.mark.behind

    def _make_room(self) -> None:
        """Before a piece is taken: what may fail for want of the cluster."""
        self._finish_large()
        if self._sender.doubtful or self._sender.bytes + self._open_bytes >= self._settings.kept_bytes:
            self._commit()
        if self._sequence.open and self._open_bytes >= self._settings.large_bytes:
            self._move_to_large()

    def _move_to_large(self) -> None:
        if self._large is None:
            blocks = self._new_blocks(attempt=self._sender.next_attempt())
            self._large = LargeTransaction(self._parts.clients, self._sender, blocks, self._open[0].before)
        self._large.take(self._taken_open())

    def _finish_large(self) -> None:
        """Makes a large transaction that has ended part of the log; where there is none, nothing happens."""
        if self._large is None or self._sequence.open:
            return
        self._large.take(self._taken_open())
        self._large.end()
        self._commit()
        self._add([self._large.reference(self._sequence.whole)])
        self._blocks.large = self._large.first
        self._large = None

    def _drop_unfinished(self) -> None:
        self._taken_open()
        self._large = None  # what of it lies in the topic is named by nobody
        self._schemas.forget_announcements(self._sequence.drop_open())

    def _new_blocks(self, attempt: int = 0) -> Blocks:
        return Blocks(min(self._settings.block_bytes, self._limit), self._limit, attempt)

    # --- durability -------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Commits everything that is whole."""
        if self._sender.doubtful:
            self._unless_lost(self._sender.commit)
            self._durable = self._sent
        self._add(self._blocks.flush())
        self._unless_lost(self._sender.commit)
        self._durable = self._sent
        self._checked = time.monotonic()

    def _write_layout(self, version: TableSchema) -> None:
        self._check_usable()
        self._make_room()
        self._sender.add_document(self._topics.meta, layout_document(version))
        self._commit()

    def _unless_lost(self, act: Callable[[], None]) -> None:
        try:
            act()
        except LogMissing as error:
            mend = f"delete {', '.join(self._topics.topics[1:])} too, and start capture again: it begins a new log"
            raise LogMissing("somebody deleted the log", where=error.where, mend=mend) from None
        except LogFull:
            raise
        except LogError as error:
            self._broken = error.what
            raise

    def _check_usable(self) -> None:
        if self._closed:
            raise LogError("the log is closed", where=f"topic {self._topics.topic}")
        if self._broken is not None:
            raise LogError(f"the log cannot be written any more: {self._broken}", mend="end the process")
