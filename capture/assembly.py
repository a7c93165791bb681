"""pgoutput messages in, pieces of the log out. Pure.

The open transaction lies in a core (`walbus.native`), which packs its changes as they arrive. The native core takes
nearly all messages by itself; what it leaves comes to the handlers here, which know every kind, and say what is right.

A transaction without any change gives no piece: it only moves `bound`, and so does a keepalive. One that the log has
already (`walbus.capture.repeats`) gives none either.

A non-transactional message is a transaction of its own with xid 0. Its record may end exactly where the next commit's
begins, so its place is the last byte of its record.

A net difference (`walbus.capture.handover`) stands between two transactions. The one behind it may have to be moved, by
less than a record's length (`walbus.capture.places`).

One `Assembler` lives as long as its process; `reconnected` tells it that the stream begins anew. What `feed` completes
waits inside until `take`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from walbus.capture.changes import ChangeMessage, put_changes
from walbus.capture.epochs import epoch_piece, switches_between
from walbus.capture.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)
from walbus.capture.pieces import progress_piece, reseed_piece, schema_piece
from walbus.capture.places import GAP, difference_place, moved_lsn
from walbus.capture.repeats import Repeats
from walbus.capture.tables import PrimaryKey, Tables
from walbus.capture.timelines import Timelines
from walbus.capture.xids import widen_xid
from walbus.errors import ProtocolError
from walbus.log import Held, Piece, Run, SchemaRegistry
from walbus.lsn import format_lsn
from walbus.native.interface import Core, Transaction
from walbus.position import Position
from walbus.schema import TableSchema

_CHANGE_KINDS = frozenset((b"I", b"U", b"D", b"T", b"M"))
_LONGEST_ORIGIN = 0xFFFF


class Assembler:
    """Builds pieces out of one source's stream.

    Args:
        core: empty; packs what is assembled.
        schemas: the log's registry; registering is durable when it returns.
        repeats: tells transactions that the log has from new ones.
        builtin_types: names of the types that are not announced, by OID.
        primary_key: the primary key's columns of a table, by its OID and the columns of a layout; asked under
            REPLICA IDENTITY FULL alone (`walbus.capture.layouts.key_under_full`).
        timelines: of the server.
        near_xid: a recent 64-bit transaction id of the server (`pg_snapshot_xmax`).
        bound: the log has everything that commits before this LSN.
        last_commit_time: of the log's last record, Unix microseconds.
    """

    def __init__(  # noqa: PLR0913  (what it knows of the source and of the log)
        self,
        *,
        core: Core,
        schemas: SchemaRegistry,
        repeats: Repeats,
        builtin_types: Mapping[int, str],
        primary_key: PrimaryKey,
        timelines: Timelines,
        near_xid: int,
        bound: int = 0,
        last_commit_time: int = 0,
    ) -> None:
        self._core = core
        self._schemas = schemas
        self._repeats = repeats
        self.builtin_types = builtin_types
        self._primary_key = primary_key
        self._core.last_commit_time = last_commit_time
        self.repeated = 0  #: transactions dropped because the log has them
        self._handlers: dict[type, Callable[..., None]] = {
            Insert: self._change,
            Update: self._change,
            Delete: self._change,
            Begin: self._begin,
            Commit: self._commit,
            Origin: self._origin,
            Relation: self._relation,
            Type: self._type,
            Truncate: self._change,
            LogicalMessage: self._message,
        }
        self._begin_connection(timelines, near_xid, bound)

    def reconnected(self, timelines: Timelines, near_xid: int, *, end: Position, bound: int) -> None:
        """A new connection, on which everything comes again that is not durable in the log.

        What was handed out counts only if the log took it: a connection may break while a full disk refuses pieces.

        Args:
            timelines: of the server.
            near_xid: as for the constructor.
            end: position of the log's last record.
            bound: the log has everything that commits before this LSN.
        """
        self._repeats.restart(end)
        self._begin_connection(timelines, near_xid, bound)

    def owe(self, transaction: Held | None, *, other_rows: bool = False) -> None:
        """The log's last transaction, if it must be sent again before anything new (`walbus.capture.repeats`)."""
        self._repeats.owe(transaction, other_rows=other_rows)

    @property
    def sees_begins(self) -> bool:
        """Whether every message must be fed here, and none to the core: the owed transaction may come without a row."""
        return self._repeats.sees_begins

    def _begin_connection(self, timelines: Timelines, near_xid: int, bound: int) -> None:
        self._timelines = timelines
        self._core.near_xid = near_xid
        self._core.restart(timelines.current, timelines.since, end=self._repeats.end, bound=bound)
        self._tables = Tables(
            self._schemas, self.builtin_types, self._inside, self._primary_key, self._tell, self._core.know
        )
        self._repeated = False  # whether the log has the open transaction; known since its first change
        self._epoch = self._repeats.end.epoch  # of the last record that the log was given; 0 before the first one

    @property
    def core(self) -> Core:
        """For whoever can hand it frames with less ado than `feed`: what it leaves must be fed here."""
        return self._core

    @property
    def near_xid(self) -> int:
        """A recent 64-bit transaction id of the server, to be refreshed at least once in a billion transactions."""
        return self._core.near_xid

    @near_xid.setter
    def near_xid(self, xid: int) -> None:
        self._core.near_xid = xid

    @property
    def bound(self) -> int:
        """Everything that commits before this LSN has been received."""
        return self._core.bound

    @property
    def transactions(self) -> int:
        """Transactions handed out whole."""
        return self._core.transactions

    @property
    def changes(self) -> int:
        """Changes handed out."""
        return self._core.changes

    @property
    def waiting_bytes(self) -> int:
        """Size of what `take` would give."""
        return self._core.waiting_bytes

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction's Commit has still to come."""
        return self._core.transaction is not None

    @property
    def repeating(self) -> bool:
        """Whether the log has the open transaction, so that its changes are dropped; False before its first change."""
        return self._repeated

    def has_passed(self, commit_lsn: int, commit_time: int, xid: int) -> bool:
        """Whether the log is past a commit: it has the transaction, or was told that it had no change.

        Raises:
            SourceReplaced: the log holds another transaction there.
        """
        self._repeats.passed(self._core.end)
        return self._repeats.has_passed(self._transaction_at(commit_lsn, commit_time, widen_xid(xid, self.near_xid)))

    def feed(self, data: bytes, offset: int = 0) -> None:
        """Takes one pgoutput message.

        Args:
            data: holds the message from `offset` to its end.
            offset: where it begins.

        Raises:
            ProtocolError: the message makes no sense, by itself or at this place.
            SourceReplaced: the source's history is not the log's.
            LogFull: no room for a new layout. Nothing of the message was taken; feed it again.
        """
        if self._repeats.sees_begins and data[offset : offset + 1] == b"B":
            self._see(decode(data, offset))
        if not self._core.feed(data, offset):
            self.take_left(data, offset)

    def take_left(self, data: bytes, offset: int) -> None:
        """As `feed`, of a message that the core has left."""
        if self._repeated and data[offset : offset + 1] in _CHANGE_KINDS:
            return
        self._repeats.passed(self._core.end)
        try:
            message = decode(data, offset)
            self._handlers[type(message)](message)
        except ProtocolError as error:
            raise self._placed(error, data[offset : offset + 1]) from None

    def take(self) -> list[Piece | Run]:
        """What is complete and was not taken yet, for the log, in order."""
        given = self._core.take()
        if not given:
            return given
        self._repeats.check_owed()
        if given[-1].epoch == self._epoch:
            return given
        return self._with_switches(given)

    def keepalive(self, wal_end: int) -> None:
        """The walsender says that everything before `wal_end` has been sent (heeded between transactions only).

        Progress is due then even if the last commit ended there: a commit's position lies before its end, and whoever
        waits for a position at the end of an idle source's WAL would wait for somebody to write more.
        """
        core = self._core
        if core.transaction is None and wal_end >= core.bound:
            core.bound = wal_end
            core.handed = min(core.handed, core.shown)

    def forget(self, trimmed: Position) -> None:
        """The log dropped everything up to `trimmed`; what is sent again from there cannot be compared."""
        self._repeats.trimmed = trimmed

    def progress(self, now: int | None) -> Piece | None:
        """A PROGRESS piece, if more is complete than the log was told; call it until it gives None.

        Behind a promotion the EPOCH piece comes first.

        Args:
            now: the server's clock, Unix microseconds; None far behind it, where the last commit's time stands.
        """
        core = self._core
        if core.transaction is not None or core.bound <= core.handed:
            return None
        self._repeats.check_owed()
        switch = next(iter(self._switches_to(self._timelines.epoch_of(core.bound))), None)
        if switch is not None:
            self._passes(Position(switch.epoch, switch.commit_lsn, 0))
            self._epoch = switch.epoch
            return switch
        core.handed = core.shown = core.bound
        now = core.last_commit_time if now is None else now
        core.last_commit_time = max(core.last_commit_time, now)
        piece = progress_piece(self._timelines.epoch_of(core.bound), core.bound, now)
        return piece if self._passes(Position(piece.epoch, piece.commit_lsn, 0)) else None

    def announce(self, schema: TableSchema, reseed: Mapping[str, str], now: int) -> None:
        """Puts a SCHEMA event behind everything that was received: the table must be seeded again.

        Called between transactions only. The table's next row derives its layout anew. Where a net difference stands
        already behind all that was received, the event stands behind its last change.

        Args:
            schema: the table's last layout, registered.
            reseed: why.
            now: the server's clock, Unix microseconds.
        """
        core = self._core
        if core.transaction is not None:
            raise AssertionError("an event between transactions was put into one")
        while (progress := self.progress(now)) is not None:
            core.put(progress)
        self._repeats.passed(core.end)
        at = max(Position(self._timelines.epoch_of(core.bound), core.bound, 0), self._repeats.end)
        core.put(reseed_piece(at, core.last_commit_time, schema, reseed))
        self._passes(at)
        self.forget_table(schema.oid)

    # Net differences.

    def difference_place(self) -> Position | None:
        """Where a net difference may stand now (ordinal 0), behind everything that was received; None if it must wait.

        Nothing that was received may be waiting to be taken.
        """
        core = self._core
        if core.transaction is not None or core.bound > core.handed or self._repeats.owing:
            return None
        self._repeats.passed(core.end)
        return difference_place(self._repeats.end, self._epoch, core.bound)

    def difference_taken(self, end: Position) -> None:
        """The log was given a net difference that ends at a position."""
        self._passes(end)

    # Epochs.

    def _with_switches(self, given: list[Piece | Run]) -> list[Piece | Run]:
        """What is given, with an EPOCH piece before the first of each new epoch."""
        marked: list[Piece | Run] = []
        for piece in given:
            marked += self._switches_to(piece.epoch)
            self._epoch = max(self._epoch, piece.epoch)
            marked.append(piece)
        return marked

    def _switches_to(self, epoch: int) -> list[Piece]:
        """The EPOCH pieces between the log's last record and one of this epoch; none at the beginning of a log."""
        if not 0 < self._epoch < epoch:
            return []
        switches = switches_between(self._timelines, self._epoch, epoch)
        return [epoch_piece(switch, None, (), self._core.last_commit_time) for switch in switches]

    # What frames changes.

    def _begin(self, begin: Begin) -> None:
        if self._core.transaction is not None:
            raise ProtocolError("a transaction begins inside another one")
        self._open(begin.commit_lsn, begin.commit_time, widen_xid(begin.xid, self.near_xid))

    def _see(self, begin: object) -> None:
        if isinstance(begin, Begin):
            xid = widen_xid(begin.xid, self.near_xid)
            self._repeats.begins(self._transaction_at(begin.commit_lsn, begin.commit_time, xid))

    def _commit(self, commit: Commit) -> None:
        if self._inside().commit_lsn not in (commit.commit_lsn, commit.commit_lsn + GAP):
            raise ProtocolError(f"the commit at {format_lsn(commit.commit_lsn)} ends another transaction")
        self.repeated += self._repeated
        self._repeated = False
        self._core.commit(commit.end_lsn)
        self._repeats.passed(self._core.end)

    def _origin(self, origin: Origin) -> None:
        self._inside()
        name = origin.name.encode()
        if len(name) > _LONGEST_ORIGIN:
            raise ProtocolError(f"an origin's name of {len(name)} bytes")
        self._core.origin = name

    def _relation(self, relation: Relation) -> None:
        self._tables.relation_told(relation)
        self._core.forget(relation.oid)

    def forget_table(self, oid: int) -> None:
        """The table's next row derives its layout anew, from the last Relation message."""
        self._tables.forget(oid)
        self._core.forget(oid)

    def layout_begun_at(self, oid: int) -> int:
        """Commit LSN of this connection's first transaction with rows in a table's present layout; 0: there is none."""
        return self._tables.begun_at(oid)

    def _type(self, told: Type) -> None:
        self._tables.type_told(told)

    # Changes.

    def _change(self, message: ChangeMessage) -> None:
        if self._takes_change():
            put_changes(message, self._tables, self._core)

    def _message(self, message: LogicalMessage) -> None:
        if message.transactional:
            self._change(message)
            return
        if self._core.transaction is not None:
            raise ProtocolError("a message outside transactions came inside one")
        self._open(message.lsn - 1, self._core.last_commit_time, 0)
        self._change(message)
        self._commit(Commit(message.lsn - 1, message.lsn, self._core.last_commit_time))

    # The open transaction.

    def _open(self, commit_lsn: int, commit_time: int, xid: int) -> None:
        self._core.begin(self._transaction_at(commit_lsn, commit_time, xid))
        self._repeated = False

    def _transaction_at(self, commit_lsn: int, commit_time: int, xid: int) -> Transaction:
        epoch = self._timelines.epoch_of(commit_lsn)
        return Transaction(epoch, moved_lsn(self._repeats.end, epoch, commit_lsn), commit_time, xid)

    def _inside(self) -> Transaction:
        transaction = self._core.transaction
        if transaction is None:
            raise ProtocolError("it came outside of any transaction")
        return transaction

    def _takes_change(self) -> bool:
        """Whether the open transaction is new; False if the log has this change already."""
        transaction = self._inside()
        if not self._core.accepted and not self._repeated:
            self._repeated = self._repeats.is_repeat(transaction)
            if not self._repeated:
                self._core.accept()
        return not self._repeated

    def _passes(self, position: Position) -> bool:
        """Whether a record between transactions lies behind all that was handed out; it counts as handed out then."""
        passes = self._repeats.passed(position)
        self._core.end = self._repeats.end
        return passes

    def _tell(self, schema: TableSchema) -> None:
        """Writes the SCHEMA record behind the changes so far, before the one that needs it."""
        transaction, core = self._inside(), self._core
        core.hand_out()
        core.put(schema_piece(transaction, core.done, core.origin, schema))
        if not core.done:
            self._passes(Position(transaction.epoch, transaction.commit_lsn, 0))  # it stands by itself

    def _placed(self, error: ProtocolError, kind: bytes) -> ProtocolError:
        transaction = self._core.transaction
        if transaction is None:
            place = f"behind {format_lsn(self._core.bound)}"
        else:
            place = f"transaction {transaction.xid}, commit {format_lsn(transaction.commit_lsn)}"
        where = error.where or f"message {kind.decode(errors='replace')!r}, offset 0"
        return ProtocolError(error.what, where=f"{where}, {place}", mend=error.mend)
