"""pgoutput messages in, pieces of the log out. Pure.

A transaction's changes are packed as they arrive (`walbus.capture.pieces`). One without any change gives no piece: it
only moves `bound`, and so does a keepalive. One that the log has already (`walbus.capture.repeats`) gives none either.

Rows:

- An update's key comes from the new row. Where the key changed, pgoutput sends the old key too, which becomes
  `old_key`; in such a key-only tuple `n` means "not sent". Under REPLICA IDENTITY FULL it sends the whole old row.
- A column whose TOASTed value did not change is not sent. It is taken from the old row where that has it, else its
  bit is set in the change's `unchanged` bitmap. It is never taken for NULL.
- A SCHEMA record is written when a connection first needs a version, even if the log's registry knows it: nobody can
  say whether the record itself got into the log before.
- A non-transactional message is a transaction of its own with xid 0. Its record may end exactly where the next
  commit's begins, so its place is the last byte of its record.

One `Assembler` lives as long as its process; `reconnected` tells it that the stream begins anew. What `feed` completes
waits inside until `take`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from walbus.capture.layouts import layout_of, type_name
from walbus.capture.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Origin,
    Relation,
    Row,
    Truncate,
    Type,
    Update,
    decode,
)
from walbus.capture.pieces import OpenTransaction, progress_piece, table_bit
from walbus.capture.repeats import Repeats
from walbus.capture.rows import Table, bitmap, check_width, completed, whole_row
from walbus.capture.timelines import Timelines
from walbus.capture.xids import widen_xid
from walbus.errors import ProtocolError
from walbus.log import Piece, SchemaRegistry
from walbus.lsn import format_lsn
from walbus.position import Position
from walbus.records import ChangeFlag, Op, pack_change
from walbus.schema import TableSchema
from walbus.values import row_encoder

_CHANGE_KINDS = frozenset((b"I", b"U", b"D", b"T", b"M"))


class Assembler:
    """Builds pieces out of one source's stream.

    Args:
        schemas: the log's registry; registering is durable when it returns.
        repeats: tells transactions that the log has from new ones.
        builtin_types: names of the types that are not announced, by OID.
        primary_key: the primary key's columns of a table, by OID; asked under REPLICA IDENTITY FULL alone.
        timelines: of the server.
        near_xid: a recent 64-bit transaction id of the server (`pg_snapshot_xmax`).
        bound: the log has everything that commits before this LSN.
        last_commit_time: of the log's last record, Unix microseconds.
    """

    def __init__(  # noqa: PLR0913  (what it knows of the source and of the log)
        self,
        *,
        schemas: SchemaRegistry,
        repeats: Repeats,
        builtin_types: Mapping[int, str],
        primary_key: Callable[[int], Collection[str]],
        timelines: Timelines,
        near_xid: int,
        bound: int = 0,
        last_commit_time: int = 0,
    ) -> None:
        self._schemas = schemas
        self._repeats = repeats
        self._builtin_types = builtin_types
        self._primary_key = primary_key
        self._last_commit_time = last_commit_time
        self.transactions = 0  #: transactions handed out whole
        self.changes = 0  #: changes handed out
        self.repeated = 0  #: transactions dropped because the log has them
        self._handlers: dict[type, Callable[..., None]] = {
            Insert: self._insert,
            Update: self._update,
            Delete: self._delete,
            Begin: self._begin,
            Commit: self._commit,
            Origin: self._origin,
            Relation: self._relation,
            Type: self._type,
            Truncate: self._truncate,
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

    def _begin_connection(self, timelines: Timelines, near_xid: int, bound: int) -> None:
        self._timelines = timelines
        self.near_xid = near_xid  #: to be refreshed at least once in a billion transactions
        self._types = dict(self._builtin_types)
        self._relations: dict[int, Relation] = {}
        self._tables: dict[int, Table] = {}
        self._transaction: OpenTransaction | None = None
        self._repeated: bool | None = None  # whether the log has the open transaction; None before its first change
        self._told: dict[int, int] = {}  # version that the last SCHEMA record told of a table, by its OID
        self._out: list[Piece] = []
        self.waiting_bytes = 0  #: size of what `take` would give
        self._handed = bound  # the log has been handed everything that commits before this LSN
        self._shown = 0  # LSN of the last position that the log was handed; below `_handed` behind a commit
        self.bound = bound  #: everything that commits before this LSN has been received

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction's Commit has still to come."""
        return self._transaction is not None

    @property
    def repeating(self) -> bool:
        """Whether the log has the open transaction, so that its changes are dropped; False before its first change."""
        return bool(self._repeated)

    def has_passed(self, commit_lsn: int, commit_time: int, xid: int) -> bool:
        """Whether the log is past a commit: it has the transaction, or was told that it had no change.

        Raises:
            SourceReplaced: the log holds another transaction there.
        """
        epoch, wide = self._timelines.epoch_of(commit_lsn), widen_xid(xid, self.near_xid)
        return self._repeats.has_passed(OpenTransaction(epoch, commit_lsn, commit_time, wide))

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
        if self._repeated and data[offset : offset + 1] in _CHANGE_KINDS:
            return
        try:
            message = decode(data, offset)
            self._handlers[type(message)](message)
        except ProtocolError as error:
            raise self._placed(error) from None

    def take(self) -> list[Piece]:
        """What is complete and was not taken yet, for the log, in order."""
        if not self._out:
            return []
        out, self._out = self._out, []
        self.waiting_bytes = 0
        return out

    def keepalive(self, wal_end: int) -> None:
        """The walsender says that everything before `wal_end` has been sent (heeded between transactions only).

        Progress is due then even if the last commit ended there: a commit's position lies before its end, and whoever
        waits for a position at the end of an idle source's WAL would wait for somebody to write more.
        """
        if self._transaction is None and wal_end >= self.bound:
            self.bound = wal_end
            self._handed = min(self._handed, self._shown)

    def forget(self, trimmed: Position) -> None:
        """The log dropped everything up to `trimmed`; what is sent again from there cannot be compared."""
        self._repeats.trimmed = trimmed

    def progress(self, now: int | None) -> Piece | None:
        """A PROGRESS piece, if more is complete than the log was told.

        Args:
            now: the server's clock, Unix microseconds; None far behind it, where the last commit's time stands.
        """
        if self._transaction is not None or self.bound <= self._handed:
            return None
        self._handed = self._shown = self.bound
        now = self._last_commit_time if now is None else now
        self._last_commit_time = max(self._last_commit_time, now)
        piece = progress_piece(self._timelines.epoch_of(self.bound), self.bound, now)
        return piece if self._repeats.passed(Position(piece.epoch, piece.commit_lsn, 0)) else None

    # What frames changes.

    def _begin(self, begin: Begin) -> None:
        if self._transaction is not None:
            raise ProtocolError("a transaction begins inside another one")
        self._open(begin.commit_lsn, begin.commit_time, widen_xid(begin.xid, self.near_xid))

    def _commit(self, commit: Commit) -> None:
        transaction = self._inside()
        if commit.commit_lsn != transaction.commit_lsn:
            raise ProtocolError(f"the commit at {format_lsn(commit.commit_lsn)} ends another transaction")
        if transaction.waiting:
            self._hand_out(transaction, commit.end_lsn)
            self._handed, self._shown = commit.end_lsn, commit.commit_lsn
            self.transactions += 1
            self._repeats.passed(transaction.last)
        elif self._repeated:
            self.repeated += 1
        self._transaction = self._repeated = None
        self._last_commit_time = max(self._last_commit_time, transaction.commit_time)
        self.bound = max(self.bound, commit.end_lsn)

    def _origin(self, origin: Origin) -> None:
        self._inside().origin = origin.name.encode()

    def _relation(self, relation: Relation) -> None:
        self._relations[relation.oid] = relation
        self._tables.pop(relation.oid, None)

    def _type(self, announced: Type) -> None:
        self._types[announced.oid] = type_name(announced.namespace, announced.name)

    # Changes.

    def _insert(self, insert: Insert) -> None:
        transaction = self._for_change()
        if transaction is None:
            return
        table = self._table(transaction, insert.oid)
        self._add_row(transaction, table, Op.INSERT, insert.new)

    def _update(self, update: Update) -> None:
        transaction = self._for_change()
        if transaction is None:
            return
        table = self._table(transaction, update.oid)
        new, old, before, old_key = update.new, update.old_key or update.old, None, None
        if old is not None:
            check_width(table, old)
            old_key = table.encoder.key(old.texts)
            if update.old is not None:
                before = whole_row(table, update.old)
            if new.unchanged:
                new = completed(new, old, range(table.width) if update.old else table.schema.key_indexes)
        self._add_row(transaction, table, Op.UPDATE, new, before=before, old_key=old_key)

    def _delete(self, delete: Delete) -> None:
        transaction = self._for_change()
        if transaction is None:
            return
        table = self._table(transaction, delete.oid)
        old = delete.old_key or delete.old
        if old is None:
            raise ProtocolError("a delete without its old row")
        check_width(table, old)
        before = whole_row(table, delete.old) if delete.old is not None else None
        delta = transaction.next_delta
        change = pack_change(
            Op.DELETE,
            table=table.schema.oid,
            schema_id=table.schema.id,
            seq_delta=delta,
            ordinal_delta=delta,
            key=table.encoder.key(old.texts),
            before=before,
        )
        transaction.add(change, table.bit)

    def _add_row(  # noqa: PLR0913  (the parts of a change)
        self,
        transaction: OpenTransaction,
        table: Table,
        op: Op,
        row: Row,
        *,
        before: bytes | None = None,
        old_key: bytes | None = None,
    ) -> None:
        after = table.encoder.encode(row.texts)
        key = table.encoder.key(row.texts)
        delta = transaction.next_delta
        change = pack_change(
            op,
            table=table.schema.oid,
            schema_id=table.schema.id,
            seq_delta=delta,
            ordinal_delta=delta,
            key=key,
            old_key=None if old_key == key else old_key,
            unchanged=bitmap(table, row.unchanged) if row.unchanged else b"",
            after=after,
            before=before,
        )
        transaction.add(change, table.bit)

    def _truncate(self, truncate: Truncate) -> None:
        flags = truncate.cascade * ChangeFlag.CASCADE | truncate.restart_identity * ChangeFlag.RESTART_IDENTITY
        first = self._for_change()
        if first is None:
            return
        for table in [self._table(first, oid) for oid in truncate.oids]:
            transaction = self._for_change() or first
            delta = transaction.next_delta
            change = pack_change(
                Op.TRUNCATE,
                table=table.schema.oid,
                schema_id=table.schema.id,
                seq_delta=delta,
                ordinal_delta=delta,
                flags=flags,
            )
            transaction.add(change, table.bit)

    def _message(self, message: LogicalMessage) -> None:
        if message.transactional:
            self._add_message(message, ChangeFlag.TRANSACTIONAL)
            return
        if self._transaction is not None:
            raise ProtocolError("a message outside transactions came inside one")
        self._open(message.lsn - 1, self._last_commit_time, 0)
        self._add_message(message, 0)
        self._commit(Commit(message.lsn - 1, message.lsn, self._last_commit_time))

    def _add_message(self, message: LogicalMessage, flags: int) -> None:
        transaction = self._for_change()
        if transaction is None:
            return
        delta = transaction.next_delta
        change = pack_change(
            Op.MESSAGE, seq_delta=delta, ordinal_delta=delta, flags=flags, key=message.prefix, after=message.content
        )
        transaction.add(change)

    # The open transaction.

    def _open(self, commit_lsn: int, commit_time: int, xid: int) -> None:
        epoch = self._timelines.epoch_of(commit_lsn)
        self._transaction = OpenTransaction(epoch, commit_lsn, commit_time, xid)
        self._repeated = None

    def _inside(self) -> OpenTransaction:
        if self._transaction is None:
            raise ProtocolError("it came outside of any transaction")
        return self._transaction

    def _for_change(self) -> OpenTransaction | None:
        """The open transaction, ready for one more change; None if the log has this change already."""
        transaction = self._inside()
        if self._repeated is None:
            self._repeated = self._repeats.is_repeat(transaction)
        if self._repeated:
            return None
        if transaction.full:
            self._hand_out(transaction)
        return transaction

    def _hand_out(self, transaction: OpenTransaction, end_lsn: int = 0) -> None:
        self.changes += transaction.waiting
        self._put(transaction.take(end_lsn))

    def _put(self, piece: Piece) -> None:
        self._out.append(piece)
        self.waiting_bytes += len(piece.body)

    # Layouts.

    def _table(self, transaction: OpenTransaction, oid: int) -> Table:
        return self._tables.get(oid) or self._new_table(transaction, oid)

    def _new_table(self, transaction: OpenTransaction, oid: int) -> Table:
        relation = self._relations.get(oid)
        if relation is None:
            raise ProtocolError(f"a change of table {oid} came before its layout")
        primary_key = self._primary_key(oid) if relation.identity == "f" else ()
        schema, _ = self._schemas.register(layout_of(relation, self._types, primary_key))
        if self._told.get(oid) != schema.id:
            self._tell(transaction, schema)
        table = Table(schema, row_encoder(schema), len(schema.columns), table_bit(oid))
        self._tables[oid] = table
        return table

    def _tell(self, transaction: OpenTransaction, schema: TableSchema) -> None:
        """Writes the SCHEMA record behind the changes so far, before the one that needs it."""
        if transaction.waiting:
            self._hand_out(transaction)
        self._put(transaction.schema(schema))
        self._told[schema.oid] = schema.id
        if not transaction.done:
            self._repeats.passed(transaction.last)  # before the first change it stands by itself

    def _placed(self, error: ProtocolError) -> ProtocolError:
        if self._transaction is None:
            return error
        place = f"transaction {self._transaction.xid}, commit {format_lsn(self._transaction.commit_lsn)}"
        return ProtocolError(error.what, where=f"{error.where}, {place}" if error.where else place, mend=error.mend)
