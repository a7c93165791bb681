"""What comes next in the log: which piece may stand there, its seqs, its bytes. Pure; the writer holds the files.

A place lies behind a record. Two are known: `here`, behind the last record, and `whole`, behind the last one that ended
a transaction or stood between two. Between them lies a transaction that has not ended yet, and that may never end.
"""

from __future__ import annotations

from typing import NamedTuple

from walbus.compressed_records import compress_unsealed
from walbus.compression import Compressor
from walbus.errors import LogError, ProtocolError
from walbus.log import Piece, Run
from walbus.native import seal
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader, iter_changes, pack_record
from walbus.relay.copied_run import CopiedRun
from walbus.relay.scan import advance, announced, order_fault
from walbus.relay.tip import Tip, end_behind

# Arithmetic on enum members costs as much as all the rest of an append.
_BEGIN, _END, _ZSTD = int(Flag.BEGIN), int(Flag.END), int(Flag.ZSTD)
_TRANSACTION, _SCHEMA = int(Kind.TRANSACTION), int(Kind.SCHEMA)
_BETWEEN = (int(Kind.PROGRESS), int(Kind.EPOCH))  # kinds that never stand inside a transaction
_SEQ_END = 1 << 53  # seqs stay below, since JSON and Lua have doubles


class Place(NamedTuple):
    """A place behind an appended record, durable or not: its offset in the segment; the largest commit time."""

    offset: int
    tip: Tip
    max_time: int


class Packed(NamedTuple):
    """Records as they will lie in the log, what is known behind them, and their largest commit time."""

    records: bytes
    tip: Tip
    latest: int


