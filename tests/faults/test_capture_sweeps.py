"""Faults 1, 5, 6: capture killed at every system call between the walsender and the disk, and disks that fail or fill.

Each point is a process of its own on the same log, which begins with what the one before it left, while a hard workload
(`support.hard_workload`) goes on and keeps transactions open over its end. The log must equal what the oracle's slot
saw, and fold to the source's tables, in each way that capture reads: whole transactions, streamed ones, prepared ones,
and steps of catch-up.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.capturing import CaptureProcess, captured, capturing, flushed_lsn, source_of
from support.database import Database, fresh_database
from support.folding import assert_folds_to_source
from support.hard_workload import HardWorkload
from support.oracle import Oracle, assert_same_transactions
from support.seed import announced_seed
from support.strace import CALLS, Reach, failing, killing, reaches, syncs_tried_again, traced
from support.waiting import wait_for
from support.ways import DRAWN, SERVER, WAYS, chosen_way
from walbus.demo.postgres import EmbeddedPostgres
from walbus.relay import open_reader

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="no strace"),
    pytest.mark.timeout(600),
]

SEGMENT = 1 << 17  # small, so that every run rolls segments


def every(*values: Any) -> Any:
    """Parameters of a full sweep: they, and no count."""
    return pytest.param(*values, None, marks=[pytest.mark.long, pytest.mark.exhaustive, pytest.mark.timeout(7200)])


class Swept:
    """A source under work, and a log that process after process goes on with."""

    def __init__(self, database: Database, folder: Path, way: str, seed: int) -> None:
        self.database = database
        self.folder = folder / "relay"
        self.trace = folder / "trace"
        self.dice = random.Random(seed)
        self._options = WAYS[way]
        self._workload = HardWorkload(database.dsn, seed, two_phase=way == "prepared", large_rows=1000)
        self._rows = 0
        self.output = ""  #: of the last process

    def prepare(self) -> None:
        """Tables, slots and log."""
        self._workload.prepare()
        self.database.execute("CREATE TABLE filler (id int PRIMARY KEY, note text)")
        self.database.execute("ALTER PUBLICATION walbus ADD TABLE filler")
        with capturing(self.database.dsn, self.folder, **self._options):
            self._truth = Oracle(self.database.dsn, "walbus")

    def work(self) -> None:
        """More for the next process: a backlog of some MB, so that catch-up has steps, and open transactions."""
        self._workload.work(120)
        for _ in range(3):
            self._rows += 2000
            fill = "INSERT INTO filler SELECT n, repeat('f', 300) FROM generate_series(%s::int, %s) n"
            self.database.execute(fill, [self._rows - 1999, self._rows])

    def start(self, prefix: tuple[str, ...]) -> CaptureProcess:
        """The next process, once the one before it has left the slot."""
        wait_for(lambda: not self.database.value("SELECT bool_or(active) FROM pg_replication_slots"), 60)
        return CaptureProcess(self.database.dsn, self.folder, prefix=prefix, segment_bytes=SEGMENT, **self._options)

    def run(self, prefix: tuple[str, ...], *, ends_it: Callable[[], bool] = lambda: False) -> bool:
        """Works, and lets a process catch up under a command; whether it lived to the end (and was killed then).

        Args:
            prefix: the command.
            ends_it: whether something happened that ends the process, which is waited for then.
        """
        self.work()
        target = flushed_lsn(source_of(self.database.dsn))
        process = self.start(prefix)
        said = len(process.output)
        try:
            wait_for(
                lambda: not process.running or (self.durable_end() >= target and not ends_it()),
                120,
                every=0.05,
                what=process.output,
            )
            return process.running
        finally:
            process.kill()
            self.output = process.output[said:]

    def has_failed(self) -> bool:
        """Whether a call has failed as it was to: also one of another thread, which ends the process a little later."""
        return self.trace.exists() and "(INJECTED)" in self.trace.read_text()

    def durable_end(self) -> int:
        """How far the log reaches."""
        with closing(open_reader(self.folder)) as reader:
            return reader.bounds().end_lsn

    def reaches(self) -> dict[str, Reach]:
        """The calls of an undisturbed process."""
        assert self.run(traced(self.trace))
        return reaches(self.trace, self.folder)

    def points(self, count: int | None) -> list[tuple[str, int]]:
        """So many points of all, drawn by the seed; every point if no number is given."""
        found = [(call, n) for call, (before, total) in self.reaches().items() for n in range(before + 1, total + 1)]
        if count is None:
            return found
        calls = self.dice.sample([call for call in CALLS if any(point[0] == call for point in found)], count)
        return [self.dice.choice([point for point in found if point[0] == call]) for call in calls]

    def check(self) -> None:
        """The log is what the oracle's slot saw."""
        with capturing(self.database.dsn, self.folder, **self._options) as capture:
            capture.caught_up(60)
        assert_same_transactions(captured(self.folder), self._truth.transactions())

    def finish(self) -> None:
        """The log is what the oracle's slot saw, and folds to the tables."""
        self._workload.finish()
        self.check()
        assert_folds_to_source(self.folder, self.database.dsn)


