"""Fault 22: prepared transactions, over kills of capture, crashes of the server, and a spool that is gone."""

from __future__ import annotations

import random
import shutil
from contextlib import closing

import pytest

from support.capturing import CaptureProcess, CaptureThread, captured, capturing, file_log, source_of, spool_of
from support.database import fresh_database
from support.oracle import Oracle
from support.seed import announced_seed
from support.waiting import wait_for
from walbus.capture.prepared import PREPARED_SUFFIX
from walbus.errors import SourceGap, SourceMisconfigured


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture
def source_database(database):
    """A database on the session's server, whose large transactions are streamed."""
    yield ready(database)
    for (gid,) in database.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
        database.execute(f"ROLLBACK PREPARED '{gid}'")


def ready(database):
    database.execute(f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    return database


def prepare(database, gid, first, rows=3, *, undone=0):
    """A transaction with rows from `first` on, and as many rolled back as told, prepared."""
    insert = "INSERT INTO t SELECT g, repeat('x', 300) FROM generate_series(%s::int, %s) g"
    with closing(database.connect(autocommit=False)) as session:
        session.execute(insert, [first, first + rows - 1])
        if undone:
            session.execute("SAVEPOINT s")
            session.execute(insert, [first + rows, first + rows + undone - 1])
            session.execute("ROLLBACK TO s")
        session.execute(f"PREPARE TRANSACTION '{gid}'")


def in_spool(folder):
    return [path for path in spool_of(folder).iterdir() if path.name.endswith(PREPARED_SUFFIX)]


def keys(folder):
    return [change.key[0] for transaction in captured(folder) for change in transaction.changes]


def confirmed_past(database):
    """Waits until the slot is confirmed past everything that was written so far."""
    lsn = database.insert_lsn()
    wait_for(lambda: database.confirmed_lsn() >= lsn, 60, what="the slot is confirmed")


def needs_two_phase(database):
    database.needs(15, "prepared transactions at their PREPARE")


def test_prepared_transactions_small_and_streamed_give_the_log_of_a_slot_that_knows_none(source_database, folder):
    needs_two_phase(source_database)
    dice, waiting, number = random.Random(announced_seed("prepared")), [], 0
    with capturing(source_database.dsn, folder, two_phase=True) as capture:
        truth = Oracle(source_database.dsn, "walbus")
        for _ in range(60):
            number += 1
            choice = dice.random()
            if choice < 0.4:
                prepare(
                    source_database,
                    f"g{number}",
                    number * 10_000,
                    dice.choice([1, 3, 900]),
                    undone=dice.choice([0, 5, 700]),
                )
                waiting.append(f"g{number}")
            elif choice < 0.7 and waiting:
                end = dice.choice(["COMMIT", "COMMIT", "ROLLBACK"])
                source_database.execute(f"{end} PREPARED '{waiting.pop(dice.randrange(len(waiting)))}'")
            else:
                source_database.execute(
                    "INSERT INTO t SELECT generate_series(%s::int, %s)", [number * 10_000, number * 10_000 + 2]
                )
        for gid in waiting:
            source_database.execute(f"COMMIT PREPARED '{gid}'")
        capture.caught_up()
        assert captured(folder) == truth.transactions()
        wait_for(lambda: in_spool(folder) == [], what="nothing is kept any more")


def test_what_was_prepared_survives_kills_after_the_slot_forgot_it(source_database, folder):
    needs_two_phase(source_database)
    with capturing(source_database.dsn, folder, two_phase=True):
        truth = Oracle(source_database.dsn, "walbus")
    process = CaptureProcess(source_database.dsn, folder, two_phase=True)
    prepare(source_database, "small", 0)
    prepare(source_database, "large", 1000, 900, undone=900)
    prepare(source_database, "undone", 5000)
    source_database.execute("INSERT INTO t VALUES (-1)")
    confirmed_past(source_database)
    process.kill()
    for ending in ("COMMIT PREPARED 'large'", "ROLLBACK PREPARED 'undone'"):
        source_database.execute(ending)
        process = CaptureProcess(source_database.dsn, folder, two_phase=True)
        confirmed_past(source_database)
        process.kill()
    source_database.execute("COMMIT PREPARED 'small'")
    with capturing(source_database.dsn, folder, two_phase=True) as capture:
        capture.caught_up()
        wait_for(lambda: in_spool(folder) == [], what="nothing is kept any more")
    assert captured(folder) == truth.transactions()


@pytest.mark.parametrize("way", ["kill", "immediate", "fast"])
def test_what_was_prepared_survives_a_crash_of_the_server(own_pg_server, folder, way):
    server = own_pg_server(max_prepared_transactions="30")
    with fresh_database(server) as database:
        needs_two_phase(ready(database))
        with capturing(database.dsn, folder, two_phase=True) as capture:
            truth = Oracle(database.dsn, "walbus")
            for number in range(3):
                prepare(database, f"g{number}", number * 1000, 500)
                if number:
                    database.execute(f"COMMIT PREPARED 'g{number - 1}'")
                confirmed_past(database)
                database.close()
                database.server.kill() if way == "kill" else database.server.stop(way)
                database.server.start()
                capture.streaming()
            database.execute("COMMIT PREPARED 'g2'")
            capture.caught_up()
        assert captured(folder) == truth.transactions()


@pytest.mark.timeout(240)
@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
@pytest.mark.parametrize("call", ["fdatasync", "fsync", "rename", "unlink", "pwrite64"])
def test_capture_killed_at_its_nth_system_call_loses_and_repeats_nothing_prepared(source_database, folder, call):
    needs_two_phase(source_database)
    with capturing(source_database.dsn, folder, two_phase=True):
        truth = Oracle(source_database.dsn, "walbus")
    for nth in (1, 2, 3, 5, 8):
        prepare(source_database, f"a{nth}", nth * 10_000)
        prepare(source_database, f"b{nth}", nth * 10_000 + 1000, 800, undone=500)
        if nth > 1:
            source_database.execute(f"COMMIT PREPARED 'open{before}'")  # noqa: F821 - of the round before
        prepare(source_database, f"open{nth}", nth * 10_000 + 5000)
        before = nth  # noqa: F841
        source_database.execute(f"COMMIT PREPARED 'a{nth}'")
        source_database.execute(f"COMMIT PREPARED 'b{nth}'")
        inject = ("strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={nth}")
        process = CaptureProcess(source_database.dsn, folder, prefix=inject, two_phase=True)
        try:
            process.wait(4)
        except Exception:  # it needed fewer calls than that
            process.kill()
        wait_for(lambda: not source_database.value("SELECT bool_or(active) FROM pg_replication_slots"), 60)
    source_database.execute("COMMIT PREPARED 'open8'")
    with capturing(source_database.dsn, folder, two_phase=True) as capture:
        capture.caught_up()
        wait_for(lambda: in_spool(folder) == [], what="nothing is kept any more")
    assert captured(folder) == truth.transactions()


def test_a_commit_of_what_the_spool_lost_is_a_gap(source_database, folder):
    needs_two_phase(source_database)
    with capturing(source_database.dsn, folder, two_phase=True):
        prepare(source_database, "g", 0)
        source_database.execute("INSERT INTO t VALUES (-1)")
        confirmed_past(source_database)
    for path in in_spool(folder):
        path.unlink()
    source_database.execute("COMMIT PREPARED 'g'")
    source = source_of(source_database.dsn, two_phase=True)
    with closing(file_log(folder, source)) as log:
        error = CaptureThread(source, log, spool_dir=spool_of(folder)).ended()
    assert isinstance(error, SourceGap)
    assert "not in the spool" in str(error)


def test_what_ended_while_nobody_looked_does_not_stay_in_the_spool(source_database, folder):
    """Its end was confirmed, and its file outlived a kill between the two."""
    needs_two_phase(source_database)
    with capturing(source_database.dsn, folder, two_phase=True):
        prepare(source_database, "g", 0)
        wait_for(lambda: in_spool(folder), what="it is spooled")
        (path,) = in_spool(folder)
        copy = path.read_bytes()
        source_database.execute("COMMIT PREPARED 'g'")
        wait_for(lambda: not in_spool(folder), what="it ended")
        confirmed_past(source_database)
    path.write_bytes(copy)
    with capturing(source_database.dsn, folder, two_phase=True):
        wait_for(lambda: not in_spool(folder), what="it is gone again")
    assert keys(folder) == ["0", "1", "2"]


def test_a_slot_without_two_phase_takes_it_on_and_what_was_prepared_before_comes_at_its_commit(source_database, folder):
    needs_two_phase(source_database)
    with capturing(source_database.dsn, folder, failover=False) as capture:
        truth = Oracle(source_database.dsn, "walbus")
        prepare(source_database, "before", 0)
        source_database.execute("INSERT INTO t VALUES (-1)")
        capture.caught_up()
        confirmed_past(source_database)
        assert in_spool(folder) == []
    with capturing(source_database.dsn, folder, two_phase=True, failover=False) as capture:
        prepare(source_database, "behind", 1000)
        source_database.execute("COMMIT PREPARED 'before'")
        source_database.execute("COMMIT PREPARED 'behind'")
        capture.caught_up()
    assert captured(folder) == truth.transactions()
    assert source_database.value("SELECT two_phase FROM pg_replication_slots WHERE slot_name = 'walbus'")


def refused(database, folder, **options):
    source = source_of(database.dsn, **options)
    with closing(file_log(folder, source)) as log:
        error = CaptureThread(source, log, spool_dir=spool_of(folder)).ended()
    assert isinstance(error, SourceMisconfigured), error
    return error


def test_a_slot_that_turned_to_two_phase_is_not_used_without_it(source_database, folder):
    needs_two_phase(source_database)
    with capturing(source_database.dsn, folder, two_phase=True):
        pass
    error = refused(source_database, folder)
    assert (error.where, error.mend) == ("source.two_phase", "set source.two_phase = true")


def test_a_server_that_cannot_send_prepared_transactions_is_refused_before_a_slot_is_made(source_database, folder):
    if source_database.major >= 15:
        pytest.skip("15 and newer can")
    error = refused(source_database, folder, two_phase=True)
    assert "PostgreSQL 14" in str(error)
    assert source_database.execute("SELECT FROM pg_replication_slots") == []
