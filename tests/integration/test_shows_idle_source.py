"""An idle source keeps nobody waiting: a table is seeded although nothing is written behind the last commit."""

from __future__ import annotations

import time
from pathlib import Path

from support.database import Database
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker

#: PostgreSQL writes WAL of its own after some 15 s, and would help.
SOON = 9.0


def test_a_commit_that_is_the_last_of_the_wal_does_not_hold_back_seeding(database: Database, open_folder: Path) -> None:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    database.execute("INSERT INTO items VALUES (1, 'one')")
    make_marker(database)
    with WholeSystem(open_folder, database.dsn, {}, source={"slot": f"s_{database.name}"}) as system:
        system.start()
        system.wait_until_streaming()
        database.execute("UPDATE marker SET n = n + 1")
        committed = time.monotonic()
        wait_for(lambda: tables_of(system) == {"consistent"}, 60, what="the tables are consistent")
        assert time.monotonic() - committed < SOON
        assert system.stop() == 0


def tables_of(system: WholeSystem) -> set[str]:
    return {table["state"] for table in system.status("bootstrap")["tables"]}
