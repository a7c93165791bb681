"""Faults 8 to 11, 25 and 38: a slot's life under a capture that streams, stalls or is away; each told by its cause."""

from __future__ import annotations

import threading
from contextlib import closing

import psycopg
import pytest
from pydantic import SecretStr

from support.capturing import CaptureProcess, CaptureThread, captured, capturing, file_log, filled, refusal, source_of
from support.database import fresh_database
from support.memory_log import MemoryLog
from support.oracle import Oracle
from support.waiting import wait_for
from walbus.capture.refusals import Refusal, meaning
from walbus.capture.sessions import open_session
from walbus.capture.slot import FAILOVER_VERSION
from walbus.errors import Directive, SourceError, SourceGap, SourceMisconfigured, SourceUnavailable, directive_of
from walbus.lsn import parse_lsn
from walbus.status import read_status


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


def write_wal(database, segments):
    for _ in range(segments):
        database.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'x', 'x')")


def version_of(database):
    return int(database.value("SHOW server_version_num"))


# Given up by PostgreSQL.


def test_a_slot_that_is_given_up_under_a_stalled_capture_is_a_gap_with_its_cause(own_pg_server, open_folder):
    server = own_pg_server(max_slot_wal_keep_size="1MB")
    status = open_folder / "capture.json"
    with fresh_database(server) as database:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        log = MemoryLog()
        capture = CaptureThread(source_of(database.dsn), log, status)
        capture.streaming()
        log.full = True
        database.execute("INSERT INTO t VALUES (1)")
        wait_for(lambda: (read_status(status) or {})["walbus_capture_disk_full"] == 1, what="capture stalls")
        write_wal(database, 4)
        database.execute("CHECKPOINT")
        assert database.value("SELECT wal_status FROM pg_replication_slots") == "lost"
        log.full = False
        error = capture.ended()
        assert isinstance(error, SourceGap)
        assert "max_slot_wal_keep_size" in error.what
        assert "raise max_slot_wal_keep_size" in (error.mend or "")


def test_a_slot_that_was_idle_for_too_long_is_a_gap_with_its_cause(own_pg_server, folder):
    server = own_pg_server()
    with fresh_database(server) as database:
        if version_of(database) < 180_000:
            pytest.skip("idle_replication_slot_timeout is of PostgreSQL 18")
        filled(database, folder)
        database.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'")
        database.execute("SELECT pg_reload_conf()")

        def timed_out():
            database.execute("CHECKPOINT")
            return database.value("SELECT invalidation_reason FROM pg_replication_slots") == "idle_timeout"

        wait_for(timed_out, 60, what="the slot is given up", every=0.3)
        error = refusal(database.dsn, folder)
        assert isinstance(error, SourceGap)
        assert "idle_replication_slot_timeout" in error.what
        assert "idle_replication_slot_timeout" in (error.mend or "")


def test_what_a_lost_slot_says_to_a_stream_is_looked_into_and_not_read(own_pg_server):
    """The words differ by version and by language; the code is the same, and the next look tells the cause."""
    server = own_pg_server(max_slot_wal_keep_size="1MB")
    with fresh_database(server) as database, closing(open_session(SecretStr(database.dsn))) as session:
        database.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")
        write_wal(database, 4)
        database.execute("CHECKPOINT")
        with pytest.raises(psycopg.Error) as caught:
            session.execute(
                "SELECT pg_logical_slot_peek_binary_changes('walbus', NULL, NULL, 'proto_version', '1',"
                " 'publication_names', 'walbus')"
            )
        found = meaning(Refusal(caught.value.sqlstate, "", caught.value.diag.source_function), "streaming")
        assert directive_of(found) is Directive.RETRY


def test_wal_that_was_removed_behind_the_slots_back_is_a_gap(own_pg_server, folder):
    server = own_pg_server()
    with fresh_database(server) as database:
        filled(database, folder)
        write_wal(database, 2)
        needed = database.value("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots")
        (server.data / "pg_wal" / needed).unlink()
        error = refusal(database.dsn, folder)
        assert isinstance(error, SourceGap)
        assert "is gone from the server" in error.what


# Taken away by somebody.


