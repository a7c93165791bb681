"""What a consumer is told of its way through the bootstrap, in the order in which it happens."""

from __future__ import annotations

import pytest

from support.model_source import ITEMS
from walbus.consumers.checkpoint import CatchingUp, Following, Marks, Point, Snapshotting, TableProgress
from walbus.consumers.machine import ConsumerMachine
from walbus.consumers.phase_events import PhaseEvent, PhaseEvents
from walbus.consumers.steps import DeltaGone, Event, LogSeen, PositionGone, RecordRead, RowsRead, TablesListed
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, pack_record, read_header

OTHER = "public.others"
LOG, AT = "log-a", Point(Position(1, 0x100, 2), 10)
HERE = Point(Position(1, 0x100, 1), 0x100)
SEEN = LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000)
BEGINS, ENDS = PhaseEvent("bootstrap_begins"), PhaseEvent("bootstrap_ends")


def rows(lsn: int, *flags: Flag) -> RowsRead:
    data = pack_record(
        Kind.SNAPSHOT, flags=sum(flags), epoch=1, commit_lsn=lsn, first_ordinal=1, last_ordinal=1, first_seq=0,
        last_seq=lsn, commit_time=0,
    )  # fmt: skip
    return RowsRead(read_header(data), [])


def told(machine: ConsumerMachine, *events: Event) -> list[PhaseEvent]:
    teller, found = PhaseEvents(), []
    for event in events:
        was = machine.state
        machine.receive(event)
        found += [*teller.before(was, event, machine.state), *teller.behind(event, machine.state)]
    return found


def test_a_first_start_tells_each_table_between_begin_and_end() -> None:
    assert told(
        ConsumerMachine(None, "snapshot"), SEEN, TablesListed(LOG, (ITEMS, OTHER), 3), rows(0x200),
        rows(0x200, Flag.END), rows(0x200, Flag.END),
    ) == [
        BEGINS,
        PhaseEvent("table_begins", ITEMS, "snapshot"), PhaseEvent("table_ends", ITEMS, "snapshot"),
        PhaseEvent("table_begins", OTHER, "snapshot"), PhaseEvent("table_ends", OTHER, "snapshot"),
        ENDS,
    ]  # fmt: skip


def test_the_end_waits_for_the_log_up_to_the_newest_state() -> None:
    behind = CatchingUp(LOG, Marks(1, 1), AT, Position(1, 0x300, 0))
    progress = pack_record(
        Kind.PROGRESS, flags=0, epoch=1, commit_lsn=0x300, first_ordinal=0, last_ordinal=0, first_seq=10, last_seq=10,
        commit_time=0,
    )  # fmt: skip
    assert told(ConsumerMachine(behind, "snapshot"), SEEN) == [BEGINS]
    assert told(ConsumerMachine(behind, "snapshot"), SEEN, RecordRead(read_header(progress), [])) == [BEGINS, ENDS]


@pytest.mark.parametrize("since", [None, HERE])
def test_a_restart_in_the_middle_begins_again_where_it_was(since: Point | None) -> None:
    tables = (TableProgress(ITEMS, done=True), TableProgress(OTHER, since=since))
    amid = Snapshotting(LOG, Marks(1, 1), tables, HERE, HERE)
    reading = "snapshot" if since is None else "delta"
    assert told(ConsumerMachine(amid, "snapshot"), SEEN, rows(0x100, Flag.END)) == [
        BEGINS, PhaseEvent("table_begins", OTHER, reading), PhaseEvent("table_ends", OTHER, reading), ENDS,
    ]  # fmt: skip


def test_a_delta_that_is_gone_does_not_end_and_its_table_begins_again() -> None:
    machine = ConsumerMachine(Following(LOG, Marks(1, 1), AT), "snapshot")
    deltas = TablesListed(LOG, (ITEMS,), 3, deltas={ITEMS: 1})
    events = (SEEN, PositionGone(), SEEN, deltas, rows(0x200), DeltaGone(), SEEN, TablesListed(LOG, (ITEMS,), 4))
    assert told(machine, *events, rows(0x200, Flag.END)) == [
        BEGINS,
        PhaseEvent("table_begins", ITEMS, "delta"),
        PhaseEvent("table_begins", ITEMS, "snapshot"), PhaseEvent("table_ends", ITEMS, "snapshot"),
        ENDS,
    ]  # fmt: skip
