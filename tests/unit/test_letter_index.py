"""What letters hold, and in which order they go: kept by the index as by a list of all of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from walbus.consumers.letter_index import Entry, LetterIndex, held_of
from walbus.events import Change
from walbus.position import Position
from walbus.records import Op, RawChange

ROWS = 7  # a relation


def change(
    op: Op, key: bytes | None = None, old_key: bytes | None = None, seq: int = 1, relation: int = ROWS
) -> Change:
    raw = RawChange(op, 0, relation, 1, 0, 0, 0, key, old_key, b"", b"row", None)
    return Change(raw, None, Position(1, seq, 1), seq)


def entry(id_: int, of: Change, log_id: str = "a", *, asked: bool = True) -> Entry:
    raw = of.raw
    return Entry(id_, log_id, of.seq, 10, asked, held_of(raw.table, raw.op, raw.key, raw.old_key))


def test_updates_and_deletes_of_rows_without_a_key_wait_behind_every_letter_of_their_table() -> None:
    index = LetterIndex([entry(1, change(Op.INSERT))])
    assert index.holds(change(Op.UPDATE)) and index.holds(change(Op.DELETE))
    assert not index.holds(change(Op.INSERT)), "rows are appended in any order"
    assert not index.holds(change(Op.TRUNCATE)), "it makes them void"
    assert not index.holds(change(Op.DELETE, relation=8))
    index.add(entry(2, change(Op.UPDATE, seq=2)))
    assert index.holds(change(Op.INSERT)), "it may be the row that the update is to find"
    assert not index.holds(change(Op.TRUNCATE))
    assert index.holds(change(Op.UPDATE, b"k")), "the table has a key since"


def test_letters_of_rows_without_a_key_are_tried_in_their_order_and_inserts_in_any() -> None:
    index = LetterIndex([entry(n, change(op, seq=n), asked=n != 1) for n, op in enumerate((Op.INSERT,) * 2, 1)])
    assert index.asked(10) == [2]
    index.add(entry(3, change(Op.DELETE, seq=3)))
    assert index.asked(10) == [2], "the row that it deletes may be the one that waits"
    assert sorted(index.with_those_before({3})) == [1, 2, 3]
    index.ask(1, again=True)
    assert index.asked(10) == [1, 2, 3]


def test_letters_of_an_earlier_log_are_tried_before_those_of_a_later_one_whatever_their_seqs() -> None:
    """Seqs of two logs cannot be compared; a log that was parked from first is the earlier one."""
    of_logs = [(1, "old", 900), (2, "old", 950), (3, "new", 5), (4, "old", 910), (5, "new", 4)]
    index = LetterIndex([entry(id_, change(Op.UPDATE, b"k", seq=seq), log_id) for id_, log_id, seq in of_logs])
    assert index.asked(10) == [1, 4, 2, 5, 3]
    index.ask(4, again=False)
    assert (index.asked(10), index.behind()) == ([1], [2, 5, 3])


OPS = st.sampled_from([Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE])
KEYS = st.none() | st.sampled_from([b"j", b"k"])
CHANGES = st.builds(change, OPS, KEYS, st.none(), st.integers(1, 9), st.sampled_from([ROWS, 8]))


@settings(deadline=None)
@given(st.lists(st.tuples(CHANGES, st.sampled_from("ab"), st.booleans()), max_size=12), CHANGES, st.data())
def test_what_is_held_and_since_when_is_what_a_list_of_the_letters_says(
    letters: list[tuple[Change, str, bool]], later: Change, data: st.DataObject
) -> None:
    index = LetterIndex(entry(id_, of, log_id, asked=asked) for id_, (of, log_id, asked) in enumerate(letters))
    left = dict(enumerate(letters))
    for id_ in data.draw(st.lists(st.sampled_from(range(len(letters))), unique=True) if letters else st.just([])):
        index.remove(id_)
        del left[id_]
    waits = [(of.seq, log_id) for of, log_id, _ in left.values() if must_wait(later, of)]
    assert index.holds(later) == bool(waits)
    for log in "ab":
        assert index.first(later, log) == min((seq for seq, log_id in waits if log_id == log), default=None)


def must_wait(later: Change, of: Change) -> bool:
    """Whether one of a live consumer's changes waits behind a letter, as the documentation has it."""
    if later.raw.table != of.raw.table:
        return False
    if of.raw.op == Op.TRUNCATE:
        return True
    if later.raw.op == Op.TRUNCATE:
        return False
    if of.raw.key is None:
        return not (later.raw.key is None and later.raw.op == of.raw.op == Op.INSERT)
    if later.raw.key is None:
        return later.raw.op != Op.INSERT
    return later.raw.key == of.raw.key
