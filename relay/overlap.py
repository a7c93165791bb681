"""What a copy asks for once more at each connection, to see that the upstream's log is the one that it has copied.

A stream that begins one position before the last record that is here gives that record again, and what stands with it.
Within a transaction that has not ended these records are not durable, so they cannot be read from the log: they are
remembered here. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import dropwhile

from walbus.errors import PositionTrimmed
from walbus.log import LogWriter
from walbus.position import Position
from walbus.records import RecordHeader, read_header
from walbus.relay.scan import is_done

_MAX_ORDINAL = (1 << 32) - 1


def just_before(position: Position) -> Position:
    """A "last done" position by which only what is at `position` is still to be read."""
    if position.ordinal > 0:
        return position._replace(ordinal=position.ordinal - 1)
    return Position(position.epoch, max(position.commit_lsn - 1, 0), _MAX_ORDINAL if position.commit_lsn else 0)


def durable_place(log: LogWriter, base: Position) -> tuple[Position, list[bytes]]:
    """Where a copy goes on behind its last durable record, and the records from there that it has.

    Args:
        log: the copy.
        base: "last done" before the first record of the log that it copies.
    """
    durable = log.bounds().end
    before = just_before(durable)
    if before >= base:
        with suppress(PositionTrimmed):
            return before, list(log.records_after(before))
    return durable, list(log.records_after(durable)) if durable >= log.bounds().trimmed else []


class LastRecords:
    """The records that a stream gives which begins one position before the last of them.

    Args:
        records: whole, in the log's order; the last one is the last that the copy has.
    """

    def __init__(self, records: Iterable[bytes] = ()) -> None:
        self._kept = deque((read_header(record), record) for record in records)

    def note(self, header: RecordHeader, record: bytes) -> None:
        """Another record was appended."""
        before = just_before(header.last)
        while self._kept and is_done(before, self._kept[0][0]):
            self._kept.popleft()
        self._kept.append((header, record))

    def behind(self, after: Position) -> list[bytes]:
        """Those that a stream behind a "last done" position gives."""
        return [record for _, record in dropwhile(lambda kept: is_done(after, kept[0]), self._kept)]
