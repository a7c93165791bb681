"""pg_snapshot: parsed, asked, compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import SETTLED, Snapshot, parse_snapshot
from walbus.errors import ProtocolError


@pytest.mark.parametrize("text", ["10:10:", "10:14:10,12", "4294967306:4294967310:4294967306"])
def test_the_text_form_round_trips(text: str) -> None:
    assert str(parse_snapshot(text)) == text


@pytest.mark.parametrize("text", ["", "10:10", "10:10:,", "10:10:1,,2", "a:b:", "-1:2:", "10:10: ", "10:10:\n"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_snapshot(text)


def test_what_ended_is_seen_and_what_ran_is_not() -> None:
    snapshot = parse_snapshot("10:14:10,12")
    assert [xid for xid in range(8, 16) if snapshot.sees(xid)] == [8, 9, 11, 13]


def test_a_settled_snapshot_sees_nothing_new() -> None:
    assert not SETTLED.sees(1)
    assert parse_snapshot("3:3:").is_later_than(SETTLED)


@given(st.lists(st.integers(0, 30), unique=True, max_size=30), st.data())
def test_of_two_snapshots_of_one_history_exactly_the_one_that_sees_more_is_later(
    ending: list[int], data: st.DataObject
) -> None:
    """Transactions end in some order; two snapshots are taken after some of them."""

    def taken_after(count: int) -> Snapshot:
        ended = set(ending[:count])
        xmax = max(ended, default=-1) + 1
        running = frozenset(range(xmax)) - ended
        return Snapshot(min(running, default=xmax), xmax, running)

    first = data.draw(st.integers(0, len(ending)))
    second = data.draw(st.integers(first, len(ending)))
    earlier, later = taken_after(first), taken_after(second)
    sees_more = {x for x in range(40) if later.sees(x)} > {x for x in range(40) if earlier.sees(x)}
    assert later.is_later_than(earlier) == sees_more
    assert not earlier.is_later_than(later)


def test_unseen_commits_are_forgotten_once_a_snapshot_sees_them() -> None:
    unseen = UnseenCommits([5, 7])
    unseen.update([9])
    unseen.observe(parse_snapshot("7:9:7"))
    assert unseen.xids() == {7, 9}
    unseen.observe(parse_snapshot("10:10:"))
    assert len(unseen) == 0


def test_without_history_whatever_runs_may_be_in_the_log() -> None:
    unseen = UnseenCommits(complete=False)
    assert not unseen.complete
    unseen.observe(parse_snapshot("7:9:7"))
    assert unseen.complete
    assert unseen.xids() == {7}
    unseen.observe(parse_snapshot("10:12:10"))
    assert not unseen.xids()
