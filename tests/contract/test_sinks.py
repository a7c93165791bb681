"""One suite for every sink: the contract of `walbus.consumers.sinks.base`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from support.model_source import (
    ITEMS,
    ModelSource,
    column,
    delete,
    insert,
    items_layout,
    truncate,
    update,
)
from support.sink_writing import MARKS, windows
from support.sinks_under_test import SINKS, SinkUnderTest
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink
from walbus.consumers.steps import (
    Sweep,
)
from walbus.errors import ConfigError, WalbusError
from walbus.events import Window, window_of
from walbus.keys import encode_key
from walbus.position import Position
from walbus.records import Kind

pytestmark = pytest.mark.one_version


#: A template of a text names the columns: it is the operator who follows another layout. A row in a topic keeps the
#: schema that it was written with.
with_any_columns = pytest.mark.parametrize("under_test", [*SINKS, "redis-expiring"], indirect=True)
#: A row that has expired is not missed, and neither is one that never came.
with_rows_that_stay = pytest.mark.parametrize(
    "under_test", [*SINKS, "kafka", "redis-string", "cluster-string"], indirect=True
)


def snapshot_of(source: ModelSource, table: str = ITEMS, at: int = -1) -> list[Window]:
    return [window_of(h, r, source.layouts.__getitem__) for h, r in source.snapshot(table, None, at)]


def following(last_done: Position, seq: int, marks: Marks = MARKS, log_id: str = "log-a") -> Following:
    return Following(log_id, marks, Point(last_done, seq))


def put(sink: Sink, windows: Sequence[Window], marks: Marks = MARKS) -> None:
    """Writes and commits, as the runner does."""
    sink.write(windows, marks)
    sink.commit(following(windows[-1].last, windows[-1].last_seq, marks))


# Progress


def test_a_new_sink_has_no_checkpoint(sink: Sink) -> None:
    assert sink.checkpoint() is None
    assert sink.incomplete() == ()


def test_rows_and_checkpoint_survive_together(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "one"), insert(ITEMS, 2, None, "x" * 5000)])
    put(sink, windows(source))
    sink.close()
    again = under_test.open()
    assert again.checkpoint() == following(source.end, source.last_seq)
    again.close()
    assert under_test.rows() == source.rows()


def test_nothing_accepted_survives_without_its_checkpoint(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    first = source.commit([insert(ITEMS, 1, "one")])
    put(sink, windows(source))
    committed = source.rows()
    source.commit([insert(ITEMS, 2), update(ITEMS, 1, name="uno"), delete(ITEMS, 2)])
    sink.write(windows(source, first), MARKS)
    sink.close()  # a crash between write and checkpoint
    again = under_test.open()
    assert again.checkpoint() == following(first, 1)
    assert under_test.rows() == committed
    put(again, windows(source, first))
    again.close()
    assert under_test.rows() == source.rows()


def test_rolled_back_changes_leave_nothing(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    put(sink, windows(source))
    committed, done = source.rows(), source.end
    source.commit([update(ITEMS, 1, name="uno"), insert(ITEMS, 2)])
    sink.write(windows(source, done), MARKS)
    sink.rollback()
    assert sink.checkpoint() == following(done, 1)
    sink.commit(following(done, 1))
    assert under_test.rows() == committed
    put(sink, windows(source, done))
    assert under_test.rows() == source.rows()


def test_a_transaction_in_pieces_becomes_visible_with_its_last_piece(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1)])
    put(sink, windows(source))
    done = source.end
    source.commit([insert(ITEMS, n) for n in range(2, 10)], pieces=4)
    *pieces, last = windows(source, done)
    for piece in pieces:
        sink.write([piece], MARKS)
    assert set(under_test.rows()) == {"1"}
    put(sink, [last])
    assert under_test.rows() == source.rows()


def test_a_checkpoint_without_rows_moves_on(sink: Sink, under_test: SinkUnderTest) -> None:
    for lsn in (16, 32):
        sink.commit(following(Position(1, lsn, 0), 5))
    sink.close()
    again = under_test.open()
    assert again.checkpoint() == following(Position(1, 32, 0), 5)
    again.close()


# What comes again, or late


def test_replayed_windows_change_nothing(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "a"), insert(ITEMS, 2, "b")])
    source.commit([update(ITEMS, 1, name="c"), delete(ITEMS, 2), insert(ITEMS, 3)])
    source.commit([update(ITEMS, 3, new_id=4, name="d"), insert(ITEMS, 2, "again")])
    everything = windows(source)
    put(sink, everything)
    for start in range(len(everything)):
        put(sink, everything[start:])
    assert under_test.rows() == source.rows()


def test_an_older_change_never_overwrites_a_newer_one(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "old", "old")])
    source.commit([update(ITEMS, 1, name="new", body="new")])
    first, second = windows(source)
    put(sink, [second])
    sink.write([first], MARKS)
    sink.commit(following(second.last, second.last_seq))
    assert under_test.rows() == source.rows()


def test_a_late_upsert_after_a_delete_stays_deleted(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    source.commit([delete(ITEMS, 1)])
    first, second = windows(source)
    put(sink, [first, second])
    sink.write([first], MARKS)
    sink.commit(following(second.last, second.last_seq))
    assert under_test.rows() == {}


def test_a_catch_up_over_newer_rows_ends_with_the_newest(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    """The snapshot's rows are of its highest state, and the log is replayed from the lowest."""
    source.commit([insert(ITEMS, n, "v1") for n in (1, 2, 3)])
    low = source.end
    source.commit([update(ITEMS, 1, name="v2"), delete(ITEMS, 2), update(ITEMS, 3, new_id=5, name="v2")])
    source.commit([update(ITEMS, 1, name="v3"), update(ITEMS, 5, new_id=6, name="v3")])
    sink.write(snapshot_of(source), MARKS)
    sink.commit(following(low, 3))
    put(sink, windows(source, low))
    assert under_test.rows() == source.rows()
    assert sink.incomplete() == ()


