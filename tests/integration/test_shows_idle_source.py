"""An idle source keeps nobody waiting: the log's end passes the last commit, although nothing is written behind it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.database import Database
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker

pytestmark = pytest.mark.one_version


def test_the_log_passes_a_commit_that_is_the_last_of_the_wal_and_tables_are_seeded(
    database: Database, open_folder: Path
) -> None:
    make_marker(database)
    with WholeSystem(open_folder, database.dsn, {}, source={"slot": f"s_{database.name}"}) as system:
        system.start()
        system.wait_until_streaming()
        with nothing_of_its_own(database):
            for _ in range(3):
                database.execute("UPDATE marker SET n = n + 1")
                lsn = database.insert_lsn()
                wait_for(lambda lsn=lsn: system.end().commit_lsn >= lsn, what="the log's end passes the last commit")
        wait_for(lambda: tables_of(system) == {"consistent"}, 60, what="the tables are consistent")
        assert system.stop() == 0


@contextmanager
def nothing_of_its_own(database: Database) -> Iterator[None]:
    """PostgreSQL's background writer stands still: some 15 seconds behind a commit it writes WAL, and would help."""
    pid = database.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def tables_of(system: WholeSystem) -> set[str]:
    return {table["state"] for table in system.status("bootstrap")["tables"]}
