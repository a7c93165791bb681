"""Rows of one table: what a tuple must look like, what an old tuple adds to a new one, and both as a change. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from walbus.capture.messages import Row
from walbus.errors import ProtocolError
from walbus.records import Op, pack_change
from walbus.schema import TableSchema
from walbus.values import RowEncoder


@dataclass(frozen=True, slots=True)
class Table:
    """A layout that rows of this connection use, with what packing needs at hand."""

    schema: TableSchema
    encoder: RowEncoder
    width: int
    bit: int


def lacks_key(table: Table, row: Row) -> bool:
    """Whether a column of the table's key is NULL in a row (and not merely unchanged)."""
    texts, unchanged = row.texts, row.unchanged
    return len(texts) == table.width and any(
        texts[index] is None and index not in unchanged for index in table.schema.key_indexes
    )


def pack_row(  # noqa: PLR0913  (the parts of a change)
    table: Table, op: Op, delta: int, *, new: Row | None = None, key: Row | None = None, old: Row | None = None
) -> bytes:
    """An insert, update or delete as a change.

    Args:
        table: of the rows.
        op: which of the three.
        delta: seq_delta and ordinal_delta.
        new: the new tuple; None for a delete.
        key: the old tuple, if its key alone was sent.
        old: the old tuple, if it was sent whole. A delete has one of the two.

    Raises:
        ProtocolError: a tuple does not fit the table, or lacks what it must have.
    """
    encoder, old_key, before = table.encoder, None, None
    sent = key or old
    if sent is not None:
        _check_width(table, sent)
        old_key = encoder.key(sent.texts)
        before = _whole_row(table, old) if old is not None else None
        if new is not None and new.unchanged:
            new = _completed(new, sent, table.schema.key_indexes if old is None else range(table.width))
    after = encoder.encode(new.texts) if new is not None else None
    new_key = encoder.key(new.texts) if new is not None else old_key
    return pack_change(
        op,
        table=table.schema.oid,
        schema_id=table.schema.id,
        seq_delta=delta,
        ordinal_delta=delta,
        key=new_key,
        old_key=None if old_key == new_key else old_key,
        unchanged=_bitmap(table, new.unchanged) if new is not None and new.unchanged else b"",
        after=after,
        before=before,
    )


def _check_width(table: Table, row: Row) -> None:
    """Raises ProtocolError unless the row has a value a column."""
    if len(row.texts) != table.width:
        what = f"a row of {len(row.texts)} columns for a layout of {table.width}"
        raise ProtocolError(what, where=f"table {table.schema.table}")


def _completed(new: Row, old: Row, sent: Collection[int]) -> Row:
    """The new row with the unchanged columns that the old row was `sent` with (indexes)."""
    texts = list(new.texts)
    for index in new.unchanged:
        if index in sent:
            texts[index] = old.texts[index]
    return Row(texts, tuple(i for i in new.unchanged if i not in sent or i in old.unchanged))


def _whole_row(table: Table, old: Row) -> bytes:
    """The whole old row, encoded; ProtocolError if a value was not sent."""
    if old.unchanged:
        raise ProtocolError("a whole old row lacks a value", where=f"table {table.schema.table}")
    return table.encoder.encode(old.texts)


def _bitmap(table: Table, indexes: tuple[int, ...]) -> bytes:
    """Columns by index as a change's `unchanged` bitmap."""
    bits = 0
    for index in indexes:
        bits |= 1 << index
    return bits.to_bytes((table.width + 7) // 8, "little")
