"""The change index stays in proportion to the rows; tombstones go at the horizon, and deltas behind it lack nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from support.memory_store import MemoryStore, places_behind
from support.mvcc_model import FIRST_SEQ, OID, ModelTable, fill, key_bytes, one_file
from walbus.bootstrap import upkeep
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.delta import NOWHERE, horizon_of, purged_up_to
from walbus.bootstrap.entry import is_tombstone, seq_of
from walbus.bootstrap.horizon import HORIZON, MARKS, Horizon, Marks, seq_for_limit
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.state import Applied, Phase, PublishedTable, decode
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.upkeep import IndexUpkeep, Retention
from walbus.position import ORIGIN, Position

HOUR = 3600.0


def test_however_much_is_written_tombstones_go_at_their_age() -> None:
    """Each change deserves a mark here, and there are far more changes in that time than marks are kept."""
    seconds, marks = 1000.0, Marks("log")
    for now in range(5000):
        marks = marks.with_applied(Applied("log", 1, now, 1, now + 1), float(now), seconds=seconds, changes=1)
        found = marks.older_than(now - seconds)
        assert now < 1050 or (found is not None and now - found.time <= 1.05 * seconds)
        if found is not None:
            marks = marks.since(found.seq)
        assert len(marks.marks) <= 400
        recent = marks.at_least(now - 100)
        assert now <= 100 or (recent is not None and recent.seq == now - 100)


class Clock:
    """Goes on by itself, so that work ends; jumps when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class Rig:
    """A consistent table under a model of PostgreSQL, its store, and the upkeep."""

    def __init__(self, retention: Retention) -> None:
        self.store = MemoryStore()
        self.table = ModelTable()
        self.wall = 1_700_000_000.0
        self.retention = retention
        self.folded = 0
        self._open()
        self.ledger.begin(Applied("log", *ORIGIN, FIRST_SEQ - 1, 0), UnseenCommits())
        self.ledger.resume([])
        self.run = self.ledger.start_generation(PublishedTable(OID, "public", "t", "r", "d", (), None, 0), 1, "test")
        self.ledger.plan(self.run, one_file(blocks=0), 0)
        assert self.ledger.finish(self.run) and self.run.state.phase is Phase.CONSISTENT

    def _open(self) -> None:
        self.ledger = Ledger(self.store, fill)
        self.upkeep = IndexUpkeep(self.ledger, Clock(), lambda: self.wall, self.retention)

    def restart(self) -> None:
        self._open()
        self.run = self.ledger.tables[OID]

    def write(self, *keys: int) -> None:
        """Changes the keys in a transaction; a negative one is deleted."""
        writer = self.table.begin()
        for key in keys:
            if key < 0:
                assert self.table.delete(writer, -key)
            else:
                assert self.table.write(writer, key, key, (key, writer.xid), 0)
        self.table.commit(writer)
        self.table.end(writer)
        self.apply()

    def apply(self) -> None:
        for logged in self.table.log[self.folded :]:
            EventFolder(self.ledger).fold(logged.records())
        self.folded = len(self.table.log)

    def work(self) -> int:
        with capture_logs():
            return sum(self.upkeep.work(1.0) for _ in range(3))

    def horizon(self) -> Horizon | None:
        content = self.store.document(HORIZON)
        return None if content is None else decode(content, Horizon)

    def keys(self, *, tombstones: bool) -> set[bytes]:
        view = self.store.view()
        return {key for key, value in view.entries(self.run.space) if is_tombstone(value) == tombstones}

    def delta(self, after_seq: int) -> dict[bytes, bool]:
        """Keys that changed behind a seq, and whether each is there."""
        view = self.store.view()
        entries = dict(view.entries(self.run.space))
        return {
            key: not is_tombstone(entries[key])
            for seq, key in places_behind(view, self.run.space, after_seq)
            if key in entries and seq_of(entries[key]) == seq
        }


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def test_only_places_that_say_nothing_any_more_are_dropped() -> None:
    rig = Rig(Retention(HOUR, 1000))
    for value in range(30):
        rig.write(value % 3 + 1)
    rig.write(-1)
    before = places_behind(rig.store.view(), rig.run.space, 0)
    assert rig.work() == len(before) - 3
    latest = {(seq_of(value), key) for key, value in rig.store.view().entries(rig.run.space)}
    assert set(places_behind(rig.store.view(), rig.run.space, 0)) == latest
    assert rig.work() == 0
    assert rig.upkeep.tombstones == 1