def test_a_slot_that_was_dropped_and_made_again_under_a_running_capture_is_a_gap(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source = source_of(database.dsn)
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log)
        capture.streaming()
        database.execute("INSERT INTO t VALUES (1)")
        capture.caught_up()

        def replaced():
            database.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
            database.execute("SELECT pg_drop_replication_slot('walbus')")
            database.execute("INSERT INTO t VALUES (2)")
            database.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")
            return True

        wait_for(replaced, what="the slot is another one")
        error = capture.ended()
        assert isinstance(error, SourceGap)
        assert "made again" in error.what or "it is gone" in error.what


def test_a_slot_that_somebody_advanced_is_told_apart_from_one_that_was_made_again(database, folder):
    filled(database, folder)
    with closing(psycopg.connect(database.dsn)) as old:
        old.execute("SELECT pg_current_xact_id()")  # holds restart_lsn back
        database.execute("SELECT pg_logical_emit_message(true, 'x', 'x')")
        database.execute("SELECT pg_replication_slot_advance('walbus', pg_current_wal_flush_lsn())")
        error = refusal(database.dsn, folder)
    assert isinstance(error, SourceGap)
    assert "advanced" in error.what


# How it is made.


def test_a_new_slot_goes_over_to_standbys_unless_the_configuration_says_no(database):
    if version_of(database) < FAILOVER_VERSION:
        pytest.skip("slots are copied to standbys from PostgreSQL 17 on")
    query = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'walbus'"
    log = MemoryLog()
    for failover in (True, False, True):  # made so, then changed
        capture = CaptureThread(source_of(database.dsn, failover=failover), log)
        capture.streaming()
        capture.stop()
        assert database.value(query) is failover


@pytest.mark.parametrize(
    ("setting", "told"), [("max_replication_slots", "max_replication_slots"), ("max_wal_senders", "max_wal_senders")]
)
def test_the_mend_of_a_full_house_names_the_setting(own_pg_server, open_folder, setting, told):
    server = own_pg_server(**{setting: "1"})
    status = open_folder / "capture.json"
    taken = ["SELECT pg_create_physical_replication_slot('taken')"] if setting == "max_replication_slots" else []
    with server.connect() as session:
        for statement in taken:
            session.execute(statement)
    if taken:
        error = CaptureThread(source_of(server.dsn()), MemoryLog()).ended()
        assert isinstance(error, SourceMisconfigured)  # nobody gives a slot back by himself
        assert told in (error.mend or "")
        return
    with closing(psycopg.connect(server.dsn() + "?replication=database")):
        capture = CaptureThread(source_of(server.dsn()), MemoryLog(), status)
        wait_for(lambda: told in str((read_status(status) or {}).get("error")), what="capture tells why it waits")
    capture.streaming()  # as soon as the other one has gone
    capture.stop()


# Two captures.