def test_a_catch_up_over_newer_rows_after_a_restart_ends_with_the_newest(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, "v1") for n in range(30)])
    low = source.end
    source.commit([update(ITEMS, n, name="v2", body="b") for n in range(30)])
    newest = snapshot_of(source)
    sink.write(newest, MARKS)
    sink.commit(following(low, 30))
    sink.close()
    again = under_test.open()
    assert again.checkpoint() == following(low, 30)
    before = under_test.rows()
    again.write([w for w in windows(source) if w.last > low], MARKS)
    older = windows(source)[:1]
    again.write(older, MARKS)
    again.commit(following(source.end, source.last_seq))
    again.close()
    assert under_test.rows() == source.rows() == before


# Kinds of changes


def test_a_key_change_moves_the_row(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "a", "long"), insert(ITEMS, 2, "b", "other")])
    source.commit([update(ITEMS, 1, new_id=9, name="a", body="long"), update(ITEMS, 2, new_id=1, name="b", body="x")])
    put(sink, windows(source))
    assert under_test.rows() == source.rows() and set(under_test.rows()) == {"1", "9"}


def test_unchanged_values_are_kept(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted"), insert(ITEMS, 2, "b", None)])
    put(sink, windows(source))
    done = source.end
    source.commit([update(ITEMS, 1, name="c"), update(ITEMS, 2, name="d"), update(ITEMS, 1, name="e")])
    put(sink, windows(source, done))
    assert under_test.rows()["1"] == {"id": "1", "name": "e", "body": "toasted"}
    assert under_test.rows() == source.rows()
    assert sink.incomplete() == ()


def test_unchanged_values_of_the_same_batch_are_kept(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    source.commit([update(ITEMS, 1, name="b"), update(ITEMS, 1, new_id=3, name="c")])
    put(sink, windows(source))
    assert under_test.rows() == source.rows()


def test_a_key_change_carries_unchanged_values_along(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    put(sink, windows(source))
    done = source.end
    source.commit([update(ITEMS, 1, new_id=2, name="b")])
    put(sink, windows(source, done))
    assert under_test.rows() == source.rows() == {"2": {"id": "2", "name": "b", "body": "toasted"}}


@with_rows_that_stay
def test_a_value_that_nobody_has_is_told_until_the_table_is_read_again(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    put(sink, windows(source, done))  # the insert never came
    assert sink.incomplete() == (ITEMS,)
    sink.close()
    again = under_test.open()
    again.checkpoint()
    assert again.incomplete() == (ITEMS,)
    marks = Marks(2, 1)
    again.write(snapshot_of(source), marks)
    again.sweep(Sweep(ITEMS, source.last_seq, marks, following(source.end, source.last_seq, marks)))
    again.commit(following(source.end, source.last_seq, marks))
    assert again.incomplete() == ()
    again.close()
    assert under_test.rows() == source.rows()


@with_rows_that_stay
def test_a_moved_row_takes_no_value_from_the_row_that_has_its_key_since(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    """Key 5 was read from the snapshot before the row moved there, and key 9 after another row had taken it."""
    source.commit([insert(ITEMS, 9, "a", "its own")])
    low = source.end
    source.commit([update(ITEMS, 9, new_id=5, name="b")])
    source.commit([insert(ITEMS, 9, "c", "another's")])
    behind_5 = source.snapshot(ITEMS, encode_key([b"5"], [23]))
    sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in behind_5], MARKS)
    sink.commit(following(low, 1))
    put(sink, windows(source, low))
    assert under_test.rows()["9"] == source.rows()["9"]
    moved = under_test.rows().get("5", {"body": None})
    assert moved["body"] is None and ("5" in under_test.rows()) is not under_test.holds_back
    assert sink.incomplete() == (ITEMS,)


@with_rows_that_stay
def test_a_lacking_row_that_a_lagging_snapshot_does_not_know_is_not_taken_for_whole(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    low = source.end
    source.commit([update(ITEMS, 1, new_id=2, name="b")])
    put(sink, windows(source, low))  # the insert never came
    for generation, (at, position, seq) in enumerate([(1, low, 1), (2, source.end, 2)], 2):
        assert sink.incomplete() == (ITEMS,)
        marks = Marks(generation, 1)
        sink.write(snapshot_of(source, at=at), marks)
        sink.sweep(Sweep(ITEMS, seq, marks, following(position, seq, marks)))
        sink.commit(following(position, seq, marks))
        put(sink, windows(source, low), marks)
        if not sink.incomplete():  # the replay found the value; where the old key's tombstone hid it, again
            break
    assert under_test.rows() == source.rows()
    assert sink.incomplete() == ()


def test_truncate_empties_the_table_and_later_rows_stay(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    put(sink, windows(source))
    done = source.end
    source.commit([insert(ITEMS, 8), truncate(ITEMS), insert(ITEMS, 1, "new")])
    put(sink, windows(source, done))
    assert under_test.rows() == source.rows()
    put(sink, windows(source))
    assert under_test.rows() == source.rows()


# Layouts


@with_any_columns
def test_columns_are_added_dropped_and_renamed(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "a", "b"), insert(ITEMS, 2, "c", "d")])
    put(sink, windows(source))
    key = column("id", 23, "int4", in_key=True)
    for columns in (
        (key, column("name"), column("body"), column("extra")),  # added
        (key, column("title"), column("body"), column("extra")),  # renamed
        (key, column("title"), column("extra")),  # dropped
    ):
        done, before = source.end, source.rows()
        layout = source.add_layout(items_layout("items", *columns))
        source.commit([update(ITEMS, 1, **{c.name: f"new {c.name}" for c in columns[1:]})])
        put(sink, windows(source, done) or windows(source))
        row = under_test.rows()["1"]
        assert {c.name: row.get(c.name) for c in layout.columns} == source.rows()["1"]
        assert before
    assert under_test.rows()["2"]["title"] == "c"
    assert "body" not in under_test.rows()["2"] or under_test.rows()["2"]["body"] is None


def test_a_column_changes_its_type(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    key = column("id", 23, "int4", in_key=True)
    source.add_layout(items_layout("items", key, column("name", 23, "int4"), column("body")))
    source.commit([insert(ITEMS, 1, "5"), insert(ITEMS, 2, "6")])
    put(sink, windows(source))
    done = source.end
    source.add_layout(items_layout("items", key, column("name"), column("body")))
    source.commit([update(ITEMS, 1, name="five", body="b")])
    put(sink, windows(source, done))
    assert under_test.rows()["1"]["name"] == "five"
    assert under_test.rows()["2"]["name"] == "6"


def test_a_table_is_renamed(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    put(sink, windows(source))
    done = source.end
    source.add_layout(items_layout("things"))
    source.commit([update("public.things", 1, name="x", body="y"), delete("public.things", 2)])
    put(sink, windows(source, done))
    assert under_test.rows("public.things") == source.rows("public.things")
    assert under_test.rows() == {}


def test_the_rows_of_a_table_that_loses_its_key_stay(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    """Rows of one seeding have one seq, and seq is all that a row without a key is known by."""
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2), insert(ITEMS, 3)])
    position, seq, state = source.history[-1]
    source.history[-1] = position, seq, {ITEMS: {id: replace(row, seq=1) for id, row in state[ITEMS].items()}}
    put(sink, snapshot_of(source))
    done = source.end
    source.add_layout(items_layout("items", column("id", 23, "int4"), column("name"), column("body")))
    put(sink, windows(source, done))
    assert under_test.rows() == source.rows()


@with_any_columns
def test_rows_of_an_earlier_layout_come_under_the_present_names(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    """A snapshot gives each row in the layout that it was last written in."""
    key = column("id", 23, "int4", in_key=True)
    source.commit([insert(ITEMS, 1, "a", "b")])
    source.add_layout(items_layout("items", key, column("title"), column("body")))
    source.commit([insert(ITEMS, 2)])
    rows = snapshot_of(source)
    put(sink, [w for w in windows(source) if w.kind == Kind.SCHEMA][:1])
    sink.write(rows[::-1], MARKS)
    sink.commit(following(source.end, source.last_seq))
    row = under_test.rows()["1"]
    assert row.pop("name", None) is None
    assert row == {"id": "1", "title": "a", "body": "b"}


# Deltas


def delta_of(source: ModelSource, since: int, table: str = ITEMS) -> list[Window]:
    return [window_of(h, r, source.layouts.__getitem__) for h, r in source.delta(table, since)]


def test_a_delta_brings_rows_and_deletes_and_spares_the_rest(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, "v1", "toasted") for n in range(6)])
    put(sink, windows(source))
    since = source.last_seq
    source.commit([delete(ITEMS, 0), update(ITEMS, 1, new_id=77, name="m"), update(ITEMS, 2, name="v2")])
    source.commit([insert(ITEMS, 0, "again"), delete(ITEMS, 3), insert(ITEMS, 8), delete(ITEMS, 8)])
    for _ in range(2):  # it may come again
        put(sink, delta_of(source, since), Marks(2, 1))
        assert under_test.rows() == source.rows()


def test_a_delta_behind_a_truncate_empties_the_table_first(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(4)])
    put(sink, windows(source))
    since = source.last_seq
    source.commit([insert(ITEMS, 9), truncate(ITEMS), insert(ITEMS, 2, "new")])
    put(sink, delta_of(source, since), Marks(2, 1))
    assert under_test.rows() == source.rows()


def test_a_delta_that_lags_overwrites_nothing_newer(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, "v1") for n in range(4)])
    source.commit([update(ITEMS, 1, name="v2"), delete(ITEMS, 2), insert(ITEMS, 5)])
    late = delta_of(source, 0)
    source.commit([update(ITEMS, 1, name="v3"), insert(ITEMS, 2, "new"), update(ITEMS, 5, name="v2")])
    put(sink, windows(source))
    sink.write(late, Marks(2, 1))
    sink.commit(following(source.end, source.last_seq, Marks(2, 1)))
    assert under_test.rows() == source.rows()


