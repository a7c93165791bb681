"""Faults 1, 6, 15, 16, 17: kills, outages, broken connections and a full disk, each judged by the oracle's slot."""

from __future__ import annotations

import random
import shutil
import threading
import time
from contextlib import closing, contextmanager

import psycopg
import pytest
from structlog.testing import capture_logs

from support.capturing import CaptureProcess, CaptureThread, captured, capturing, file_log, source_of
from support.database import fresh_database
from support.log_view import log_records
from support.memory_log import MemoryLog
from support.oracle import Oracle
from support.seed import announced_seed
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from walbus.records import Kind, body_of, iter_changes
from walbus.relay import open_reader
from walbus.status import read_status


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


class Load:
    """A writer that goes on until it is stopped; loses its session and comes back."""

    def __init__(self, database, seed):
        self._database = database
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.committed = 0

    def _run(self):
        while not self._stop.is_set():
            try:
                with closing(psycopg.connect(self._database.dsn)) as session:
                    while not self._stop.is_set():
                        self._transaction(session)
            except psycopg.Error:
                self._stop.wait(0.05)

    def _transaction(self, session):
        for _ in range(self._dice.choice([1, 1, 2, 5, 40])):
            key, text = self._dice.randrange(500), "x" * self._dice.choice([3, 50, 4000])
            session.execute("INSERT INTO t VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET a = excluded.a", [key, text])
            if self._dice.random() < 0.2:
                session.execute("DELETE FROM t WHERE id = %s", [self._dice.randrange(500)])
        session.commit()
        self.committed += 1

    def __enter__(self):
        self._thread.start()
        wait_for(lambda: self.committed > 3, what="the load runs")
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(60)


def make_table(database):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    database.execute("ALTER TABLE t ALTER a SET STORAGE EXTERNAL")


def durable_end(folder):
    with closing(open_reader(folder)) as reader:
        return reader.bounds().end_lsn


@contextmanager
def prepared(database, folder):
    """Slot, publication and log are made, and the oracle's slot with them."""
    make_table(database)
    with capturing(database.dsn, folder):
        truth = Oracle(database.dsn, "walbus")
    yield truth


@pytest.mark.timeout(600)
def test_capture_killed_at_random_points_loses_and_repeats_nothing(database, folder):
    seed = announced_seed("load and kills")
    dice = random.Random(seed)
    with prepared(database, folder) as truth:
        with Load(database, seed):
            for _ in range(12):
                target = durable_end(folder) + dice.randrange(400_000)  # bytes of WAL; or before the first one
                process = CaptureProcess(database.dsn, folder)
                wait_for(lambda p=process, t=target: durable_end(folder) > t or not p.running, 60, every=0.001)
                assert process.running, process.output
                process.kill()
        with capturing(database.dsn, folder) as capture:
            capture.caught_up()
        assert captured(folder) == truth.transactions()


@pytest.mark.long  # .ci/run has the drawn ones of test_capture_sweeps
@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64,write", "sendto", "rename", "link"])
def test_capture_killed_at_its_nth_system_call_loses_and_repeats_nothing(database, folder, call):
    with prepared(database, folder) as truth:
        for nth in (1, 2, 4, 9):
            database.execute(
                "INSERT INTO t SELECT n, repeat('x', 300) FROM generate_series(%s::int, %s) n", [nth * 1000, nth * 1100]
            )
            database.execute("UPDATE t SET a = 'y' WHERE id < 1050")
            inject = ("strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={nth}")
            process = CaptureProcess(database.dsn, folder, prefix=inject)
            try:
                process.wait(5)
            except Exception:  # it needed fewer calls than that
                process.kill()
            wait_for(lambda: not database.value("SELECT bool_or(active) FROM pg_replication_slots"), 60)
        with capturing(database.dsn, folder) as capture:
            capture.caught_up()
        assert captured(folder) == truth.transactions()


@pytest.mark.parametrize("way", ["kill", "immediate"])
def test_a_crash_of_the_server_loses_and_repeats_nothing(own_pg_server, folder, way):
    server = own_pg_server()
    with fresh_database(server) as database:
        with prepared(database, folder) as truth, capturing(database.dsn, folder) as capture:
            with Load(database, 1) as load:
                for _ in range(2):
                    server.kill() if way == "kill" else server.stop("immediate")
                    server.start()
                    target = load.committed + 5
                    wait_for(lambda t=target: load.committed > t, 60, what="the load runs again")
                capture.streaming()
            capture.caught_up()
        assert captured(folder) == truth.transactions()


def test_a_source_that_is_away_is_waited_for_with_one_line_for_each_reason(own_pg_server, folder):
    server = own_pg_server()
    status = folder.parent / "capture.json"
    with fresh_database(server) as database, capture_logs() as said:
        make_table(database)
        source = source_of(database.dsn)
        with closing(file_log(folder, source)) as log:
            capture = CaptureThread(source, log, status)
            capture.streaming()
            server.stop("fast")
            wait_for(lambda: (read_status(status) or {})["state"] == "waiting to reconnect", what="it waits")
            away_until = time.monotonic() + 3
            wait_for(lambda: time.monotonic() > away_until)
            server.start()
            capture.streaming()
            with closing(psycopg.connect(database.dsn, autocommit=True)) as session:
                session.execute("INSERT INTO t VALUES (1, 'back')")
            capture.caught_up()
            wait_for(lambda: (read_status(status) or {})["walbus_capture_reconnects_total"] == 1)
            capture.stop()
        assert len(captured(folder)) == 1
    told = [line["error"] for line in said if line["event"] == "capture.interrupted"]
    assert told
    assert len(told) == len(set(told)) <= 5, told  # it broke off, shuts down, is not there, starts up, broke off again


