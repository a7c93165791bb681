"""Positions: where a change stands in the one total order of a source.

A position is `(epoch, commit_lsn, ordinal)`. The epoch is the timeline that holds the commit's WAL, the LSN is
that of the commit record, and the ordinal counts the changes of the transaction from 1. Ordinal 0 belongs to no
change: it stands for "all that commits before this LSN", and is what progress records carry.

A stored position always says what it means. Fields and parameters named `last_done` or `after` hold the position
of the last change that was dealt with (reading goes on behind it); those named `next_to_read` or `from` hold the
first one that was not (reading goes on with it).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from walbus.errors import InvalidText
from walbus.lsn import format_lsn, parse_lsn

_TEXT = re.compile(r"([0-9]{1,10}):([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}):([0-9]{1,10})\Z")


class Position(NamedTuple):
    """A place in a source's order of changes; compares as the tuple it is.

    Attributes:
        epoch: the timeline of the commit, from 1.
        commit_lsn: the LSN of the commit record (`final_lsn` of pgoutput's Begin).
        ordinal: the change's number inside its transaction, from 1; 0 means "before this transaction".
    """

    epoch: int
    commit_lsn: int
    ordinal: int

    def __str__(self) -> str:
        return f"{self.epoch}:{format_lsn(self.commit_lsn)}:{self.ordinal}"


#: Before every change of every source.
ORIGIN = Position(0, 0, 0)


def parse_position(text: str) -> Position:
    """The position written as `EPOCH:LSN:ORDINAL`, for example `1:16/B374D848:4`.

    Raises:
        InvalidText: the text has another form.
    """
    match = _TEXT.match(text)
    if match is None:
        raise InvalidText(f"{text!r} is not a position", mend="write it as in 1:16/B374D848:4")
    epoch, ordinal = int(match[1]), int(match[3])
    if max(epoch, ordinal) >> 32:
        raise InvalidText(f"{text!r} has a number beyond 32 bits", mend="write it as in 1:16/B374D848:4")
    return Position(epoch, parse_lsn(match[2]), ordinal)