@with_rows_that_stay
def test_a_delta_fills_what_a_row_lacked(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "one", "toasted")])
    since, done = source.last_seq, source.end
    source.commit([update(ITEMS, 1, name="uno")])
    put(sink, windows(source, done))
    assert sink.incomplete() == (ITEMS,)
    put(sink, delta_of(source, since), Marks(2, 1))
    assert sink.incomplete() == ()
    assert under_test.rows() == source.rows()


# Snapshots


def test_a_snapshot_replaces_what_is_older_and_the_sweep_removes_ghosts(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, "v1") for n in range(6)])
    put(sink, windows(source))
    source.commit([delete(ITEMS, 0), update(ITEMS, 1, new_id=77, name="m", body="n"), update(ITEMS, 2, name="v2")])
    marks = Marks(2, 1)
    sink.write(snapshot_of(source), marks)
    after = following(source.end, source.last_seq, marks)
    sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
    sink.commit(after)
    assert under_test.rows() == source.rows()


def test_the_sweep_spares_rows_that_are_newer_than_the_snapshot(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1)])
    snapshot, seq = snapshot_of(source), source.last_seq
    source.commit([insert(ITEMS, 2)])
    put(sink, windows(source))
    marks = Marks(2, 1)
    after = following(source.end, source.last_seq, marks)
    sink.write(snapshot, marks)
    sink.sweep(Sweep(ITEMS, seq, marks, after))
    sink.commit(after)
    assert under_test.rows() == source.rows()


