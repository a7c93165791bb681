"""The consumer's state machine, its rules one by one: what an event makes of a phase, and what it asks for next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.model_source import ITEMS, ModelSource, insert, items_layout
from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Lacking,
    Marks,
    Point,
    Snapshotting,
    dump_checkpoint,
    load_checkpoint,
    whole_up_to,
)
from walbus.consumers.decoding import Layouts, decode_record
from walbus.consumers.machine import ConsumerMachine
from walbus.consumers.phases import Listing, was_followed
from walbus.consumers.steps import (
    Advance,
    Asked,
    AskLog,
    Deliver,
    Discard,
    Disconnected,
    ListTables,
    LogSeen,
    Output,
    PositionGone,
    ReadDelta,
    ReadLog,
    ReadSnapshot,
    RecordRead,
    RowsIncomplete,
    RowsRead,
    RowsStale,
    Sweep,
    TableGone,
    TablesListed,
    UnreadFound,
)
from walbus.errors import PositionUnknown, ProtocolError
from walbus.events import Window
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, pack_record, read_header

OTHER = "public.others"


LOG = "log-a"
AT = Point(Position(1, 0x100, 2), 10)
LOST = (Lacking(ITEMS, 1), Lacking(OTHER, 2))


def following(point: Point = AT) -> Following:
    return Following(LOG, Marks(1, 1), point)


def connected(checkpoint: Checkpoint | None) -> ConsumerMachine:
    machine = ConsumerMachine(checkpoint, "snapshot")
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    return machine


def listed(*tables: str) -> ConsumerMachine:
    """A first start that knows its tables, and has read nothing."""
    machine = connected(None)
    machine.receive(TablesListed(LOG, tables, 3))
    return machine


def record(
    lsn: int, first: int, last: int, seq: int, flags: Flag = Flag.BEGIN | Flag.END, kind: Kind = Kind.TRANSACTION
) -> RecordRead:
    data = pack_record(
        kind, flags=flags, epoch=1, commit_lsn=lsn, first_ordinal=first, last_ordinal=last,
        first_seq=seq - (last - first), last_seq=seq, xid=7, commit_time=0,
    )  # fmt: skip
    return RecordRead(read_header(data), [])


def windows(outputs: list[Output]) -> list[Window]:
    return [output.window for output in outputs if isinstance(output, Deliver)]


def test_a_log_that_is_there_is_not_left_for_a_bootstrap_that_lacks_a_table() -> None:
    machine = ConsumerMachine(following(), "snapshot", 5)
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000, behind=990))
    assert machine.wanted == ListTables(None, following(), waits=False)
    for listed in (
        TablesListed(LOG, (), 0),
        TablesListed("log-b", (ITEMS,), 0, deltas={ITEMS: 1}),
        TablesListed(LOG, (ITEMS, OTHER), 0, deltas={ITEMS: 1}),
        TablesListed(LOG, (ITEMS,), 0, deltas={ITEMS: 1}, refused=True),
        TablesListed(LOG, (ITEMS,), 0, deltas={ITEMS: 496}),
    ):
        machine.receive(Disconnected())
        machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000, behind=990))
        assert machine.receive(listed) == []
        assert machine.wanted == ReadLog(LOG, AT.last_done)
    machine.receive(Disconnected())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000, behind=990))
    (begun,) = machine.receive(TablesListed(LOG, (ITEMS,), 7, deltas={ITEMS: 495}))
    assert isinstance(begun, Advance)
    assert machine.wanted == ReadDelta(LOG, ITEMS, AT)


def test_a_table_that_is_to_be_read_again_gets_no_delta() -> None:
    machine = connected(replace(following(), unread=(Lacking(ITEMS),)))
    machine.receive(PositionGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    machine.receive(TablesListed(LOG, (ITEMS, OTHER), 7, deltas={ITEMS: 1, OTHER: 1}))
    assert isinstance(machine.state, Snapshotting)
    assert [table.since for table in machine.state.tables] == [None, AT]


def test_a_table_that_got_another_name_before_it_was_read_again_gets_no_delta() -> None:
    machine = connected(replace(following(), unread=LOST[:1]))
    machine.receive(PositionGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    named, oids = ("public.renamed", OTHER), {"public.renamed": 1, OTHER: 2}
    machine.receive(TablesListed(LOG, named, 7, deltas=dict.fromkeys(named, 1), oids=oids))
    assert isinstance(machine.state, Snapshotting)
    assert [table.since for table in machine.state.tables] == [None, AT]
    assert machine.state.unread == ()


def asking(*tables: str) -> ConsumerMachine:
    """A machine of a checkpoint that was made for the first table, for a consumer that asks for these."""
    machine = ConsumerMachine(replace(following(), asked=(ITEMS,)), "snapshot", asked=tables)
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    return machine


def test_a_table_that_the_checkpoint_was_not_made_for_gets_no_delta() -> None:
    machine = asking(ITEMS, OTHER)
    machine.receive(PositionGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    machine.receive(TablesListed(LOG, (ITEMS, OTHER), 7, deltas={ITEMS: 1, OTHER: 1}))
    assert isinstance(machine.state, Snapshotting)
    assert [table.since for table in machine.state.tables] == [AT, None]
    assert machine.state.asked == (ITEMS, OTHER)


def test_a_table_that_is_asked_for_no_more_is_forgotten_and_another_one_is_not_had_before_it_is_found() -> None:
    machine = asking(OTHER)
    assert checkpoint_of(machine) == replace(following(), asked=())
    (stored,) = machine.receive(UnreadFound(LOST[1:], (OTHER,)))
    assert stored == Advance(replace(following(), unread=LOST[1:], asked=(OTHER,)))


def test_a_checkpoint_that_does_not_say_what_it_was_made_for_is_taken_for_one_of_what_is_asked_now() -> None:
    machine = ConsumerMachine(following(), "snapshot", asked=(ITEMS, OTHER))
    assert checkpoint_of(machine) == replace(following(), asked=(ITEMS, OTHER))


def test_every_phase_keeps_what_was_asked_for() -> None:
    machine = ConsumerMachine(None, "snapshot", asked=(ITEMS, OTHER))
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    machine.receive(TablesListed(LOG, (ITEMS, OTHER), 3))
    seen = [checkpoint_of(machine)]
    machine.receive(rows(Position(1, 0x200, 1), 20, Flag.END))
    machine.receive(rows(Position(1, 0x300, 1), 30, Flag.END))
    seen.append(checkpoint_of(machine))
    machine.receive(record(0x300, 0, 1, 30))
    seen.append(checkpoint_of(machine))
    machine.receive(RowsIncomplete((ITEMS,)))
    machine.receive(TablesListed(LOG, (ITEMS,), 4))
    seen.append(checkpoint_of(machine))
    assert [type(one) for one in seen] == [Snapshotting, CatchingUp, Following, Snapshotting]
    assert {one.asked for one in seen} == {(ITEMS, OTHER)}


def test_the_log_is_replayed_from_the_state_of_the_list_for_tables_that_came_behind_it() -> None:
    machine = connected(None)
    machine.receive(TablesListed(LOG, (ITEMS, OTHER), 3, at=Point(Position(1, 0x100, 1), 10)))
    machine.receive(rows(Position(1, 0x200, 1), 20, Flag.END))
    machine.receive(rows(Position(1, 0x300, 1), 30, Flag.END))
    assert machine.wanted == ReadLog(LOG, Position(1, 0x100, 1))
    state = checkpoint_of(machine)
    assert isinstance(state, CatchingUp)
    assert (state.point, state.until, state.rows) == (
        Point(Position(1, 0x100, 1), 10), Position(1, 0x300, 1), Position(1, 0x100, 1),
    )  # fmt: skip


def test_deltas_are_followed_by_the_log_from_the_list_on_and_not_from_before_the_consumers_place() -> None:
    for at, low in (((0x8000, 500), (0x8000, 500)), ((0x10, 1), (AT.last_done.commit_lsn, 1))):
        machine = connected(following())
        machine.receive(PositionGone())
        machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
        machine.receive(TablesListed(LOG, (ITEMS,), 7, deltas={ITEMS: 1}, at=Point(Position(1, at[0], 1), at[1])))
        machine.receive(rows(Position(1, 0x9000, 1), 900, Flag.END))
        state = checkpoint_of(machine)
        assert isinstance(state, CatchingUp)
        assert (state.point.last_done.commit_lsn, state.point.seq) == low


def test_whatever_is_read_again_the_checkpoint_says_up_to_where_everything_was_done() -> None:
    """Else a process that begins in the middle of it could tell nothing of what the sink has."""
    machine = connected(following())
    machine.receive(PositionGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    (begun,) = machine.receive(TablesListed(LOG, (ITEMS,), 7))
    assert isinstance(begun, Advance)
    stored = load_checkpoint(dump_checkpoint(begun.checkpoint))
    assert (whole_up_to(stored), stored) == (AT.last_done, begun.checkpoint)
    again = connected(stored)  # without its first answer: it begins anew
    again.receive(TablesListed(LOG, (ITEMS,), 8))
    assert isinstance(again.state, Snapshotting) and whole_up_to(again.state) == AT.last_done
    again.receive(LogSeen("log-b", ORIGIN, Position(1, 0x10, 1), 1))
    again.receive(LogSeen("log-b", ORIGIN, Position(1, 0x10, 1), 1))
    again.receive(TablesListed("log-b", (ITEMS,), 9))
    assert isinstance(again.state, Snapshotting) and whole_up_to(again.state) == ORIGIN, "of a log that is no more"
    assert whole_up_to(listed(ITEMS).state) == ORIGIN  # type: ignore[arg-type]


def test_where_a_table_that_was_to_be_read_again_is_gone_before_it_is_opened_all_are_listed_anew() -> None:
    machine = connected(replace(following(), unread=LOST[:1]))
    machine.receive(RowsIncomplete((ITEMS,)))
    assert machine.wanted == ListTables((ITEMS,))
    machine.receive(TableGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    assert machine.wanted == ListTables(None, replace(following(), unread=LOST[:1]))


def test_a_delta_of_far_more_changes_than_rows_is_not_read() -> None:
    machine = connected(following())
    machine.receive(PositionGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    rows = {ITEMS: 10_000, OTHER: 10}
    machine.receive(TablesListed(LOG, (ITEMS, OTHER), 7, rows=rows, deltas=dict.fromkeys(rows, 20_000)))
    assert isinstance(machine.state, Snapshotting)
    assert [table.since for table in machine.state.tables] == [AT, None]


def test_a_delta_is_not_swept_and_its_end_is_a_place_to_go_on() -> None:
    machine = connected(following())
    machine.receive(PositionGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    machine.receive(TablesListed(LOG, (ITEMS,), 7, deltas={ITEMS: 1}))
    (ended,) = machine.receive(rows(Position(1, 0x200, 1), 20, Flag.END))
    assert ended == Advance(Following(LOG, Marks(7, 1), Point(Position(1, 0x200, 1), 20)))


def test_a_first_start_reads_a_snapshot() -> None:
    machine = ConsumerMachine(None, "snapshot")
    assert machine.wanted == AskLog()
    assert machine.receive(LogSeen(LOG, ORIGIN, ORIGIN, 0)) == []
    assert machine.wanted == ListTables(None)


@pytest.mark.parametrize(
    ("start", "point"),
    [("earliest", Point(Position(1, 16, 0), 0)), ("latest", Point(Position(1, 99, 3), 7))],
)
def test_other_starts_follow_from_where_they_say(start: str, point: Point) -> None:
    machine = ConsumerMachine(None, start)  # type: ignore[arg-type]
    outputs = machine.receive(LogSeen(LOG, Position(1, 16, 0), Position(1, 99, 3), 7))
    assert outputs == [Advance(Following(LOG, Marks(0, 0), point))]
    assert machine.wanted == ReadLog(LOG, point.last_done)


def test_a_repeat_is_dropped_and_a_straddling_record_is_cut() -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(4)])
    header, data = source.records[0]
    changes = decode_record(header, data, Layouts(source.layouts.__getitem__))
    middle = Point(changes[1].position, changes[1].seq)
    machine = connected(Following(LOG, Marks(1, 1), middle))
    delivered = windows(machine.receive(RecordRead(header, changes)))
    assert [change.seq for window in delivered for change in window] == [3, 4]
    assert machine.receive(RecordRead(header, changes)) == []


def test_only_an_ending_window_carries_a_checkpoint() -> None:
    machine = connected(following())
    source = ModelSource()
    source._lsn = 0x200
    source._seq = 50
    source.commit([insert(ITEMS, n) for n in range(6)], pieces=3)
    layouts = Layouts(source.layouts.__getitem__)
    outputs = [o for h, r in source.records for o in machine.receive(RecordRead(h, decode_record(h, r, layouts)))]
    assert [(o.window.begins, o.window.ends, o.checkpoint is None) for o in outputs if isinstance(o, Deliver)] == [
        (True, False, True),
        (False, False, True),
        (False, True, False),
    ]


def test_a_transaction_whose_end_was_filtered_ends_with_what_comes_later() -> None:
    machine = connected(following())
    source = ModelSource()
    source._lsn, source._seq = 0x200, 50
    source.commit([insert(ITEMS, n) for n in range(4)], pieces=2)
    layouts = Layouts(source.layouts.__getitem__)
    header, data = source.records[0]
    machine.receive(RecordRead(header, decode_record(header, data, layouts)))
    outputs = machine.receive(record(0x9000, 0, 0, 60, Flag(0), Kind.PROGRESS))
    closing, progress = outputs
    assert isinstance(closing, Deliver) and closing.window.ends and closing.checkpoint is not None
    assert isinstance(progress, Advance)


def test_tables_of_which_a_failover_lost_transactions_are_to_be_read_again_whatever_crashes() -> None:
    machine = connected(following())
    event = replace(record(0x9000, 0, 0, 60, Flag(0), Kind.EPOCH), lost=LOST)
    (delivered,) = machine.receive(event)
    assert isinstance(delivered, Deliver) and isinstance(delivered.checkpoint, Following)
    assert delivered.window.kind == Kind.EPOCH
    assert delivered.checkpoint.unread == LOST
    machine.receive(event)  # seen again where nothing stands behind it
    assert isinstance(machine.state, Following) and machine.state.unread == LOST


def test_a_table_that_is_to_be_read_and_gets_another_name_is_read_under_that() -> None:
    machine = connected(following())
    machine.receive(replace(record(0x9000, 0, 0, 60, Flag(0), Kind.SCHEMA), lost=LOST[:1]))
    renaming = replace(record(0x9100, 0, 0, 60, Flag(0), Kind.SCHEMA), renamed=((LOST[0], Lacking(OTHER, 1)),))
    (delivered,) = machine.receive(renaming)
    assert isinstance(delivered, Deliver) and isinstance(delivered.checkpoint, Following)
    assert delivered.checkpoint.unread == (Lacking(OTHER, 1),)


def test_progress_moves_the_checkpoint_without_rows() -> None:
    outputs = connected(following()).receive(record(0x500, 0, 0, 10, Flag(0), Kind.PROGRESS))
    assert outputs == [Advance(following(Point(Position(1, 0x500, 0), 10)))]


def test_a_heartbeat_that_says_nothing_new_changes_nothing() -> None:
    machine = connected(following())
    assert machine.receive(record(0x100, 2, 2, 0, Flag(0), Kind.PROGRESS)) == []


def test_progress_that_asks_is_passed_on_also_where_it_says_nothing_new() -> None:
    machine = connected(following())
    assert machine.receive(record(0x100, 2, 2, 0, Flag.ASKED, Kind.PROGRESS)) == [Asked(Position(1, 0x100, 2))]
    outputs = machine.receive(record(0x500, 0, 0, 10, Flag.ASKED, Kind.PROGRESS))
    assert outputs == [
        Advance(following(Point(Position(1, 0x500, 0), 10))),
        Asked(Position(1, 0x500, 0)),
    ]


def test_a_later_position_with_a_lower_seq_stops_loudly() -> None:
    with pytest.raises(PositionUnknown, match="does not continue"):
        connected(following()).receive(record(0x500, 1, 1, 10))


def test_a_log_that_gave_fewer_seqs_than_the_checkpoint_has_stops_loudly() -> None:
    machine = ConsumerMachine(following(), "snapshot")
    with pytest.raises(PositionUnknown, match="does not continue"):
        machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x900, 1), 9))


def test_a_log_whose_end_is_behind_the_checkpoint_is_waited_for() -> None:
    machine = ConsumerMachine(following(), "snapshot")
    assert machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x50, 1), 5)) == []
    assert machine.wanted == ReadLog(LOG, AT.last_done)


@pytest.mark.parametrize("seen", [LogSeen("log-b", ORIGIN, ORIGIN, 0), LogSeen(LOG, Position(1, 0x400, 1), ORIGIN, 99)])
def test_another_log_or_a_trimmed_position_leads_to_a_snapshot(seen: LogSeen) -> None:
    machine = ConsumerMachine(following(), "latest")
    machine.receive(seen)
    assert machine.wanted == AskLog()  # once more: it may be another one by now
    machine.receive(seen)
    assert machine.wanted == ListTables(None, following())


def test_pieces_of_a_transaction_that_will_not_be_completed_are_discarded() -> None:
    machine = connected(following())
    source = ModelSource()
    source._lsn, source._seq = 0x200, 50
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)], pieces=2)
    header, data = source.records[0]
    machine.receive(RecordRead(header, decode_record(header, data, Layouts(source.layouts.__getitem__))))
    assert machine.receive(PositionGone()) == [Discard()]


def test_marks_rise_and_another_log_begins_a_new_count() -> None:
    machine = ConsumerMachine(Following(LOG, Marks(900, 5), AT), "snapshot")
    machine.receive(LogSeen("log-b", ORIGIN, ORIGIN, 0))
    machine.receive(LogSeen("log-b", ORIGIN, ORIGIN, 0))
    (begun,) = machine.receive(TablesListed("log-b", (ITEMS,), 800))
    assert isinstance(begun, Advance)
    assert begun.checkpoint.marks == Marks(901, 901)


def test_a_bootstrap_of_another_log_is_waited_for() -> None:
    machine = ConsumerMachine(None, "snapshot")
    machine.receive(LogSeen(LOG, ORIGIN, ORIGIN, 0))
    assert machine.receive(TablesListed("log-b", (ITEMS,), 1)) == []
    assert isinstance(machine.state, Listing)


def test_a_snapshot_of_several_states_is_swept_and_replayed_from_the_lowest() -> None:
    machine = listed(ITEMS)
    machine.receive(rows(Position(1, 0x200, 1), 20))
    machine.receive(Disconnected())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    outputs = machine.receive(rows(Position(1, 0x300, 1), 30, Flag.END))
    sweep = outputs[-1]
    assert isinstance(sweep, Sweep)
    assert sweep.seq == 20
    at = Position(1, 0x200, 1)
    assert sweep.checkpoint == CatchingUp(LOG, Marks(3, 3), Point(at, 20), Position(1, 0x300, 1), rows=at)
    (done,) = machine.receive(record(0x300, 0, 1, 30))
    assert isinstance(done, Advance)
    assert isinstance(done.checkpoint, Following)


def test_a_table_that_was_stale_when_it_was_read_is_read_again_later() -> None:
    machine = listed(ITEMS, OTHER)
    assert machine.receive(RowsStale(1)) == []
    machine.receive(rows(Position(1, 0x200, 1), 20))
    machine.receive(Disconnected())
    machine = connected(load_checkpoint(dump_checkpoint(checkpoint_of(machine))))
    assert machine.receive(RowsStale(1)) == []  # the rest of it, too
    machine.receive(rows(Position(1, 0x200, 1), 20, Flag.END))
    outputs = machine.receive(rows(Position(1, 0x200, 1), 20, Flag.END))
    assert isinstance(outputs[-1], Sweep)
    at = Position(1, 0x200, 1)
    assert outputs[-1].checkpoint == Following(LOG, Marks(3, 3), Point(at, 20), LOST[:1], rows=at)


def checkpoint_of(machine: ConsumerMachine) -> Checkpoint:
    assert isinstance(machine.state, Snapshotting | CatchingUp | Following)
    return machine.state


def test_behind_a_table_that_is_gone_all_are_listed_anew_for_it_may_have_another_name() -> None:
    machine = listed(ITEMS, OTHER)
    machine.receive(rows(Position(1, 0x200, 1), 20, Flag.END))
    before = checkpoint_of(machine)
    machine.receive(TableGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    assert machine.wanted == ListTables(None, before)
    machine.receive(TablesListed(LOG, (ITEMS, "public.renamed"), 3, deltas={ITEMS: 0}))
    assert machine.wanted == ReadDelta(LOG, ITEMS, Point(Position(1, 0x200, 1), 20))
    machine.receive(rows(Position(1, 0x300, 1), 30, Flag.END))
    assert machine.wanted == ReadSnapshot(LOG, "public.renamed", None)


def test_a_table_is_read_and_was_read_by_its_oid_whatever_has_its_name_now() -> None:
    machine = connected(None)
    machine.receive(TablesListed(LOG, (ITEMS, OTHER), 3, oids={ITEMS: 7, OTHER: 8}))
    assert machine.wanted == ReadSnapshot(LOG, ITEMS, None, 7)
    machine.receive(rows(Position(1, 0x200, 1), 20, Flag.END))
    assert machine.wanted == ReadSnapshot(LOG, OTHER, None, 8)
    assert load_checkpoint(dump_checkpoint(checkpoint_of(machine))) == machine.state
    machine.receive(TableGone())
    machine.receive(LogSeen(LOG, ORIGIN, Position(1, 0x9000, 1), 1_000))
    machine.receive(TablesListed(LOG, (ITEMS, OTHER), 4, deltas={ITEMS: 1, OTHER: 1}, oids={ITEMS: 8, OTHER: 7}))
    assert machine.wanted == ReadSnapshot(LOG, ITEMS, None, 8)
    assert isinstance(machine.state, Snapshotting)
    assert [table.since for table in machine.state.tables] == [None, Point(Position(1, 0x200, 1), 20)]


def test_a_table_was_followed_if_all_names_were_asked_for_that_it_had_since_one_was_told() -> None:
    layout = items_layout()
    late, named = replace(layout, id=4, name="late"), replace(layout, id=6)
    for asked, told, layouts, followed in (
        ((ITEMS,), 6, (late, named), True),
        ((ITEMS,), 5, (late, named), False),
        ((ITEMS,), 3, (late, named), False),
        ((ITEMS,), 9, (late,), False),
        (("public.*",), 3, (late, named), True),
        (None, 3, (late, named), True),
    ):
        before = replace(following(), asked=asked, layouts=told)
        assert was_followed(before, layout.oid, layouts) == followed, (asked, told)


def test_a_snapshot_without_its_first_answer_begins_anew_under_a_higher_generation() -> None:
    stored = listed(ITEMS).state
    assert isinstance(stored, Snapshotting)
    machine = connected(stored)
    assert machine.wanted == ListTables(None, stored)
    machine.receive(TablesListed(LOG, (ITEMS,), 3))
    assert isinstance(machine.state, Snapshotting)
    assert machine.state.marks == Marks(4, 3)


def test_an_event_out_of_place_is_the_drivers_mistake() -> None:
    with pytest.raises(ProtocolError, match="RowsRead has no place in phase Following"):
        connected(following()).receive(rows(Position(1, 1, 1), 1))


def rows(at: Position, seq: int, *flags: Flag) -> RowsRead:
    data = pack_record(
        Kind.SNAPSHOT, flags=sum(flags), epoch=at.epoch, commit_lsn=at.commit_lsn, first_ordinal=at.ordinal,
        last_ordinal=at.ordinal, first_seq=0, last_seq=seq, commit_time=0,
    )  # fmt: skip
    return RowsRead(read_header(data), [])
