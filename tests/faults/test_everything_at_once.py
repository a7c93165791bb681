"""Faults 1, 10, 18, 23, 24, 28, 29, 30, 33 and 35 at once: whatever happens, all copies come to equal the source.

A state machine of Hypothesis draws what happens: writers work (`support.hard_workload`: key changes, values out of
line, truncates, savepoints, DDL, some of it without events), partitions come and go, tables are seeded again, rooms are
killed or stopped and begun again, consumers join, sleep past the log's retention and wake up, the store's hold is lost,
the slot is lost and reconciled. Whenever a schedule ends, everything runs and nobody writes: the bootstrap's store and
each sink must come to equal the source.

One system lives through all schedules, each of which begins where the one before it has left it. So a failure is not
shrunk; what happened up to it is printed. WALBUS_TEST_SEED repeats the choices, not the moments.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from support.all_rooms import AllRooms
from support.database import Database
from support.hard_workload import HardWorkload
from support.seed import announced_seed
from support.waiting import wait_for
from support.walbus_command import walbus
from support.whole_system import make_marker

TABLES = ("plain", "whole", "coded", "parted", "shifting")
SMALL_LOG: dict[str, object] = {"segment_bytes": 64 << 10, "retention_bytes": 256 << 10}

#: Seconds before something happens: its moment is the schedule's input, not something that is waited for.
moments = st.sampled_from((0.0, 0.05, 0.2, 0.5, 1.0))
signals = st.sampled_from((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
MOST_SINKS = 4
choices = st.integers(0, 99)


class World:
    """The system, its source, and what happened.

    Attributes:
        failure: what ended it; nothing happens any more then.
    """

    def __init__(self, rooms: AllRooms, workload: HardWorkload) -> None:
        self.rooms = rooms
        self.database = rooms.database
        self.workload = workload
        self.failure: BaseException | None = None
        self._begun = time.monotonic()
        self._areas = 2

    def note(self, what: str) -> None:
        """For whoever reads of a failure."""
        print(f"{time.monotonic() - self._begun:8.2f} {what}", flush=True)

    @contextmanager
    def happens(self, what: str, moment: float = 0.0) -> Iterator[None]:
        """The block happens after so many seconds, in which the writers work. What it raises is kept."""
        try:
            self._pass_time(moment)
            self.note(what)
            yield
        except Exception as error:
            self.failure = error
            self.note(f"FAILED: {error}\n{self.rooms.last_words()}")

    def _pass_time(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.workload.work(3)
            time.sleep(0.02)

    def regroup(self, detached: bool) -> None:
        """A partition with rows goes, or another one comes."""
        if detached and self._areas > 1:
            self.database.execute(f"ALTER TABLE regions DETACH PARTITION regions_{self._areas}")
            self.database.execute(f"DROP TABLE regions_{self._areas}")
            self._areas -= 1
            return
        self._areas += 1
        name = f"regions_{self._areas}"
        self.database.execute(f"CREATE TABLE {name} (LIKE regions INCLUDING ALL)")
        self.database.execute(f"INSERT INTO {name} SELECT {self._areas}, i, 'came' FROM generate_series(1, 40) i")
        self.database.execute(f"ALTER TABLE regions ATTACH PARTITION {name} FOR VALUES IN ({self._areas})")

    def write_regions(self) -> None:
        self.database.execute("UPDATE regions SET note = note || '.' WHERE id % 3 = 0 AND length(note) < 50")
        self.database.execute("DELETE FROM regions WHERE area = 1 AND id % 7 = 0")
        self.database.execute(
            "INSERT INTO regions SELECT 1, i, 'new' FROM generate_series(1, 20) i ON CONFLICT DO NOTHING"
        )

    def flood(self) -> None:
        """Fills several segments of the log."""
        rows = "SELECT i, repeat(md5(random()::text), 60) FROM generate_series(1, 60) i"
        for _ in range(4):
            self.database.execute(f"INSERT INTO flood {rows} ON CONFLICT (id) DO UPDATE SET note = excluded.note")

    def lose_slot(self) -> None:
        """Transactions are missed, and an operator consents to going on behind them."""
        if "capture" in self.rooms.running:
            self.rooms.end("capture", signal.SIGKILL)
        self.database.drop_slot("walbus")
        self.workload.work(60)
        ended = walbus("snapshot", "--reconcile", "-c", str(self.rooms.config))
        assert ended.code == 0, ended.stderr
        self.rooms.begin("capture")

    def settle(self) -> None:
        """Everything runs, nobody writes, and all are equal."""
        self.workload.finish()
        self.workload.tell_name()
        for name in self.rooms.names():
            if name not in self.rooms.running:
                self.rooms.begin(name)
        self.rooms.wait_until_equal()
        for name in self.rooms.names():
            assert "Traceback" not in self.rooms.log_of(name), f"{name}:\n{self.rooms.log_of(name)[-4000:]}"


class Schedule(RuleBasedStateMachine):
    """What may happen; `world` lives longer than each schedule.

    What is drawn depends on what was drawn and on nothing else, as Hypothesis wants it: a rule for which there is no
    occasion does nothing, and so do all once something has failed, which the schedule's end then raises.
    """

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.note("a schedule begins")
        self.done: set[str] = set()

    def _happens(self, what: str, moment: float = 0.0) -> AbstractContextManager[None]:
        self.done.add(what.split(maxsplit=1)[0])
        return self.world.happens(what, moment)

    @rule(steps=st.sampled_from((10, 40, 150)))
    def writers_work(self, steps: int) -> None:
        if self.world.failure is None:
            with self._happens(f"{steps} steps of writers"):
                self.world.workload.work(steps)
                self.world.write_regions()

    @rule(choice=choices, number=signals, moment=moments)
    def a_room_ends(self, choice: int, number: signal.Signals, moment: float) -> None:
        if name := self._room(choice, self.world.rooms.running):
            with self._happens(f"{name} ends by {number.name}", moment):
                self.world.rooms.end(name, number)

    @rule(choice=choices, moment=moments)
    def a_room_begins(self, choice: int, moment: float) -> None:
        if name := self._room(choice, set(self.world.rooms.names()) - set(self.world.rooms.running)):
            with self._happens(f"{name} begins", moment):
                self.world.rooms.begin(name)

    @rule(choice=choices, moment=moments)
    def a_room_is_killed_and_begins(self, choice: int, moment: float) -> None:
        if name := self._room(choice, self.world.rooms.running):
            with self._happens(f"{name} is killed, and begins", moment):
                self.world.rooms.end(name, signal.SIGKILL)
                self.world.rooms.begin(name)

    @rule(choice=choices, phase=st.sampled_from(("snapshot", "delta", "catchup")))
    def a_consumer_is_killed_in_a_phase(self, choice: int, phase: str) -> None:
        if name := self._room(choice, set(self.world.rooms.sinks) & set(self.world.rooms.running)):
            with suppress(AssertionError):
                wait_for(lambda: self.world.rooms.status(name).get("phase") == phase, 1.0, every=0.005)
            with self._happens(f"{name} is killed in {self.world.rooms.status(name).get('phase')}"):
                self.world.rooms.end(name, signal.SIGKILL)

    @rule(sink=st.sampled_from(("sqlite", "tantivy")), delta_above=st.sampled_from((0, 1, 500)))
    def a_consumer_joins(self, sink: str, delta_above: int) -> None:
        name = f"joined{len(self.world.rooms.sinks)}"
        if self.world.failure is None and len(self.world.rooms.sinks) < MOST_SINKS:
            with self._happens(f"{name} joins: {sink}, delta_above {delta_above}"):
                self.world.rooms.add_consumer(name, sink, delta_above=delta_above)
                self.world.rooms.begin(name)

    @rule()
    def so_much_is_written_that_retention_passes(self) -> None:
        if self.world.failure is None:
            with self._happens("retention passes by"):
                self.world.flood()

    @rule(goes=st.booleans(), moment=moments)
    def a_partition_comes_or_goes(self, goes: bool, moment: float) -> None:
        if self.world.failure is None:
            with self._happens("a partition goes" if goes else "a partition comes", moment):
                self.world.regroup(goes)

    @rule(tables=st.lists(st.sampled_from(("plain", "parted", "regions", "flood")), min_size=1, unique=True))
    def tables_are_to_be_seeded_again(self, tables: list[str]) -> None:
        if self.world.failure is None:
            with self._happens(f"seeding again: {tables}"):
                self.world.rooms.requests.ask([f"public.{name}" for name in tables])

    @rule()
    def the_hold_is_lost(self) -> None:
        if self.world.failure is None and "bootstrap" not in self.world.rooms.running:
            with self._happens("the bootstrap's hold is lost"):
                (self.world.rooms.data_dir / "relay" / "holds" / "bootstrap.json").unlink(missing_ok=True)

    @rule(moment=moments)
    def the_slot_is_lost(self, moment: float) -> None:
        if self.world.failure is None and "slot" not in self.done:
            with self._happens("slot and commits are lost", moment):
                self.world.lose_slot()

    def teardown(self) -> None:
        """The end of the schedule; Hypothesis begins with one that does one thing over and over, and learns nothing."""
        if self.world.failure is None and len(self.done) > 1:
            with self.world.happens("the schedule ends"):
                self.world.settle()
                self.world.note("all are equal")
        if self.world.failure is not None:
            raise self.world.failure

    def _room(self, choice: int, names: Iterable[str]) -> str:
        """One of them; empty if there is none, or something has failed."""
        some = sorted(names) if self.world.failure is None else []
        return some[choice % len(some)] if some else ""


@pytest.fixture
def world(database: Database, open_folder: Path) -> Iterator[World]:
    number = announced_seed("everything")
    workload = HardWorkload(database.dsn, number, sessions=4, large_rows=300, tables=TABLES, unsaid=True)
    workload.prepare()
    make_marker(database)
    database.execute("SET lock_timeout = '20s'")
    database.execute("CREATE TABLE flood (id int PRIMARY KEY, note text)")
    regions = "CREATE TABLE regions (area int, id int, note text, PRIMARY KEY (area, id)) PARTITION BY LIST (area)"
    database.execute(regions)
    for area in (1, 2):
        database.execute(f"CREATE TABLE regions_{area} PARTITION OF regions FOR VALUES IN ({area})")
    database.execute("INSERT INTO regions SELECT 1 + i % 2, i, 'old' FROM generate_series(1, 200) i")
    database.execute("ALTER PUBLICATION walbus ADD TABLE marker, flood, regions")
    database.execute("ALTER PUBLICATION walbus SET (publish_via_partition_root = true)")
    workload.work(300)
    workload.finish()  # a slot is not made before all that is open has ended
    with AllRooms(open_folder, database, SMALL_LOG, chunk_rows=60, max_rows_per_second=3000) as rooms:
        rooms.add_consumer("cache", "sqlite", delta_above=300)
        for name in rooms.names():
            rooms.begin(name)
        wait_for(lambda: rooms.status("capture")["state"] == "streaming", 30, what="capture streams")
        try:
            yield World(rooms, workload)
        finally:
            workload.finish()


def live_through(world: World, schedules: int, steps: int) -> None:
    machine: Any = seed(announced_seed("the schedules"))(type("Lived", (Schedule,), {"world": world}))
    how = settings(
        max_examples=schedules,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    run_state_machine_as_test(machine, settings=how)


@pytest.mark.parametrize(
    ("schedules", "steps"),
    [
        pytest.param(3, 10, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        pytest.param(500, 25, marks=[pytest.mark.long, pytest.mark.exhaustive, pytest.mark.timeout(4 * 3600)]),
    ],
)
def test_whatever_happens_every_store_and_sink_comes_to_equal_the_source(
    world: World, schedules: int, steps: int
) -> None:
    live_through(world, schedules, steps)
