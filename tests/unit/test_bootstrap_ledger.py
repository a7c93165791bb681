"""The ledger's promises that a random schedule rarely asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from support.mvcc_model import (
    FIRST_SEQ,
    OID,
    PUBLISHED,
    Event,
    Logged,
    ModelTable,
    fill,
    key_bytes,
    new_ledger,
    one_file,
    reseed_record,
    row_bytes,
)
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.entry import unpack_entry
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.state import Applied, ChunkDone, Phase, PublishedTable
from walbus.bootstrap.store import SPACE_SIZE, WriteSet
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import Snapshot
from walbus.capture.epochs import Switch, epoch_piece
from walbus.position import Position
from walbus.records import Flag, Op, check_record, pack_record
from walbus.schema import ReplicaIdentity, TableSchema


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def ledger() -> Ledger:
    return new_ledger()


def seeded(ledger: Ledger, rows: dict[int, bytes], snapshot: Snapshot) -> TableRun:
    """A table that is consistent after one chunk."""
    run = begun(ledger, rows, snapshot)
    assert ledger.finish(run)
    return run


def inserted(key: int, epoch: int = 1, lsn: int = 5000) -> list[bytes]:
    """The record of a transaction that inserts a row."""
    table = ModelTable(first_lsn=lsn, epoch=epoch)
    writer = table.begin()
    table.write(writer, key, key, (key, key), 0)
    table.commit(writer)
    return table.log[0].records()


def keys_of(ledger: Ledger, run: TableRun) -> list[bytes]:
    return [key[SPACE_SIZE:] for key, _ in ledger.store.entries(run.space)]


def begun(
    ledger: Ledger, rows: dict[int, bytes], snapshot: Snapshot, published: PublishedTable = PUBLISHED
) -> TableRun:
    """A generation whose only chunk is in."""
    run = ledger.start_generation(published, 1, "test")
    ledger.plan(run, one_file(), 0)
    origin = ledger.admit(run, snapshot, 0)
    assert origin is not None
    assert ledger.fold_rows(run, origin, [(key_bytes(key), row) for key, row in rows.items()])
    ledger.chunk_done(run, 0, ChunkDone(origin.number, 0, len(rows), 1))
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


def test_a_row_without_a_value_that_nobody_has_seen_is_served_by_no_view(ledger: Ledger) -> None:
    """It is read again by its key; until then the table is being seeded, from the very batch on that brings the row."""
    seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    event = Event(Op.INSERT, 2, row=(2, 2), unchanged=True)  # an update that came past a row filter
    EventFolder(ledger).fold(Logged(100, 5000, FIRST_SEQ, [event]).records())
    served = ServedView(ledger.store.view())
    assert served.applied.commit_lsn == 5000
    assert served.tables["public.t"].phase is Phase.SEEDING


def test_a_chunk_that_comes_too_late_changes_nothing(ledger: Ledger) -> None:
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    assert ledger.admit(run, Snapshot(6, 6, frozenset()), 0) is None
    newer = ledger.start_generation(PUBLISHED, 1, "test")
    assert ledger.admit(run, Snapshot(6, 6, frozenset()), 0) is None
    ledger.start_generation(PUBLISHED, 1, "test")
    assert ledger.admit(newer, Snapshot(6, 6, frozenset()), 0) is None
    assert list(ledger.store.entries(newer.space)) == []


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
    records = list(served.snapshot([served.tables["public.t"]]))
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
    assert not ledger.plan(run, one_file(), 0)
    assert ledger.needed() == (ledger.applied.log_id, Position(1, table.log[0].lsn, 1))
    table.end(writer)
    ledger.observe(table.snapshot())
    assert ledger.plan(run, one_file(), 0)


def switch(*lost: int) -> bytes:
    """The record of a failover that lost transactions of these tables."""
    made = epoch_piece(
        Switch(1, 2, 700), None, [TableSchema(1, oid, "public", "t", ReplicaIdentity.DEFAULT, ()) for oid in lost], 9
    )
    fields = {name: getattr(made, name) for name in made.__slots__}
    return pack_record(fields.pop("kind"), first_seq=FIRST_SEQ, last_seq=FIRST_SEQ, **fields)


def test_a_table_whose_rows_come_without_a_key_is_broken_and_the_log_is_followed_on(ledger: Ledger) -> None:
    """Its key was dropped. An error would end the bootstrap, and again at each start, for the sake of one table."""
    served = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    ledger.outdate(served, "asked for")
    run = begun(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    keyless = Logged(700, 6000, FIRST_SEQ, [Event(Op.INSERT, None, row=(n, n)) for n in range(2)])
    EventFolder(ledger).fold([*keyless.records(), *inserted(2, lsn=7000)])
    assert served.state.phase is run.state.phase is Phase.BROKEN
    assert keys_of(ledger, served) == keys_of(ledger, run) == []
    assert ledger.applied is not None and ledger.applied.commit_lsn > 7000


def test_a_failover_makes_the_tables_wrong_that_hold_what_it_lost_and_no_others(ledger: Ledger) -> None:
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([switch(OID + 1)])
    assert run.state.phase is Phase.CONSISTENT
    EventFolder(ledger).fold([switch(OID)])
    assert run.state.phase is Phase.WRONG
    again = Ledger(ledger.store, fill)
    assert again.tables[OID].state.phase is Phase.WRONG
    assert again.applied is not None and again.applied.position == Position(2, 700, 0)


def test_a_wrong_table_is_folded_on_until_the_next_generation_takes_its_place(ledger: Ledger) -> None:
    wrong = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([switch(OID)])
    run = begun(ledger, {1: row_bytes(2, 2)}, Snapshot(900, 900, frozenset()))
    EventFolder(ledger).fold(inserted(2, epoch=2))
    assert keys_of(ledger, wrong) == keys_of(ledger, run) == [key_bytes(1), key_bytes(2)]
    assert ledger.tables[OID] is wrong and ledger.finish(run)
    assert ledger.tables[OID] is run and keys_of(ledger, wrong) == []


def test_a_table_that_was_seeded_behind_a_failover_is_not_broken_by_its_record_again(ledger: Ledger) -> None:
    EventFolder(ledger).fold([switch(OID)])
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([switch(OID)])
    assert run.state.phase is Phase.CONSISTENT


def test_transactions_that_a_failover_lost_are_not_waited_for(ledger: Ledger) -> None:
    ledger.unseen.update([77])
    ledger.observe(Snapshot(70, 70, frozenset()))
    EventFolder(ledger).fold([switch(OID)])
    run = ledger.start_generation(PUBLISHED, 1, "test")
    assert ledger.plan(run, one_file(), 0)
    again = Ledger(ledger.store, fill)
    assert (again.unseen.xids(), again.unseen_at) == (frozenset(), Position(2, 700, 0))


def test_a_seeding_that_was_killed_at_a_switch_begins_again(ledger: Ledger) -> None:
    ledger.begin(Applied("log", 1, 600, 0, FIRST_SEQ - 1, 0), UnseenCommits())
    ledger.start_generation(PUBLISHED, 1, "test")
    EventFolder(ledger).fold([switch(OID + 1)])
    again = Ledger(ledger.store, fill)
    again.resume([])
    assert again.tables[OID].again == "the timeline changed"


def test_rows_that_a_statement_changed_silently_are_served_as_stale(ledger: Ledger) -> None:
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([reseed_record(600, at=650), *inserted(2)])
    again = Ledger(ledger.store, fill)
    state = again.tables[OID].state
    assert (state.phase, state.stale, state.stale_at) == (Phase.CONSISTENT, "it changed", str(Position(1, 650, 0)))
    assert keys_of(ledger, run) == [key_bytes(1), key_bytes(2)]
    assert ServedView(ledger.store.view()).tables["public.t"].stale


def test_a_seeding_that_a_statement_overtakes_begins_again_beside_what_is_served(ledger: Ledger) -> None:
    served = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    ledger.outdate(served, "asked for")
    run = begun(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([reseed_record(600, at=650)])
    assert (run.state.phase, keys_of(ledger, run)) == (Phase.BROKEN, [])
    assert not ledger.finish(run)
    next_one = begun(ledger, {1: row_bytes(2, 1)}, Snapshot(5, 5, frozenset()))
    assert (next_one.state.generation, keys_of(ledger, served)) == (3, [key_bytes(1)])
    EventFolder(ledger).fold(inserted(2))
    assert ledger.finish(next_one)
    again = Ledger(ledger.store, fill)
    assert (again.tables[OID].state.generation, again.tables[OID].state.stale, again.successors) == (3, "", {})


def test_a_switch_is_one_write_and_a_crash_before_it_goes_on_with_the_seeding(ledger: Ledger) -> None:
    served = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    run = begun(ledger, {1: row_bytes(2, 1)}, Snapshot(5, 5, frozenset()))
    again = Ledger(ledger.store, fill)
    again.resume([])
    assert again.tables[OID].state == served.state and again.successors[OID].state == run.state
    assert ServedView(again.store.view()).tables["public.t"].generation == 1
    writes: list[WriteSet] = []
    write = again.store.write
    again.store.write = lambda changes: (writes.append(changes), write(changes))  # type: ignore[method-assign, assignment, return-value]
    assert again.finish(again.successors[OID])
    assert len(writes) == 1 and writes[0].cleared == [served.space]
    assert ServedView(again.store.view()).tables["public.t"].generation == 2


@pytest.mark.parametrize("change", [{"name": "other"}, {"columns": (("id", 20, -1, True), ("big", 25, -1, False))}])
def test_rows_under_another_name_or_key_are_not_served_meanwhile(ledger: Ledger, change: dict[str, object]) -> None:
    served = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    run = ledger.start_generation(structs.replace(PUBLISHED, **change), 2, "test")
    assert (ledger.tables[OID], ledger.successors) == (run, {})
    assert keys_of(ledger, served) == []


def test_a_table_that_is_refused_or_forgotten_leaves_neither_generation_behind(ledger: Ledger) -> None:
    for leave in (
        lambda: ledger.refuse(structs.replace(PUBLISHED, refusal="it has no key")),
        lambda: ledger.forget(OID),
    ):
        served = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
        run = begun(ledger, {1: row_bytes(2, 1)}, Snapshot(5, 5, frozenset()))
        leave()
        assert keys_of(ledger, served) == keys_of(ledger, run) == []
        assert ledger.successors == Ledger(ledger.store, fill).successors == {}
        assert not ledger.store.documents("chunk/") and not ledger.store.documents("snapshot/")


@pytest.mark.parametrize(("reason", "breaks"), [("rewritten", False), ("key_changed", True)])
def test_a_generation_that_began_behind_the_statement_is_right_unless_the_key_changed(
    ledger: Ledger, reason: str, breaks: bool
) -> None:
    ledger.begin(Applied("log", 1, 600, 0, FIRST_SEQ - 1, 0), UnseenCommits())
    run = seeded(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()))
    EventFolder(ledger).fold([reseed_record(600, reason=reason, at=650)])
    assert (run.state.phase is Phase.BROKEN) is breaks


def test_an_event_that_is_read_twice_breaks_a_table_once(ledger: Ledger) -> None:
    event = reseed_record(600, reason="key_changed", at=650)
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
    assert not again.plan(run, one_file(), 0)
    again.observe(Snapshot(9, 9, frozenset()))
    assert again.plan(run, one_file(), 0)


def test_a_batch_writes_of_a_table_with_many_partitions_how_many_rows_it_has_and_no_more(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = tuple((20_000 + number, "public", f"leaf_{number}") for number in range(2_000))
    published = structs.replace(PUBLISHED, kind="p", leaves=leaves)
    run = begun(ledger, {1: row_bytes(1, 1)}, Snapshot(5, 5, frozenset()), published)
    assert ledger.finish(run)
    written: list[int] = []
    write = ledger.store.write

    def noted(writes: WriteSet) -> None:
        written.append(sum(len(content or b"") for content in writes.documents.values()))
        write(writes)

    monkeypatch.setattr(ledger.store, "write", noted)
    EventFolder(ledger).fold(inserted(2))
    assert written and max(written) < 1_000
    assert ServedView(ledger.store.view()).tables["public.t"].rows == 2
    again = Ledger(ledger.store, fill=fill).tables[OID]
    assert (again.rows, again.state.published) == (2, run.state.published)
    ledger.forget(OID)
    assert ledger.store.documents("rows/") == {}
