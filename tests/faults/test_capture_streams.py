"""Faults 6, 20, 21: kills and a full disk while transactions are streamed, and while they are replayed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import closing, contextmanager, suppress

import pytest

from support.capturing import CaptureProcess, CaptureThread, captured, capturing, file_log, source_of, spool_of
from support.memory_log import MemoryLog
from support.oracle import Oracle
from support.services import missing
from support.waiting import wait_for
from walbus.capture import CATALOG_FILE, receiving
from walbus.status import read_status


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture
def streamed(database):
    database.execute(f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    return database


def insert(session, first, rows):
    statement = "INSERT INTO t SELECT g, repeat('x', 400) FROM generate_series(%s::int, %s) g"
    session.execute(statement, [first, first + rows - 1])


def spooled(folder):
    return sum(path.stat().st_size for path in spool_of(folder).iterdir()) if spool_of(folder).exists() else 0


@contextmanager
def prepared(database, folder):
    """Slot, publication and log are made, and the oracle's slot with them."""
    with capturing(database.dsn, folder):
        truth = Oracle(database.dsn, "walbus")
    yield truth


def test_capture_killed_in_the_middle_of_streams_and_of_a_replay_loses_and_repeats_nothing(streamed, folder):
    with prepared(streamed, folder) as truth:
        process = CaptureProcess(streamed.dsn, folder)
        with closing(streamed.connect(autocommit=False)) as one, closing(streamed.connect(autocommit=False)) as two:
            for number in range(3):
                insert(one, number * 10_000, 2000)
                insert(two, 500_000 + number * 10_000, 2000)
                wait_for(lambda: spooled(folder) > 500_000, 60, what="both are streamed")
                process.kill()
                process = CaptureProcess(streamed.dsn, folder)
            insert(one, 900_000, 30_000)
            wait_for(lambda: spooled(folder) > 10_000_000, 60, what="all of it is streamed")
            one.commit()
            process.kill()  # some time in the replay, or before or behind it
            two.rollback()
        with capturing(streamed.dsn, folder) as capture:
            capture.caught_up()
        assert captured(folder) == truth.transactions()
        assert list(spool_of(folder).iterdir()) == []


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
@pytest.mark.parametrize("call", ["pwrite64", "pread64", "unlink", "fdatasync", "openat"])
def test_capture_killed_at_its_nth_system_call_loses_and_repeats_nothing_streamed(streamed, folder, call):
    with prepared(streamed, folder) as truth:
        for nth in (1, 3, 7, 20):
            count = nth + (400 if call == "openat" else 0)  # the interpreter opens hundreds before it begins
            inject = ("strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={count}")
            process = CaptureProcess(streamed.dsn, folder, prefix=inject)
            with closing(streamed.connect(autocommit=False)) as session:
                insert(session, nth * 100_000, 4000)
                session.execute("SAVEPOINT s")
                insert(session, nth * 100_000 + 10_000, 3000)
                session.execute("ROLLBACK TO s")
                insert(session, nth * 100_000 + 20_000, 1000)
                session.commit()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # it needed fewer calls than that
                process.kill()
            wait_for(lambda: not streamed.value("SELECT bool_or(active) FROM pg_replication_slots"), 60)
        with capturing(streamed.dsn, folder) as capture:
            capture.caught_up()
        assert captured(folder) == truth.transactions()


def test_a_replay_in_small_parts_keeps_status_and_chores_going(streamed, folder, monkeypatch):
    """However long a replay lasts: each of its parts is followed by a look at everything else."""
    monkeypatch.setattr(receiving, "ROUND_BYTES", 20_000)
    source, status = source_of(streamed.dsn), folder.parent / "capture.json"
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, status, spool_dir=spool_of(folder))
        capture.streaming()
        truth = Oracle(streamed.dsn, "walbus")
        with closing(streamed.connect(autocommit=False)) as session:
            insert(session, 0, 20_000)
            session.commit()
        capture.caught_up(60)
        lsn = streamed.insert_lsn()
        wait_for(lambda: streamed.confirmed_lsn() >= lsn, what="it is confirmed")
        capture.stop()
    assert captured(folder) == truth.transactions()


@pytest.fixture
def small_disk(folder, request):
    """A folder on a disk of 3 MB of its own, and what makes that larger."""
    place = folder.parent / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        missing("small disk", "no privilege to mount")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", place], check=True))
    return place, lambda: subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)


def test_a_full_disk_under_the_spool_stands_still_and_goes_on(streamed, folder, small_disk):
    place, enlarge = small_disk
    log, status = MemoryLog(), folder.parent / "capture.json"
    capture = CaptureThread(source_of(streamed.dsn), log, status, spool_dir=place)
    capture.streaming()
    with closing(streamed.connect(autocommit=False)) as session:
        insert(session, 0, 20_000)
        wait_for(lambda: read_status(status)["state"] == "disk full", 60, what="the spool is full")
        session.commit()
    lsn = streamed.insert_lsn()
    assert log.bounds().end_lsn < lsn
    enlarge()
    capture.durable_to(lsn)
    wait_for(lambda: list(place.iterdir()) == [], what="the spool is empty")
    capture.stop()
    assert log.bounds().last_seq == 20_000


@pytest.mark.parametrize("streaming", [True, False])
def test_a_disk_that_is_full_with_all_of_capture_on_it_says_so_there_and_ends_nothing(streamed, small_disk, streaming):
    place, enlarge = small_disk
    source, status = source_of(streamed.dsn, streaming=streaming), place / "status" / "capture.json"
    spool, catalog = place / "spool", place / "relay" / CATALOG_FILE

    def begin(log):
        return CaptureThread(source, log, status, spool_dir=spool, catalog_path=catalog)

    with closing(file_log(place / "relay", source)) as log:
        capture = begin(log)
        capture.streaming()
        with closing(streamed.connect(autocommit=False)) as session:
            insert(session, 0, 20_000)
            session.commit()
        wait_for(lambda: capture.error or read_status(status)["state"] == "disk full", 60, what="the disk is full")
        with suppress(OSError):  # to its last block, of which capture may take or give one meanwhile
            (place / "filler").write_bytes(b"x" * (os.statvfs(place).f_bavail + 1) * 4096)
        told = wait_for(lambda: read_status(status)["updated"], what="a status that is not just being written over")
        wait_for(lambda: capture.error or read_status(status)["updated"] > told + 1, what="it is told still")
        begun = time.monotonic()
        capture.stop()
        assert time.monotonic() - begun < 5
        capture = begin(log)
        enlarge()
        capture.caught_up()
        capture.stop()
    assert len([c for t in captured(place / "relay") for c in t.changes]) == 20_000