def test_another_log_replaces_every_row_whatever_its_seq(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    old = ModelSource(first_seq=1_000_000)
    old.commit([insert(ITEMS, n, "old") for n in range(4)])
    put(sink, windows(old))
    source.commit([insert(ITEMS, 1, "new"), insert(ITEMS, 9, "new")])
    marks = Marks(5, 5)
    after = following(source.end, source.last_seq, marks, "log-b")
    sink.write(snapshot_of(source), marks)
    sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
    sink.commit(after)
    done = source.end
    source.commit([truncate(ITEMS), insert(ITEMS, 3, "newest")])
    put(sink, windows(source, done), marks)
    assert under_test.rows() == source.rows()


def test_a_sweep_of_an_unknown_table_does_nothing(sink: Sink) -> None:
    after = following(Position(1, 16, 1), 4)
    sink.sweep(Sweep("public.nothing", 4, MARKS, after))
    sink.commit(after)
    assert sink.checkpoint() == after


# Trouble


def test_two_writers_are_not_let_in(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    put(sink, windows(source))
    done = source.end
    source.commit([insert(ITEMS, 2)])
    with pytest.raises(WalbusError), ExitStack() as opened:
        other = under_test.open()
        opened.callback(other.close)
        other.checkpoint()
        put(other, windows(source, done))
        put(sink, windows(source, done))  # the zombie, if the other got in


def test_an_unknown_option_is_named(under_test: SinkUnderTest) -> None:
    with pytest.raises(ConfigError, match=r"consumer\.test\.pathh"):
        under_test.open(pathh="x")