@pytest.fixture
def sweep(own_pg_server: Callable[..., EmbeddedPostgres], open_folder: Path) -> Callable[..., Any]:
    @contextmanager
    def make(way: str) -> Iterator[Swept]:
        with fresh_database(own_pg_server(**SERVER)) as database:
            seed = announced_seed("work and points")
            swept = Swept(database, open_folder, chosen_way(way, database, seed), seed)
            swept.prepare()
            yield swept
            swept.finish()

    return make


@pytest.mark.parametrize(("way", "count"), [(DRAWN, 4), *(every(way) for way in WAYS)])
def test_capture_killed_at_any_call_loses_and_repeats_nothing(sweep, way: str, count: int | None) -> None:
    with sweep(way) as swept:
        for number, (call, nth) in enumerate(swept.points(count), 1):
            lived = swept.run(killing(call, nth))
            print(f"{call} {nth}: {'not reached' if lived else 'killed'}")
            if number % 10 == 0:
                swept.check()


@pytest.mark.parametrize(
    ("way", "call", "count"),
    [
        (DRAWN, "fdatasync", 1),
        (DRAWN, "fsync", 1),
        *(every(way, call) for way in ("prepared", "catch-up") for call in ("fdatasync", "fsync")),
    ],
)
def test_a_sync_that_fails_ends_capture_and_is_not_tried_again(sweep, way: str, call: str, count: int | None) -> None:
    with sweep(way) as swept:
        before, total = swept.reaches()[call]
        reached = range(before + 1, total + 1)
        for nth in reached if count is None else swept.dice.sample(reached, count):
            lived = failed = True
            while lived and failed:  # just when it was killed, being at the end: it could not show what it would do
                swept.trace.unlink()
                lived = swept.run(failing(call, "EIO", nth, nth, swept.trace), ends_it=swept.has_failed)
                failed = swept.has_failed()
            assert lived != failed, f"{call} {nth}: {swept.output}"
            assert not syncs_tried_again(swept.trace), f"{call} {nth}: {swept.output}"


@pytest.mark.parametrize(("way", "count"), [(DRAWN, 1), every("prepared"), every("catch-up")])
def test_a_disk_that_is_full_for_a_while_is_waited_for(sweep, way: str, count: int | None) -> None:
    with sweep(way) as swept:
        before, total = swept.reaches()["pwrite64"]
        reached = range(before + 1, total + 1, 3)
        for nth in reached if count is None else swept.dice.sample(reached, count):
            if not swept.run(failing("pwrite64", "ENOSPC", nth, nth + 6, swept.trace)):
                said = f"write {nth}: {swept.output}"
                assert "LogFull" in said and "capture.streaming" not in said, said  # whoever starts it tries again
