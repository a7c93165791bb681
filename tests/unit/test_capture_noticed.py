"""What the log is told of what the watch found."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from support.memory_log import MemorySchemas
from support.relay_log import table_schema
from walbus.capture.noticed import Noticed
from walbus.capture.silent import Reason, Reseed
from walbus.capture.unnumbered import Look
from walbus.capture.watch import Due, Found
from walbus.errors import SourceGap
from walbus.schema import TableSchema

PUBLICATION, ORDERS, LINES = 7, table_schema(), table_schema("lines", 8)


class Stream:
    """A connection, and what its assembler was given."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.found: Found | None = None
        self.events: list[tuple[str, str]] = []
        self.schemas = MemorySchemas()
        watch: Any = SimpleNamespace(
            take=lambda: self.found, remembered=SimpleNamespace(telling=lambda _: None), told=lambda _: None
        )
        self.assembler: Any = SimpleNamespace(
            in_transaction=False,
            bound=0,
            layout_begun_at=lambda _: 0,
            announce=lambda schema, document, _: self.events.append((schema.table, document["reason"])),
        )
        report: Any = SimpleNamespace()
        self.noticed = Noticed(watch, self.schemas, self.assembler, report, PUBLICATION, monotonic=monotonic)

    def sees(self, due: Due, look: Look, *layouts: TableSchema) -> None:
        self.found = Found(PUBLICATION, 800, 1, look, layouts or (ORDERS,), due)
        self.noticed.take(lambda action: action())

    def comes_to(self, lsn: int, *, begun: int = 100) -> Due | None:
        self.assembler.bound = lsn
        return self.noticed.announce(0, begun=begun)


def due(lsn: int, *, regrouped: bool = False) -> Due:
    state: Any = None
    return Due(lsn, "700:800:", (Reseed(ORDERS.oid, Reason.PARTITIONS, "q was attached"),), state, regrouped)


def test_a_table_is_told_of_once_the_log_has_all_that_commits_before_the_look():
    stream, one = Stream(), due(120)
    stream.sees(one, Look(100, 120))
    assert stream.comes_to(119) is None
    assert stream.comes_to(120) is one
    assert stream.events == [("public.orders", "partitions")]


def test_what_an_earlier_connection_saw_of_a_table_waits_for_the_tables_layout():
    stream, one = Stream(), due(120)
    stream.sees(one, Look(130, 140))  # of this connection; the log has no layout of the table yet
    assert stream.comes_to(139) is None
    assert stream.comes_to(140) is one
    assert stream.events == [("public.orders", "partitions")]


def test_of_a_table_that_the_log_never_heard_of_nothing_is_told():
    stream, one = Stream(), due(120)
    stream.found = Found(PUBLICATION, 800, 0, Look(100, 120), (), one)  # it was dropped
    stream.noticed.take(lambda action: action())
    assert stream.comes_to(120) is one
    assert stream.events == []


def test_nothing_is_told_inside_a_transaction():
    stream, one = Stream(), due(120)
    stream.sees(one, Look(100, 120))
    stream.assembler.in_transaction = True
    assert stream.comes_to(130) is None
    stream.assembler.in_transaction = False
    assert stream.comes_to(130) is one


def test_a_look_that_had_begun_before_something_was_told_has_it_told_no_second_time():
    stream, one = Stream(), due(120)
    stream.sees(one, Look(100, 120))
    assert stream.comes_to(120) is one
    stream.noticed.told(one)
    stream.sees(one, Look(110, 130))
    assert stream.comes_to(130) is None
    later = due(150)
    stream.sees(later, Look(140, 150))
    assert stream.comes_to(149) is None
    assert stream.comes_to(150) is later
    assert len(stream.events) == 2


def test_an_event_waits_until_every_layout_of_its_look_has_a_number():
    """Each takes a sync of the disk, so that many are registered in several calls."""
    ticks = itertools.count()
    stream, one = Stream(lambda: next(ticks) * 0.1), due(120)  # one a call
    stream.sees(one, Look(100, 120), ORDERS, LINES)
    assert stream.comes_to(120) is None
    assert [schema.table for schema in stream.schemas.all()] == ["public.orders"]
    assert stream.comes_to(120) is one
    assert [schema.table for schema in stream.schemas.all()] == ["public.orders", "public.lines"]


def test_what_only_another_session_may_tell_waits_for_one_that_began_behind_the_look():
    stream, one = Stream(), due(120, regrouped=True)
    stream.sees(one, Look(100, 120))
    assert stream.comes_to(130, begun=119) is None
    assert stream.noticed.renewal(119) is one
    assert stream.noticed.renewal(120) is None
    assert stream.comes_to(130, begun=120) is one
    assert len(stream.events) == 1


@pytest.mark.parametrize("publication", [None, PUBLICATION + 1])
def test_a_publication_that_is_gone_or_another_one_is_a_gap(publication):
    stream = Stream()
    stream.found = Found(publication, 800, 1, Look(100, 120))
    with pytest.raises(SourceGap):
        stream.noticed.take(lambda action: action())
