"""Whole transactions as windows, in Python. Pure; `transactions.pxi` is its twin in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from walbus.errors import WalbusError
from walbus.native.pure_changes import read_changes
from walbus.native.reading import MakeChange, MakeWindow
from walbus.position import Position
from walbus.records import HEADER_SIZE, Flag, Kind, RecordHeader, check_sum, origin_of, read_header, time_of
from walbus.schema import TableSchema

T = TypeVar("T")
W = TypeVar("W")

_WHOLE, _LOOKED_AT = Flag.BEGIN | Flag.END, Flag.BEGIN | Flag.END | Flag.ASKED


def read_transactions(  # noqa: PLR0913, PLR0917  # what there is to know
    make: MakeChange[T],
    make_window: MakeWindow[W],
    data: bytes,
    at: int,
    layout_of: Callable[[int], TableSchema | None],
    received: tuple[Position, int],
) -> tuple[list[W], int]:
    """See `walbus.native.reading.ReadTransactions`."""
    windows: list[W] = []
    last, seq = received
    while len(data) - at >= HEADER_SIZE:
        record = data[at : at + int.from_bytes(data[at + 4 : at + 8], "little")]
        try:
            header = read_header(record)
            if header.length != len(record) or not _follows(header, last, seq):
                break
            check_sum(record)
            changes = read_changes(make, header, record, layout_of)
            origin, time = origin_of(record, header).decode(), time_of(header.commit_time)
        except (WalbusError, OSError, UnicodeDecodeError, OverflowError):
            break
        if not changes or len(changes) != header.count:
            break
        last, seq, at = header.last, header.last_seq, at + len(record)
        told = header.xid, header.commit_lsn, time, last, seq, True, True, origin, header.flags & Flag.NET != 0
        windows.append(make_window(Kind.TRANSACTION, changes, *told))
    return windows, at


def _follows(header: RecordHeader, last: Position, seq: int) -> bool:
    """Whether a header is that of a whole transaction, later than what was received."""
    if header.kind != Kind.TRANSACTION or header.flags & _LOOKED_AT != _WHOLE:
        return False
    return (header.epoch, header.commit_lsn) > (last.epoch, last.commit_lsn) and header.last_seq > seq
