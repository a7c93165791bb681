"""A record of the log made complete: what its changes' rows were before them, and what the new rows lack. Bytes only.

A completion is the packed entry of the row before the change (`walbus.bootstrap.completions`). The change gets it as
its old row, as under REPLICA IDENTITY FULL, and its unchanged values from it, by the names of columns. Both only as far
as they are known: an old row is there whole or not at all (a column that came later, or has another type now, is
unknown), and a value of the new row that is unknown stays marked as unchanged. Everything else is the log's: positions,
seqs, the order, and who passes which filter.

Old rows can be much larger than the changes that the log has. So a record may come as several pieces, as a large
transaction does: each about `PIECE_BYTES`, the first with the BEGIN flag, the last with END.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from walbus.bootstrap.entry import Entry, unpack_entry
from walbus.position import Position
from walbus.records import (
    ChangeFlag,
    Flag,
    Kind,
    Op,
    RawChange,
    RecordHeader,
    body_of,
    iter_changes,
    origin_of,
    pack_change,
    pack_record,
)
from walbus.schema import TableSchema
from walbus.values import merge_unchanged

PIECE_BYTES = 1 << 20

#: Gives a layout by its number.
Layouts = Callable[[int], TableSchema]

_TRANSACTION, _UPDATE, _DELETE = int(Kind.TRANSACTION), int(Op.UPDATE), int(Op.DELETE)
_BEGIN, _END, _ZSTD = int(Flag.BEGIN), int(Flag.END), int(Flag.ZSTD)
_PARTS = int(ChangeFlag.KEY | ChangeFlag.OLD_KEY | ChangeFlag.AFTER | ChangeFlag.BEFORE)


class Joined:
    """Completions in the order of their seqs, taken one by one.

    Args:
        completions: (seq, packed entry).
    """

    def __init__(self, completions: Iterator[tuple[int, bytes]]) -> None:
        self._completions = completions
        self._next = next(completions, None)

    def take(self, seq: int) -> bytes | None:
        """The completion of a change; those of earlier ones are passed over."""
        while self._next is not None and self._next[0] < seq:
            self._next = next(self._completions, None)
        return self._next[1] if self._next is not None and self._next[0] == seq else None

    def any_until(self, seq: int) -> bool:
        """Whether one is left of a change with this seq, or an earlier one."""
        return self._next is not None and self._next[0] <= seq


def completed(
    record: bytes, header: RecordHeader, after: Position, joined: Joined, layouts: Layouts
) -> Iterator[tuple[bytes, Position]]:
    """A record as complete pieces, each with the position of its last change.

    Args:
        record: of the log.
        header: of the record.
        after: what is behind it is given; a position before the record, or inside it.
        joined: completions from the record's first seq, or an earlier one, on.
        layouts: of the log.

    Raises:
        DamagedRecord: the record, or a row, makes no sense.
        KeyError: there is no such layout.
    """
    inside = header.first <= after
    if header.kind != _TRANSACTION or not header.count or not (inside or joined.any_until(header.last_seq)):
        yield record, header.last
        return
    piece = _Piece(record, header, after.ordinal + 1 if inside else header.first_ordinal)
    for change in iter_changes(body_of(record, header)):
        if inside and header.first_ordinal + change.ordinal_delta <= after.ordinal:
            continue
        if piece.size >= PIECE_BYTES:
            yield piece.broken_off(header.first_ordinal + change.ordinal_delta)
        piece.add(completed_change(change, joined.take(header.first_seq + change.seq_delta), layouts))
    yield piece.ended()


def completed_change(change: RawChange, completion: bytes | None, layouts: Layouts) -> RawChange:
    """A change with its completion; as it is where it has none.

    Raises:
        StoreDamaged: the completion is no entry.
        DamagedRecord: a row makes no sense.
        KeyError: there is no such layout.
    """
    if completion is None or change.op not in (_UPDATE, _DELETE):
        return change
    entry = unpack_entry(completion, {})
    if entry.row is None:
        return change
    schema, stored = layouts(change.schema_id), layouts(entry.schema_id)
    after, unchanged = change.after, change.unchanged
    if after is not None:
        after, unchanged = merge_unchanged(schema, after, unchanged, stored, entry.row, entry.missing)
    return change._replace(after=after, unchanged=unchanged, before=_old_row(schema, stored, entry))


def _old_row(schema: TableSchema, stored: TableSchema, entry: Entry) -> bytes | None:
    """The row of an entry in a layout; None where a column of it is not known."""
    if entry.row is None:
        return None
    if schema.id == stored.id and not entry.missing:
        return entry.row
    columns = len(schema.columns)
    every = ((1 << columns) - 1).to_bytes((columns + 7) // 8, "little")
    row, missing = merge_unchanged(schema, bytes(columns), every, stored, entry.row, entry.missing)
    return None if missing else row


class _Piece:
    """The changes of a record, collected into one piece after the other.

    Args:
        record, header: the record.
        ordinal: of the first change that is to come.
    """

    def __init__(self, record: bytes, header: RecordHeader, ordinal: int) -> None:
        self._header = header
        self._origin = origin_of(record, header)
        self._first = ordinal
        self._changes: list[bytes] = []
        self._tables = 0
        self.size = 0  #: bytes that were collected

    def add(self, change: RawChange) -> None:
        """Takes the next one."""
        offset = self._first - self._header.first_ordinal  # seqs and ordinals rise together
        packed = pack_change(
            change.op,
            table=change.table,
            schema_id=change.schema_id,
            seq_delta=change.seq_delta - offset,
            ordinal_delta=change.ordinal_delta - offset,
            flags=change.flags & ~_PARTS,
            key=change.key,
            old_key=change.old_key,
            unchanged=change.unchanged,
            after=change.after,
            before=change.before,
        )
        self._changes.append(packed)
        self._tables |= 1 << change.table % 64 if change.table else 0
        self.size += len(packed)

    def broken_off(self, ordinal: int) -> tuple[bytes, Position]:
        """What was collected, as a piece behind which the change with this ordinal follows."""
        return self._closed(ordinal - 1, 0)

    def ended(self) -> tuple[bytes, Position]:
        """What was collected, as the last piece of the record."""
        return self._closed(self._header.last_ordinal, self._header.flags & _END)

    def _closed(self, last: int, ends: int) -> tuple[bytes, Position]:
        header, first = self._header, self._first
        begins = _BEGIN if first == header.first_ordinal else 0
        body, count, tables = b"".join(self._changes), len(self._changes), self._tables
        self._changes, self._tables, self._first, self.size = [], 0, last + 1, 0
        record = pack_record(
            header.kind,
            flags=header.flags & ~(_BEGIN | _END | _ZSTD) | (header.flags & begins) | ends,
            epoch=header.epoch,
            commit_lsn=header.commit_lsn,
            end_lsn=header.end_lsn if ends else 0,
            first_ordinal=first,
            last_ordinal=last,
            first_seq=header.first_seq + first - header.first_ordinal,
            last_seq=header.first_seq + last - header.first_ordinal,
            xid=header.xid,
            commit_time=header.commit_time,
            count=count,
            origin=self._origin,
            tables=tables,
            body=body,
        )
        return record, header.last._replace(ordinal=last)


__all__ = ["PIECE_BYTES", "Joined", "completed", "completed_change"]
