"""The seeding rule line by line: each test is one meeting of an entry and what arrives."""

from __future__ import annotations

from support.mvcc_model import TOASTED, fill, row_bytes
from walbus.bootstrap.entry import Entry, FromEvent, FromSnapshot
from walbus.bootstrap.fold import (
    NO_TRANSACTION,
    ChunkRow,
    Removal,
    Upsert,
    admitted,
    fold_chunk_row,
    fold_key_change,
    fold_removal,
    fold_upsert,
    survives_truncate,
)
from walbus.bootstrap.visibility import Snapshot

P0 = 10  #: seq(P0)
OLD, NEW, NEWEST = row_bytes(1, 1), row_bytes(2, 2), row_bytes(3, 3)
EARLY = FromSnapshot(1, Snapshot(100, 105, frozenset({101})))  #: sees 100 and 102..104
LATE = FromSnapshot(2, Snapshot(106, 106, frozenset()))  #: sees all of them


def event(xid: int, row: bytes = NEW, *, seq: int = 50, unchanged: bool = False) -> Upsert:
    return Upsert(seq, 1, row, TOASTED if unchanged else b"", FromEvent(xid))


def removal(xid: int, seq: int = 50) -> Removal:
    return Removal(seq, 1, FromEvent(xid))


def read(origin: FromSnapshot, row: bytes = OLD) -> ChunkRow:
    return ChunkRow(P0, 1, row, origin)


def from_event(
    xid: int, row: bytes | None = NEW, *, seq: int = 40, missing: bool = False, moved: bool = False
) -> Entry:
    return Entry(seq, 1, row, FromEvent(xid), TOASTED if missing else b"", moved)


def from_chunk(origin: FromSnapshot, row: bytes = OLD, seq: int = P0) -> Entry:
    return Entry(seq, 1, row, origin)


def test_an_update_of_an_absent_key_is_an_upsert_that_knows_what_it_misses() -> None:
    assert fold_upsert(None, event(101), fill) == Entry(50, 1, NEW, FromEvent(101))
    entry = fold_upsert(None, event(101, row_bytes(2, None), unchanged=True), fill)
    assert (entry.missing, entry.moved) == (TOASTED, False)


def test_a_delete_of_an_absent_key_leaves_a_tombstone() -> None:
    assert fold_removal(None, removal(101)) == Entry(50, 1, None, FromEvent(101))


def test_an_event_that_the_chunk_saw_keeps_the_row_and_raises_its_seq() -> None:
    entry = from_chunk(EARLY)
    assert fold_upsert(entry, event(102), fill) == from_chunk(EARLY, seq=50)
    assert fold_removal(entry, removal(102)) == from_chunk(EARLY, seq=50)


def test_an_event_that_the_chunk_did_not_see_is_applied() -> None:
    entry = from_chunk(EARLY)
    assert fold_upsert(entry, event(101), fill) == Entry(50, 1, NEW, FromEvent(101))
    assert fold_removal(entry, removal(105)) == Entry(50, 1, None, FromEvent(105))


def test_unchanged_columns_come_from_the_stored_row() -> None:
    sparse = event(101, row_bytes(9, None), unchanged=True)
    assert fold_upsert(from_chunk(EARLY), sparse, fill) == Entry(50, 1, row_bytes(9, 1), FromEvent(101))
    assert fold_upsert(from_event(100), sparse, fill) == Entry(50, 1, row_bytes(9, 2), FromEvent(101))


def test_what_the_stored_row_misses_stays_missing_the_same_way() -> None:
    sparse = event(101, row_bytes(9, None), unchanged=True)
    for moved in (False, True):
        entry = fold_upsert(from_event(100, row_bytes(2, None), missing=True, moved=moved), sparse, fill)
        assert (entry.missing, entry.moved) == (TOASTED, moved)


def test_a_full_update_ends_what_was_missing() -> None:
    entry = fold_upsert(from_event(100, row_bytes(2, None), missing=True, moved=True), event(101), fill)
    assert (entry.missing, entry.moved) == (b"", False)


def test_a_chunks_row_of_an_absent_key_has_the_seq_of_p0() -> None:
    assert fold_chunk_row(None, read(EARLY), fill) == from_chunk(EARLY)


def test_of_two_snapshots_the_later_wins_whichever_arrives_first() -> None:
    assert fold_chunk_row(from_chunk(EARLY, seq=50), read(LATE, NEW), fill) == from_chunk(LATE, NEW, seq=50)
    entry = from_chunk(LATE, NEW, seq=50)
    assert fold_chunk_row(entry, read(EARLY), fill) is entry


