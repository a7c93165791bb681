"""Deltas: the last version of each key, whole for whoever is behind the horizon, and to be gone on with anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from support.mvcc_model import (
    FIRST_SEQ,
    OID,
    PUBLISHED,
    ModelTable,
    Transaction,
    fill,
    key_bytes,
    new_ledger,
    one_file,
    reseed_record,
    row_bytes,
)
from walbus.bootstrap import change_index, delta
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.delta import Horizon, Since, count_changes, delta_records, horizon_of
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.state import TableState
from walbus.native.reading import WHOLE, Partition
from walbus.position import Position
from walbus.records import Flag, Kind, Op, RawChange, RecordHeader, body_of, check_record, iter_changes, key_hash

P0 = Position(1, 600, 0)


class Rig:
    """A consistent, empty table, and what its source commits."""

    def __init__(self) -> None:
        self.ledger = new_ledger(P0)
        run = self.ledger.start_generation(PUBLISHED, 1, "test")
        assert self.ledger.plan(run, one_file(blocks=0), 0)
        assert self.ledger.finish(run)
        self.table = ModelTable()

    def commit(self, *keys: int, delete: tuple[int, ...] = (), move: tuple[int, int] | None = None) -> int:
        """One transaction, folded; gives its last seq."""
        writer = self.table.begin()
        for key in keys:
            self.table.write(writer, key, key, (len(self.table.log), key), 0)
        for key in delete:
            assert self.table.delete(writer, key)
        if move is not None:
            assert self.table.write(writer, *move, (0, 0), 0)
        return self._end(writer)

    def truncate(self, *then: int) -> int:
        writer = self.table.begin()
        assert self.table.truncate(writer)
        for key in then:
            self.table.write(writer, key, key, (0, key), 0)
        return self._end(writer)

    def _end(self, writer: Transaction) -> int:
        self.table.commit(writer)
        self.table.end(writer)
        EventFolder(self.ledger).fold(self.table.log[-1].records())
        return self.table.log[-1].last_seq

    def view(self) -> ServedView:
        return ServedView(self.ledger.store.view())

    def state(self) -> TableState:
        return self.view().tables["public.t"]

    def records(self, after: int, partition: Partition = WHOLE) -> list[tuple[RecordHeader, list[RawChange]]]:
        served = self.view()
        made = list(delta_records(served, served.tables["public.t"], after, partition))
        headers = [check_record(record) for record in made]
        return [(h, list(iter_changes(body_of(r, h)))) for h, r in zip(headers, made, strict=True)]

    def changes(self, after: int, partition: Partition = WHOLE) -> list[RawChange]:
        return [change for _, changes in self.records(after, partition) for change in changes]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with capture_logs():
        yield Rig()


def told(changes: list[RawChange]) -> list[tuple[Op, bytes | None, int]]:
    return [(Op(change.op), change.key, change.seq_delta) for change in changes]


def test_only_the_last_version_of_each_key_comes_in_the_order_of_the_seqs(rig: Rig) -> None:
    rig.commit(1, 2, 3)
    since = rig.commit(1)
    for _ in range(50):
        hot = rig.commit(2)
    gone = rig.commit(delete=(1,))
    new = rig.commit(4)
    assert told(rig.changes(since)) == [
        (Op.INSERT, key_bytes(2), hot),
        (Op.DELETE, key_bytes(1), gone),
        (Op.INSERT, key_bytes(4), new),
    ]
    assert rig.changes(new) == []
    ((header, changes),) = rig.records(since)
    assert (header.kind, header.flags, header.first_seq, header.last_seq) == (Kind.DELTA, 3, 0, new)
    assert header.last == rig.view().applied.position
    assert changes[0].after == row_bytes(51, 2)
    assert changes[1].after is None


def test_a_table_that_was_emptied_is_emptied_first(rig: Rig) -> None:
    since = rig.commit(1, 2)
    rig.commit(1)
    rig.truncate()
    rig.commit(1)
    last = rig.truncate(7)
    later = rig.commit(8)
    assert told(rig.changes(since)) == [
        (Op.TRUNCATE, None, last - 1),
        (Op.INSERT, key_bytes(7), last),
        (Op.INSERT, key_bytes(8), later),
    ]
    assert told(rig.changes(last)) == [(Op.INSERT, key_bytes(8), later)]


def test_the_two_sides_of_a_key_change_are_never_parted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has dealt with one of them would go on behind the seq of both."""
    since = rig.commit(1, 2, 3)
    rig.commit(move=(1, 4))
    rig.commit(move=(2, 5))
    rig.commit(3)
    for record_bytes, page in ((1, 1), (1, 1000), (1 << 20, 1)):
        monkeypatch.setattr(delta, "RECORD_BYTES", record_bytes)
        monkeypatch.setattr(delta, "_KEYS", page)
        monkeypatch.setattr(delta, "_LOOKED_UP", page)
        monkeypatch.setattr(delta, "LOOKED_AT", page)
        records = [changes for _, changes in rig.records(since) if changes]
        lasts = [changes[-1].seq_delta for changes in records]
        firsts = [changes[0].seq_delta for changes in records]
        assert all(first > last for first, last in zip(firsts[1:], lasts, strict=False))
        assert len([change for changes in records for change in changes]) == 5
        assert (len(records) > 1) == (record_bytes == 1 or page == 1)


