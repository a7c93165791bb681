"""One suite for every sink: tables that swap their names, and one that has the name of another that was dropped.

The log knows tables by their OIDs, and tells a table's new name with the table's next change. So a name may come to
another table while the one that had it is known by no other name yet, and perhaps never will be.
"""

from __future__ import annotations

import pytest

from support.model_source import ITEMS, Edit, ModelSource, delete, insert, items_layout, truncate, update
from support.sink_writing import fill, following, windows
from support.sinks_under_test import SINKS, SinkUnderTest
from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks import Sink
from walbus.consumers.steps import Sweep
from walbus.events import window_of

pytestmark = pytest.mark.one_version

THINGS, BETWEEN = "public.things", "public.between"
FIRST, SECOND, LATER = 16400, 16401, 16499

with_rows_that_stay = pytest.mark.parametrize(
    "under_test", [*SINKS, "kafka", "redis-string", "cluster-string"], indirect=True
)


@pytest.fixture
def source() -> ModelSource:
    """Two tables, some of whose rows have one key."""
    source = ModelSource(layouts=[items_layout(), items_layout("things", oid=SECOND)])
    source.commit([*(insert(ITEMS, n, f"item {n}") for n in range(4)), *(insert(THINGS, n) for n in range(2, 6))])
    return source


def swap(source: ModelSource, *, told: bool) -> None:
    """`items` becomes `between`, `things` becomes `items`, and `between` becomes `things`; perhaps each is told."""
    source.add_layout(items_layout("between"), told=told)
    source.add_layout(items_layout("items", oid=SECOND), told=told)
    source.add_layout(items_layout("things"), told=told)


def made_again(source: ModelSource) -> None:
    """`items` is dropped, and another table is called so."""
    source.state[ITEMS] = {}
    source.add_layout(items_layout("items", oid=LATER))


def assert_equal(under_test: SinkUnderTest, source: ModelSource, *tables: str) -> None:
    for table in tables or (ITEMS, THINGS):
        assert under_test.rows(table) == source.rows(table)


@pytest.mark.parametrize("told", [True, False], ids=["each step is told", "the last names are told"])
def test_two_tables_that_swap_their_names_keep_their_rows(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource, told: bool
) -> None:
    fill(sink, source)
    done = source.end
    swap(source, told=told)
    source.commit([update(ITEMS, 2, name="moved"), update(THINGS, 0, name="moved too"), delete(THINGS, 3)])
    fill(sink, source, done)
    assert_equal(under_test, source)
    assert under_test.rows(BETWEEN) == {}
    assert sink.incomplete() == ()
    done = source.end
    swap_back = [items_layout("between", oid=SECOND), items_layout("items"), items_layout("things", oid=SECOND)]
    for layout in swap_back:
        source.add_layout(layout, told=told)
    source.commit([insert(ITEMS, 9), update(THINGS, 4, new_id=7)])
    fill(sink, source, done)
    assert_equal(under_test, source)


@pytest.mark.parametrize("first", [ITEMS, THINGS])
def test_a_table_whose_name_was_taken_has_its_rows_again_once_it_tells_its_own(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource, first: str
) -> None:
    """What changes of the other one under its new name touches none of its rows, whatever their keys."""
    fill(sink, source)
    done = source.end
    swap(source, told=False)
    source.commit([update(first, 2, name="moved"), delete(first, 3), insert(first, 77)])
    fill(sink, source, done)
    assert_equal(under_test, source, first)
    sink.close()
    sink = under_test.open()
    try:
        sink.checkpoint()
        other, done = ({ITEMS, THINGS} - {first}).pop(), source.end
        source.commit([update(other, 2, name="told"), insert(other, 78)])
        fill(sink, source, done)
        assert_equal(under_test, source)
        assert sink.incomplete() == ()
    finally:
        sink.close()


def test_a_swap_of_names_comes_again_after_a_crash(sink: Sink, under_test: SinkUnderTest, source: ModelSource) -> None:
    fill(sink, source)
    done = source.end
    swap(source, told=False)
    source.commit([update(ITEMS, 2, name="moved")])
    source.commit([update(THINGS, 2, name="moved too"), insert(THINGS, 70)])
    everything = windows(source, done)
    for count in range(1, len(everything) + 1):
        sink.write(everything[:count], Marks(1, 1))
        sink.close()
        sink = under_test.open()
        assert sink.checkpoint() is not None
    fill(sink, source, done)
    sink.close()
    assert_equal(under_test, source)


@pytest.mark.parametrize(
    "edits",
    [
        [insert(ITEMS, 3, "anew"), insert(ITEMS, 40)],
        [truncate(ITEMS), insert(ITEMS, 3, "anew")],
        [insert(ITEMS, 3, "anew"), update(ITEMS, 3, name="later"), update(ITEMS, 3, new_id=1), delete(ITEMS, 1)],
    ],
    ids=["rows", "truncate", "key changes"],
)
def test_a_table_that_is_dropped_and_made_again_has_no_row_of_the_first(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource, edits: list[Edit]
) -> None:
    fill(sink, source)
    done = source.end
    made_again(source)
    source.commit(edits)
    for _ in range(2):  # a crash before the checkpoint
        sink.write(windows(source, done), Marks(1, 1))
        sink.close()
        sink = under_test.open()
        sink.checkpoint()
    fill(sink, source, done)
    assert_equal(under_test, source)
    assert sink.incomplete() == ()
    sink.close()
    sink = under_test.open()
    sink.checkpoint()
    done = source.end
    source.commit([insert(ITEMS, 50), update(ITEMS, 50, body="other"), truncate(ITEMS), insert(ITEMS, 9)])
    fill(sink, source, done)
    sink.close()
    assert_equal(under_test, source)


def test_a_table_that_is_made_again_three_times_has_the_rows_of_the_last(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    fill(sink, source)
    for oid in (16501, 16502, 16503):
        done = source.end
        source.state[ITEMS] = {}
        source.add_layout(items_layout("items", oid=oid))
        source.commit([insert(ITEMS, 2, f"of {oid}")])
        fill(sink, source, done)
        assert_equal(under_test, source)


@with_rows_that_stay
def test_a_row_that_lacks_a_value_is_asked_for_again_only_under_a_name_that_it_has(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    done = source.end
    source.commit([update(ITEMS, 2, name="without its body")])
    fill(sink, source, done)  # the insert never came
    assert sink.incomplete() == (ITEMS,)
    done = source.end
    swap(source, told=False)
    source.commit([insert(ITEMS, 30)])
    fill(sink, source, done)
    assert ITEMS not in sink.incomplete() and THINGS not in sink.incomplete()
    done = source.end
    source.commit([insert(THINGS, 31)])
    fill(sink, source, done)
    assert sink.incomplete() == (THINGS,)


def test_the_sweep_of_a_name_is_of_the_table_that_has_it(
    sink: Sink, under_test: SinkUnderTest, source: ModelSource
) -> None:
    fill(sink, source)
    done = source.end
    swap(source, told=False)
    source.commit([delete(ITEMS, 2), update(ITEMS, 3, name="moved")])
    fill(sink, source, done)
    marks = Marks(2, 1)
    sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.snapshot(ITEMS, None)], marks)
    after = following(source, marks)
    sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
    sink.commit(after)
    done = source.end
    source.commit([insert(THINGS, 80)])
    fill(sink, source, done, marks)
    assert_equal(under_test, source)