def test_a_half_open_connection_is_noticed_and_replaced(own_pg_server, folder):
    server = own_pg_server(wal_sender_timeout="3s")
    with fresh_database(server) as database, TcpProxy(server.port) as proxy:
        make_table(database)
        dsn = database.dsn.replace(f":{server.port}/", f":{proxy.port}/")
        with capturing(dsn, folder) as capture:
            database.execute("INSERT INTO t VALUES (1, 'before')")
            capture.durable_to(database.insert_lsn())
            proxy.swallow = True
            database.execute("INSERT INTO t VALUES (2, 'in the hole')")
            seen = proxy.connections
            wait_for(lambda: proxy.connections > seen, 40, what="capture gives the connection up")
            proxy.swallow = False
            proxy.reset()
            target = database.insert_lsn()
            capture.durable_to(target, 60)
        assert len(captured(folder)) == 2


@pytest.mark.timeout(400)
def test_resets_and_one_byte_reads_lose_and_repeat_nothing(database, folder):
    with prepared(database, folder) as truth, TcpProxy(database.server.port) as proxy:
        proxy.piece = 1
        dsn = database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/")
        source = source_of(dsn)
        with closing(file_log(folder, source)) as log:
            capture = CaptureThread(source, log)
            for number in range(6):
                before = database.insert_lsn()
                database.execute(
                    "INSERT INTO t SELECT n, repeat('x', 20) FROM generate_series(%s::int, %s) n",
                    [number * 200, number * 200 + 150],
                )
                wait_for(lambda b=before: log.bounds().end_lsn > b, 60, what="something arrives")
                proxy.reset()
            proxy.piece = 1 << 16
            capture.durable_to(database.insert_lsn(), 60)
            capture.stop()
        assert captured(folder) == truth.transactions()


def test_capture_stops_at_once_while_its_slot_waits_for_an_old_transaction(database):
    with closing(psycopg.connect(database.dsn)) as old:
        old.execute("CREATE TABLE t (id int PRIMARY KEY)")  # an xid, and no commit
        capture = CaptureThread(source_of(database.dsn), MemoryLog())
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_create_logical%' AND wait_event_type = 'Lock'"
        )
        wait_for(lambda: database.value(query) > 0, what="the slot waits")
        begun = time.monotonic()
        capture.stop()
        assert time.monotonic() - begun < 5


def test_a_full_disk_stops_confirming_and_capture_goes_on_by_itself(own_pg_server, open_folder):
    server = own_pg_server(wal_sender_timeout="4s")
    status = open_folder / "capture.json"
    with fresh_database(server) as database:
        make_table(database)
        log = MemoryLog()
        capture = CaptureThread(source_of(database.dsn), log, status)
        capture.streaming()
        pid = "SELECT active_pid FROM pg_replication_slots"
        walsender = database.value(pid)
        log.full = True
        database.execute("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 3000) n")
        wait_for(lambda: (read_status(status) or {})["walbus_capture_disk_full"] == 1, what="the gauge is up")
        told = read_status(status)["walbus_capture_confirmed_lsn"]
        wait_for(lambda: database.confirmed_lsn() >= told, what="the last confirmation has arrived")
        confirmed = database.confirmed_lsn()
        full_until = time.monotonic() + 9  # longer than the server waits for a sign of life
        wait_for(lambda: time.monotonic() > full_until)
        assert database.confirmed_lsn() == confirmed
        log.full = False
        capture.caught_up()
        assert database.value(pid) == walsender
        wait_for(lambda: (read_status(status) or {})["walbus_capture_disk_full"] == 0, what="the gauge is down")
        capture.stop()
        assert log.bounds().last_seq >= 3000


class Crowded(MemoryLog):
    """A full disk on which retention makes room, once something was refused."""

    def __init__(self):
        self.is_full = self.refused = False
        super().__init__()

    @property
    def full(self):
        self.refused = self.refused or self.is_full
        return self.is_full

    @full.setter
    def full(self, full):
        self.is_full = full

    def trim(self, now):
        self.is_full = self.is_full and not self.refused
        return super().trim(now)


@pytest.mark.parametrize("filled", ["before it starts", "while it streams"])
def test_retention_makes_room_on_a_full_disk_that_capture_waits_for(database, filled):
    make_table(database)
    log = Crowded()
    log.full = filled == "before it starts"
    capture = CaptureThread(source_of(database.dsn), log)
    if filled == "while it streams":
        capture.streaming()
        log.full = True
    database.execute("INSERT INTO t VALUES (1, 'x')")
    capture.caught_up()
    capture.stop()
    assert log.refused


def test_a_layout_never_stands_behind_the_first_row_that_needs_it_after_a_kill(database, folder):
    make_table(database)
    with capturing(database.dsn, folder):
        pass
    for number in range(3):
        database.execute(f"ALTER TABLE t ADD COLUMN c{number} int")
        database.execute("INSERT INTO t (id) VALUES (%s)", [number])
        process = CaptureProcess(database.dsn, folder)
        wait_for(lambda p=process: durable_end(folder) >= database.insert_lsn() or not p.running, 60)
        process.kill()
    told = set()
    with closing(open_reader(folder)) as reader:
        for header, record in log_records(reader):
            for change in iter_changes(body_of(record, header)):
                if header.kind == Kind.SCHEMA:
                    told.add(change.schema_id)
                else:
                    assert change.schema_id in told
    assert len(told) == 3
