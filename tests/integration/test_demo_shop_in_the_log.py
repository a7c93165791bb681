"""The shop's work, captured while it happens, equals what a second slot saw."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from support.log_view import log_transactions
from support.waiting import wait_for
from walbus.capture import identify, run_capture
from walbus.config import SourceConfig
from walbus.demo.load import ShopLoad
from walbus.relay import open_reader, open_writer

pytestmark = pytest.mark.one_version


@contextmanager
def capturing(source: SourceConfig, folder: Path):
    """Capture in a thread, as `walbus capture` runs it in a process."""
    stop = threading.Event()

    def run() -> None:
        with_identity = identify(source)
        log = open_writer(folder, with_identity, segment_bytes=1 << 20, retention_hours=1, retention_bytes=None)
        try:
            run_capture(source, log, spool_dir=folder.parent / "spool", stop=stop, status_path=None)
        finally:
            log.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_the_log_of_the_shop_is_what_a_second_slot_saw(database, oracle, tmp_path: Path):
    load = ShopLoad(database.dsn, rate=300, seed=11)
    load.prepare(800)
    database.execute("CREATE PUBLICATION walbus FOR TABLES IN SCHEMA public")
    truth = oracle("walbus")
    source = SourceConfig(dsn=SecretStr(database.dsn), slot=f"s_{database.name}")
    load.start()
    for _ in range(2):  # the second capture resumes where the first stopped
        with capturing(source, tmp_path):
            wait_for(lambda: database.confirmed_lsn(source.slot), what="the slot is made")
            goal = load.transactions + 300
            wait_for(lambda goal=goal: load.transactions > goal, 60, what="the load goes on")
    load.stop()
    with capturing(source, tmp_path):
        end = database.insert_lsn()
        wait_for(lambda: database.confirmed_lsn(source.slot) >= end, 60, what="all is captured")
    reader = open_reader(tmp_path)
    expected = truth.transactions()
    found = log_transactions(reader)
    reader.close()
    assert len(found) > 400
    assert found == expected[-len(found) :]  # the oracle's slot is the older one
