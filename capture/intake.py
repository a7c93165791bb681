"""pgoutput of protocols 1 to 4 in, protocol 1 out to the assembler: transactions whole and in commit order. No I/O.

What commits is fed on as it comes. What may still be rolled back waits in a spool, and is replayed at its commit as
Begin, its messages, Commit, exactly as if the server had kept it until then:

    StreamStart … StreamStop    into the spool, each message under its (sub)transaction
    StreamAbort                 of all: forgotten; of a subtransaction: its changes will be left out
    StreamCommit                replayed
    BeginPrepare … Prepare      into the spool, and into the durable store before `feed` returns; StreamPrepare the same
    CommitPrepared              replayed out of the store, under its own commit LSN and time
    RollbackPrepared            forgotten

A replay goes in bounded parts (`replay`), so that the loop around can keep its connection alive in between; nothing
else may be fed meanwhile.

Two things are not as simple as they look.

**Layouts.** A streamed transaction carries the layouts of its tables itself (the server tells them again for each one,
and again behind a rolled back savepoint), as they were when it was streamed. Meanwhile another transaction may have
told a newer one; then the server does not repeat it. So the newest layout told of each table, in the order of arrival,
is noted, and fed again behind a replay that ended with an older one. What a prepared transaction needs is noted with
it, because by its commit it may be another connection's.

**Messages in savepoints.** A transactional message streamed out of a rolled back savepoint looks like one of the
transaction itself (`walbus.capture.streamed`). Where both happened, nobody can tell which messages count, and the
transaction is asked for again unstreamed (`TransactionSentAgain`): then the server leaves out what was rolled back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from walbus.capture.messages import PLAIN_KINDS
from walbus.capture.pending import Pending, tables_of
from walbus.capture.repeats import RECONCILE
from walbus.capture.replay import Ending, Replay
from walbus.capture.streamed import (
    BeginPrepare,
    CommitPrepared,
    Prepare,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    decode_streamed,
    split_xid,
)
from walbus.capture.told import TELLING_KINDS, ToldLayouts, layout_of_table, subject_of
from walbus.errors import ProtocolError, SourceGap, SourceUnavailable
from walbus.lsn import format_lsn

if TYPE_CHECKING:
    from walbus.capture.assembly import Assembler
    from walbus.capture.prepared import PreparedStore
    from walbus.capture.spool import Spool
    from walbus.native.interface import ReplayRows

_ROWS = frozenset(b"IUD")
_TRUNCATE, _ORIGIN, _MESSAGE, _STOP, _PREPARE = b"TOMEP"
#: So many rolled back subtransactions are remembered, of all open transactions together: some 20 MB.
MOST_ABORTED = 200_000


class Intake:
    """Takes a connection's messages, of any protocol.

    Args:
        assembler: takes what committed.
        spool: for what did not yet.
        prepared: for what was prepared.
        replay_rows: of the assembler's core.
    """

    def __init__(self, assembler: Assembler, spool: Spool, prepared: PreparedStore, *, replay_rows: ReplayRows) -> None:
        self._assembler = assembler
        self._spool = spool
        self._prepared = prepared
        self._replay_rows = replay_rows
        self._told = ToldLayouts(assembler.feed)
        self.whole_until = 0  #: up to this LSN transactions are to be had unstreamed: one could not be used otherwise
        self.whole_next = False  #: and on the next connection, wherever it begins; whoever makes it takes this back
        self._handlers: dict[type, Callable[..., None]] = {
            StreamStart: self._start,
            StreamStop: self._no_block,
            StreamCommit: self._stream_commit,
            StreamAbort: self._abort,
            BeginPrepare: self._begin_prepare,
            Prepare: self._no_block,
            StreamPrepare: self._stream_prepare,
            CommitPrepared: self._commit_prepared,
            RollbackPrepared: self._rollback_prepared,
        }
        self._forget()

    def _forget(self) -> None:
        self._open: dict[int, Pending] = {}
        self._aborted = 0  # subtransactions that they remember
        self._divert: Callable[[bytes, int], None] | None = None  # takes messages inside a block and during a replay
        self._block: Pending | None = None  # whose block is open
        self._replay: Replay | None = None
        self._replayed: Callable[[], None] = lambda: None

    def reconnected(self) -> None:
        """A new connection: the server sends what is open again from its beginning."""
        self._forget()
        self._told.clear()
        self._spool.clear()
        self._prepared.reconnected()

    @property
    def spooled_bytes(self) -> int:
        """Size of what waits, open or prepared."""
        return self._spool.size + self._prepared.size

    @property
    def plain(self) -> bool:
        """Whether Begin, rows and Commit may be fed to the assembler directly: no block and no replay is under way."""
        return self._divert is None

    def sink(self) -> bytearray | None:
        """Where rows of the open block may be put directly (`walbus.native.spool_rows`); None outside of blocks.

        Raises:
            LogFull: no room.
        """
        return None if self._block is None else self._block.spool.sink()

    @property
    def replaying(self) -> bool:
        """Whether a replay is under way; `replay` goes on with it."""
        return self._replay is not None

    def feed(self, data: bytes, offset: int = 0) -> None:
        """Takes one message; not to be called during a replay.

        Args:
            data: holds the message from `offset` to its end.
            offset: where it begins.

        Raises:
            ProtocolError: the message makes no sense, by itself or at this place.
            SourceReplaced: the source's history is not the log's.
            SourceGap: what was prepared is not here.
            SourceUnavailable: a transaction must be sent again, unstreamed; connect again.
            LogFull: no room. Nothing of the message was taken; feed it again.
        """
        if self._divert is not None:
            self._divert(data, offset)
        elif len(data) <= offset:
            raise ProtocolError("an empty message", where="offset 0")
        elif data[offset] in PLAIN_KINDS:
            self._assembler.feed(data, offset)
        elif data[offset] in TELLING_KINDS:
            self._tell(data[offset:])
        else:
            message = decode_streamed(data, offset)
            if self._assembler.in_transaction:
                raise ProtocolError("it came inside a whole transaction", where=f"{_kind(data, offset)}, offset 0")
            self._handlers[type(message)](message)

    def replay(self, budget: int) -> None:
        """Feeds about `budget` more bytes of the replay that is under way.

        Raises:
            LogFull: no room for a new layout; call again.
            ProtocolError, SourceReplaced, DamagedRecord: as `feed`.
        """
        if self._replay is not None and self._replay.run(budget):
            self._replay = self._divert = None
            self._replayed()

    def keepalive(self, wal_end: int) -> None:
        """As `Assembler.keepalive`; heeded between transactions and blocks only."""
        if self._divert is None:
            self._assembler.keepalive(wal_end)

    def durable(self, end_lsn: int) -> None:
        """The log is durable up to an LSN; to be called before the source is told so."""
        self._prepared.passed(end_lsn)

    def _tell(self, message: bytes) -> None:
        self._told.feed(message)
        self._told.arrived(message)

    # Blocks of streamed transactions.

    def _start(self, start: StreamStart) -> None:
        pending = self._open.get(start.xid)
        if start.first != (pending is None):
            what = "the first block of a transaction came twice" if pending else "a transaction has no first block"
            raise ProtocolError(what, where=f"message 'S', transaction {start.xid}")
        if pending is None:
            pending = self._open[start.xid] = Pending(start.xid, self._spool.open(start.xid))
        self._block, self._divert = pending, partial(self._feed_block, pending)

    def _feed_block(self, block: Pending, data: bytes, offset: int) -> None:
        kind = data[offset] if len(data) > offset else 0
        if kind in _ROWS or kind == _TRUNCATE:
            block.spool.add_prefixed(data, offset)
        elif kind in TELLING_KINDS:
            self._told_in_block(block, data, offset)
        elif kind == _MESSAGE:
            self._message_in_block(block, data, offset)
        elif kind == _ORIGIN:
            block.origin = data[offset:]
        elif kind == _STOP:
            decode_streamed(data, offset)
            self._spool.settle(block.spool)
            self._block = self._divert = None
        else:
            raise ProtocolError("it has no place in a block", where=f"{_kind(data, offset)}, offset 0")

    def _told_in_block(self, block: Pending, data: bytes, offset: int) -> None:
        block.spool.add_prefixed(data, offset)
        _, message = split_xid(data, offset)
        self._told.arrived(message)
        block.layouts.add(subject_of(message))

    def _message_in_block(self, block: Pending, data: bytes, offset: int) -> None:
        xid, message = split_xid(data, offset)
        if message[1:2] == b"\0":  # it belongs to no transaction
            self._assembler.feed(message)
            return
        block.spool.add(xid, message)
        block.messages = True

    def _no_block(self, message: StreamStop | Prepare) -> None:
        raise ProtocolError("it ends what did not begin", where=f"message {type(message).__name__}, offset 0")

    def _abort(self, abort: StreamAbort) -> None:
        pending = self._open.get(abort.xid)
        if pending is None:
            return  # nothing of it came: nothing is to be forgotten
        if abort.subxid == abort.xid:
            self._close(pending)
            return
        if pending.messages:
            pending.doubt = "streamed messages and rolled back savepoints"
        elif self._aborted >= MOST_ABORTED:
            pending.doubt = "rolled back more savepoints than are kept in memory"
        self._aborted -= len(pending.aborted)
        if pending.doubt:
            pending.aborted.clear()
        else:
            pending.aborted.add(abort.subxid.to_bytes(4, "big"))
        self._aborted += len(pending.aborted)

    def _close(self, pending: Pending) -> None:
        self._open.pop(pending.xid, None)
        self._aborted -= len(pending.aborted)
        pending.aborted.clear()
        self._spool.close(pending.xid)

    def _stream_commit(self, commit: StreamCommit) -> None:
        pending = self._streamed(commit.xid)
        if pending.doubt and self._assembler.has_passed(commit.commit_lsn, commit.commit_time, commit.xid):
            self._close(pending)  # it is sent again, and the log has what of it counts
            return
        self._check_doubt(pending, commit.commit_lsn)
        ending = Ending(commit.commit_lsn, commit.end_lsn, commit.commit_time, commit.xid)
        replay = Replay(
            self._assembler,
            self._told,
            self._replay_rows,
            pending.spool.spooled(),
            ending,
            origin=pending.origin,
            aborted=frozenset(pending.aborted),
            layouts=pending.layouts,
        )
        self._begin_replay(replay, lambda: self._close(pending))

    def _begin_replay(self, replay: Replay, done: Callable[[], None]) -> None:
        self._replay, self._replayed = replay, done
        self._divert = self._feed_replaying

    def _feed_replaying(self, _data: bytes, _offset: int) -> None:
        raise ValueError("a message was fed into a replay")

    def _streamed(self, xid: int) -> Pending:
        """A streamed transaction that ends."""
        pending = self._open.get(xid)
        if pending is None:
            raise ProtocolError("a transaction that was not streamed ends", where=f"transaction {xid}")
        return pending

    def _check_doubt(self, pending: Pending, lsn: int) -> None:
        if pending.doubt:
            self.whole_until, self.whole_next = max(self.whole_until, lsn), True
            what = f"transaction {pending.xid} {pending.doubt}; it must be sent again unstreamed"
            raise SourceUnavailable(what, where=format_lsn(lsn))

    # Prepared transactions.

    def _begin_prepare(self, begin: BeginPrepare) -> None:
        self._spool.close(begin.xid)
        pending = Pending(begin.xid, self._spool.open(begin.xid))
        self._divert = partial(self._feed_preparing, pending)

    def _feed_preparing(self, pending: Pending, data: bytes, offset: int) -> None:
        kind = data[offset] if len(data) > offset else 0
        if kind == _PREPARE:
            self._prepare(pending, data, offset)
        elif kind in TELLING_KINDS:
            message = data[offset:]
            pending.spool.add(pending.xid, message)
            pending.layouts.add(subject_of(message))
            self._tell(message)
        elif kind in _ROWS or kind == _TRUNCATE:
            self._add_layouts(pending, tables_of(data, offset))
            pending.spool.add(pending.xid, data[offset:])
        elif kind == _MESSAGE:
            pending.spool.add(pending.xid, data[offset:])
        elif kind == _ORIGIN:
            pending.origin = data[offset:]
        else:
            what = "it has no place in a prepared transaction"
            raise ProtocolError(what, where=f"{_kind(data, offset)}, offset 0")

    def _add_layouts(self, pending: Pending, tables: list[int]) -> None:
        """Puts the layouts before the first rows that need them."""
        for table in tables:
            subject = layout_of_table(table)
            if subject not in pending.layouts:
                for message in self._told.needed_by(table):
                    pending.spool.add(pending.xid, message)
                pending.layouts.add(subject)

    def _prepare(self, pending: Pending, data: bytes, offset: int) -> None:
        prepare = decode_streamed(data, offset)
        if not isinstance(prepare, Prepare) or prepare.xid != pending.xid:
            raise ProtocolError("it ends another transaction than the one that began", where="message 'P', offset 0")
        self._keep(pending, prepare)
        self._divert = None

    def _stream_prepare(self, prepare: StreamPrepare) -> None:
        pending = self._streamed(prepare.xid)
        self._check_doubt(pending, prepare.prepare_lsn)
        self._keep(pending, prepare)

    def _keep(self, pending: Pending, prepare: Prepare | StreamPrepare) -> None:
        self._prepared.keep(
            pending.spool,
            xid=prepare.xid,
            gid=prepare.gid,
            prepare_lsn=prepare.prepare_lsn,
            origin=pending.origin,
            aborted=frozenset(int.from_bytes(xid, "big") for xid in pending.aborted),
        )
        self._close(pending)

    def _commit_prepared(self, commit: CommitPrepared) -> None:
        prepared = self._prepared.find(commit.xid, commit.gid)
        if prepared is None:
            self._without_changes(commit)
            return
        spooled = self._prepared.spooled(prepared)

        def check() -> None:
            if spooled.crc != prepared.crc:
                raise spooled.damaged("the checksum of a prepared transaction is wrong")

        replay = Replay(
            self._assembler,
            self._told,
            self._replay_rows,
            spooled,
            Ending(commit.commit_lsn, commit.end_lsn, commit.commit_time, commit.xid),
            origin=bytes.fromhex(prepared.origin),
            aborted=frozenset(xid.to_bytes(4, "big") for xid in prepared.aborted),
            check=check,
        )
        self._begin_replay(replay, lambda: self._prepared.expect_end(prepared.key, commit.end_lsn))

    def _without_changes(self, commit: CommitPrepared) -> None:
        """What the log is past may be sent again; then its changes are gone from here, and not needed."""
        if not self._assembler.has_passed(commit.commit_lsn, commit.commit_time, commit.xid):
            what = f"transaction {commit.xid} was prepared and committed, and its changes are not in the spool"
            raise SourceGap(what, where=f"COMMIT PREPARED, {format_lsn(commit.commit_lsn)}", mend=RECONCILE)

    def _rollback_prepared(self, rollback: RollbackPrepared) -> None:
        self._prepared.expect_end((rollback.xid, rollback.gid), rollback.end_lsn)


def _kind(data: bytes, offset: int) -> str:
    return f"message {chr(data[offset])!r}" if len(data) > offset else "an empty message"
