"""Whole transactions that a copy takes as one buffer are those that it would take one by one."""

from __future__ import annotations

import pytest

from support.relay_log import BASE_TIME, epoch_piece, piece, progress, schema_piece, table_schema, transaction
from walbus.errors import ProtocolError
from walbus.log import Piece
from walbus.position import ORIGIN, Position
from walbus.records import Flag, read_header
from walbus.relay.copied_run import CopiedRun, copied_runs
from walbus.relay.scan import split_records
from walbus.relay.sequence import Place, Sequence
from walbus.relay.tip import EMPTY_TIP

BEGINNING = Place(0, EMPTY_TIP, 0)


def packed(*pieces: Piece, first_seq: int = 1) -> bytes:
    """Records as a writer packs them."""
    sequence, data = Sequence(BEGINNING, first_seq), b""
    for one in pieces:
        made = sequence.pack(one)
        data += made.records
        sequence.appended(made, len(data))
        sequence.note(one)
    return data


def one_by_one(data: bytes) -> Sequence:
    sequence, offset = Sequence(BEGINNING, 1), 0
    for record in split_records(data)[0]:
        header = read_header(record)
        copied = sequence.copy(header, record)
        offset += len(record)
        sequence.appended(copied, offset)
        sequence.note_copied(header, copied)
    return sequence


def as_runs(runs: list[CopiedRun]) -> Sequence:
    sequence, offset = Sequence(BEGINNING, 1), 0
    for run in runs:
        copied = sequence.copy_run(run)
        offset += len(run.records)
        sequence.appended(copied, offset)
        sequence.note_whole()
    return sequence


def test_what_is_known_behind_runs_is_what_is_known_behind_their_records():
    times = [5, 9, 2, 7]  # commit times need not rise
    pieces = [transaction(i * 16, i % 5 + 1, size=300, time=BASE_TIME + times[i % 4]) for i in range(1, 1200)]
    data = packed(*pieces)
    runs = copied_runs(data)
    assert b"".join(run.records for run in runs) == data
    assert len(runs) > 5
    assert all(len(run.records) < 80_000 for run in runs)
    found, wanted = as_runs(runs), one_by_one(data)
    assert found.here == found.whole == wanted.here == wanted.whole
    assert found.open is wanted.open is False


@pytest.mark.parametrize(
    "other",
    [
        progress(40),
        schema_piece(32, 1, table_schema()),
        epoch_piece(40, 2),
        piece(48, 1, 3, Flag.BEGIN),
    ],
    ids=["progress", "a layout", "an epoch", "a piece"],
)
def test_a_block_with_anything_else_is_read_record_by_record(other: Piece):
    assert copied_runs(packed(transaction(16), transaction(32), other)) == []
    assert copied_runs(packed(other)) == []


def test_no_records_are_no_runs():
    assert copied_runs(b"") == []


def test_damage_anywhere_is_left_to_who_can_say_where():
    data = packed(*(transaction(lsn, 3) for lsn in (16, 32, 48)))
    assert len(copied_runs(data)) == 1
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert copied_runs(bytes(damaged)) == []
    assert copied_runs(data[:-1]) == []


def test_positions_and_seqs_that_go_back_are_no_run():
    first, second = packed(transaction(16, 2)), packed(transaction(32, 2), first_seq=5)
    assert len(copied_runs(first + second)) == 1
    assert copied_runs(second + first) == []
    assert copied_runs(packed(transaction(16, 2), first_seq=50) + second) == []


def test_a_run_that_does_not_follow_is_refused():
    (run,) = copied_runs(packed(transaction(32, 2)))
    later = Place(0, EMPTY_TIP._replace(position=Position(1, 48, 1)), 0)
    with pytest.raises(ProtocolError, match="behind 1:0/30:1"):
        Sequence(later, 1).copy_run(run)
    sequence = Sequence(Place(0, EMPTY_TIP._replace(position=ORIGIN), 0), 1)
    open_piece = piece(16, 1, 3, Flag.BEGIN)
    sequence.appended(sequence.pack(open_piece), 100)
    sequence.note(open_piece)
    with pytest.raises(ProtocolError, match="does not follow"):
        sequence.copy_run(run)
