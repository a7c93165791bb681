"""The source's catalog is looked at as soon as what is at hand tells that it must, and otherwise now and then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from support.mvcc_model import OID, PUBLISHED, new_ledger
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.looks import Looks, is_being_told
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import Phase, PublishedTable, TableState
from walbus.schema import TableSchema


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@dataclass
class Layouts:
    """The log's, of which the newest is asked for."""

    known: list[TableSchema] = field(default_factory=list)

    def all(self) -> list[TableSchema]:
        return self.known


@dataclass
class OneLayout:
    id: int


@pytest.fixture
def ledger() -> Ledger:
    ledger = new_ledger()
    ledger.schemas = Layouts()
    return ledger


def looked(ledger: Ledger) -> Looks:
    """At time 0, with success."""
    looks = Looks(ledger)
    assert looks.due(0.0, {})
    looks.layout = ledger.newest_schema()
    return looks


def first_look(looks: Looks, *wanted: int) -> float:
    """When the next one is, asked every 10 ms."""
    return next(number / 100 for number in range(1, 1000) if looks.due(number / 100, wanted))


def test_the_catalog_is_looked_at_every_two_seconds(ledger: Ledger) -> None:
    looks = looked(ledger)
    assert first_look(looks) == 2.0
    assert not looks.due(3.9, {})
    assert looks.due(4.0, {})


def test_a_new_layout_in_the_log_is_looked_up_at_once_and_only_once(ledger: Ledger) -> None:
    looks = looked(ledger)
    ledger.schemas.all().append(OneLayout(7))
    assert first_look(looks) == 0.25
    assert looks.due(0.5, {}), "the look failed, or was at an older layout"
    looks.layout = ledger.newest_schema()
    assert not looks.due(1.0, {})


def test_a_table_that_somebody_wants_anew_is_looked_up_at_once_until_that_is_noted(ledger: Ledger) -> None:
    run = ledger.start_generation(PUBLISHED, 1, "test")
    looks = looked(ledger)
    ledger.outdate(run, "an operator asked for it")
    assert first_look(looks) == 0.25
    assert not looks.due(1.0, {OID})


def test_a_refused_table_calls_for_no_look(ledger: Ledger) -> None:
    refused = {name: getattr(PUBLISHED, name) for name in PUBLISHED.__struct_fields__} | {"refusal": "it has no key"}
    ledger.refuse(PublishedTable(**refused))
    assert first_look(looked(ledger)) == 2.0


def test_what_others_have_left_is_looked_for_four_times_a_second(ledger: Ledger) -> None:
    looks = Looks(ledger)
    assert [number / 100 for number in range(100) if looks.notes_due(number / 100)] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("phase", "since", "number", "seen", "told"),
    [
        (Phase.CONSISTENT, "1:0/10:0", 7, 0, True),
        (Phase.CONSISTENT, "1:0/10:0", 7, 7, False),
        (Phase.CONSISTENT, "1:0/10:0", 0, 0, False),  # the first generation: there is none
        (Phase.CONSISTENT, "", 7, 0, False),  # it was refused: it never comes
        (Phase.SEEDING, "1:0/10:0", 7, 0, False),
    ],
)
def test_a_difference_is_on_its_way_until_it_came_by_the_log(
    phase: Phase, since: str, number: int, seen: int, told: bool
) -> None:
    state = TableState(
        oid=OID, table="public.t", generation=2, phase=phase, net_since=since, net_number=number, net_seen=seen
    )
    assert is_being_told(TableRun(state)) is told
    assert not is_being_told(None)
