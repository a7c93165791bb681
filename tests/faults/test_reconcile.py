"""A slot that is lost: after `walbus snapshot --reconcile` log, store and sinks are the source again, by the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.bootstrap_rig import source_rows
from support.compare import assert_sinks_equal
from support.database import Database
from support.net_log import assert_log_tells, net_changes, told
from support.waiting import wait_for
from support.walbus_command import walbus
from support.whole_system import WholeSystem, make_marker


def equal(dsn: str, replica: Path) -> bool:
    assert_sinks_equal(dsn, cache=replica)
    return True


def keys(database: Database, table: str) -> dict[str, dict[str, str | None]]:
    return {str(row["id"]): row for row in source_rows(database, table)}


def lose_slot(database: Database) -> None:
    wait_for(
        lambda: database.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'walbus'") is False,
        what="the slot is free",
    )
    database.drop_slot("walbus")


def reconcile(system: WholeSystem, *arguments: str) -> None:
    ended = walbus("snapshot", "--reconcile", *arguments, "-c", str(system.config))
    assert ended.code == 0, ended.stderr


@pytest.mark.long
def test_after_a_lost_slot_the_difference_in_the_log_is_exactly_what_was_missed(
    database: Database, open_folder: Path
) -> None:
    make_marker(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int, big text)")
    database.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    database.execute("CREATE TABLE u (id int PRIMARY KEY, n int)")
    with WholeSystem(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        database.execute("INSERT INTO t SELECT i, i, repeat('x', 4000) FROM generate_series(1, 300) i")
        database.execute("INSERT INTO u SELECT i, i FROM generate_series(1, 50) i")
        system.wait_until_at_rest(database)
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is filled", every=0.2)
        before = {table: keys(database, table) for table in ("public.t", "public.u")}
        assert system.stop() == 0
        lose_slot(database)
        # What nobody will ever tell:
        database.execute("INSERT INTO t SELECT i, i, repeat('y', 4000) FROM generate_series(1001, 1040) i")
        database.execute("DELETE FROM t WHERE id BETWEEN 11 AND 30")
        database.execute("UPDATE t SET n = -n WHERE id BETWEEN 41 AND 60")
        database.execute("UPDATE t SET id = 5000, n = 0 WHERE id = 100")
        database.execute("UPDATE u SET n = n WHERE id < 10")  # changes nothing
        reconcile(system)
        after = {table: keys(database, table) for table in ("public.t", "public.u")}
        system.start()
        system.wait_until_streaming()
        folder = system.data_dir / "relay"
        wait_for(lambda: len(told(folder)) >= 3, 60, what="the differences of all three tables are in the log")
        expected = sorted(
            (op, table, (key,))
            for table in before
            for key in before[table].keys() | after[table].keys()
            for op in [_op(before[table].get(key), after[table].get(key))]
            if op
        )
        assert sorted(net_changes(folder)) == expected
        database.execute("UPDATE t SET n = 7 WHERE id = 1001")
        system.wait_until_at_rest(database)
        for table in ("public.t", "public.u"):
            assert_log_tells(folder, database, table)
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is right", every=0.2)
        wait_for(lambda: "consumer.rows_came_by_the_log" in system.log(), 60, what="the sink knows that")
        assert "consumer.rows_incomplete" not in system.log()  # it read no table again
        ended = walbus("verify", "-c", str(system.config))
        assert ended.code == 0, ended.stdout + ended.stderr


def _op(was: dict[str, str | None] | None, now: dict[str, str | None] | None) -> str:
    if was is None or now is None:
        return "insert" if was is None else "delete"
    return "update" if was != now else ""


@pytest.mark.long
def test_a_slot_lost_under_load_with_kills_while_it_is_reconciled(database: Database, open_folder: Path) -> None:
    import threading

    import psycopg

    make_marker(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int, big text)")
    database.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    database.execute("INSERT INTO t SELECT i, 0, repeat('x', 3000) FROM generate_series(1, 2000) i")
    stop = threading.Event()
    errors: list[BaseException] = []
    rounds: list[int] = []

    def write() -> None:
        try:
            number = 0
            with psycopg.connect(database.dsn, autocommit=True) as session:
                while not stop.is_set():
                    number += 1
                    session.execute("UPDATE t SET n = n + 1 WHERE id = %s", [number * 7 % 2000 + 1])
                    session.execute("DELETE FROM t WHERE id = %s", [number * 13 % 2000 + 1])
                    insert = "INSERT INTO t VALUES (%s, 0, repeat('z', 3000)) ON CONFLICT DO NOTHING"
                    session.execute(insert, [number * 11 % 2500 + 1])
                    rounds.append(number)
        except BaseException as error:
            errors.append(error)

    with WholeSystem(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        system.wait_until_at_rest(database)
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is filled", every=0.2)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            system.stop()
            lose_slot(database)
            missed = len(rounds)
            wait_for(lambda: len(rounds) > missed + 300, 60, what="much is missed")
            reconcile(system)
            system.start()
            system.wait_until_streaming()
            folder = system.data_dir / "relay"
            for room in ("bootstrap", "capture", "bootstrap", "capture"):
                wait_for(lambda room=room: system.kill(room), 60, what=f"{room} is killed")
                wait_for(lambda room=room: system.pid(room), 60, what=f"{room} is back")
            wait_for(lambda: {one["table"] for one in told(folder)} >= {"public.t"}, 60, what="t is reconciled")
        finally:
            stop.set()
            writer.join()
        assert not errors
        system.wait_until_at_rest(database)
        assert_log_tells(folder, database, "public.t")
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is right", every=0.2)
