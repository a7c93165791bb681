"""A sink that is online, and rows that statements change without events: at quiescence the sink is the source."""

from __future__ import annotations

import os
import signal

import pytest

from support.compare import assert_sinks_equal
from support.single_rooms import SingleRooms
from support.waiting import wait_for
from support.whole_system import make_marker

SILENT = (
    "ALTER TABLE t ADD d int DEFAULT 7",
    "ALTER TABLE t ALTER n TYPE int USING n + 1",
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'bad'",
    "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (code)",
)


def equal(dsn, replica) -> bool:
    assert_sinks_equal(dsn, cache=replica)
    return True


def came_by_log(system) -> list[str]:
    lines = [line for line in system.log().splitlines() if "consumer.rows_came_by_the_log" in line]
    return [table for line in lines for table in ("t", "u") if f"'public.{table}'" in line]


@pytest.mark.long
def test_a_replica_follows_statements_that_change_rows_without_events(database, oracle, open_folder):
    make_marker(database)
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, n int, m mood)")
    database.execute("INSERT INTO t SELECT i, 'c' || i, i, 'sad' FROM generate_series(1, 300) i")
    with SingleRooms(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        truth = oracle()
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is filled", every=0.2)
        wait_for((system.data_dir / "relay" / "catalog.json").exists, what="the catalog is remembered")
        for number, statement in enumerate(SILENT):
            database.execute(statement)
            database.execute(f"UPDATE t SET n = -1 WHERE id = {number + 1}; DELETE FROM t WHERE id = {100 + number}")
            wait_for(lambda: equal(database.dsn, replica), 60, what=statement, every=0.2)
        system.wait_until_at_rest(database)
        system.check(database, truth)


@pytest.mark.long
def test_rows_come_by_the_log_and_none_is_read_again_while_the_source_is_idle(database, open_folder):
    """The log's last position is the event's own, and whoever goes on there is told it again."""
    make_marker(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    database.execute("INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)")
    with SingleRooms(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is filled", every=0.2)
        wait_for((system.data_dir / "relay" / "catalog.json").exists, what="the catalog is remembered")
        for table in ("t", "u"):
            database.execute(f"ALTER TABLE {table} ADD d int DEFAULT 7")
            wait_for(lambda: equal(database.dsn, replica), 60, what=f"{table} is right", every=0.2)
            wait_for(lambda table=table: came_by_log(system)[-1:] == [table], 60, what=f"{table} is not stale any more")
        assert came_by_log(system) == ["t", "u"]
        assert "consumer.rows_incomplete" not in system.log()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_rows_are_read_again_though_their_table_got_another_name_meanwhile(database, open_folder):
    make_marker(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("INSERT INTO t SELECT generate_series(1, 10)")
    with SingleRooms(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is filled", every=0.2)
        wait_for((system.data_dir / "relay" / "catalog.json").exists, what="the catalog is remembered")
        bootstrap = system.pid("bootstrap")
        assert bootstrap is not None
        os.kill(bootstrap, signal.SIGSTOP)
        try:
            database.execute("ALTER TABLE t ADD d int DEFAULT 7")
            wait_for(lambda: "consumer.rows_stale" in system.log(), 60, what="the event has come")
            database.execute("ALTER TABLE t RENAME TO renamed")
            database.execute("INSERT INTO renamed VALUES (11)")  # a name enters the log with a row
            wait_for(lambda: '"renamed"' in (system.data_dir / "relay" / "catalog.json").read_text(), 60)
        finally:
            os.kill(bootstrap, signal.SIGCONT)
        wait_for(lambda: equal(database.dsn, replica), 120, what="it is read under its new name", every=0.2)
