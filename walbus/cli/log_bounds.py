"""Where `walbus log dump` begins and ends: what its options name. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from walbus.cli.tail_place import parse_bound
from walbus.position import Position
from walbus.relay.log_dump import AtPosition, AtSeq, AtTime, Bound

_SEQ = re.compile(r"seq:([0-9]{1,16})\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_log_bound(text: str, option: str) -> Bound | None:
    """What an option names; None for `earliest`.

    Raises:
        InvalidText: none of a position, a time, `seq:N` and `earliest`.
    """
    match = _SEQ.match(text)
    if match is not None:
        return AtSeq(int(match[1]))
    bound = parse_bound(text, option, words=("earliest", "seq:N"))
    if isinstance(bound, Position):
        return AtPosition(bound)
    return AtTime((bound - _EPOCH) // timedelta(microseconds=1)) if isinstance(bound, datetime) else None
