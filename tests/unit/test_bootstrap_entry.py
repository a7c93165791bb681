"""Entries as bytes, pace: the small pure parts of the bootstrap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.bootstrap.catalog import end_of_wal
from walbus.bootstrap.entry import Entry, FromEvent, FromSnapshot, live_row, pack_entry, pack_prefix, unpack_entry
from walbus.bootstrap.pace import Breath, ChunkRead, Progress, Throttle, next_stride
from walbus.bootstrap.visibility import SETTLED, Snapshot
from walbus.errors import StoreDamaged

SNAPSHOT = Snapshot(3, 9, frozenset({4}))

origins = st.one_of(st.builds(FromEvent, st.integers(0, 2**64 - 1)), st.just(FromSnapshot(7, SNAPSHOT)))
entries = st.builds(
    Entry,
    st.integers(0, 2**53 - 1),
    st.integers(1, 2**32 - 1),
    st.one_of(st.none(), st.binary(max_size=40)),
    origins,
    st.binary(max_size=4),
    st.booleans(),
)


@given(entries)
def test_an_entry_round_trips(entry: Entry) -> None:
    assert unpack_entry(pack_entry(entry), {7: SNAPSHOT}) == entry


@given(entries)
def test_serving_reads_only_live_rows(entry: Entry) -> None:
    live = None if entry.row is None else (entry.seq, entry.schema_id, entry.row)
    assert live_row(pack_entry(entry)) == live


def test_an_entry_of_a_finished_seeding_has_settled() -> None:
    entry = Entry(1, 1, b"row", FromSnapshot(7, SNAPSHOT))
    assert unpack_entry(pack_entry(entry), {}).origin == FromSnapshot(7, SETTLED)


def test_a_cut_entry_is_refused() -> None:
    with pytest.raises(StoreDamaged):
        unpack_entry(b"\0\1", {})


def test_an_empty_page_of_wal_ends_at_its_beginning() -> None:
    assert end_of_wal(8192 + 24, 8192) == 8192
    assert end_of_wal(16 * 8192 + 40, 8192) == 16 * 8192
    assert end_of_wal(8192 + 25, 8192) == 8192 + 25


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_throttle_spreads_rows_over_time_for_all_workers() -> None:
    clock = Clock()
    throttle = Throttle(100.0, clock)
    assert throttle.delay(50) == 0.5
    assert throttle.delay(50) == 1.0
    clock.now += 10
    assert throttle.delay(100) == 1.0
    assert Throttle(None, clock).delay(10**9) == 0.0


def test_a_chunk_comes_to_take_the_time_that_it_is_to_take() -> None:
    stride = 4
    for _ in range(12):  # a block takes 2 ms
        stride = next_stride(stride, ChunkRead(stride, stride * 50, stride * 0.002), aim=1.0, most_rows=10**6)
    assert stride == 500
    assert next_stride(500, ChunkRead(500, 0, 0.0), aim=1.0, most_rows=10**6) == 1000
    assert next_stride(500, ChunkRead(500, 0, 60.0), aim=1.0, most_rows=10**6) == 250
    assert next_stride(1, ChunkRead(1, 50, 60.0), aim=1.0, most_rows=10**6) == 1


def test_a_chunk_never_has_more_rows_than_allowed() -> None:
    assert next_stride(100, ChunkRead(100, 5000, 0.01), aim=1.0, most_rows=2000) == 40
    assert next_stride(100, ChunkRead(3, 150, 0.006), aim=1.0, most_rows=10**6) == 200  # the end of a file


def test_a_worker_rests_where_rows_take_much_longer_than_they_took_at_best() -> None:
    breath = Breath()
    assert breath.rest(ChunkRead(9, 10_000, 0.1)) == 0.0
    assert breath.rest(ChunkRead(9, 10_000, 0.3)) == 0.0
    assert breath.rest(ChunkRead(9, 10_000, 1.0)) == pytest.approx(0.7)
    assert breath.rest(ChunkRead(9, 10_000, 100.0)) == 5.0
    assert breath.rest(ChunkRead(9, 10, 50.0)) == 0.0  # too few to tell


def test_large_rows_behind_small_ones_are_no_sign_of_other_work() -> None:
    breath = Breath()
    assert breath.rest(ChunkRead(9, 10_000, 0.1, 200_000)) == 0.0
    assert breath.rest(ChunkRead(9, 2_000, 1.0, 40_000_000)) == 0.0
    assert breath.rest(ChunkRead(9, 2_000, 40.0, 40_000_000)) == 5.0


def test_the_rest_of_the_work_takes_as_long_as_the_last_minute_says() -> None:
    clock = Clock()
    progress = Progress(clock)
    assert progress.seconds_left(10) is None
    for done in range(0, 50, 10):
        progress.observe(done)
        clock.now += 2
    assert progress.rate() == 5.0
    assert progress.seconds_left(100) == 12.0
    progress.observe(0)  # began anew
    assert progress.seconds_left(100) is None


@given(st.binary(max_size=30), st.integers(0, 2**53 - 1))
def test_a_prefix_and_a_row_are_the_packed_entry(row: bytes, seq: int) -> None:
    origin = FromSnapshot(7, SNAPSHOT)
    assert pack_prefix(seq, 3, origin) + row == pack_entry(Entry(seq, 3, row, origin))
