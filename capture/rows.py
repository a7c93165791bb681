"""Rows of one table: what a tuple must look like, and what an old tuple adds to a new one. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from walbus.capture.messages import Row
from walbus.errors import ProtocolError
from walbus.schema import TableSchema
from walbus.values import RowEncoder


@dataclass(frozen=True, slots=True)
class Table:
    """A layout that rows of this connection use, with what packing needs at hand."""

    schema: TableSchema
    encoder: RowEncoder
    width: int
    bit: int


def check_width(table: Table, row: Row) -> None:
    """Raises ProtocolError unless the row has a value a column."""
    if len(row.texts) != table.width:
        what = f"a row of {len(row.texts)} columns for a layout of {table.width}"
        raise ProtocolError(what, where=f"table {table.schema.table}")


def lacks_key(table: Table, row: Row) -> bool:
    """Whether a column of the table's key is NULL in a row (and not merely unchanged)."""
    texts, unchanged = row.texts, row.unchanged
    return len(texts) == table.width and any(
        texts[index] is None and index not in unchanged for index in table.schema.key_indexes
    )


def completed(new: Row, old: Row, sent: Collection[int]) -> Row:
    """The new row with the unchanged columns that the old row was `sent` with (indexes)."""
    texts = list(new.texts)
    for index in new.unchanged:
        if index in sent:
            texts[index] = old.texts[index]
    return Row(texts, tuple(i for i in new.unchanged if i not in sent or i in old.unchanged))


def whole_row(table: Table, old: Row) -> bytes:
    """The whole old row, encoded; ProtocolError if a value was not sent."""
    if old.unchanged:
        raise ProtocolError("a whole old row lacks a value", where=f"table {table.schema.table}")
    return table.encoder.encode(old.texts)


def bitmap(table: Table, indexes: tuple[int, ...]) -> bytes:
    """Columns by index as a change's `unchanged` bitmap."""
    bits = 0
    for index in indexes:
        bits |= 1 << index
    return bits.to_bytes((table.width + 7) // 8, "little")
