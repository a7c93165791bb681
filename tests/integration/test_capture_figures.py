"""What capture tells of the slot and of itself, in its status file and through `walbus status`."""

from __future__ import annotations

from contextlib import closing, contextmanager

import psycopg
import pytest

from support.capturing import CaptureProcess, CaptureThread, source_of
from support.database import fresh_database
from support.memory_log import MemoryLog
from support.waiting import wait_for
from walbus import native
from walbus.metrics import METRIC_NAMES
from walbus.status import read_status


@contextmanager
def told(dsn, folder, **options):
    """Capture into memory; gives the log, and a function for a figure of the status file."""
    path = folder / "capture.json"
    log = MemoryLog()
    capture = CaptureThread(source_of(dsn, **options), log, path)
    try:
        capture.streaming()
        yield log, lambda name: (read_status(path) or {}).get(name)  # noqa: PLW0108
    finally:
        log.full = False
        capture.stop()


def test_the_wal_that_the_slot_holds_back_is_told_while_the_disk_is_full(own_pg_server, open_folder, capsys):
    server = own_pg_server(max_slot_wal_keep_size="48MB")
    with fresh_database(server) as database, told(database.dsn, open_folder) as (log, figure):
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        wait_for(lambda: figure("walbus_capture_slot_safe_bytes") is not None, what="the slot was looked at")
        safe, retained = figure("walbus_capture_slot_safe_bytes"), figure("walbus_capture_retained_wal_bytes")
        log.full = True
        database.execute("INSERT INTO t VALUES (1)")
        for _ in range(2):
            database.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'x', 'x')")
        more = retained + (16 << 20)
        wait_for(lambda: figure("walbus_capture_retained_wal_bytes") > more, 60, what="more is held back")
        wait_for(lambda: figure("walbus_capture_slot_safe_bytes") < safe - (16 << 20), what="less is safe")
        assert figure("wal_status") in {"reserved", "extended"}
        wait_for(lambda: figure("walbus_capture_lag_seconds") > 0, what="the lag grows")
        for _ in range(3):  # past what may be kept, and no checkpoint yet
            database.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'x', 'x')")
        wait_for(lambda: figure("wal_status") == "unreserved", what="the slot is nearly lost")
    assert capsys.readouterr().out.count("slot.nearly_lost") == 1


def test_a_slot_without_a_limit_has_no_figure_for_it(database, open_folder):
    with told(database.dsn, open_folder) as (_, figure):
        wait_for(lambda: figure("walbus_capture_retained_wal_bytes") is not None, what="the slot was looked at")
        assert figure("walbus_capture_slot_safe_bytes") is None
        assert figure("walbus_capture_spooled_bytes") == 0


def test_lag_is_the_age_of_the_oldest_commit_that_is_not_durable(database, open_folder):
    with told(database.dsn, open_folder) as (log, figure):
        wait_for(lambda: figure("walbus_capture_lag_seconds") is not None, what="the lag is told")
        log.full = True
        with closing(psycopg.connect(database.dsn, autocommit=True)) as session:
            session.execute("SELECT pg_logical_emit_message(true, 'test', 'it waits')")
        wait_for(lambda: (figure("walbus_capture_lag_seconds") or 0) > 1.5, what="the lag grows")
        assert figure("walbus_capture_lag_bytes") > 0
        log.full = False
        wait_for(lambda: figure("walbus_capture_lag_seconds") < 0.5, what="the lag is gone")


@pytest.mark.one_version
def test_every_figure_has_a_metrics_name(database, open_folder):
    with told(database.dsn, open_folder) as (_, figure):
        wait_for(lambda: figure("walbus_capture_retained_wal_bytes") is not None, what="the slot was looked at")
    names = {name for name in read_status(open_folder / "capture.json") or {} if name.startswith("walbus_")}
    assert names <= METRIC_NAMES


@pytest.mark.parametrize(("pure", "core", "lines"), [("1", "pure (WALBUS_PURE=1)", 1), ("0", "native", 0)])
def test_a_capture_without_the_native_core_says_so_once(database, open_folder, pure, core, lines):
    if core == "native" and native.core_in_use() != "native":
        pytest.skip(f"the native core is not in use: {native.core_in_use()}")
    capture = CaptureProcess(database.dsn, open_folder / "relay", prefix=("env", f"WALBUS_PURE={pure}"))
    try:
        status = open_folder / "capture.json"
        wait_for(lambda: (read_status(status) or {}).get("state") == "streaming", what="capture streams")
        database.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        wait_for(lambda: (read_status(status) or {}).get("walbus_capture_reconnects_total"), what="it connects again")
        assert (read_status(status) or {}).get("core") == core
        assert capture.output.count("capture.slow_core") == lines
    finally:
        assert capture.terminate() == 0
