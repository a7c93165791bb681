"""Faults 15, 21, 23, 28, 29, 30: hard workloads, judged twice: by the oracle's slot, and by the source's tables.

The workload is `support.hard_workload`: several sessions with nested savepoints and partial rollbacks, every replica
identity, values out of line, key changes, truncates, DDL, messages, transactions of one row and of thousands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.capturing import captured, capturing
from support.database import Database
from support.folding import assert_folds_to_source
from support.hard_workload import HardWorkload
from support.oracle import Oracle, assert_same_transactions
from support.seed import announced_seed


@pytest.fixture
def folder(open_folder: Path) -> Path:
    return open_folder / "relay"


@contextmanager
def judged(database: Database, folder: Path, workload: HardWorkload, **source: object) -> Iterator[None]:
    """Prepares tables, slots and log; at the end the log equals the oracle's slot and folds to the source."""
    workload.prepare()
    with capturing(database.dsn, folder, **source):
        truth = Oracle(database.dsn, "walbus")
    yield
    workload.finish()
    with capturing(database.dsn, folder, **source) as capture:
        capture.caught_up(60)
    assert_same_transactions(captured(folder), truth.transactions())
    assert_folds_to_source(folder, database.dsn)


@pytest.mark.parametrize("steps", [1500, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_a_hard_workload_is_in_the_log_as_it_was_committed(database: Database, folder: Path, steps: int) -> None:
    workload = HardWorkload(database.dsn, announced_seed("the workload"))
    with judged(database, folder, workload), capturing(database.dsn, folder):
        workload.work(steps)
