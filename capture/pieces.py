"""The transaction that is arriving, and the pieces of the log that it gives. Pure, and flat in memory.

Begin tells commit LSN, commit time and xid up front, so a piece can leave as soon as it is full; the log publishes
only whole transactions. The last piece waits for Commit, which alone knows `end_lsn`.

    BEGIN piece  ordinals 1..k
    SCHEMA       at k                 a layout, before the first row that uses it (at 0 before the first change)
    piece        ordinals k+1..m
    END piece    ordinals m+1..n
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from walbus.log import Piece
from walbus.position import Position
from walbus.records import Flag, Kind, Op, pack_change
from walbus.schema import TableSchema

#: A piece leaves when it holds this many bytes of changes, or this many changes.
PIECE_BYTES = 256 << 10
PIECE_CHANGES = 4096


def table_bit(oid: int) -> int:
    """A table's bit in the `tables` of a piece."""
    return 1 << oid % 64


@dataclass(slots=True)
class OpenTransaction:
    """One transaction between Begin and Commit.

    Attributes:
        epoch, commit_lsn, commit_time, xid: as in `RecordHeader`.
        origin: name of the replication origin, UTF-8; empty for this server's own.
        ordinal: of the last change that was added.
        done: of the last change that was handed out; those between wait here.
    """

    epoch: int
    commit_lsn: int
    commit_time: int
    xid: int
    origin: bytes = b""
    ordinal: int = 0
    done: int = 0
    _size: int = 0
    _tables: int = 0
    _changes: list[bytes] = field(default_factory=list)

    @property
    def last(self) -> Position:
        """Position of the last change that was handed out."""
        return Position(self.epoch, self.commit_lsn, self.done)

    @property
    def next_delta(self) -> int:
        """seq_delta and ordinal_delta of the next change in its piece."""
        return self.ordinal - self.done

    @property
    def full(self) -> bool:
        """Whether the waiting changes should leave before another one is added."""
        return self._size >= PIECE_BYTES or len(self._changes) >= PIECE_CHANGES

    @property
    def waiting(self) -> int:
        """Number of changes that were not handed out yet."""
        return len(self._changes)

    def add(self, change: bytes, bit: int = 0) -> None:
        """Takes the next change, packed with `next_delta`; `bit` is its table's."""
        self.ordinal += 1
        self._changes.append(change)
        self._size += len(change)
        self._tables |= bit

    def take(self, end_lsn: int = 0) -> Piece:
        """The waiting changes as a piece; the last one of the transaction if `end_lsn` is given."""
        flags = (Flag.BEGIN if self.done == 0 else 0) | (Flag.END if end_lsn else 0)
        body, count, tables = b"".join(self._changes), len(self._changes), self._tables
        first = self.done + 1
        self.done = self.ordinal
        self._changes = []
        self._size = self._tables = 0
        return self._piece(Kind.TRANSACTION, flags, first, count=count, tables=tables, body=body, end_lsn=end_lsn)

    def schema(self, schema: TableSchema) -> Piece:
        """The SCHEMA piece of a layout; everything that waits must have been taken before."""
        document = json.dumps(schema.to_dict()).encode()
        body = pack_change(
            Op.SCHEMA, table=schema.oid, schema_id=schema.id, seq_delta=0, ordinal_delta=0, after=document
        )
        return self._piece(Kind.SCHEMA, 0, self.done, count=1, tables=table_bit(schema.oid), body=body)

    def _piece(  # noqa: PLR0913  (the parts of a piece that differ)
        self, kind: Kind, flags: int, first_ordinal: int, *, count: int, tables: int, body: bytes, end_lsn: int = 0
    ) -> Piece:
        return Piece(
            kind=kind,
            flags=flags,
            epoch=self.epoch,
            commit_lsn=self.commit_lsn,
            end_lsn=end_lsn,
            first_ordinal=first_ordinal,
            last_ordinal=self.done,
            count=count,
            xid=self.xid,
            commit_time=self.commit_time,
            origin=self.origin,
            tables=tables,
            body=body,
        )


def progress_piece(epoch: int, bound: int, now: int) -> Piece:
    """The PROGRESS piece that says: everything that commits before `bound` is in the log.

    Args:
        epoch: the timeline that holds `bound`.
        bound: an LSN.
        now: the server's clock, Unix microseconds.
    """
    return Piece(
        kind=Kind.PROGRESS,
        flags=0,
        epoch=epoch,
        commit_lsn=bound,
        end_lsn=0,
        first_ordinal=0,
        last_ordinal=0,
        count=0,
        xid=0,
        commit_time=now,
    )
