"""The seq that belongs to a position: who has done everything up to a place of the log may know only its position."""

from __future__ import annotations

from walbus.errors import PositionTrimmed
from walbus.log import LogReader
from walbus.position import Position
from walbus.records import Kind, body_of, iter_changes, read_header

_LOOK_BYTES = 1 << 20


def seq_at(reader: LogReader, position: Position) -> int | None:
    """The last seq that a log gave at a position ("last done"); None if it does not hold what comes behind it."""
    bounds = reader.bounds()
    if position >= bounds.end:
        return bounds.last_seq
    if position < bounds.trimmed:
        return None
    try:
        cursor = reader.cursor(position)
        try:
            record = cursor.read(_LOOK_BYTES)[0]
        finally:
            cursor.close()
    except PositionTrimmed:  # retention has passed since
        return None
    header = read_header(record)
    if header.kind != Kind.TRANSACTION:
        return header.last_seq
    done = [
        header.first_seq + change.seq_delta
        for change in iter_changes(body_of(record, header))
        if Position(header.epoch, header.commit_lsn, header.first_ordinal + change.ordinal_delta) <= position
    ]
    return max(done, default=header.first_seq - 1)
