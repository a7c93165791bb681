"""Changes that wait for one table: folded, they leave what each by itself would have left."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from walbus.consumers.sinks.postgres_pending import Gone, Pending, Put
from walbus.position import ORIGIN

KEY = b"k"


@dataclass(frozen=True)
class Stored:
    """A row as the target has it: one value for each of two columns, its seq, and whether it lacks a value."""

    values: tuple[object, object]
    seq: int


def apply(stored: Stored | None, change: Put | Gone) -> Stored | None:
    """One change at the target, as the statements say it."""
    if isinstance(change, Gone):
        return None if stored is not None and stored.seq < change.seq else stored
    if stored is not None and not (stored.seq < change.seq or (change.or_equal and stored.seq == change.seq)):
        return stored
    one, two = change.values
    if change.sent is not None and stored is not None:
        one = one if 0 in change.sent else stored.values[0]
        two = two if 1 in change.sent else stored.values[1]
    return Stored((one, two), change.seq)


@st.composite
def histories(draw: st.DrawFn) -> list[Put | Gone]:
    """Versions of one row in the order of a log, of which some come again from an earlier place on."""
    versions: list[Put | Gone] = []
    body: str | None = None
    there = False
    for seq in range(1, draw(st.integers(1, 8)) + 1):
        what = draw(st.sampled_from(["whole", "partial", "gone"] if there else ["whole"]))
        there = what != "gone"
        if what == "gone":
            versions.append(Gone(["k"], seq))
        else:
            body = f"b{seq}" if what == "whole" else body
            sent = None if what == "whole" else frozenset([0])
            versions.append(Put([f"n{seq}", body if sent is None else None], seq, ORIGIN, sent=sent))
    start = draw(st.integers(0, len(versions)))
    return versions + versions[start:]


def snapshot(history: list[Put | Gone], at: int) -> Stored | None:
    stored: Stored | None = None
    for change in history[:at]:
        stored = apply(stored, change)
    return stored


@given(histories(), st.data())
def test_folded_changes_leave_what_each_by_itself_leaves(history: list[Put | Gone], data: st.DataObject) -> None:
    versions = max(change.seq for change in history)
    before = snapshot(history, data.draw(st.integers(0, versions)))
    one_by_one, folded, pending = before, before, Pending()
    for change in history:
        one_by_one = apply(one_by_one, change)
        if not pending.take(KEY, change):
            for held in pending.changes.values():
                folded = apply(folded, held)
            pending = Pending()
            assert pending.take(KEY, change), "an empty one takes everything"
    for held in pending.changes.values():
        folded = apply(folded, held)
    assert folded == one_by_one


def test_a_snapshots_row_replaces_one_of_its_own_version() -> None:
    pending = Pending()
    assert pending.take(KEY, Put(["a", "b"], 5, ORIGIN))
    assert pending.take(KEY, Put(["c", "d"], 5, ORIGIN, or_equal=True))
    assert [row.values for row in pending.rows()] == [["c", "d"]]
    assert pending.take(KEY, Put(["e", "f"], 5, ORIGIN))
    assert [row.values for row in pending.rows()] == [["c", "d"]]


def test_a_late_row_behind_a_delete_is_sent_by_itself() -> None:
    pending = Pending()
    assert pending.take(KEY, Gone(["k"], 5))
    assert not pending.take(KEY, Put(["a", "b"], 4, ORIGIN))
    assert not pending.take(KEY, Put(["a", None], 6, ORIGIN, sent=frozenset([0])))
    assert pending.take(KEY, Put(["a", "b"], 6, ORIGIN))
