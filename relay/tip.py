"""What is known at a place in the log: the least that a reader or a writer carries from record to record."""

from __future__ import annotations

from typing import NamedTuple

from walbus.position import ORIGIN, Position
from walbus.records import Kind


class Tip(NamedTuple):
    """What is known at a place in the log.

    Attributes:
        position: of the last record before the place.
        end_lsn: everything that commits before this LSN is in the log, by the records before the place.
        last_seq: the last seq given before the place.
        commit_time: of the last record before the place, Unix microseconds.
        announced_schema: the largest schema id of a SCHEMA record before the place.
    """

    position: Position
    end_lsn: int
    last_seq: int
    commit_time: int
    announced_schema: int


def end_behind(tip: Tip, kind: int, commit_lsn: int, end_lsn: int) -> int:
    """`end_lsn` behind one more record of this kind.

    A transaction's end and a PROGRESS record's bound only raise it. An EPOCH record sets it to the switch point, where
    its epoch begins: what the log holds past that point in the epoch before is not in the source's history, so the
    source's own commits behind that point are still to come.
    """
    if kind == Kind.EPOCH:
        return commit_lsn
    return max(tip.end_lsn, commit_lsn if kind == Kind.PROGRESS else end_lsn)


#: At the beginning of a log.
EMPTY_TIP = Tip(ORIGIN, 0, 0, 0, 0)
