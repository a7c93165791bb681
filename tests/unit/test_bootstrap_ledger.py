"""The ledger's promises that a random schedule rarely asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from support.memory_store import MemoryStore
from support.mvcc_model import FIRST_SEQ, OID, ModelTable, fill, key_bytes, row_bytes
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.entry import unpack_entry
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.state import Applied, ChunkDone, Phase, Plan, PublishedTable
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import Snapshot
from walbus.capture.epochs import Switch, epoch_piece
from walbus.capture.pieces import reseed_piece
from walbus.lsn import format_lsn
from walbus.position import ORIGIN, Position
from walbus.records import Flag, check_record, pack_record
from walbus.schema import ReplicaIdentity, TableSchema

PUBLISHED = PublishedTable(OID, "public", "t", "r", "d", (("id", 23, -1, True), ("big", 25, -1, False)), None, 0)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(MemoryStore(), fill)
    ledger.begin(Applied("log", *ORIGIN, FIRST_SEQ - 1, 0), UnseenCommits())
    ledger.resume([])
    return ledger


def seeded(ledger: Ledger, rows: dict[int, bytes], snapshot: Snapshot) -> TableRun:
    """A table that is consistent after one chunk."""
    run = ledger.start_generation(PUBLISHED, 1, "test")
    ledger.plan(run, Plan(1, 1, 1), 0)
    origin = ledger.admit(run, snapshot, 0)
    assert origin is not None
    assert ledger.fold_rows(run, origin, [(key_bytes(key), row) for key, row in rows.items()])
    ledger.chunk_done(run, 0, ChunkDone(origin.number, 0, len(rows)))
    assert ledger.finish(run)
    return run


def test_a_snapshots_number_is_never_used_for_another_one(ledger: Ledger) -> None:
    """Entries keep the number: under another snapshot they would claim to hold events that they do not."""
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    run.missing = True
    ledger.reopen(run)
    again = ledger.admit(run, Snapshot(500, 500, frozenset()), 0)
    assert again is not None and again.number == 2
    table = ModelTable()
    writer = table.begin()
    table.write(writer, 1, 1, (2, 2), 0)
    table.commit(writer)
    EventFolder(ledger).fold(table.log[0].records())
    value = ledger.store.get(run.space + key_bytes(1))
    assert value is not None and unpack_entry(value, run.snapshots).row == row_bytes(2, 2)


def test_a_chunk_that_comes_too_late_changes_nothing(ledger: Ledger) -> None:
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    assert ledger.admit(run, Snapshot(6, 6, frozenset()), 0) is None
    newer = ledger.start_generation(PUBLISHED, 1, "test")
    assert ledger.admit(run, Snapshot(6, 6, frozenset()), 0) is None
    assert list(ledger.store.entries(run.space)) == list(ledger.store.entries(newer.space)) == []


def test_a_log_left_behind_breaks_every_table_and_serves_none_of_its_rows(ledger: Ledger) -> None:
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    ledger.begin(Applied("another", 1, 5, 0, 0, 0), UnseenCommits())
    assert run.state.phase is Phase.BROKEN
    assert list(ledger.store.entries(run.space)) == []
    served = ServedView(ledger.store.view())
    assert served.tables["public.t"].phase is Phase.BROKEN and served.applied.log_id == "another"


def test_a_snapshot_states_its_position_and_ends_with_the_end(ledger: Ledger) -> None:
    seeded(ledger, {key: row_bytes(key, 1) for key in range(3)}, Snapshot(5, 5, frozenset()))
    table = ModelTable()
    writer = table.begin()
    for key in range(3):
        table.write(writer, key, key, (9, 9), 0)
    table.delete(writer, 1)
    table.commit(writer)
    EventFolder(ledger).fold(table.log[0].records())
    served = ServedView(ledger.store.view())
    records = list(served.records(served.tables["public.t"]))
    headers = [check_record(record) for record in records]
    assert [bool(header.flags & Flag.END) for header in headers] == [False] * (len(headers) - 1) + [True]
    assert sum(header.count for header in headers) == 2
    assert {header.last for header in headers} == {Position(1, table.log[0].lsn, 4)}
    assert {header.last_seq for header in headers} == {table.log[0].last_seq}


def test_a_seeding_waits_for_what_was_logged_but_not_visible(ledger: Ledger) -> None:
    table = ModelTable()
    writer = table.begin()
    table.write(writer, 1, 1, (1, 1), 0)
    table.commit(writer)
    EventFolder(ledger).fold(table.log[0].records())
    run = ledger.start_generation(PUBLISHED, 1, "test")
    ledger.observe(table.snapshot())
    assert not ledger.plan(run, Plan(1, 1, 1), 0)
    assert ledger.needed_after() == Position(1, table.log[0].lsn, 1)
    table.end(writer)
    ledger.observe(table.snapshot())
    assert ledger.plan(run, Plan(1, 1, 1), 0)


def switch(*lost: int) -> bytes:
    """The record of a failover that lost transactions of these tables."""
    made = epoch_piece(
        Switch(1, 2, 700), None, [TableSchema(1, oid, "public", "t", ReplicaIdentity.DEFAULT, ()) for oid in lost], 9
    )
    fields = {name: getattr(made, name) for name in made.__slots__}
    return pack_record(fields.pop("kind"), first_seq=FIRST_SEQ, last_seq=FIRST_SEQ, **fields)


def test_a_failover_breaks_the_tables_that_hold_what_it_lost_and_no_others(ledger: Ledger) -> None:
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([switch(OID + 1)])
    assert run.state.phase is Phase.CONSISTENT
    EventFolder(ledger).fold([switch(OID)])
    assert run.state.phase is Phase.BROKEN
    assert list(ledger.store.entries(run.space)) == []
    again = Ledger(ledger.store, fill)
    assert again.tables[OID].state.phase is Phase.BROKEN
    assert again.applied is not None and again.applied.position == Position(2, 700, 0)


def test_a_table_that_was_seeded_behind_a_failover_is_not_broken_by_its_record_again(ledger: Ledger) -> None:
    EventFolder(ledger).fold([switch(OID)])
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([switch(OID)])
    assert run.state.phase is Phase.CONSISTENT


def test_transactions_that_a_failover_lost_are_not_waited_for(ledger: Ledger) -> None:
    ledger.unseen.add(77)
    ledger.observe(Snapshot(70, 70, frozenset()))
    EventFolder(ledger).fold([switch(OID)])
    run = ledger.start_generation(PUBLISHED, 1, "test")
    assert ledger.plan(run, Plan(1, 1, 1), 0)
    again = Ledger(ledger.store, fill)
    assert (again.unseen.xids(), again.unseen_at) == (frozenset(), Position(2, 700, 0))


def test_a_seeding_that_was_killed_at_a_switch_begins_again(ledger: Ledger) -> None:
    ledger.begin(Applied("log", 1, 600, 0, FIRST_SEQ - 1, 0), UnseenCommits())
    ledger.start_generation(PUBLISHED, 1, "test")
    EventFolder(ledger).fold([switch(OID + 1)])
    again = Ledger(ledger.store, fill)
    again.resume([])
    assert again.tables[OID].again == "the timeline changed"


def altered(lsn: int, *, reason: str = "rewritten", at: int) -> bytes:
    """The record of a statement that changed rows of the table silently, seen at an LSN."""
    schema = TableSchema(1, OID, "public", "t", ReplicaIdentity.DEFAULT, ())
    told = {"reason": reason, "what": "it changed", "lsn": format_lsn(lsn), "snapshot": "5:5:"}
    made = reseed_piece(1, at, 9, schema, told)
    fields = {name: getattr(made, name) for name in made.__slots__}
    return pack_record(fields.pop("kind"), first_seq=FIRST_SEQ, last_seq=FIRST_SEQ, **fields)


def test_rows_that_a_statement_changed_silently_break_their_table(ledger: Ledger) -> None:
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([altered(600, at=650)])
    assert (run.state.phase, run.state.reason) == (Phase.BROKEN, "it changed")
    assert list(ledger.store.entries(run.space)) == []
    assert Ledger(ledger.store, fill).tables[OID].state.phase is Phase.BROKEN


@pytest.mark.parametrize(("reason", "breaks"), [("rewritten", False), ("key_changed", True)])
def test_a_generation_that_began_behind_the_statement_is_right_unless_the_key_changed(
    ledger: Ledger, reason: str, breaks: bool
) -> None:
    ledger.begin(Applied("log", 1, 600, 0, FIRST_SEQ - 1, 0), UnseenCommits())
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([altered(600, reason=reason, at=650)])
    assert (run.state.phase is Phase.BROKEN) is breaks


def test_an_event_that_is_read_twice_breaks_a_table_once(ledger: Ledger) -> None:
    event = altered(600, reason="key_changed", at=650)
    EventFolder(ledger).fold([event])
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([event])
    assert run.state.phase is Phase.CONSISTENT


def test_a_seeding_waits_for_what_ran_when_its_table_was_published(ledger: Ledger) -> None:
    """PostgreSQL decodes a change with the publication as it was when it was written: what ran may be in no log."""
    ledger.start_generation(PUBLISHED, 1, "test", running={7})
    again = Ledger(ledger.store, fill)  # killed before the plan
    again.resume([])
    run = again.tables[OID]
    again.observe(Snapshot(7, 9, frozenset({7})))
    assert not again.plan(run, Plan(1, 1, 1), 0)
    again.observe(Snapshot(9, 9, frozenset()))
    assert again.plan(run, Plan(1, 1, 1), 0)
