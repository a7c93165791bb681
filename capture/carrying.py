"""A net difference, carried from the position that it was made at to the log's end. Pure.

A difference says what separates two states of a table's rows as of a position A: the state that the log tells, and the
one that the source has. Behind A the log has gone on. Both states went on with it, in the same way: whatever the events
wrote whole is the same in both by now, and the rest differs as it did. So a difference as of the log's end E is the one
as of A, less what the events between them touched:

    insert, update with all columns, delete of K     K is left out
    TRUNCATE                                         all is left out
    update of K that left TOASTed columns out        those columns still differ: K gets the event's row, completed from
                                                     the row that the difference has for K
    update that moves K to L                         K and L are left out; columns that were not sent are those of K:
                                                     L gets the event's row, completed from the difference's row for K

`Touched` is what the events between did, for one table. It grows with the keys that they name, so who carries over a
long way does it in several stretches, each of which gives another difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from walbus.errors import ProtocolError
from walbus.records import Op, RawChange

_INSERT, _UPDATE, _DELETE, _TRUNCATE = int(Op.INSERT), int(Op.UPDATE), int(Op.DELETE), int(Op.TRUNCATE)
#: What a key costs in memory besides its bytes.
_KEY_BYTES = 200


class Row(NamedTuple):
    """A row that may lack columns.

    Attributes:
        schema_id: its layout.
        row: as Avro bytes, NULL where a column is lacking.
        unchanged: bitmap of the columns that are lacking; empty for none.
    """

    schema_id: int
    row: bytes
    unchanged: bytes


#: Fills what the first row lacks from the second one, by column name.
Merge = Callable[[Row, Row], Row]


class _Partial(NamedTuple):
    """A row whose lacking columns are those that another key had at A."""

    row: Row
    base: bytes


class Touched:
    """What events did to one table's keys since some position.

    Args:
        oid: of the table.
        merge: fills lacking columns.
    """

    def __init__(self, oid: int, merge: Merge) -> None:
        self._oid = oid
        self._merge = merge
        self.truncated = False  #: whether no row from before is left
        self.size = 0  #: bytes of memory, roughly
        self._keys: dict[bytes, _Partial | None] = {}  # None: nothing of it depends on the row at A
        self._targets: dict[bytes, bytes] = {}  # base -> key of the row that lacks its columns

    @property
    def empty(self) -> bool:
        """Whether nothing was touched."""
        return not self._keys and not self.truncated

    def fold(self, change: RawChange) -> None:
        """Takes the next event; those of other tables mean nothing.

        Raises:
            ProtocolError: it has no key, so nobody can say which row it changed.
        """
        if change.table != self._oid or self.truncated:
            return
        if change.op == _TRUNCATE:
            self.truncated, self._keys, self._targets = True, {}, {}
        elif change.op in {_INSERT, _DELETE}:
            self._set(_key(change), None)
        elif change.op == _UPDATE:
            self._update(change)

    def _update(self, change: RawChange) -> None:
        key = _key(change)
        old = key if change.old_key is None else change.old_key
        partial = self._left_out(change, old) if any(change.unchanged) else None
        if old != key:
            self._set(old, None)
        self._set(key, partial)

    def _left_out(self, change: RawChange, old: bytes) -> _Partial | None:
        """The row of an update that left columns out; None if none of them is from before."""
        row = Row(change.schema_id, change.after or b"", change.unchanged)
        if old not in self._keys:
            return _Partial(row, old)
        before = self._keys[old]
        if before is None:
            return None  # the columns are those of an event that was whole
        merged = self._merge(row, before.row)
        return _Partial(merged, before.base) if any(merged.unchanged) else None

    def _set(self, key: bytes, partial: _Partial | None) -> None:
        before = self._keys.get(key)
        if before is not None:
            self._targets.pop(before.base, None)
            self.size -= len(before.row.row)
        elif key not in self._keys:
            self.size += len(key) + _KEY_BYTES
        self._keys[key] = partial
        if partial is not None:
            self._targets[partial.base] = key
            self.size += len(partial.row.row)

    def carried(self, difference: Iterable[RawChange]) -> Iterator[RawChange]:
        """A difference as of the first position, as one of the last.

        Args:
            difference: each key once, in any order.
        """
        if self.truncated:
            return
        for change in difference:
            key = _key(change)
            target = self._targets.get(key)
            if target is not None:
                yield from self._completed(change, target)
            elif key not in self._keys:
                yield change

    def _completed(self, change: RawChange, key: bytes) -> Iterator[RawChange]:
        """The event's row at a key with the columns that it left out, which are those of the difference's row."""
        partial = self._keys.get(key)
        if partial is None or change.after is None:
            return
        row = self._merge(partial.row, Row(change.schema_id, change.after, change.unchanged))
        yield change._replace(
            op=_UPDATE, schema_id=row.schema_id, key=key, old_key=None, after=row.row, unchanged=row.unchanged
        )


def _key(change: RawChange) -> bytes:
    if change.key is None:
        raise ProtocolError("an event without a key came between a difference and the log's end")
    return change.key
