"""What a consumer is still to read: by which names the bootstrap serves it, and what was added to what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from support.model_source import items_layout
from walbus.consumers.checkpoint import Following, Lacking, Marks, Point
from walbus.consumers.steps import Start, UnreadFound
from walbus.consumers.tables import covered, in_both
from walbus.consumers.transport import TableList
from walbus.consumers.unread import Unread
from walbus.position import ORIGIN, Position
from walbus.schema import TableSchema

A, B, C = "public.a", "public.b", "public.c"
DONE = Point(Position(1, 0x300, 0), 7)


def of(
    *wanted: str, start: Start = "snapshot", layouts: tuple[TableSchema, ...] = (items_layout("a", oid=1),)
) -> Unread:
    return Unread("cache", wanted, start, layouts=lambda: layouts, since=ORIGIN)


def listed(oids: Mapping[str, int], *, applied: int = 0x300, refused: tuple[str, ...] = ()) -> TableList:
    numbers = {table: number for number, table in enumerate(oids, 1)}
    position = Position(1, applied, 0)
    places = dict.fromkeys(oids, Position(1, 0x200, 0))
    return TableList("log", position, numbers, frozenset(oids), refused, {}, places, oids=oids)


def following(*unread: Lacking, asked: tuple[str, ...] | None = None) -> Following:
    return Following("log", Marks(1, 1), DONE, unread, asked=asked)


@pytest.mark.parametrize(
    ("lacking", "oids", "found"),
    [
        (Lacking(A, 1), {A: 1}, None),  # as it was
        (Lacking(A, 1), {B: 1}, (Lacking(B, 1),)),  # renamed
        (Lacking(A, 1), {B: 1, A: 2}, (Lacking(B, 1),)),  # renamed, and another one has its name
        (Lacking(A, 1), {A: 2}, ()),  # gone, and another one has its name
        (Lacking(A, 1), {"other.a": 1}, ()),  # moved to where the consumer does not look
        (Lacking(A, 1), {C: 3}, None),  # the bootstrap does not know it, yet
        (Lacking(A), {A: 1}, (Lacking(A, 1),)),  # of a checkpoint of before
        (Lacking(A), {B: 1}, (Lacking(B, 1),)),
        (Lacking(C), {B: 1}, None),
    ],
)
def test_what_is_to_be_read_is_found_by_the_name_that_it_has_now(
    lacking: Lacking, oids: Mapping[str, int], found: tuple[Lacking, ...] | None
) -> None:
    expected = None if found is None else UnreadFound(found, None)
    assert of("public.*").found(following(lacking), listed(oids)) == expected


def test_a_sink_that_knows_a_table_by_an_older_name_gets_its_rows() -> None:
    unread = of("public.*")
    assert unread.lacking((A, B, C), ORIGIN, listed({B: 2, "public.renamed": 1})) == ("public.renamed", B, C)


def test_values_that_rows_lack_are_read_once_the_bootstrap_has_passed_the_place_where_that_was_seen() -> None:
    """Not the place where the consumer is now: under a steady load the bootstrap is always a little behind that."""
    unread = of("public.*")
    assert unread.lacking((A,), Position(1, 10, 0), listed({A: 1, B: 2}, applied=9)) == ()
    assert unread.lacking((A, B), Position(1, 12, 0), listed({A: 1, B: 2}, applied=11)) == (A,)
    unread.reading((A,), listed({A: 1, B: 2}))
    assert unread.lacking((A, B), Position(1, 14, 0), listed({A: 1, B: 2}, applied=13)) == (B,)
    assert unread.lacking((A,), Position(1, 15, 0), listed({A: 1, B: 2}, applied=14)) == (A,)
    assert unread.lacking((B,), Position(1, 16, 0), listed({A: 1, B: 2}, applied=15)) == ()  # it did not, meanwhile


@pytest.mark.parametrize(
    ("asked", "wanted", "added"),
    [
        ((A,), (A, B), [B]),
        ((A,), ("public.*",), [B, C]),
        ((A,), ("*.*",), [B, C, "other.d"]),
        ((A, B), (B, C), [C]),
        ((), (A,), [A]),
        (("public.*",), ("*.*",), ["other.d"]),
    ],
)
def test_tables_that_were_added_are_to_be_read(
    asked: tuple[str, ...], wanted: tuple[str, ...], added: list[str]
) -> None:
    oids = {A: 1, B: 2, C: 3, "other.d": 4}
    unread, state = of(*wanted), following(asked=asked)
    assert unread.asks_for_more(state)
    assert unread.found(state, listed(oids)) == UnreadFound(tuple(Lacking(name, oids[name]) for name in added), wanted)
    assert unread.found(state, listed(oids, applied=0x2FF)) is None  # it may not know of one yet


def test_a_table_that_the_log_has_and_the_bootstrap_has_not_seen_is_to_be_read_when_it_has() -> None:
    unread = of(A, B, layouts=(items_layout("a", oid=1), items_layout("b", oid=2, schema_id=2)))
    assert unread.found(following(asked=(A,)), listed({A: 1})) == UnreadFound((Lacking(B, 2),), (A, B))


@pytest.mark.parametrize("start", ["snapshot", "latest"])
def test_a_name_that_is_added_and_that_nobody_knows_is_told_once(start: Start) -> None:
    unread, state = of(A, B, C, "other.*", start=start), following(asked=(A,))
    with capture_logs() as said:
        assert unread.found(state, listed({A: 1}, refused=(C,), applied=0x2FF)) is None
        found = unread.found(state, listed({A: 1}, refused=(C,)))
        assert found is not None
        unread.found(replace(state, asked=found.asked), listed({A: 1}, refused=(C,)))
    assert [(one["event"], one["tables"]) for one in said] == [("consumer.unknown_tables", [B])]


def test_a_consumer_that_did_not_begin_with_rows_gets_none_of_a_table_that_is_added() -> None:
    unread = of(A, B, start="latest")
    assert unread.found(following(asked=(A,)), listed({A: 1, B: 2})) == UnreadFound((), (A, B))


@pytest.mark.parametrize("asked", [None, (A, B), ("public.*",), ("*.*",), (B, A, C)])
def test_nothing_is_added_where_all_was_asked_for(asked: tuple[str, ...] | None) -> None:
    unread, state = of(A, B), following(asked=asked)
    assert not unread.asks_for_more(state)
    assert unread.found(state, listed({A: 1, B: 2, C: 3})) is None


def test_patterns_are_compared() -> None:
    assert in_both((A, "x.*"), ("public.*", "x.y")) == (A, "x.y")
    assert in_both((A,), (B,)) == ()
    assert in_both(("*.*",), ("x.*", A)) == ("x.*", A)
    assert covered("x.*", ("*.*",)) and covered("x.y", ("x.*",)) and covered("*.*", ("*.*",))
    assert not covered("*.*", ("x.*",)) and not covered("x.*", ("x.y",)) and not covered("x.y", ())
