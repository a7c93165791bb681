"""Whole small transactions of another log, checked and taken as one buffer: what a copy appends under load. Pure.

A record of its own costs a copy some twenty microseconds, which single small transactions feel. Where records that
follow each other are whole transactions, nothing but their order has to be looked at one by one.
"""

from __future__ import annotations

from typing import NamedTuple

from walbus.native import good_records
from walbus.position import ORIGIN, Position
from walbus.records import FORMAT_VERSION, HEADER, Flag, Kind

_RUN_BYTES = 64 << 10  # about the distance of two entries of a segment's index
_WHOLE, _TRANSACTION = int(Flag.BEGIN | Flag.END), int(Kind.TRANSACTION)


class CopiedRun(NamedTuple):
    """Records of one whole transaction each, whose checksums hold, and whose positions and seqs rise.

    Attributes:
        records: as they lie in the other log.
        first: position of the first record's last change, and `first_seq` its seq.
        last, last_seq, commit_time: of the last record.
        end_lsn, latest: the largest end LSN and commit time of all.
    """

    records: bytes
    first: Position
    first_seq: int
    last: Position
    last_seq: int
    end_lsn: int
    commit_time: int
    latest: int


def copied_runs(data: bytes) -> list[CopiedRun]:
    """The runs that a block of records consists of; none if it holds anything but whole transactions in their order.

    What holds something else, or damage, is to be read record by record, which says what is wrong.
    """
    if good_records(data)[0] != len(data):
        return []
    runs: list[CopiedRun] = []
    begin = at = latest = largest_end = before_seq = 0
    before, first, first_seq = (-1, 0, 0), ORIGIN, 0
    unpack = HEADER.unpack_from
    while at < len(data):
        (_, length, version, kind, flags, epoch, commit_lsn, end_lsn, _, ordinal, _, seq, _, time, *_) = unpack(
            data, at
        )
        here = (epoch, commit_lsn, ordinal)
        if kind != _TRANSACTION or version != FORMAT_VERSION or flags & _WHOLE != _WHOLE:
            return []
        if here < before or seq < before_seq:
            return []
        if at == begin:
            first, first_seq, latest, largest_end = Position(*here), seq, time, end_lsn
        before, before_seq = here, seq
        latest, largest_end = max(latest, time), max(largest_end, end_lsn)
        at += length
        if at - begin >= _RUN_BYTES or at == len(data):
            records = data if begin == 0 and at == len(data) else data[begin:at]
            runs.append(CopiedRun(records, first, first_seq, Position(*here), seq, largest_end, time, latest))
            begin = at
    return runs
