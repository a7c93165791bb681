"""The table that the log says must be seeded again, by a SCHEMA event with `reseed`. Pure.

Some statements change rows without an event (`walbus.capture.silent`). Capture compares the catalog with what it was,
and says so at a place of the log that is behind everything that was written before. `docs/log-format.md` describes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from walbus.lsn import parse_lsn
from walbus.position import Position
from walbus.records import RecordHeader, body_of, iter_changes

#: Rows behind the statement were known by the old key until the event itself.
_KEY_CHANGED = "key_changed"
#: Behind these a generation that was seeded before is of no use to anybody: it has the old keys, or its table is gone.
_ENDING = frozenset((_KEY_CHANGED, "dropped", "unpublished"))


@dataclass(frozen=True, slots=True)
class Reseed:
    """A table that must be seeded again.

    Attributes:
        oid: of the table.
        reason: for people.
        settled: a generation that folds from this LSN or later has read the rows as they are now; None if only one
            that folds from the event has.
        ending: whether rows that were seeded before cannot be folded on.
    """

    oid: int
    reason: str
    settled: int | None
    ending: bool

    def is_behind(self, p0: Position, event: Position) -> bool:
        """Whether a generation that folds from `p0` began behind what the event (at its position) tells."""
        return p0 >= event or (self.settled is not None and p0.commit_lsn >= self.settled)


def difference_of(record: bytes, header: RecordHeader) -> tuple[int, int] | None:
    """Table and number of the net difference that a SCHEMA record tells of; None for any other one."""
    for change in iter_changes(body_of(record, header)):
        told = json.loads(change.after or b"{}").get("difference")
        if told:
            return change.table, int(told["number"])
    return None


def reseed_of(record: bytes, header: RecordHeader) -> Reseed | None:
    """The table that a SCHEMA record says must be seeded again; None for one that only tells a layout."""
    for change in iter_changes(body_of(record, header)):
        told = json.loads(change.after or b"{}").get("reseed")
        if told:
            settled = None if told["reason"] == _KEY_CHANGED else parse_lsn(told["lsn"])
            return Reseed(change.table, told["what"], settled, told["reason"] in _ENDING)
    return None
