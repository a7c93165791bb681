"""Faults 1, 8, 15, 17 in the middle of catch-up steps, each judged by the oracle's slot."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing, contextmanager

import pytest

from support.capturing import CaptureProcess, CaptureThread, captured, capturing, file_log, source_of
from support.database import fresh_database
from support.oracle import Oracle
from support.seed import announced_seed
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from walbus.capture.peek import Peek
from walbus.relay import open_reader
from walbus.status import read_status

MIB = 1 << 20
STEPS = {"catch_up_step_bytes": MIB}
RUNNING = (
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND query NOT LIKE '%%activity%%'"
)
PEEK, MOVE = "%peek_binary%", "%slot_advance%"


@pytest.fixture
def folder(open_folder):
    return open_folder / "log"


@contextmanager
def backlog(database, folder, mib):
    """A log and its slot, the oracle's slot with them, and so many MiB of WAL behind both."""
    database.execute("CREATE TABLE t (id bigint PRIMARY KEY, note text)")
    with capturing(database.dsn, folder):
        truth = Oracle(database.dsn, "walbus")
    add(database, mib)
    yield truth


def add(database, mib):
    target = database.insert_lsn() + mib * MIB
    first = database.value("SELECT coalesce(max(id), 0) + 1 FROM t")
    while database.insert_lsn() < target:
        database.execute(
            "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(%s::int, %s) i", [first, first + 49]
        )
        first += 50


def durable_end(folder):
    with closing(open_reader(folder)) as reader:
        return reader.bounds().end_lsn


def steps_of(status):
    return (read_status(status) or {}).get("walbus_capture_catch_up_steps_total", 0)


@pytest.mark.timeout(240)
def test_capture_killed_in_the_middle_of_steps_loses_and_repeats_nothing(database, folder):
    dice = random.Random(announced_seed("kills"))
    with backlog(database, folder, 4) as truth:
        for _ in range(4):
            add(database, 5)
            process = CaptureProcess(database.dsn, folder, **STEPS)
            moment = in_the_middle(database, folder, dice)
            wait_for(lambda: moment() or not process.running, 60, every=0.0005)  # noqa: B023
            assert process.running, process.output
            process.kill()
        assert "catch_up.begins" in process.output
        with capturing(database.dsn, folder, **STEPS) as capture:
            capture.caught_up()
        assert captured(folder) == truth.transactions()


def in_the_middle(database, folder, dice):
    """A moment of a step: while it peeks, while the slot moves, or when some of it has become durable."""
    what, some, all_of_it = (
        dice.choice((PEEK, MOVE, None)),
        durable_end(folder) + dice.randrange(MIB),
        database.insert_lsn(),
    )
    return lambda: durable_end(folder) >= (all_of_it if what else some) or (what and database.value(RUNNING, [what]))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", [PEEK, MOVE], ids=["peek", "move"])
def test_a_source_that_crashes_in_the_middle_of_a_step_is_resumed_without_loss_or_repeat(own_pg_server, folder, moment):
    server = own_pg_server()
    status = folder.parent / "capture.json"
    with fresh_database(server) as database, backlog(database, folder, 12) as truth:
        source = source_of(database.dsn, **STEPS)
        with closing(file_log(folder, source)) as log:
            capture = CaptureThread(source, log, status)
            wait_for(lambda: database.value(RUNNING, [moment]) or steps_of(status) > 2, 60, every=0.0005)
            server.stop("immediate")
            database.close()
            server.start()
            capture.caught_up(60)
            capture.stop()
        assert steps_of(status) > 0
        assert captured(folder) == truth.transactions()


@pytest.mark.timeout(120)
def test_connections_that_are_reset_in_the_middle_of_steps_are_replaced(database, folder):
    with backlog(database, folder, 12) as truth, TcpProxy(database.server.port) as proxy:
        source = source_of(database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/"), **STEPS)
        with closing(file_log(folder, source)) as log:
            end = database.insert_lsn()
            capture = CaptureThread(source, log)
            for _ in range(3):  # or there is nothing left to read, where this thread had to wait for the processor
                wait_for(lambda: database.value(RUNNING, [PEEK]) or log.bounds().end_lsn >= end, 60, every=0.0005)
                proxy.reset()
            capture.caught_up(60)
            capture.stop()
        assert captured(folder) == truth.transactions()


def test_stopping_is_quick_where_the_connection_of_a_step_is_half_open(database, folder, monkeypatch):
    begin_peek, in_a_step = Peek.begin_peek, threading.Event()
    with backlog(database, folder, 12), TcpProxy(database.server.port) as proxy:

        def begin_and_hear_nothing(peek, upto):
            begin_peek(peek, upto)
            proxy.swallow = True
            in_a_step.set()

        monkeypatch.setattr(Peek, "begin_peek", begin_and_hear_nothing)
        source = source_of(database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/"), **STEPS)
        with closing(file_log(folder, source)) as log:
            capture = CaptureThread(source, log)
            wait_for(in_a_step.is_set, 60, what="a step runs")
            begun = time.monotonic()
            capture.stop()
            assert time.monotonic() - begun < 9
