"""Faults 1, 15, 20, 21, 22, 23, 28, 29, 30: hard workloads, judged by the oracle's slot and by the source's tables.

The workload is `support.hard_workload`: several sessions with nested savepoints and partial rollbacks, every replica
identity, values out of line, key changes, truncates, DDL, messages, transactions of one row and of thousands. It goes
on while capture is killed, or the server crashes, in each way that capture reads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.capturing import CaptureProcess, captured, capturing
from support.database import Database, fresh_database
from support.folding import assert_folds_to_source
from support.hard_workload import HardWorkload
from support.oracle import Oracle, assert_same_transactions
from support.seed import announced_seed
from support.waiting import wait_for
from support.ways import DRAWN, SERVER, WAYS, chosen_way
from walbus.demo.postgres import EmbeddedPostgres
from walbus.relay import open_reader

pytestmark = pytest.mark.timeout(600)


def exhaustive(ways: Iterable[str], count: int) -> list[Any]:
    """Parameters (way, count) of a test that takes minutes."""
    marks = [pytest.mark.long, pytest.mark.exhaustive, pytest.mark.timeout(1200)]
    return [pytest.param(way, count, marks=marks) for way in ways]


class Judged:
    """A hard workload on a server of its own, and the log that must hold it.

    Attributes:
        database, folder, workload: of the test; `folder` is the log's.
        options: of [source].
    """

    def __init__(self, database: Database, folder: Path, way: str, seed: int) -> None:
        self.database = database
        self.folder = folder / "relay"
        self.options = WAYS[way]
        self.dice = random.Random(seed)
        self.workload = HardWorkload(database.dsn, seed, two_phase=way == "prepared")

    def prepare(self) -> None:
        """Tables, slots and log."""
        self.workload.prepare()
        with capturing(self.database.dsn, self.folder, **self.options):
            self._truth = Oracle(self.database.dsn, "walbus")

    def durable_end(self) -> int:
        """How far the log reaches."""
        with closing(open_reader(self.folder)) as reader:
            return reader.bounds().end_lsn

    def judge(self) -> None:
        """The log equals what the oracle's slot saw, and folds to the tables."""
        self.workload.finish()
        with capturing(self.database.dsn, self.folder, **self.options) as capture:
            capture.caught_up(90)
        assert_same_transactions(captured(self.folder), self._truth.transactions())
        assert_folds_to_source(self.folder, self.database.dsn)


@pytest.fixture
def judged(own_pg_server: Callable[..., EmbeddedPostgres], open_folder: Path) -> Callable[..., Any]:
    @contextmanager
    def make(way: str) -> Iterator[Judged]:
        with fresh_database(own_pg_server(**SERVER)) as database:
            seed = announced_seed("the workload")
            case = Judged(database, open_folder, chosen_way(way, database, seed), seed)
            case.prepare()
            yield case
            case.judge()

    return make


@pytest.mark.parametrize(("way", "steps"), [*((way, 400) for way in WAYS), *exhaustive(WAYS, 20_000)])
def test_a_hard_workload_is_in_the_log_as_it_was_committed(judged, way: str, steps: int) -> None:
    with judged(way) as case:
        if case.options.get("catch_up", True):
            case.workload.work(steps)
        with capturing(case.database.dsn, case.folder, **case.options):
            case.workload.work(steps)


@pytest.mark.parametrize(("way", "kills"), [(DRAWN, 3), *exhaustive(WAYS, 60)])
def test_capture_killed_under_a_hard_workload_loses_and_repeats_nothing(judged, way: str, kills: int) -> None:
    with judged(way) as case, case.workload.running():
        for _ in range(kills):
            target = case.durable_end() + case.dice.randrange(1_500_000)  # bytes of WAL
            process = CaptureProcess(case.database.dsn, case.folder, **case.options)
            wait_for(lambda p=process, t=target: case.durable_end() > t or not p.running, 120, what=process.output)
            assert process.running, process.output
            process.kill()


@pytest.mark.parametrize(("way", "crashes"), [(DRAWN, 1), *exhaustive(("streamed", "prepared"), 20)])
def test_a_server_that_crashes_under_a_hard_workload_costs_nothing(judged, way: str, crashes: int) -> None:
    with judged(way) as case, capturing(case.database.dsn, case.folder, **case.options):
        server = case.database.server
        with case.workload.running():
            for _ in range(crashes):
                target = case.durable_end() + case.dice.randrange(1_500_000)
                wait_for(lambda t=target: case.durable_end() > t, 120, what="the log grows")
                server.kill() if case.dice.random() < 0.5 else server.stop("immediate")
                server.start()
        case.database.close()  # its session died with the server
