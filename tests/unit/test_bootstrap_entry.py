"""Entries as bytes, COPY's text, pace: the small pure parts of the bootstrap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.bootstrap.catalog import end_of_wal
from walbus.bootstrap.copytext import parse_line
from walbus.bootstrap.entry import Entry, FromEvent, FromSnapshot, live_row, pack_entry, pack_prefix, unpack_entry
from walbus.bootstrap.pace import Progress, Throttle
from walbus.bootstrap.visibility import SETTLED, Snapshot
from walbus.errors import ProtocolError, StoreError

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
    with pytest.raises(StoreError):
        unpack_entry(b"\0\1", {})


def copied(texts: list[bytes | None]) -> bytes:
    """What COPY TO STDOUT writes for a row."""
    escapes = {8: b"\\b", 9: b"\\t", 10: b"\\n", 11: b"\\v", 12: b"\\f", 13: b"\\r", 92: b"\\\\"}
    parts = [b"\\N" if t is None else b"".join(escapes.get(byte, bytes([byte])) for byte in t) for t in texts]
    return b"\t".join(parts) + b"\n"


texts = st.lists(st.one_of(st.none(), st.binary(max_size=20), st.sampled_from([b"", b"\\N", b"\\", b"\t"])), min_size=1)


@given(texts)
def test_a_line_of_copy_gives_the_texts_that_made_it(row: list[bytes | None]) -> None:
    assert parse_line(copied(row), len(row)) == row


@pytest.mark.parametrize(("line", "columns"), [(b"1\t2\n", 1), (b"1\n", 2), (b"1", 1), (b"\\x\n", 1)])
def test_a_line_that_copy_never_writes_is_refused(line: bytes, columns: int) -> None:
    with pytest.raises(ProtocolError):
        parse_line(line, columns)


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