class Sequence:
    """The log's order, as its writer keeps it.

    Args:
        start: behind the last durable record.
        first_seq: the next seq.
        compressor: of records' bodies; None leaves them as they are.
    """

    def __init__(self, start: Place, first_seq: int, compressor: Compressor | None = None) -> None:
        self.here = start
        self.whole = start
        self._first_seq = self._next_seq = first_seq
        self._compressor = compressor
        self._open: tuple[int, int] | None = None  # xid and commit LSN of an unfinished transaction
        self._open_schemas: list[int] = []  # announced in it

    @property
    def open(self) -> bool:
        """Whether a transaction has not ended yet."""
        return self._open is not None

    def abandons(self, piece: Piece) -> bool:
        """Whether a piece shows that the open transaction will never end: its source begins anew."""
        if self._open is None:
            return False
        return _begins(piece) or piece.kind in _BETWEEN or self._goes_back(piece)

    def drop_open(self) -> list[int]:
        """Forgets the open transaction, whose seqs are free again; the schemas that were announced in it."""
        announced = self._open_schemas
        self._next_seq = max(self.whole.tip.last_seq + 1, self._first_seq)
        self.here, self._open, self._open_schemas = self.whole, None, []
        return announced

    def check(self, piece: Piece) -> None:
        """Raises ValueError if the piece cannot stand here."""
        if piece.kind == _TRANSACTION and not _begins(piece) and self._open != (piece.xid, piece.commit_lsn):
            raise ValueError(f"a piece of transaction {piece.xid} does not follow its first piece")
        if self._goes_back(piece):
            at = Position(piece.epoch, piece.commit_lsn, piece.first_ordinal)
            raise ValueError(f"a piece at {at} cannot stand behind {self.here.tip.position}")

    def check_run(self, run: Run) -> None:
        """Raises ValueError if the run cannot stand here."""
        if run.first <= self.here.tip.position:
            raise ValueError(f"a run at {run.first} cannot stand behind {self.here.tip.position}")

    def _goes_back(self, piece: Piece) -> bool:
        here = self.here.tip.position
        if piece.kind == _TRANSACTION and piece.count:
            return (piece.epoch, piece.commit_lsn, piece.first_ordinal) <= here
        return (piece.epoch, piece.commit_lsn, piece.last_ordinal) < here

    def pack(self, piece: Piece) -> Packed:
        """A piece with its seqs.

        Raises:
            LogError: there are no more seqs.
        """
        tip = self.here.tip
        if piece.kind == _TRANSACTION and piece.count:
            first_seq = self._next_seq
            last_seq = _checked_seq(first_seq + piece.last_ordinal - piece.first_ordinal)
        else:
            first_seq = last_seq = tip.last_seq
        frame = self._compressed(piece)
        record = pack_record(
            piece.kind,
            flags=piece.flags if frame is None else int(piece.flags) | _ZSTD,
            epoch=piece.epoch,
            commit_lsn=piece.commit_lsn,
            end_lsn=piece.end_lsn,
            first_ordinal=piece.first_ordinal,
            last_ordinal=piece.last_ordinal,
            first_seq=first_seq,
            last_seq=last_seq,
            xid=piece.xid,
            commit_time=piece.commit_time,
            count=piece.count,
            origin=piece.origin,
            tables=piece.tables,
            body=piece.body if frame is None else frame,
        )
        behind = Tip(
            Position(piece.epoch, piece.commit_lsn, piece.last_ordinal),
            end_behind(tip, piece.kind, piece.commit_lsn, piece.end_lsn),
            last_seq,
            piece.commit_time,
            max(tip.announced_schema, _announced(piece) if piece.kind == _SCHEMA else 0),
        )
        return Packed(record, behind, piece.commit_time)

    def pack_run(self, run: Run) -> Packed:
        """A run with its seqs; LogError as for `pack`."""
        tip, first_seq = self.here.tip, self._next_seq
        last_seq = _checked_seq(first_seq + run.changes - 1)
        behind = Tip(run.last, max(tip.end_lsn, run.end_lsn), last_seq, run.commit_time, tip.announced_schema)
        records = run.records if self._compressor is None else compress_unsealed(run.records, self._compressor)
        return Packed(seal(records, first_seq), behind, run.latest)

    def copy(self, header: RecordHeader, record: bytes) -> Packed:
        """A record of the log that this one is a copy of, as it is.

        Raises:
            ProtocolError: it cannot stand here.
        """
        fault = order_fault(self.here.tip, self._open, header)
        if fault is not None:
            raise ProtocolError(fault, where=f"{header.last}, behind {self.here.tip.position}")
        return Packed(record, advance(self.here.tip, header, announced(record, header)), header.commit_time)

    def copy_run(self, run: CopiedRun) -> Packed:
        """Whole transactions of the log that this one is a copy of, as they are; ProtocolError as for `copy`."""
        tip = self.here.tip
        if self._open is not None or run.first < tip.position or run.first_seq < tip.last_seq:
            raise ProtocolError("what comes does not follow", where=f"{run.first}, behind {tip.position}")
        behind = Tip(run.last, max(tip.end_lsn, run.end_lsn), run.last_seq, run.commit_time, tip.announced_schema)
        return Packed(run.records, behind, run.latest)

    def _compressed(self, piece: Piece) -> bytes | None:
        """The frame in place of a piece's body; None if it stays as it is, as that of a layout or an epoch always."""
        if self._compressor is None or piece.kind != _TRANSACTION:
            return None
        return self._compressor.compress(piece.body)

    def appended(self, packed: Packed, offset: int) -> None:
        """The records were appended, and end at an offset."""
        self.here = Place(offset, packed.tip, max(self.here.max_time, packed.latest))
        self._next_seq = max(self._next_seq, packed.tip.last_seq + 1)

    def note(self, piece: Piece) -> None:
        """Behind `appended`: knows whether a transaction is under way, and where the last whole one ended."""
        if piece.kind == _TRANSACTION:
            self._open = None if int(piece.flags) & _END else (piece.xid, piece.commit_lsn)
        elif piece.kind == _SCHEMA and self._open is not None:
            self._open_schemas.append(_announced(piece))
        if self._open is None:
            self.note_whole()

    def note_copied(self, header: RecordHeader, packed: Packed) -> None:
        """Behind `appended`, of a record that `copy` gave: as `note`."""
        if header.kind == _TRANSACTION:
            self._open = None if header.flags & _END else (header.xid, header.commit_lsn)
        elif header.kind == _SCHEMA and self._open is not None:
            self._open_schemas.append(packed.tip.announced_schema)
        if self._open is None:
            self.note_whole()

    def note_announced(self, schema_id: int) -> None:
        """All layouts up to this number were announced before this log begins."""
        self.here = _announced_to(self.here, schema_id)
        self.whole = _announced_to(self.whole, schema_id)

    def note_whole(self) -> None:
        """Behind `appended`: the log ends with a whole transaction."""
        self.whole, self._open_schemas = self.here, []

    def moved(self, offset: int) -> None:
        """A new segment begins here, and its records at an offset."""
        self.whole = self.here = Place(offset, self.here.tip, 0)


def _announced_to(place: Place, schema_id: int) -> Place:
    tip = place.tip
    return place._replace(tip=tip._replace(announced_schema=max(tip.announced_schema, schema_id)))


def _begins(piece: Piece) -> bool:
    return piece.kind == _TRANSACTION and bool(int(piece.flags) & _BEGIN)


def _announced(piece: Piece) -> int:
    return max((change.schema_id for change in iter_changes(piece.body)), default=0)


def _checked_seq(seq: int) -> int:
    if seq >= _SEQ_END:
        raise LogError("the seqs of this log are used up", mend="begin a new log in an empty folder")
    return seq
