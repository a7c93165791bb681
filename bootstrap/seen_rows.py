"""What the log makes of some keys as a snapshot of the source sees them. Pure.

The store is ahead of every snapshot that the source can take: it has commits that are not visible yet, and by the time
it has everything that the snapshot saw it has more. So a key is not compared with its entry as it is, but with its
entry from before, and those of the log's events since then that the snapshot sees. What that gives is the row that the
source must have; where it has another one, something is wrong, however much is written meanwhile.

    before   the entries, at a position P that was applied before the snapshot was taken
    fold     the log behind P, up to a position that holds all that the snapshot saw
    rows     what the snapshot has to show

A key cannot be judged if its entry from before is from a transaction that the snapshot does not see (it waits for a
standby, perhaps), if a row moved to it from a key that is not among them, or if a value is missing. It is asked for
again later.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from walbus.bootstrap.entry import Entry, FromEvent
from walbus.bootstrap.fold import Fill
from walbus.bootstrap.visibility import Snapshot
from walbus.records import Op, RawChange

_INSERT, _UPDATE, _DELETE, _TRUNCATE = int(Op.INSERT), int(Op.UPDATE), int(Op.DELETE), int(Op.TRUNCATE)


class Unknown(enum.Enum):
    """There is no saying what the row is."""

    ROW = "unknown"


@dataclass(frozen=True, slots=True)
class Seen:
    """A key as a snapshot must show it.

    Attributes:
        row: its row as an entry; None: there is none.
        touched: whether the log changed it since the position of the entries.
    """

    row: Entry | None
    touched: bool


class SeenRows:
    """Some keys of one table.

    Args:
        oid: of the table.
        snapshot: what the source was asked in.
        before: the keys, each with its entry (None: it has none).
        fill: fills columns of a row from another state of it.
    """

    def __init__(self, oid: int, snapshot: Snapshot, before: Mapping[bytes, Entry | None], fill: Fill) -> None:
        self._oid = oid
        self._snapshot = snapshot
        self._fill = fill
        self._rows: dict[bytes, Entry | Unknown | None] = {key: self._visible(entry) for key, entry in before.items()}
        self._touched: set[bytes] = set()

    def _visible(self, entry: Entry | None) -> Entry | Unknown | None:
        if entry is None:
            return None
        if isinstance(entry.origin, FromEvent) and not self._snapshot.sees(entry.origin.xid):
            return Unknown.ROW
        return entry if entry.row is not None else None

    def fold(self, xid: int, changes: Iterable[RawChange]) -> None:
        """Takes changes of a transaction, in the log's order."""
        seen = self._snapshot.sees(xid)
        for change in changes:
            if change.table == self._oid:
                self._note(change)
                if seen:
                    self._apply(change)

    def _note(self, change: RawChange) -> None:
        if change.op == _TRUNCATE:
            self._touched.update(self._rows)
        self._touched.update(key for key in (change.key, change.old_key) if key is not None and key in self._rows)

    def _apply(self, change: RawChange) -> None:
        key = change.key
        if change.op == _TRUNCATE:
            self._rows = dict.fromkeys(self._rows)
        elif change.op == _DELETE and key in self._rows:
            self._rows[key] = None
        elif change.op in (_INSERT, _UPDATE):
            old = key if change.old_key is None else change.old_key
            before = self._rows.get(old, Unknown.ROW) if old is not None else Unknown.ROW
            if old != key and old in self._rows:
                self._rows[old] = None
            if key in self._rows:
                self._rows[key] = self._row(change, before)

    def _row(self, change: RawChange, before: Entry | Unknown | None) -> Entry | Unknown:
        row, missing = change.after or b"", change.unchanged
        if any(missing):
            if not isinstance(before, Entry):
                return Unknown.ROW
            row, missing = self._fill(change.schema_id, row, missing, before)
        return Entry(0, change.schema_id, row, FromEvent(0), missing)

    def rows(self) -> dict[bytes, Seen]:
        """What the snapshot must show of each key that can be judged."""
        return {
            key: Seen(row, key in self._touched)
            for key, row in self._rows.items()
            if not isinstance(row, Unknown) and not (row is not None and row.missing)
        }
