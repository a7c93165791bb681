"""Entries packed as changes, and the change index walked, by both cores: the same bytes, and those of the rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from support.memory_store import ListCursor
from walbus.bootstrap.change_index import page_key, pages_of
from walbus.bootstrap.entry import Entry, FromEvent, pack_entry
from walbus.bootstrap.store import end_of, space_of
from walbus.native.serving import Portion
from walbus.records import Op, iter_changes, pack_change

SPACE, OTHER = space_of(16, 1), space_of(16, 2)
ALL = Portion(1 << 30, 1000)

entries = st.builds(
    Entry,
    st.integers(0, 2**53),
    st.integers(0, 2**32 - 1),
    st.none() | st.binary(max_size=30),
    st.just(FromEvent(9)),
    st.binary(max_size=3),
)
stored = st.dictionaries(st.binary(max_size=20), entries, max_size=20).map(lambda found: sorted(found.items()))


@pytest.fixture(params=NAMES)
def core(request: pytest.FixtureRequest) -> Any:
    return implementation(request.param)


def change(key: bytes, entry: Entry) -> bytes:
    return pack_change(
        Op.DELETE if entry.row is None else Op.INSERT,
        table=16,
        schema_id=entry.schema_id,
        seq_delta=entry.seq,
        ordinal_delta=0,
        key=key,
        after=entry.row,
    )


def cursor(pairs: list[tuple[bytes, Entry]]) -> ListCursor:
    return ListCursor([(SPACE + key, pack_entry(entry)) for key, entry in pairs] + [(OTHER + b"k", b"")])


@given(stored)
def test_rows_are_packed_as_inserts_and_tombstones_are_left_out(pairs: list[tuple[bytes, Entry]]) -> None:
    expected = [change(key, entry) for key, entry in pairs if entry.row is not None]
    for name in NAMES:
        at = cursor(pairs)
        assert implementation(name).pack_rows(at, end_of(SPACE), 16, ALL) == (b"".join(expected), len(expected))
        assert at.key() == OTHER + b"k"


@given(stored, st.integers(1, 200), st.integers(1, 5))
def test_portions_of_rows_are_the_whole_and_none_is_larger_than_told(
    pairs: list[tuple[bytes, Entry]], size: int, most: int
) -> None:
    expected = [change(key, entry) for key, entry in pairs if entry.row is not None]
    told = []
    for name in NAMES:
        at, portions, begin = cursor(pairs), [], 0
        while at.key() != OTHER + b"k":
            portions.append(implementation(name).pack_rows(at, end_of(SPACE), 16, Portion(size, most)))
            ends = next((n for n, (key, _) in enumerate(pairs) if SPACE + key == at.key()), len(pairs))
            assert begin < ends <= begin + most
            begin = ends
        assert b"".join(body for body, _ in portions) == b"".join(expected)
        assert sum(count for _, count in portions) == len(expected)
        for body, count in portions:
            changes = list(iter_changes(body))
            assert len(changes) == count <= most
            last = changes.pop() if changes else None
            assert last is None or len(body) - 48 - len(last.key or b"") - len(last.after or b"") < size
        told.append(portions)
    assert told[0] == told[1]


@given(
    st.lists(st.tuples(st.binary(max_size=9), st.none() | entries, st.booleans(), st.booleans())), st.integers(1, 200)
)
def test_versions_are_packed_where_they_are_their_places_and_two_of_one_seq_stay_together(
    drawn: list[tuple[bytes, Entry | None, bool, bool]], size: int
) -> None:
    places: list[tuple[bytes, int]] = []
    found: list[bytes | None] = []
    expected: list[tuple[int, bytes]] = []
    seq = 1
    for key, entry, stale, same in drawn:
        twin = same and len(places) > 0 and (len(places) < 2 or places[-2][1] != seq)
        seq += 0 if twin else 2
        places.append((key, seq))
        if entry is None:
            found.append(None)
            continue
        there = replace(entry, seq=seq + stale)
        found.append(pack_entry(there))
        if not stale:
            expected.append((seq, change(key, there)))
    told = []
    for name in NAMES:
        at, bodies = 0, []
        while at < len(places):
            body, count, ends = implementation(name).pack_versions(places, found, at, 16, size)
            assert ends > at and len(list(iter_changes(body))) == count
            seqs = [one.seq_delta for one in iter_changes(body)]
            assert count == 0 or 48 * sum(seq < seqs[-1] for seq in seqs) < size + 48
            bodies.append((body, count, ends))
            at = ends
        assert b"".join(body for body, _, _ in bodies) == b"".join(packed for _, packed in expected)
        last = [max(one.seq_delta for one in iter_changes(body)) for body, count, _ in bodies if count]
        first = [min(one.seq_delta for one in iter_changes(body)) for body, count, _ in bodies if count]
        assert all(begin > end for end, begin in zip(last, first[1:], strict=False))
        told.append(bodies)
    assert told[0] == told[1]


@pytest.mark.parametrize("entry", [b"x" * 22, b"\0" * 21 + b"\1\0", None])
def test_what_is_no_entry_is_not_packed(core: Any, entry: bytes | None) -> None:
    with pytest.raises(ValueError, match="no entry"):
        core.pack_rows(ListCursor([(SPACE, entry)]), end_of(SPACE), 16, ALL)  # type: ignore[list-item]  # as of damage
    if entry is not None:
        with pytest.raises(ValueError, match="no entry"):
            core.pack_versions([(b"k", 1)], [entry], 0, 16, 1)


def test_what_has_no_space_is_not_packed(core: Any) -> None:
    with pytest.raises(ValueError, match="no entry"):
        core.pack_rows(ListCursor([(b"\0", b"\0" * 23)]), end_of(SPACE), 16, ALL)


def test_an_error_of_the_engine_comes_through(core: Any) -> None:
    class Broken(ListCursor):
        def value(self) -> bytes | None:
            raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        core.pack_rows(Broken([(SPACE, b"")]), end_of(SPACE), 16, ALL)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=60), st.integers(0, 40))
def test_of_each_key_the_last_place_behind_a_seq_is_taken(steps: list[tuple[int, int]], after: int) -> None:
    seq, places = 1, []
    for step, number in steps:
        seq += step
        places.append((seq, b"key %d" % number))
    latest: dict[bytes, int] = {}
    for place, key in places:
        if place > after:
            latest.pop(key, None)
            latest[key] = place
    for name in NAMES:
        taken: dict[bytes, int] = {}
        count = sum(
            implementation(name).take_places(taken, page, after)
            for part in (places[:30], places[30:])
            for page in pages_of(SPACE, part).values()
        )
        assert count == sum(place > after for place, _ in places)
        assert list(taken.items()) == list(latest.items())


def test_a_page_that_is_cut_short_is_not_taken(core: Any) -> None:
    page = pages_of(SPACE, [(5, b"abc")])[page_key(SPACE, 5)]
    for end in range(1, len(page)):
        with pytest.raises(ValueError, match="cut short"):
            core.take_places({}, page[:end], 0)
