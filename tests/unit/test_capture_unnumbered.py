"""Layouts that looks found, in order with those that the stream tells."""

from __future__ import annotations

import itertools

from support.memory_log import MemorySchemas
from support.relay_log import table_schema
from walbus.capture.unnumbered import Look, Unnumbered

NARROW, MIDDLE, WIDE = (table_schema(columns=columns) for columns in (("id",), ("id", "a"), ("id", "a", "b")))
OID = NARROW.oid


class Stream:
    """What the stream told: the commit LSN from which on a table has its present layout."""

    def __init__(self) -> None:
        self.schemas = MemorySchemas()
        self.begun = 0
        clock = itertools.count()
        self.looks = Unnumbered(self.schemas, lambda oid: self.begun if oid == OID else 0, lambda: next(clock) / 100)

    def tells(self, layout, lsn) -> None:
        self.schemas.register(layout)
        self.begun = lsn

    def comes_to(self, lsn) -> None:
        self.looks.register(lsn, lambda action: action())

    def numbers(self) -> list[int]:
        return [len(schema.columns) for schema in self.schemas.all()]


def test_what_a_look_saw_has_its_number_once_the_log_has_passed_the_look():
    stream = Stream()
    stream.looks.found([WIDE], Look(100, 120))
    stream.comes_to(119)
    assert stream.numbers() == []
    stream.comes_to(120)
    assert stream.numbers() == [3]
    stream.looks.found([], Look(130, 130))
    stream.comes_to(200)
    assert stream.numbers() == [3]


def test_layouts_that_a_lagging_stream_has_still_to_tell_take_lower_numbers():
    stream = Stream()
    stream.looks.found([WIDE], Look(100, 120))
    stream.tells(NARROW, 40)
    stream.tells(MIDDLE, 60)
    stream.comes_to(150)
    assert stream.numbers() == [1, 2, 3]


def test_what_the_stream_tells_behind_the_look_is_newer_than_what_the_look_saw():
    stream = Stream()
    stream.looks.found([NARROW], Look(100, 120))
    stream.tells(WIDE, 130)
    stream.comes_to(150)
    assert stream.numbers() == [3]
    stream.looks.found([WIDE], Look(160, 160))
    stream.comes_to(170)
    assert stream.numbers() == [3]


def test_where_the_stream_told_something_during_a_look_the_next_look_decides():
    stream = Stream()
    stream.looks.found([WIDE], Look(100, 120))
    stream.tells(MIDDLE, 110)
    stream.comes_to(150)
    assert stream.numbers() == [2]
    stream.looks.found([], Look(160, 160))
    stream.comes_to(159)
    assert stream.numbers() == [2]
    stream.comes_to(160)
    assert stream.numbers() == [2, 3]


def test_a_layout_of_which_the_stream_told_another_one_since_is_registered_again():
    stream = Stream()
    stream.looks.found([WIDE], Look(100, 120))
    stream.comes_to(120)
    stream.tells(MIDDLE, 130)  # as of rows that lack what the catalog has
    stream.looks.found([], Look(140, 140))
    stream.comes_to(150)
    assert stream.numbers() == [3, 2, 3]


def test_several_looks_before_the_log_has_passed_the_first_keep_their_order():
    stream = Stream()
    stream.looks.found([NARROW], Look(100, 120))
    stream.looks.found([WIDE], Look(200, 220))
    stream.looks.found([], Look(300, 300))
    assert stream.looks.waits_for(120)
    assert not stream.looks.waits_for(119)
    stream.comes_to(500)
    assert stream.numbers() == [1, 3]
    assert not stream.looks.waits_for(500)


def test_many_layouts_take_several_calls():
    stream = Stream()
    tables = [table_schema(f"t{number}", number) for number in range(1, 101)]
    stream.looks.found(tables, Look(100, 100))
    calls = 0
    while stream.looks.waits_for(100):
        stream.comes_to(100)
        calls += 1
    assert 1 < calls < 100
    assert len(stream.schemas.all()) == len(tables)