def test_many_small_pages_become_a_few() -> None:
    rig = Rig(Retention(HOUR, 1000))
    for key in range(1, 65):
        rig.write(key)
    assert len(rig.store.pages(rig.run.space, b"", 100)) == 64
    rig.work()
    assert len(rig.store.pages(rig.run.space, b"", 100)) == 1
    assert len(places_behind(rig.store.view(), rig.run.space, 0)) == 64


def lookups(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """The keys of each lookup from here on."""
    get_many, asked = rig.store.get_many, []

    def noted(keys: list[bytes]) -> list[bytes | None]:
        asked.append(keys)
        return get_many(keys)

    monkeypatch.setattr(rig.store, "get_many", noted)
    return asked


@pytest.mark.parametrize(("pages", "keys"), [(32, 10_000), (1, 3), (2, 3)])
def test_a_pass_looks_few_keys_up_once_however_often_each_stands_there(
    monkeypatch: pytest.MonkeyPatch, pages: int, keys: int
) -> None:
    monkeypatch.setattr(upkeep, "_PAGES", pages)
    monkeypatch.setattr(upkeep, "_KEYS", keys)
    rig = Rig(Retention(HOUR, 1000))
    for value in range(300):
        rig.write(value % 3 + 1)
    asked = lookups(rig, monkeypatch)
    assert rig.work() == 297
    assert [len(keys) for keys in asked if keys] == [3]


def test_a_portion_of_a_pass_ends_where_pages_are_of_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_PAGES", 4)
    monkeypatch.setattr(upkeep, "_KEYS", 3)
    rig = Rig(Retention(HOUR, 1000))
    for value in range(300):
        rig.write(value + 1)
    asked = lookups(rig, monkeypatch)
    rig.work()
    counts = [len(keys) for keys in asked]
    assert sum(counts) == 300 and max(counts) == 8


def test_a_tombstone_goes_once_it_is_old_enough_and_says_so_before() -> None:
    rig = Rig(Retention(HOUR, 1000))
    rig.write(1, 2, 3)
    rig.write(-1)
    rig.work()
    rig.wall += HOUR / 2
    rig.write(-2)
    deleted_late = rig.ledger.applied
    rig.work()
    assert rig.horizon() is None and rig.keys(tombstones=True) == {key_bytes(1), key_bytes(2)}
    rig.wall += HOUR / 2 + 60
    rig.work()
    horizon = rig.horizon()
    assert horizon is not None and deleted_late is not None and horizon.seq < deleted_late.last_seq
    assert rig.keys(tombstones=True) == {key_bytes(2)}
    assert rig.keys(tombstones=False) == {key_bytes(3)}
    assert rig.delta(horizon.seq) == {key_bytes(2): False}
    assert Position(1, rig.table.log[1].lsn, 1) == horizon.position


def test_a_delta_knows_of_the_horizon() -> None:
    rig = Rig(Retention(HOUR, 1000))
    rig.write(1)
    assert purged_up_to(ServedView(rig.store.view())) == NOWHERE
    rig.work()
    rig.wall += 2 * HOUR
    rig.work()
    horizon = rig.horizon()
    assert horizon is not None
    purged = purged_up_to(ServedView(rig.store.view()))
    assert purged == (horizon.position, horizon.seq)
    assert horizon_of(rig.run.state, purged) == purged


def test_the_horizon_is_kept_over_a_restart_and_never_moves_back() -> None:
    rig = Rig(Retention(HOUR, 1000))
    rig.write(1, 2)
    rig.work()
    rig.wall += 2 * HOUR
    rig.write(-1)
    rig.work()
    horizon = rig.horizon()
    assert horizon is not None
    rig.restart()
    rig.wall -= 10 * HOUR
    rig.work()
    assert rig.horizon() == horizon
    rig.wall += 12 * HOUR
    rig.work()
    assert rig.horizon() is not None and rig.horizon() != horizon
    assert rig.keys(tombstones=True) == set()


def test_another_log_has_another_horizon() -> None:
    rig = Rig(Retention(HOUR, 1000))
    rig.write(1)
    rig.work()
    rig.wall += 2 * HOUR
    rig.work()
    assert rig.horizon() is not None
    rig.ledger.begin(Applied("another", 1, 5, 0, 7, 0), UnseenCommits())
    assert rig.horizon() is None and rig.store.document(MARKS) is None
    rig.work()
    content = rig.store.document(MARKS)
    assert content is not None and decode(content, Marks).log_id == "another"


def test_more_tombstones_than_the_limit_move_the_horizon() -> None:
    rig = Rig(Retention(1000 * HOUR, 20))
    for number in range(1, 61):
        rig.write(number)
        rig.write(-number)
        rig.upkeep.work(0.0)  # notes what is applied
    rig.work()
    rig.work()
    assert rig.horizon() is not None
    assert len(rig.keys(tombstones=True)) <= 20


def test_a_table_that_is_seeded_keeps_its_tombstones() -> None:
    rig = Rig(Retention(HOUR, 1000))
    rig.write(1)
    rig.write(-1)
    rig.work()
    rig.wall += 2 * HOUR
    rig.run.missing = True
    rig.ledger.reopen(rig.run)
    rig.work()
    assert rig.keys(tombstones=True) == {key_bytes(1)}
    assert rig.ledger.finish(rig.run)
    rig.work()
    assert rig.keys(tombstones=True) == set()


def test_a_key_that_comes_back_while_its_tombstone_is_dropped_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Retention(HOUR, 1000))
    rig.write(1)
    rig.write(-1)
    rig.work()
    rig.wall += 2 * HOUR
    get_many, came_back = rig.store.get_many, []

    def meanwhile(keys: list[bytes]) -> list[bytes | None]:
        found = get_many(keys)
        if not came_back:
            came_back.append(True)
            rig.write(1)
        return found

    monkeypatch.setattr(rig.store, "get_many", meanwhile)
    rig.work()
    assert came_back and rig.keys(tombstones=False) == {key_bytes(1)}
    horizon = rig.horizon()
    assert horizon is not None and rig.delta(horizon.seq) == {key_bytes(1): True}


