"""What the log is told of what the watch found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from support.memory_log import MemorySchemas
from support.relay_log import table_schema
from walbus.capture.noticed import Noticed
from walbus.capture.silent import Reason, Reseed
from walbus.capture.unnumbered import Look
from walbus.capture.watch import Due, Found

PUBLICATION, ORDERS = 7, table_schema()


class Stream:
    """A connection, and what its assembler was given."""

    def __init__(self) -> None:
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
        self.noticed = Noticed(watch, self.schemas, self.assembler, report, PUBLICATION)

    def sees(self, due: Due, look: Look) -> None:
        self.found = Found(PUBLICATION, 800, 1, look, (ORDERS,), due)
        self.noticed.take(lambda action: action())

    def comes_to(self, lsn: int) -> Due | None:
        self.assembler.bound = lsn
        return self.noticed.announce(0, begun=100)


def due(lsn: int) -> Due:
    state: Any = None
    return Due(lsn, "700:800:", (Reseed(ORDERS.oid, Reason.PARTITIONS, "q was attached"),), state)


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