@pytest.mark.timeout(300)
def test_a_stopped_capture_that_comes_back_after_another_took_over_is_fenced(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(database.dsn, folder) as capture:
        truth = Oracle(database.dsn, "walbus")
    streams = "SELECT bool_or(active) FROM pg_replication_slots"
    wait_for(lambda: not database.value(streams), 60, what="the one that made the slot has left it")
    zombie = CaptureProcess(database.dsn, folder)
    database.execute("INSERT INTO t VALUES (1)")
    wait_for(lambda: database.value(streams), 60, what="the first streams")
    zombie.pause()
    try:
        with wait_for(lambda: _taken_over(database, folder), 60, what="the second takes over", every=0.5) as capture:
            database.execute("INSERT INTO t VALUES (2)")
            capture.caught_up()
            zombie.resume()
            assert zombie.wait(60) == 1
            assert "Fenced" in zombie.output
            database.execute("INSERT INTO t VALUES (3)")
            capture.caught_up()
    finally:
        zombie.kill()
    assert captured(folder) == truth.transactions()


def _taken_over(database, folder):
    """A second capture, as soon as the first one's lease is over."""
    source = source_of(database.dsn)
    log = file_log(folder, source)
    return _Running(source, log)


class _Running:
    def __init__(self, source, log):
        self._log = log
        self._capture = CaptureThread(source, log)

    def __enter__(self):
        self._capture.streaming()
        return self._capture

    def __exit__(self, *_):
        self._capture.stop()
        self._log.close()


# Neighbours.


def test_the_slot_of_an_idle_database_moves_beside_a_busy_one(pg_server, database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    stop = threading.Event()
    with fresh_database(pg_server) as neighbour:
        neighbour.execute("CREATE TABLE busy (id int PRIMARY KEY, a text)")

        def work():
            with closing(psycopg.connect(neighbour.dsn, autocommit=True)) as session:
                number = 0
                while not stop.is_set():
                    number += 200
                    session.execute(
                        "INSERT INTO busy SELECT n, repeat('x', 500) FROM generate_series(%s::int, %s) n",
                        [number, number + 199],
                    )

        worker = threading.Thread(target=work)
        with capturing(database.dsn, folder):
            target = database.insert_lsn()
            worker.start()
            try:
                for _ in range(3):  # again and again, not once
                    wait_for(lambda t=target: database.insert_lsn() > t + 100_000, 60, what="the neighbour works")
                    target = database.insert_lsn()
                    wait_for(lambda t=target: database.confirmed_lsn() >= t, 60, what="the slot moves")
                wait_for(lambda: _kept_from(database) >= target, 60, what="WAL is let go", every=0.2)
            finally:
                stop.set()
                worker.join(60)
    assert captured(folder) == []


def _kept_from(database):
    """From where WAL is kept for the slot; it follows what a checkpoint tells of running transactions."""
    database.execute("CHECKPOINT")
    return parse_lsn(database.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'walbus'"))


# The publication at decode time.


def decode(database):
    """What decoding the slot's next changes gives: the error, and the notices."""
    notices = []
    with closing(psycopg.connect(database.dsn, autocommit=True)) as session:
        session.add_notice_handler(lambda notice: notices.append((notice.sqlstate, notice.source_function)))
        try:
            session.execute(
                "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('walbus', NULL, NULL, 'proto_version', '1',"
                " 'publication_names', 'walbus')"
            )
        except psycopg.Error as error:
            return error, notices
    return None, notices


def test_how_a_server_says_that_the_publication_was_missing_needs_no_language(own_pg_server, monkeypatch):
    """Where PostgreSQL came with its translations the test speaks German; elsewhere the codes are what counts."""
    monkeypatch.setenv("LANGUAGE", "de")
    server = own_pg_server(lc_messages="C.UTF-8")
    with fresh_database(server) as database:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        database.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")
        database.execute("INSERT INTO t VALUES (1)")
        database.execute("CREATE PUBLICATION walbus FOR TABLE t")
        error, notices = decode(database)
        if version_of(database) >= 180_000:
            assert (error, notices[0]) == (None, ("55000", "LoadPublications"))
        else:
            assert error is not None
            found = meaning(Refusal(error.sqlstate, "", error.diag.source_function), "streaming")
            assert isinstance(found, SourceGap)
        with closing(open_session(SecretStr(database.dsn))) as session, pytest.raises(psycopg.Error) as caught:
            session.execute("SELECT pg_replication_slot_advance('nowhere', '0/1')")
        missing = meaning(Refusal(caught.value.sqlstate, "", caught.value.diag.source_function), "streaming")
        assert isinstance(missing, SourceUnavailable)  # the next look says that there is no slot


def test_capture_stops_without_confirming_where_the_publication_was_missing_in_any_language(
    own_pg_server, folder, monkeypatch
):
    monkeypatch.setenv("LANGUAGE", "de")
    server = own_pg_server(lc_messages="C.UTF-8")
    with fresh_database(server) as database:
        filled(database, folder)
        database.execute("DROP PUBLICATION walbus")
        database.execute("INSERT INTO t VALUES (2)")
        before = database.insert_lsn()
        database.execute("CREATE PUBLICATION walbus FOR TABLE t")
        database.execute("INSERT INTO t VALUES (3)")
        error = refusal(database.dsn, folder)
        assert isinstance(error, SourceError)
        assert directive_of(error) is Directive.STOP
        assert database.confirmed_lsn() < before
        assert len(captured(folder)) == 1
