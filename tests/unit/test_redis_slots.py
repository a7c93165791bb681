"""Where a consumer is by what lies on a cluster's masters, and which keys lie together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from walbus.consumers.sinks.redis_slots import (
    SLOTS,
    Anchor,
    Master,
    anchor_slot,
    dump_slots,
    load_slots,
    slot_of,
    standing,
    tag,
)

LOW, HIGH = frozenset(range(8000)), frozenset(range(8000, SLOTS))
A, B = Master("a:1", "node-a", "history-a", "", LOW), Master("b:1", "node-b", "history-b", "", HIGH)


def anchor(master: Master, slot: int, number: int = 7, vouches: frozenset[int] | None = None) -> Anchor:
    return Anchor(slot, number, f"checkpoint {number}", vouches or master.slots, master.node, master.history)


AT_A, AT_B = anchor(A, 0), anchor(B, 8000)


def moved(slots: frozenset[int]) -> tuple[Master, Master]:
    """A and B once slots of A are B's."""
    return A._replace(slots=LOW - slots), B._replace(slots=HIGH | slots)


def test_a_new_consumer_is_nowhere_and_nothing_is_wrong() -> None:
    assert standing([A, B], []) == ("", None)


def test_the_least_checkpoint_counts() -> None:
    assert standing([A, B], [AT_A._replace(number=9, checkpoint="x"), AT_B]).checkpoint == "checkpoint 7"


def test_a_master_without_its_checkpoint_has_all_rows_read_again() -> None:
    assert standing([A, B], [AT_A]) == ("", "no checkpoint tells of what b:1 holds")


@pytest.mark.parametrize(
    "now",
    [
        B._replace(history="restarted"),
        B._replace(name="b:2", node="replica", history="after", before="history-b"),
        B._replace(history="there and back", before="another"),
    ],
    ids=["restarted", "replaced", "replaced and back again"],
)
def test_a_checkpoint_holds_on_whoever_has_its_masters_data(now: Master) -> None:
    assert standing([A, now], [AT_A, AT_B]).checkpoint == "checkpoint 7"


def test_slots_that_came_to_a_master_which_goes_on_are_there() -> None:
    assert standing(moved(frozenset(range(100, 200))), [AT_A, AT_B]).checkpoint == "checkpoint 7"


def test_slots_that_came_to_a_master_which_was_replaced_since_are_in_doubt() -> None:
    a, b = moved(frozenset(range(100, 200)))
    replaced = b._replace(node="replica", history="after", before="history-b")
    assert standing([a, replaced], [AT_A, AT_B]).why == "slots came to b:1, which may have lost them since"
    told = anchor(B, 8000, vouches=b.slots)
    assert standing([a, replaced], [AT_A, told]).checkpoint == "checkpoint 7"


def test_a_checkpoint_that_moved_along_says_nothing_of_the_slots_that_did() -> None:
    """Of what moved, a replica may have got the checkpoint and not the rows."""
    a, b = moved(LOW)
    replaced = b._replace(node="replica", history="after", before="history-b")
    assert standing([replaced], [AT_A, AT_B]).why is not None
    assert standing([b], [AT_A, AT_B]).checkpoint == "checkpoint 7"
    assert a.slots == frozenset()


def test_a_master_whose_checkpoint_moved_away_is_known_by_its_history() -> None:
    a, b = moved(frozenset({0}))
    was_replica = a._replace(before="long ago")
    assert standing([was_replica, b], [AT_A, AT_B]).checkpoint == "checkpoint 7"
    assert standing([was_replica._replace(history="another"), b], [AT_A, AT_B]).why is not None


def test_a_new_master_has_what_came_to_it_if_it_was_seen_before_and_goes_on() -> None:
    some = frozenset(range(100, 200))
    a, new = A._replace(slots=LOW - some), Master("c:1", "node-c", "history-c", "", some)
    empty = {"history-c"}
    assert standing([a, B, new], [AT_A, AT_B], empty).checkpoint == "checkpoint 7"
    assert standing([a, B, new._replace(history="restarted")], [AT_A, AT_B], empty).why is not None
    assert standing([a, B, new._replace(history="after", before="history-c")], [AT_A, AT_B], empty).why is not None
    assert standing([a, B, new], [AT_A, AT_B]).why == "slots came to c:1, which may have lost them since"


def test_a_checkpoint_goes_where_one_is_or_into_the_first_slot_for_it() -> None:
    assert anchor_slot(A, [AT_B]) == 0
    assert anchor_slot(B, [AT_A, AT_B, anchor(A, 8016, 9)]) == 8016
    assert anchor_slot(A._replace(slots=frozenset({1, 2, 15})), []) is None


@given(st.sets(st.integers(0, SLOTS - 1)))
def test_slots_are_read_as_they_were_written(slots: set[int]) -> None:
    assert load_slots(dump_slots(frozenset(slots))) == slots


def test_runs_of_slots_are_short() -> None:
    assert dump_slots(LOW | {9000, 9002, 9003}) == "0-7999,9000,9002-9003"


@given(st.text() | st.text("{}ab"))
def test_what_lies_beside_a_row_lies_in_its_slot_whatever_braces_its_key_has(key: str) -> None:
    slot = slot_of(key)
    assert key_slot(f"walbus:name:v:{{{tag(slot)}}}:{key}".encode()) == slot


def test_every_slot_has_a_tag() -> None:
    assert [slot_of(tag(slot)) for slot in range(SLOTS)] == list(range(SLOTS))