def test_a_delta_goes_on_behind_any_record_as_of_a_later_position(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "RECORD_BYTES", 1)
    since = rig.commit(1, 2, 3, 4)
    rig.commit(1, 2)
    rig.commit(delete=(3,))
    first = next(changes for _, changes in rig.records(since) if changes)
    assert [change.key for change in first] == [key_bytes(1)]
    rig.commit(1, delete=(2,))  # meanwhile
    rest = {change.key: Op(change.op) for change in rig.changes(first[-1].seq_delta)}
    assert rest == {key_bytes(3): Op.DELETE, key_bytes(1): Op.INSERT, key_bytes(2): Op.DELETE}


def test_it_is_complete_behind_the_horizon_and_not_at_it(rig: Rig) -> None:
    horizon = horizon_of(rig.state())
    assert horizon == Horizon(P0, FIRST_SEQ - 1)
    assert not horizon.is_before(Since(FIRST_SEQ - 1, P0))
    assert not horizon.is_before(Since(FIRST_SEQ - 1))
    assert horizon.is_before(Since(FIRST_SEQ - 1, Position(1, 601, 0)))
    assert horizon.is_before(Since(FIRST_SEQ))
    purged = Horizon(Position(1, 700, 2), FIRST_SEQ + 9)
    assert horizon_of(rig.state(), purged) == purged


def test_who_has_not_seen_an_event_of_silent_changes_gets_no_delta_without_them(rig: Rig) -> None:
    """The generation began behind the statement, and stays; a reader from before the event lacks its rows."""
    EventFolder(rig.ledger).fold([reseed_record(600, at=650)])
    assert rig.state().phase.value == "consistent"
    horizon = horizon_of(rig.state())
    assert horizon.position == Position(1, 650, 0)
    assert not horizon.is_before(Since(FIRST_SEQ, Position(1, 640, 3)))
    assert not horizon.is_before(Since(FIRST_SEQ, Position(1, 650, 0)))
    assert horizon.is_before(Since(FIRST_SEQ + 1, Position(1, 650, 1)))
    assert horizon_of(Ledger(rig.ledger.store, fill).tables[OID].state) == horizon


def test_the_parts_of_all_keys_are_the_whole_and_each_is_emptied(rig: Rig) -> None:
    since = rig.commit(*range(50))
    rig.truncate(*range(100, 150))
    whole = told(rig.changes(since))
    parts = [told(rig.changes(since, Partition(part, 3))) for part in range(3)]
    assert all(part[0] == whole[0] and part[0][0] is Op.TRUNCATE for part in parts)
    assert sorted(change for part in parts for change in part[1:]) == sorted(whole[1:])
    assert all(key_hash(key or b"") % 3 == number for number, part in enumerate(parts) for _, key, _ in part[1:])


def test_the_count_is_no_less_than_what_comes_and_ends_at_its_limit(rig: Rig) -> None:
    since = rig.commit(1, 2)
    for _ in range(9):
        rig.commit(1)
    served = rig.view()
    count, more = count_changes(served, served.tables["public.t"], since, 1000)
    assert len(rig.changes(since)) == 1 <= count <= 9 and not more
    rig.commit(2, 3, 4, 5, 6)
    served = rig.view()
    assert count_changes(served, served.tables["public.t"], since, 7) == (6, False)
    assert count_changes(served, served.tables["public.t"], since, 6) == (6, True)
    assert count_changes(served, served.tables["public.t"], since, 2) == (2, True)
    rig.truncate()
    served = rig.view()
    assert count_changes(served, served.tables["public.t"], since, 5) == (1, False)


def test_a_reader_is_not_left_without_a_word_over_a_long_stale_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "LOOKED_AT", 2)
    monkeypatch.setattr(change_index, "PLACES", 2)
    since = rig.commit(1)
    for _ in range(9):
        rig.commit(1)
    records = rig.records(since)
    assert [len(changes) for _, changes in records] == [0, 0, 0, 0, 1]
    assert [header.flags for header, _ in records] == [Flag.BEGIN, 0, 0, 0, Flag.END]
