"""How far back the store can say what changed: the tombstone horizon. Pure.

    horizon   Horizon: deltas are complete from its position on; absent while nothing was ever dropped
    marks     Marks: which seq and position the store had applied when

What was deleted is known by its tombstone, and tombstones may not be kept for ever. Behind the horizon, all are there:
a delta that begins at its position, or later, tells every key that changed since, deleted ones too. Before it, places
of the change index and tombstones may be gone, so a delta from there would leave deletes out, and must be refused. (A
table's own generation has a beginning of its own, `TableState.p0`: before that it knows nothing.)

The horizon is the newest mark that is older than `tombstone_hours`, or, where more tombstones are held than
`tombstone_limit`, the oldest mark that leaves no more than these. It is written together with the first thing that goes
because of it, and never moves back. Ages are the clock's of this machine at the time of applying: a clock that jumps
makes the horizon move early or late, and never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from walbus.bootstrap.state import Applied
from walbus.position import Position

HORIZON = "horizon"
MARKS = "marks"
#: How many marks an age is divided by, about.
_MARKS = 200


class Horizon(msgspec.Struct, frozen=True):
    """Where complete deltas begin.

    Attributes:
        log_id: of the log that seq and position belong to.
        seq: changes with a later seq are all in the change index.
        epoch, commit_lsn, ordinal: "last done" at that seq.
    """

    log_id: str
    seq: int
    epoch: int
    commit_lsn: int
    ordinal: int

    @property
    def position(self) -> Position:
        """A delta from this "last done" position, or a later one, is complete."""
        return Position(self.epoch, self.commit_lsn, self.ordinal)


class Mark(msgspec.Struct, frozen=True):
    """What was applied when: Unix seconds, seq, and position ("last done")."""

    time: float
    seq: int
    epoch: int
    commit_lsn: int
    ordinal: int


class Marks(msgspec.Struct, frozen=True):
    """The marks of one log, the oldest first."""

    log_id: str
    marks: tuple[Mark, ...] = ()

    def with_applied(self, applied: Applied, now: float, *, seconds: float, changes: int) -> Marks:
        """With a mark for what is applied now, if the last one is old enough or far enough behind.

        Args:
            applied: of this log, between two transactions.
            now: Unix seconds.
            seconds: the age at which tombstones go.
            changes: how many changes deserve a mark of their own.
        """
        last = self.marks[-1] if self.marks else None
        if last is not None:
            passed = now - last.time
            if applied.last_seq <= last.seq:
                return self
            if 0 <= passed < seconds / _MARKS and applied.last_seq - last.seq < changes:
                return self
        mark = Mark(now, applied.last_seq, applied.epoch, applied.commit_lsn, applied.ordinal)
        marks = (*self.marks, mark)
        return Marks(self.log_id, marks if len(marks) <= 2 * _MARKS else _thinned(marks, 2 * seconds / _MARKS))

    def since(self, seq: int) -> Marks:
        """Without the marks below a seq."""
        return Marks(self.log_id, tuple(mark for mark in self.marks if mark.seq >= seq))

    def older_than(self, time: float) -> Mark | None:
        """The newest mark from before a time."""
        return max((mark for mark in self.marks if mark.time <= time), key=lambda mark: mark.seq, default=None)

    def at_least(self, seq: int) -> Mark | None:
        """The oldest mark that is not below a seq."""
        return min((mark for mark in self.marks if mark.seq >= seq), key=lambda mark: mark.seq, default=None)

    def horizon(self, mark: Mark) -> Horizon:
        """The horizon at a mark."""
        return Horizon(self.log_id, mark.seq, mark.epoch, mark.commit_lsn, mark.ordinal)


def _thinned(marks: tuple[Mark, ...], apart: float) -> tuple[Mark, ...]:
    """Marks that still reach as far back: the newest as they are, the older ones so many seconds apart.

    Many changes make many marks. Were the oldest ones left out, none would ever reach the age at which tombstones go.
    """
    older = list(marks[:1])
    for mark in marks[1:-_MARKS]:
        if abs(mark.time - older[-1].time) >= apart:
            older.append(mark)
    return (*older[-_MARKS:], *marks[-_MARKS:])


def seq_for_limit(tombstones: Iterable[tuple[int, int]], limit: int) -> int:
    """The seq up to which tombstones must go so that at most `limit` are left; 0 if none must.

    Args:
        tombstones: (seq, how many up to it from the one before) in any order.
        limit: how many may be left.
    """
    left = 0
    for seq, count in sorted(tombstones, reverse=True):
        left += count
        if left > limit:
            return seq
    return 0
