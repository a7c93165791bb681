"""A relay that begins to serve its log: whatever comes between leaves no file open, and no half of a server."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from support.relay_log import FileEngine, transaction
from support.relay_server import Relay
from support.waiting import wait_for
from walbus.errors import DamagedRecord, LogMissing
from walbus.relay import open_reader, server
from walbus.relay.consumer_desk import ConsumerDesk
from walbus.relay.control import ControlFile, control_epochs, control_path
from walbus.relay.fs import Files
from walbus.relay.reader import FileLogReader
from walbus.relay.streams import StreamServer
from walbus.relay.table_tally import TableTally


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log that nobody writes to."""
    engine = FileEngine(tmp_path / "log")
    with closing(engine.open_writer()) as writer:
        writer.append(transaction(0x1000))
        writer.sync()
    return engine.folder


def open_below(folder: Path) -> list[str]:
    """The files in a folder that this process has open."""
    names = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            names.append(str(fd.readlink()))
    return [name for name in names if name.startswith(f"{folder}/")]


def test_a_reader_that_cannot_be_opened_leaves_no_file_open(log: Path) -> None:
    path = control_path(log, control_epochs(log)[-1])
    with closing(ControlFile(Files(), os.open(path, os.O_RDWR))) as control:
        control.supersede(7)  # another writer is about to take over
    with pytest.raises(LogMissing):
        open_reader(log)
    path.write_bytes(bytes(512))
    with pytest.raises(DamagedRecord) as caught:
        open_reader(log)
    assert "durable end" in str(caught.value)
    assert open_below(log) == []  # the errors are held: nothing that they hold has closed a file by going


def test_a_server_that_is_stopped_while_it_opens_the_log_leaves_no_file_open(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = threading.Event()
    kept = []  # readers that nobody can collect

    async def never(_desk: ConsumerDesk, reader: object, *_: object) -> None:
        kept.append(reader)
        opening.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ConsumerDesk, "open", never)
    relay = Relay(tmp_path / "relay", log)
    assert opening.wait(60)
    assert open_below(log)
    relay.stop.set()
    relay.thread.join(60)
    assert not relay.thread.is_alive()
    assert open_below(log) == []


def test_a_server_that_is_stopped_before_it_counts_by_table_leaves_no_file_open(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts was made on a thread for a task that had been cancelled meanwhile, and was nobody's."""
    begins, left = threading.Event(), threading.Event()
    begin, close = TableTally.__init__, StreamServer.close
    kept = []  # what nobody can collect

    def slowly(tally: TableTally, reader: FileLogReader) -> None:
        kept.append(tally)
        begins.set()
        assert left.wait(60)
        begin(tally, reader)

    async def behind_the_tasks(streams: StreamServer) -> None:
        left.set()
        await close(streams)

    monkeypatch.setattr(TableTally, "__init__", slowly)
    monkeypatch.setattr(StreamServer, "close", behind_the_tasks)
    relay = Relay(tmp_path / "relay", log)
    assert begins.wait(60)
    relay.stop.set()
    relay.thread.join(60)
    assert not relay.thread.is_alive()
    assert left.is_set()
    assert open_below(log) == []


def test_a_takeover_while_the_log_is_opened_for_standbys_is_waited_for(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [LogMissing("another writer is about to take over", where=str(log), mend="wait")]

    def opened(folder: Path, *, standbys: object = None, **options: Any) -> object:
        if standbys is None and missing:
            raise missing.pop()
        return open_reader(folder, standbys=standbys, **options)  # type: ignore[arg-type]  # as the server gave it

    monkeypatch.setattr(server, "open_reader", opened)
    relay = Relay(tmp_path / "relay", log, required_standbys=["b"])
    try:
        wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server is ready")
        assert not missing
        assert relay.get("/v1/chain")[0] == 200
    finally:
        relay.stop.set()
        relay.thread.join(60)
    assert open_below(log) == []
