"""Changes of one table that wait to be sent together, one for each key. Pure.

PostgreSQL takes thousands of rows in one statement, but no row twice in it. So the changes of a key are folded as they
come, to what they would have left of the row one after the other:

    a newer row over a row       the newer one; values that it does not carry are those of the row before it
    a newer delete over a row    the delete
    a newer row over a delete    the row, if it is whole
    anything that is older       nothing

What the target holds decides once more when they are sent: a change applies there only to an older row. Both
comparisons together come to the same as each change by itself would, since a log gives every version of a row that it
has in order, and so the row before an update is the one that is held here. Where that is not certain, `take` says that
what waits must be sent first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from walbus.position import Position


class Put(NamedTuple):
    """A row that is to be written over an older one.

    Attributes:
        values: of each column, raw as a row has it or as its text; None is NULL, or not sent.
        seq: its version.
        position: of its change, for errors.
        or_equal: whether it replaces a row of the same version as well (a snapshot's row).
        sent: indexes of the columns that it carries; None: all.
    """

    values: list[object]
    seq: int
    position: Position
    or_equal: bool = False
    sent: frozenset[int] | None = None

    def over(self, older: Put) -> Put:
        """The row with the values that it does not carry from the one before it."""
        if self.sent is None:
            return self
        both = enumerate(zip(self.values, older.values, strict=True))
        values = [mine if index in self.sent else theirs for index, (mine, theirs) in both]
        sent = None if older.sent is None else self.sent | older.sent
        return Put(values, self.seq, self.position, sent=sent)


class Gone(NamedTuple):
    """A row that is to be deleted if it is older.

    Attributes:
        key: values of its key's columns, as canonical text.
        seq: of the delete.
    """

    key: list[str | None]
    seq: int


@dataclass(slots=True)
class Pending:
    """What waits for one table, by key.

    Attributes:
        changes: at most one for each key.
    """

    changes: dict[bytes, Put | Gone] = field(default_factory=dict)

    def take(self, key: bytes, change: Put | Gone) -> bool:
        """Takes a change; False: what waits must be sent first, and then it is to be given again."""
        held = self.changes.get(key)
        if held is None:
            self.changes[key] = change
            return True
        return self._put(key, change, held) if isinstance(change, Put) else self._delete(key, change, held)

    def _put(self, key: bytes, row: Put, held: Put | Gone) -> bool:
        if isinstance(held, Gone):
            if row.seq <= held.seq or row.sent is not None:
                return False
            self.changes[key] = row
            return True
        if row.seq > held.seq or (row.or_equal and row.seq == held.seq):
            self.changes[key] = row.over(held)
            return True
        return held.sent is None  # beside a row that is newer and whole, the older one is nothing

    def _delete(self, key: bytes, gone: Gone, held: Put | Gone) -> bool:
        if gone.seq > held.seq:
            self.changes[key] = gone
            return True
        return isinstance(held, Gone) or held.sent is None

    def rows(self) -> list[Put]:
        """The rows that wait, whole or not."""
        return [change for change in self.changes.values() if type(change) is Put]

    def deletes(self) -> list[Gone]:
        """The deletes that wait."""
        return [change for change in self.changes.values() if type(change) is Gone]
