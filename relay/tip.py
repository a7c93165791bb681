"""What is known at a place in the log: the least that a reader or a writer carries from record to record."""

from __future__ import annotations

from typing import NamedTuple

from walbus.position import ORIGIN, Position


class Tip(NamedTuple):
    """What is known at a place in the log.

    Attributes:
        position: of the last record before the place.
        end_lsn: the largest end LSN, or PROGRESS bound, before the place.
        last_seq: the last seq given before the place.
        commit_time: of the last record before the place, Unix microseconds.
        announced_schema: the largest schema id of a SCHEMA record before the place.
    """

    position: Position
    end_lsn: int
    last_seq: int
    commit_time: int
    announced_schema: int


#: At the beginning of a log.
EMPTY_TIP = Tip(ORIGIN, 0, 0, 0, 0)