def test_what_was_read_of_a_table_that_is_truncated_meanwhile_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Retention(HOUR, 1000))
    for _ in range(3):
        rig.write(1)
    get_many, emptied = rig.store.get_many, []

    def meanwhile(keys: list[bytes]) -> list[bytes | None]:
        found = get_many(keys)
        if not emptied:
            emptied.append(True)
            writer = rig.table.begin()
            rig.table.truncate(writer)
            rig.table.commit(writer)
            rig.table.end(writer)
            rig.apply()
        return found

    monkeypatch.setattr(rig.store, "get_many", meanwhile)
    rig.work()
    assert emptied and rig.store.pages(rig.run.space, b"", 9) == []


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 6)),
        st.tuples(st.just("delete"), st.integers(1, 6)),
        st.tuples(st.just("wait"), st.integers(0, 90)),
        st.tuples(st.sampled_from(["work", "restart", "truncate"]), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_a_delta_from_the_horizon_on_tells_every_change(steps: list[tuple[str, int]]) -> None:
    """Whatever is dropped when: each key that changed behind any later seq is told as it is now, deleted ones too."""
    with capture_logs(), pytest.MonkeyPatch.context() as patch:
        for name, number in (("_PAGES", 2), ("_KEYS", 3), ("_PLACES", 9)):
            patch.setattr(upkeep, name, number)
        rig = Rig(Retention(HOUR, 4))
        there: set[int] = set()
        history: list[tuple[int, int]] = []  # (seq, key)
        truncated = 0
        for what, number in steps:
            if what == "write" or (what == "delete" and number in there):
                rig.write(number if what == "write" else -number)
                (there.add if what == "write" else there.discard)(number)
                assert rig.ledger.applied is not None
                history.append((rig.ledger.applied.last_seq, number))
            elif what == "wait":
                rig.wall += number * 60
            elif what == "work":
                rig.work()
            elif what == "restart":
                rig.restart()
            elif what == "truncate":
                writer = rig.table.begin()
                rig.table.truncate(writer)
                rig.table.commit(writer)
                rig.table.end(writer)
                rig.apply()
                there.clear()
                assert rig.ledger.applied is not None
                truncated = rig.ledger.applied.last_seq  # a delta begins with it
        horizon = rig.horizon()
        least = max(horizon.seq if horizon else 0, truncated)
        assert rig.run.state.truncated_seq == truncated
        for after in {least, *(seq for seq, _ in history if seq >= least)}:
            expected = {key_bytes(key): key in there for seq, key in history if seq > after}
            assert rig.delta(after) == expected
        assert {key_bytes(key) for key in there} == rig.keys(tombstones=False)


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 5)), unique_by=lambda pair: pair[0]), st.integers(0, 20))
def test_the_limit_leaves_no_more_than_it_says(tombstones: list[tuple[int, int]], limit: int) -> None:
    seq = seq_for_limit(tombstones, limit)
    assert sum(count for at, count in tombstones if at > seq) <= limit
    total = sum(count for _, count in tombstones)
    assert (seq == 0) == (total <= limit)