def test_a_chunks_row_that_holds_the_event_replaces_the_row_and_keeps_the_seq() -> None:
    assert fold_chunk_row(from_event(102), read(EARLY, NEWEST), fill) == from_chunk(EARLY, NEWEST, seq=40)
    tombstone = from_event(102, None)
    assert fold_chunk_row(tombstone, read(EARLY, NEWEST), fill) == from_chunk(EARLY, NEWEST, seq=40)


def test_a_chunks_row_that_is_older_than_the_event_changes_nothing() -> None:
    for entry in (from_event(101), from_event(101, None)):
        assert fold_chunk_row(entry, read(EARLY), fill) is entry


def test_a_chunks_row_that_is_older_than_the_event_fills_what_it_misses() -> None:
    entry = from_event(101, row_bytes(9, None), missing=True)
    assert fold_chunk_row(entry, read(EARLY), fill) == Entry(40, 1, row_bytes(9, 1), FromEvent(101))


def test_what_a_key_change_left_missing_is_never_filled_by_an_older_row_of_that_key() -> None:
    entry = from_event(101, row_bytes(9, None), missing=True, moved=True)
    assert fold_chunk_row(entry, read(EARLY), fill) is entry


def test_a_key_change_is_a_delete_and_an_insert_with_the_old_keys_values() -> None:
    sparse = event(101, row_bytes(9, None), unchanged=True)
    old, new = fold_key_change(from_chunk(EARLY), from_event(100, None), sparse, fill)
    assert old == Entry(50, 1, None, FromEvent(101))
    assert new == Entry(50, 1, row_bytes(9, 1), FromEvent(101))


def test_a_key_change_from_an_unknown_row_is_moved_and_missing() -> None:
    sparse = event(101, row_bytes(9, None), unchanged=True)
    for before in (None, from_event(100, None)):
        _, new = fold_key_change(before, from_event(100, NEW), sparse, fill)
        assert (new.missing, new.moved) == (TOASTED, True)


def test_a_key_change_takes_no_values_from_a_row_that_came_after_it() -> None:
    """The old key was given to another row, and the chunk saw that one."""
    sparse = event(102, row_bytes(9, None), unchanged=True)
    old, new = fold_key_change(from_chunk(EARLY), None, sparse, fill)
    assert old == from_chunk(EARLY, seq=50)
    assert (new.missing, new.moved) == (TOASTED, True)


def test_a_key_change_that_the_chunk_saw_at_the_new_key_keeps_that_row() -> None:
    old, new = fold_key_change(None, from_chunk(EARLY, NEWEST), event(102), fill)
    assert old == Entry(50, 1, None, FromEvent(102))
    assert new == from_chunk(EARLY, NEWEST, seq=50)


def test_truncate_spares_only_rows_read_in_snapshots_that_saw_it() -> None:
    assert survives_truncate(from_chunk(EARLY), FromEvent(102))
    assert not survives_truncate(from_chunk(EARLY), FromEvent(101))
    assert not survives_truncate(from_event(101), FromEvent(102))


def test_a_chunk_that_did_not_see_the_truncate_is_shut_out() -> None:
    assert admitted(EARLY, None)
    assert admitted(EARLY, FromEvent(102))
    assert not admitted(EARLY, FromEvent(101))


def test_a_net_difference_stands_for_the_event_that_it_corrects() -> None:
    """Every snapshot sees a difference: by itself it would let a chunk's row in that is older than the event."""
    entry = from_event(103, OLD)
    corrected = fold_upsert(entry, event(NO_TRANSACTION, NEWEST), fill)
    assert corrected == Entry(50, 1, NEWEST, FromEvent(103))
    blind = FromSnapshot(3, Snapshot(103, 103, frozenset()))
    assert fold_chunk_row(corrected, read(blind, OLD), fill) == corrected
    assert fold_chunk_row(corrected, read(LATE, NEW), fill) == from_chunk(LATE, NEW, seq=50)
    gone = fold_removal(entry, removal(NO_TRANSACTION))
    assert fold_chunk_row(gone, read(blind, OLD), fill) == gone == Entry(50, 1, None, FromEvent(103))


def test_a_net_difference_of_a_key_that_no_event_has_touched_gives_way_to_any_chunks_row() -> None:
    entry = fold_upsert(None, event(NO_TRANSACTION), fill)
    assert fold_chunk_row(entry, read(EARLY, OLD), fill) == from_chunk(EARLY, OLD, seq=50)
    assert fold_upsert(from_chunk(EARLY), event(NO_TRANSACTION), fill) == from_chunk(EARLY, seq=50)
