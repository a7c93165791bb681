"""What is handed to a sink that refuses rows, and what is remembered of them; parking is tried with real sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.model_source import ITEMS, Edit, ModelSource, delete, insert, update
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.refused_rows import RowRefused, row_of
from walbus.consumers.sifted_sink import Rewound, SiftedSink
from walbus.consumers.sinks import Sink
from walbus.events import Change, Window, window_of

MARKS = Marks(1, 1)


class Choosy:
    """A sink that refuses what `refuses` says; it names the row, or cannot.

    Attributes:
        calls: the keys of each `write`, in order.
        rows: the keys that are committed.
    """

    def __init__(self, refuses: Callable[[Change], bool], *, names: bool) -> None:
        self.refuses, self._names = refuses, names
        self.calls: list[list[int]] = []
        self.rows: list[int] = []
        self._accepted: list[int] = []

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        changes = [change for window in windows for change in window.changes]
        self.calls.append([id_of(change) for change in changes])
        for change in changes:
            if self.refuses(change):
                raise RowRefused("no", row=row_of(change) if self._names else None)
            self._accepted.append(id_of(change))

    def commit(self, checkpoint: Following) -> None:
        self.rows += self._accepted
        self._accepted = []

    def rollback(self) -> None:
        self._accepted = []

    def checkpoint(self) -> None:
        return None


def id_of(change: Change) -> int:
    return int(cast("dict[str, Any]", change.key)["id"])


def sifted(sink: Choosy, attempts: int = 2) -> SiftedSink:
    return SiftedSink(cast(Sink, sink), row_of, None, attempts, "test", lambda: 0.0)


def windows_of(source: ModelSource) -> list[Window]:
    return [window_of(header, record, source.layouts.__getitem__) for header, record in source.records]


def following(window: Window) -> Following:
    return Following("log-a", MARKS, Point(window.last, window.last_seq))


def passes(sink: SiftedSink, windows: Sequence[Window], most: int = 50) -> int:
    """Hands windows over, and again from the beginning after each refusal, until they are committed; how often."""
    for number in range(1, most):
        try:
            sink.write(windows, MARKS)
            sink.commit(following(windows[-1]))
        except Rewound:
            sink.rollback()
            sink.checkpoint()
        else:
            return number
    raise AssertionError("it never ends")


@pytest.mark.parametrize("names", [True, False])
def test_a_row_that_is_taken_at_its_second_try_leaves_nothing_behind(names: bool) -> None:
    source, refusals = ModelSource(), [True] * (1 if names else 2)
    choosy = Choosy(lambda change: id_of(change) == 3 and bool(refusals) and refusals.pop(), names=names)
    source.commit([insert(ITEMS, n) for n in range(6)])
    sink = sifted(choosy)
    passes(sink, windows_of(source))
    assert choosy.rows == [0, 1, 2, 3, 4, 5]
    later = ModelSource(first_seq=100)
    later.commit([insert(ITEMS, n) for n in range(10, 16)])
    (window,) = windows_of(later)
    written = []
    choosy.write = lambda windows, marks: written.append(windows)  # type: ignore[method-assign]
    handed = [window]
    sink.write(handed, MARKS)
    assert written[0] is handed, "nothing is sifted any more"


def test_faults_of_rows_that_do_not_come_again_are_forgotten() -> None:
    source = ModelSource()
    choosy = Choosy(lambda change: id_of(change) == 3, names=True)
    source.commit([insert(ITEMS, n) for n in range(6)])
    (window,) = windows_of(source)
    sink = sifted(choosy)
    with pytest.raises(Rewound):
        sink.write([window], MARKS)
    sink.rollback()
    sink.checkpoint()
    sink.commit(following(window))  # a delta came in its place
    choosy.calls.clear()
    written: list[object] = []
    choosy.write = lambda windows, marks: written.append(windows)  # type: ignore[method-assign]
    handed = [window]
    sink.write(handed, MARKS)
    assert written[0] is handed


def test_what_comes_before_the_refused_call_goes_as_it_came() -> None:
    """Or each pass over a huge transaction would be made change by change."""
    source = ModelSource()
    choosy = Choosy(lambda change: id_of(change) == 1950, names=False)
    source.commit([insert(ITEMS, n) for n in range(2_000)], pieces=20)
    sink, windows = sifted(choosy), windows_of(source)

    def hand_over() -> None:
        for window in windows:
            sink.write([window], MARKS)
        sink.commit(following(windows[-1]))

    for number in range(20):
        choosy.calls.clear()
        try:
            hand_over()
        except Rewound:
            sink.rollback()
            assert [len(call) for call in choosy.calls[:19]] == [100] * 19, f"pass {number}"
        else:
            break
    assert choosy.rows == [n for n in range(2_000) if n != 1950]
    assert sink.skipped == 1


def test_updates_that_leave_out_values_of_a_row_that_was_skipped_in_a_snapshot_are_skipped_too() -> None:
    """Each would have its whole table read again, in vain."""
    source = ModelSource()
    choosy = Choosy(lambda change: id_of(change) in (3, 4), names=True)
    source.commit([insert(ITEMS, n) for n in range(6)])
    sink = sifted(choosy, attempts=1)
    rows = [window_of(header, record, source.layouts.__getitem__) for header, record in source.snapshot(ITEMS, None)]
    passes(sink, rows)
    assert sink.skipped == 2
    choosy.refuses = lambda change: False
    behind = len(source.records)

    def come(*edits: Edit) -> list[int]:
        source.commit(edits)
        (window,) = windows_of(source)[behind:][-1:]
        choosy.calls.clear()
        passes(sink, [window])
        return choosy.calls[0]

    assert come(update(ITEMS, 3, name="b"), update(ITEMS, 2, name="b")) == [2]
    assert come(update(ITEMS, 3, new_id=9, name="c"), update(ITEMS, 4, name="c", body="whole")) == [4]
    assert come(update(ITEMS, 9, name="d"), update(ITEMS, 4, name="d")) == [4], "it follows its row to another key"
    assert sink.skipped == 5
    assert come(delete(ITEMS, 9), insert(ITEMS, 9), update(ITEMS, 9, name="e")) == [9, 9, 9]


def read(source: ModelSource) -> list[Window]:
    """A snapshot as it is now."""
    return [window_of(header, record, source.layouts.__getitem__) for header, record in source.snapshot(ITEMS, None)]


def read_until_taken(sink: SiftedSink, source: ModelSource, before: Callable[[], object], most: int = 30) -> int:
    """Reads the table, and anew after each refusal, once something else has happened; how often."""
    for number in range(1, most):
        before()
        try:
            sink.write(read(source), MARKS)
            sink.commit(Following(source.log_id, MARKS, Point(source.end, source.last_seq)))
        except Rewound:
            sink.rollback()
            sink.checkpoint()
        else:
            return number
    raise AssertionError("it never ends")


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("names", [True, False])
def test_the_log_may_go_on_before_a_refused_row_of_a_snapshot_comes_again(names: bool, attempts: int) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(200)])
    choosy = Choosy(lambda change: id_of(change) == 77 and change.seq < 200, names=names)
    sink, lengths = sifted(choosy, attempts), count(1)

    def the_log_goes_on() -> None:
        done = len(source.records)
        source.commit([insert(ITEMS, 1_000 + source.last_seq * 20 + n) for n in range(next(lengths) % 7 * 3 + 1)])
        new = windows_of(source)[done:]
        sink.write(new, MARKS)
        sink.commit(following(new[-1]))

    read_until_taken(sink, source, the_log_goes_on)
    assert {*range(200)} - {*choosy.rows} == {77}
    assert sink.skipped == 1
    assert not sink._faults


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("names", [True, False])
def test_a_row_of_a_snapshot_that_is_another_version_each_time_is_left_out_as_well(names: bool, attempts: int) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(50)])
    choosy = Choosy(lambda change: id_of(change) == 7, names=names)
    sink = sifted(choosy, attempts)
    read_until_taken(sink, source, lambda: source.commit([update(ITEMS, 7, name="hot", body="b")]))
    assert {*range(50)} - {*choosy.rows} == {7}
    assert not sink._faults


def test_a_row_that_was_refused_and_is_not_read_again_is_forgotten_with_the_reading() -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(6)])
    choosy = Choosy(lambda change: id_of(change) == 3, names=True)
    sink = sifted(choosy)
    with pytest.raises(Rewound):
        sink.write(read(source), MARKS)
    sink.rollback()
    source.commit([delete(ITEMS, 3)])
    assert read_until_taken(sink, source, lambda: None) == 1
    assert not sink._faults
    assert not sink._read


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    batch=st.integers(1, 4),
    poison=st.sets(st.integers(0, 100), max_size=4),
    names=st.booleans(),
    commits=st.booleans(),
    attempts=st.integers(1, 3),
)
def test_all_but_the_refused_rows_arrive_once_and_in_order_however_they_are_cut(
    sizes: list[int], batch: int, poison: set[int], names: bool, commits: bool, attempts: int
) -> None:
    source, ids = ModelSource(), count()
    for size in sizes:
        source.commit([insert(ITEMS, next(ids)) for _ in range(size)] or [delete(ITEMS, 1_000)])
    choosy = Choosy(lambda change: id_of(change) in poison, names=names)
    sink, windows, done = sifted(choosy, attempts), windows_of(source), 0
    for _ in range((attempts + 4) * (len(poison) + 1)):
        try:
            for start in range(done, len(windows), batch):
                sink.write(windows[start : start + batch], MARKS)
                if commits or start + batch >= len(windows):
                    sink.commit(following(windows[min(start + batch, len(windows)) - 1]))
                    done = start + batch
            break
        except Rewound:
            sink.rollback()
    everything = [id_of(change) for window in windows for change in window.changes]
    assert choosy.rows == [id for id in everything if id not in poison]
    assert sink.skipped == len(poison.intersection(everything))
    assert not sink._faults
