"""The core in Python: packs what its owner decodes, and takes no message by itself. Pure.

Always importable, and in use where the native one was not built or `WALBUS_PURE=1` is set. Its bytes are the native
one's: both are tested by one suite, and against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from walbus.log import Piece, Run
from walbus.native.interface import PIECE_BYTES, PIECE_CHANGES, RUN_BYTES, CopyData, Drained, Envelope, Transaction
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, pack_unsealed
from walbus.schema import TableSchema


@dataclass(slots=True)
class _Waiting:
    """Changes of the open transaction that were not handed out yet."""

    changes: list[bytes] = field(default_factory=list)
    size: int = 0
    tables: int = 0


@dataclass(slots=True)
class _OpenRun:
    """Records of small transactions that were not handed out yet; `first` is set once there are any."""

    records: list[bytes] = field(default_factory=list)
    size: int = 0
    changes: int = 0
    first: Position = ORIGIN
    last: Position = ORIGIN
    end_lsn: int = 0
    commit_time: int = 0
    latest: int = 0

    def add(self, record: bytes, transaction: Transaction, last: Position, count: int, end_lsn: int) -> None:
        if not self.records:
            self.first = Position(transaction.epoch, transaction.commit_lsn, 1)
            self.latest = transaction.commit_time
        self.records.append(record)
        self.size += len(record)
        self.changes += count
        self.last = last
        self.end_lsn, self.commit_time = end_lsn, transaction.commit_time
        self.latest = max(self.latest, transaction.commit_time)

    def closed(self) -> Run:
        records = b"".join(self.records)
        return Run(records, self.first, self.last, self.changes, self.end_lsn, self.commit_time, self.latest)


class Core:
    """See `walbus.native.interface.Core`."""

    def __init__(self) -> None:
        self.near_xid = 0
        self.last_commit_time = 0
        self.transactions = self.changes = 0
        self.server_lsn = self.server_time = 0
        self.restart(0, 0, end=ORIGIN, bound=0)

    # The stream.

    def restart(self, epoch: int, since: int, *, end: Position, bound: int) -> None:
        """See the interface; only a core that takes messages must know epochs."""
        self.end = end
        self.bound = self.handed = bound
        self.shown = 0
        self.transaction: Transaction | None = None
        self.accepted = False
        self.origin = b""
        self.done = 0
        self._waiting = _Waiting()
        self._run = _OpenRun()
        self._out: list[Piece | Run] = []
        self._out_bytes = 0

    def know(self, schema: TableSchema) -> None:
        """See the interface."""

    def forget(self, oid: int) -> None:
        """See the interface."""

    def feed(self, data: bytes, offset: int) -> bool:
        """See the interface; all messages are left."""
        return False

    def drain(self, next_frame: CopyData, alarm: Sequence[object], limit: int, envelope: Envelope) -> Drained:
        """See the interface; the first frame is left."""
        size, frame = next_frame(1)
        return Drained(size, bytes(frame) if size > 0 else b"", 0)

    # The open transaction.

    def begin(self, transaction: Transaction) -> None:
        """See the interface."""
        self.transaction, self.accepted = transaction, False
        self.origin, self.done = b"", 0
        self._waiting = _Waiting()

    def accept(self) -> None:
        """See the interface."""
        self.accepted = True

    @property
    def waiting(self) -> int:
        """See the interface."""
        return len(self._waiting.changes)

    def next_delta(self) -> int:
        """See the interface."""
        if self._waiting.size >= PIECE_BYTES or len(self._waiting.changes) >= PIECE_CHANGES:
            self.hand_out()
        return len(self._waiting.changes)

    def add(self, change: bytes, bit: int = 0) -> None:
        """See the interface."""
        self._waiting.changes.append(change)
        self._waiting.size += len(change)
        self._waiting.tables |= bit

    def hand_out(self) -> None:
        """See the interface."""
        if self.waiting:
            self._put_piece(0, 0)

    def commit(self, end_lsn: int) -> None:
        """See the interface."""
        transaction, count = self._opened(), self.waiting
        if count:
            last = Position(transaction.epoch, transaction.commit_lsn, self.done + count)
            if self.done:
                self._put_piece(Flag.END, end_lsn)
            else:
                self._put_record(transaction, last, end_lsn)
            self.transactions += 1
            self.handed, self.shown = end_lsn, transaction.commit_lsn
            self.end = max(self.end, last)
        self.transaction, self.accepted = None, False
        self.last_commit_time = max(self.last_commit_time, transaction.commit_time)
        self.bound = max(self.bound, end_lsn)

    def _opened(self) -> Transaction:
        if self.transaction is None:
            raise ValueError("no transaction is open")
        return self.transaction

    # What is complete.

    @property
    def waiting_bytes(self) -> int:
        """See the interface."""
        return self._out_bytes + self._run.size

    def put(self, piece: Piece) -> None:
        """See the interface."""
        self._close_run()
        self._out.append(piece)
        self._out_bytes += len(piece.body)

    def take(self) -> list[Piece | Run]:
        """See the interface."""
        self._close_run()
        out, self._out, self._out_bytes = self._out, [], 0
        return out

    def _put_piece(self, flags: int, end_lsn: int) -> None:
        transaction, waiting, first = self._opened(), self._taken(), self.done + 1
        self.done += len(waiting.changes)
        piece = Piece(
            kind=Kind.TRANSACTION,
            flags=flags | (Flag.BEGIN if first == 1 else 0),
            epoch=transaction.epoch,
            commit_lsn=transaction.commit_lsn,
            end_lsn=end_lsn,
            first_ordinal=first,
            last_ordinal=self.done,
            count=len(waiting.changes),
            xid=transaction.xid,
            commit_time=transaction.commit_time,
            origin=self.origin,
            tables=waiting.tables,
            body=b"".join(waiting.changes),
        )
        self.put(piece)

    def _put_record(self, transaction: Transaction, last: Position, end_lsn: int) -> None:
        if self._run.records and self._run.last.epoch != transaction.epoch:
            self._close_run()
        waiting = self._taken()
        record = pack_unsealed(
            epoch=transaction.epoch,
            commit_lsn=transaction.commit_lsn,
            end_lsn=end_lsn,
            xid=transaction.xid,
            commit_time=transaction.commit_time,
            count=len(waiting.changes),
            first_seq=self._run.changes,
            origin=self.origin,
            tables=waiting.tables,
            body=b"".join(waiting.changes),
        )
        self._run.add(record, transaction, last, len(waiting.changes), end_lsn)
        if self._run.size >= RUN_BYTES:
            self._close_run()

    def _taken(self) -> _Waiting:
        """What waits, counted as handed out."""
        waiting, self._waiting = self._waiting, _Waiting()
        self.changes += len(waiting.changes)
        return waiting

    def _close_run(self) -> None:
        if self._run.records:
            self._out.append(self._run.closed())
            self._out_bytes += self._run.size
            self._run = _OpenRun()


def spool_rows(next_frame: CopyData, alarm: Sequence[object], limit: int, sink: bytearray) -> Drained:
    """See `walbus.native.interface.SpoolRows`; the first frame is left."""
    size, frame = next_frame(1)
    return Drained(size, bytes(frame) if size > 0 else b"", 0)


def replay_rows(core: object, entries: bytes, at: int, aborted: frozenset[bytes]) -> int:
    """See `walbus.native.interface.ReplayRows`; the first entry is left."""
    return at
