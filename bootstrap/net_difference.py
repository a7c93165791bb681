"""What separates two generations of a table, as the changes that make the older one the newer one. Pure.

Both lie in one view of the store, folded to the same position, in key order: a merge of two ranges, whose memory does
not grow. Rows are compared by value. The layouts of two equal rows may differ: a row under another layout is another
row only where a value differs, or where a column that the older row does not have is not NULL. (A column that is gone
changes no row, and one that was added without a value is NULL wherever it is looked at.)

A row that lacks columns in the older generation counts as different: nobody who followed it has them either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from walbus.bootstrap.entry import Entry, FromEvent, unpack_entry
from walbus.records import Op, RawChange
from walbus.schema import TableSchema
from walbus.values import row_texts
from walbus.values.merge import split_row

_NULL = b"\0"


@dataclass(frozen=True, slots=True)
class Difference:
    """One key at which two generations differ.

    Attributes:
        op: INSERT, UPDATE or DELETE: what makes the older one the newer one.
        key: memcomparable.
        schema_id: layout of the row; of a delete, of the row that is gone.
        row: the newer row as Avro bytes; None for a delete.
        missing: bitmap of columns that the newer row lacks too; empty for none.
    """

    op: Op
    key: bytes
    schema_id: int
    row: bytes | None
    missing: bytes = b""

    def change(self, oid: int) -> RawChange:
        """As a change of the log, but for its place."""
        return RawChange(int(self.op), 0, oid, self.schema_id, 0, 0, 0, self.key, None, self.missing, self.row, None)


def net_difference(
    olds: Iterable[tuple[bytes, bytes]], news: Iterable[tuple[bytes, bytes]], schema_of: Callable[[int], TableSchema]
) -> Iterator[Difference]:
    """The differences of two generations, in key order.

    Args:
        olds: keys and packed entries of the older generation, in key order.
        news: of the newer one, folded to the same position.
        schema_of: the layout with a number.

    Raises:
        DamagedRecord: a row is none of its layout.
    """
    same = SameRow(schema_of)
    for key, old, new in _merged(_live(olds), _live(news)):
        found = difference_of(key, old, new, same)
        if found is not None:
            yield found


def difference_of(key: bytes, old: Entry | None, new: Entry | None, same: SameRow) -> Difference | None:
    """What makes one state of a key another one; None if they are the same. None and tombstones are no row."""
    was = old if old is not None and old.row is not None else None
    now = new if new is not None and new.row is not None else None
    if now is None:
        return None if was is None else Difference(Op.DELETE, key, was.schema_id, None)
    if was is None:
        return Difference(Op.INSERT, key, now.schema_id, now.row, now.missing)
    if not was.missing and not now.missing and same(was, now):
        return None
    return Difference(Op.UPDATE, key, now.schema_id, now.row, now.missing)


def _live(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Entry]]:
    """Keys and entries of the rows of a generation, in key order; origins do not count here."""
    for key, value in entries:
        entry = unpack_entry(value, {})
        if entry.row is not None:
            yield key, entry


def _merged(
    olds: Iterator[tuple[bytes, Entry]], news: Iterator[tuple[bytes, Entry]]
) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old[0] < new[0]):
            assert old is not None  # noqa: S101  (one of the two is left)
            yield old[0], old[1], None
            old = next(olds, None)
        elif old is None or new[0] < old[0]:
            yield new[0], None, new[1]
            new = next(news, None)
        else:
            yield new[0], old[1], new[1]
            old, new = next(olds, None), next(news, None)


class SameRow:
    """Whether two rows, perhaps of two layouts, have the same values.

    Args:
        schema_of: the layout with a number.
    """

    def __init__(self, schema_of: Callable[[int], TableSchema]) -> None:
        self._schema_of = schema_of
        self._places: dict[tuple[int, int], tuple[tuple[int, int | None, bool], ...]] = {}

    def __call__(self, old: Entry, new: Entry) -> bool:
        """Whether they have; both are whole rows."""
        if old.row is None or new.row is None:
            raise AssertionError("rows are compared, not their absence")
        if old.schema_id == new.schema_id:
            return old.row == new.row
        was, now = self._schema_of(old.schema_id), self._schema_of(new.schema_id)
        old_parts, new_parts = split_row(was, old.row), split_row(now, new.row)
        doubtful = False
        for new_at, old_at, same_form in self._pairs(was, now):
            if old_at is None:
                if new_parts[new_at] != _NULL:
                    return False
            elif not same_form:
                doubtful = True
            elif new_parts[new_at] != old_parts[old_at]:
                return False
        return not doubtful or self._same_texts(was, old.row, now, new.row)

    def _pairs(self, was: TableSchema, now: TableSchema) -> tuple[tuple[int, int | None, bool], ...]:
        """(index in the newer layout, index in the older one or None, whether equal values have equal bytes)."""
        found = self._places.get((was.id, now.id))
        if found is None:
            at = {column.name: index for index, column in enumerate(was.columns)}
            found = tuple(
                (index, at.get(column.name), column.name in at and _same_form(was, at[column.name], now, index))
                for index, column in enumerate(now.columns)
            )
            self._places[was.id, now.id] = found
        return found

    def _same_texts(self, was: TableSchema, old: bytes, now: TableSchema, new: bytes) -> bool:
        """Whether columns of another type look the same; a sink may show values of two types otherwise all the same."""
        old_texts, new_texts = row_texts(was, old), row_texts(now, new)
        for new_at, old_at, same_form in self._pairs(was, now):
            if old_at is None or same_form:
                continue
            before, after = old_texts[old_at], new_texts[new_at]
            if before != after or (after is not None and not _alike(was, old_at, now, new_at)):
                return False
        return True


#: Types in which the same text is the same value everywhere: int2, int4, int8; text, varchar.
_ALIKE = (frozenset((20, 21, 23)), frozenset((25, 1043)))


def _same_form(was: TableSchema, old_at: int, now: TableSchema, new_at: int) -> bool:
    return was.columns[old_at].type_oid == now.columns[new_at].type_oid


def _alike(was: TableSchema, old_at: int, now: TableSchema, new_at: int) -> bool:
    types = {was.columns[old_at].type_oid, now.columns[new_at].type_oid}
    return any(types <= alike for alike in _ALIKE)


def entry_of_row(schema_id: int, row: bytes) -> Entry:
    """A row that was read by itself, as an entry that can be compared."""
    return Entry(0, schema_id, row, FromEvent(0))
