"""Faults 14 to 17: streams cut at any byte, stalled, or without their walsender; volumes that were restored."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from contextlib import closing, contextmanager, suppress

import psycopg
import pytest

from support.capturing import CaptureThread, captured, capturing, file_log, source_of
from support.database import fresh_database
from support.oracle import Oracle, assert_same_transactions
from support.seed import announced_seed
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from walbus.errors import SourceReplaced


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture
def quick_reconnects(monkeypatch):
    """Pauses between two connections do not grow."""
    monkeypatch.setattr("walbus.capture.pauses.LONGEST_PAUSE", 0.05)
    monkeypatch.setattr("walbus.capture.pauses.FIRST_PAUSE", 0.05)


@contextmanager
def proxied(database, folder):
    """Capture through a proxy, the proxy, and the oracle."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    with capturing(database.dsn, folder):
        truth = Oracle(database.dsn, "walbus")
    with TcpProxy(database.server.port) as proxy:
        source = source_of(database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/"))
        with closing(file_log(folder, source)) as log:
            capture = CaptureThread(source, log)
            try:
                capture.streaming()
                yield capture, proxy, truth
            finally:
                capture.stop()


def cut_at(database, folder, places):
    """Two small transactions for each place, where the stream of the first one is cut."""
    with proxied(database, folder) as (capture, proxy, truth):
        for number, place in enumerate(places):
            cuts = proxy.cuts
            proxy.reset(place)
            for key in (2 * number, 2 * number + 1):
                database.execute("INSERT INTO t VALUES (%s, repeat('x', %s))", [key, key % 40])
            wait_for(lambda c=cuts: proxy.cuts > c, 60, what=f"the stream is cut behind {place} bytes")
        capture.caught_up()
    assert_same_transactions(captured(folder), truth.transactions())


@pytest.mark.usefixtures("quick_reconnects")
def test_a_stream_that_is_cut_at_a_byte_loses_and_repeats_nothing(database, folder):
    dice = random.Random(announced_seed("places of cuts"))
    cut_at(database, folder, [1, 2, 6, 9, *sorted(dice.sample(range(10, 700), 10))])


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("quick_reconnects")
def test_a_stream_that_is_cut_at_every_byte_loses_and_repeats_nothing(database, folder):
    cut_at(database, folder, range(1, 700))


def test_a_stream_that_stands_still_for_a_while_goes_on(database, folder):
    with proxied(database, folder) as (capture, proxy, truth):
        for number in range(3):
            proxy.flowing.clear()
            database.execute(
                "INSERT INTO t SELECT n, 'x' FROM generate_series(%s::int, %s) n", [number * 9, number * 9 + 8]
            )
            before = capture.log.bounds().last_seq
            with pytest.raises(AssertionError):  # for one second nothing arrives
                wait_for(lambda b=before: capture.log.bounds().last_seq > b, 1)
            proxy.flowing.set()
            capture.caught_up()
    assert_same_transactions(captured(folder), truth.transactions())


def batches(database, stop_after):
    """Commits rows through crashes; returns when so many were committed."""
    number = wait_for(lambda: database.value("SELECT coalesce(max(id), 0) + 1 FROM t"), 60, what="the server answers")
    done = 0
    while done < stop_after:
        try:
            with closing(psycopg.connect(database.dsn, autocommit=True)) as session:
                while done < stop_after:
                    session.execute("INSERT INTO t VALUES (%s, 'x')", [number])
                    number, done = number + 1, done + 1
        except psycopg.OperationalError:
            number += 1  # nobody knows whether it was committed


def crash(server, way, dice):
    """Ends a walsender, or the server, in the hardest way."""
    if way == "walsender":
        query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'walbus'"
        with suppress(psycopg.OperationalError, ProcessLookupError), server.connect() as session:
            (pid,) = session.execute(query).fetchone() or (None,)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)  # and the postmaster starts everybody anew
        return
    server.stop("immediate") if dice.random() < 0.5 else server.kill()
    server.start()


def crashes(own_pg_server, folder, way, rounds):
    server, dice = own_pg_server(), random.Random(announced_seed(f"crashes of the {way}"))
    with fresh_database(server) as database:
        database.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
        with capturing(database.dsn, folder) as capture:
            truth = Oracle(database.dsn, "walbus")
            for _ in range(rounds):
                batches(database, dice.randrange(1, 120))
                crash(server, way, dice)
            batches(database, 5)
            capture.caught_up(60)
        assert_same_transactions(captured(folder), truth.transactions())


@pytest.mark.usefixtures("quick_reconnects")
def test_walsenders_that_are_killed_lose_and_repeat_nothing(own_pg_server, folder):
    crashes(own_pg_server, folder, "walsender", 3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quick_reconnects")
@pytest.mark.parametrize("way", ["walsender", "server"])
def test_many_crashes_lose_and_repeat_nothing(own_pg_server, folder, way):
    crashes(own_pg_server, folder, way, 25)


# A volume that was restored.


@pytest.fixture
def restored(own_pg_server, folder):
    """A database whose volume went back behind what the log holds; the same system identifier, timeline and slot."""
    server = own_pg_server()
    copy = server.folder / "copy"
    with server.connect() as session:
        session.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    with capturing(server.dsn(), folder) as capture:
        rows(server, 0, 5)
        capture.caught_up()
    server.stop("fast")
    subprocess.run(["cp", "-a", server.data, copy], check=True)
    server.start()
    with capturing(server.dsn(), folder) as capture:
        rows(server, 5, 20)
        capture.caught_up()
    server.stop("immediate")
    subprocess.run(["rm", "-rf", server.data], check=True)
    copy.rename(server.data)
    server.start()
    return server


def rows(server, first, last):
    with server.connect() as session:
        for number in range(first, last):
            session.execute("INSERT INTO t VALUES (%s, repeat('x', 100))", [number])


def refused_unchanged(server, folder):
    """What capture ends with; the log stays as it was."""
    before, source = captured(folder), source_of(server.dsn())
    with closing(file_log(folder, source)) as log:
        error = CaptureThread(source, log).ended()
    assert captured(folder) == before
    return error


def test_a_volume_that_was_restored_behind_the_log_is_refused(restored, folder):
    error = refused_unchanged(restored, folder)
    assert isinstance(error, SourceReplaced)
    assert "set back" in error.what


def test_a_restored_volume_with_other_commits_at_the_same_places_is_refused(restored, folder):
    rows(restored, 5, 40)  # the same statements, the same LSNs and xids, another time
    error = refused_unchanged(restored, folder)
    assert isinstance(error, SourceReplaced)
    assert "history is not the log's" in error.what


def test_a_restored_volume_whose_next_commit_lies_behind_the_logs_end_is_refused(restored, folder):
    with restored.connect() as session:
        session.execute("INSERT INTO t SELECT n, repeat('y', 1000) FROM generate_series(1000, 3000) n")
    error = refused_unchanged(restored, folder)
    assert isinstance(error, SourceReplaced)
    assert "without the log's last transaction" in error.what
