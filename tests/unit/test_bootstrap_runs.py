"""What is left to read of a table: chunks are not on a grid, and files lie end to end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import ChunkDone, Cut, Part, Phase, TableState


def run(*blocks: int) -> TableRun:
    parts = tuple(Part(16400 + number, "public", f"t{number}", number, count) for number, count in enumerate(blocks))
    return TableRun(TableState(oid=16384, table="public.t", generation=1, phase=Phase.SEEDING, cut=Cut(parts)))


def done(behind: int) -> ChunkDone:
    return ChunkDone(1, 0, 0, behind)


def test_what_no_chunk_covers_is_left_to_read() -> None:
    table = run(10, 0, 5)
    assert table.gaps(()) == [(0, 10), (10, 15)]
    table.note_done(2, done(5))
    table.note_done(9, done(10))
    assert table.gaps([(0, 1)]) == [(1, 2), (5, 9), (10, 15)]
    assert (table.blocks_done, table.read) == (4, False)
    for first, behind in table.gaps(()):
        table.note_done(first, done(behind))
    assert table.read and table.blocks_done == 15


def test_a_chunk_without_its_end_is_read_again() -> None:
    """As one that an earlier version of Walbus has noted."""
    table = run(10)
    table.note_done(0, done(0))
    assert table.gaps(()) == [(0, 10)] and table.blocks_done == 0


def test_a_table_without_blocks_is_read_and_one_that_is_not_counted_is_not() -> None:
    assert run().read and run(0).read
    assert not TableRun(TableState(oid=1, table="t", generation=1, phase=Phase.SEEDING)).read


def test_a_block_is_found_in_its_part() -> None:
    cut = run(10, 0, 5).state.cut
    assert cut is not None
    assert [cut.part_at(block)[0].oid for block in (0, 9, 10, 14)] == [16400, 16400, 16402, 16402]
    assert cut.part_at(12)[1] == 10
    with pytest.raises(IndexError):
        cut.part_at(15)


@given(st.lists(st.integers(0, 12), max_size=4), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=9))
def test_gaps_and_chunks_are_all_blocks_once(parts: list[int], ranges: list[tuple[int, int]]) -> None:
    table = run(*parts)
    total = sum(parts)
    covered = set()
    for first, length in ranges:
        behind = min(first + length, total)
        if first < behind and not covered.intersection(range(first, behind)):
            covered.update(range(first, behind))
            table.note_done(first, done(behind))
    left = [block for first, behind in table.gaps(()) for block in range(first, behind)]
    assert sorted([*left, *covered]) == list(range(total))
    assert table.blocks_done == len(covered)
    for first, behind in table.gaps(()):
        assert table.state.cut is not None
        assert table.state.cut.part_at(first) == table.state.cut.part_at(behind - 1)
