"""The writer's socket, by which readers wait without polling: they are told of every end that is published."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from support.relay_log import FileEngine, transaction
from walbus.position import ORIGIN
from walbus.relay import wake
from walbus.relay.wake import Waker, WakeServer, wake_path


def test_what_is_published_while_a_reader_is_accepted_wakes_it(tmp_path, monkeypatch):
    send, greeted, notified = wake._send, threading.Event(), threading.Event()

    def greet(reader: socket.socket) -> bool:
        there = send(reader)
        if not greeted.is_set():
            greeted.set()
            notified.wait(0.5)  # which it does only where a notification comes between greeting and list
        return there

    monkeypatch.setattr(wake, "_send", greet)
    server = WakeServer(tmp_path, 1)
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(60)
        reader.connect(str(wake_path(tmp_path, 1)))
        assert reader.recv(16) == b"\0"
        assert greeted.wait(60)
        server.notify()
        notified.set()
        assert reader.recv(16) == b"\0"
    server.close()


def test_each_sync_wakes_a_reader_that_looks_at_no_clock(tmp_path, monkeypatch):
    """Readers look now and then too, should their writer have stopped: here they do not."""
    for name in ("_RECHECK_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(wake, name, 600.0)
    pause, waits = Waker._pause, threading.Semaphore(0)

    def counted(waker: Waker, writer_epoch: int, seconds: float) -> None:
        waits.release()
        pause(waker, writer_epoch, seconds)

    monkeypatch.setattr(Waker, "_pause", counted)
    engine = FileEngine(tmp_path / "log")
    writer, reader, seen = engine.open_writer(), engine.open_reader(), ORIGIN
    for lsn in (16, 32, 48):
        with ThreadPoolExecutor(1) as threads:
            woken = threads.submit(reader.wait, seen, 30)
            assert waits.acquire(timeout=30)
            if lsn == 16:
                assert waits.acquire(timeout=30)  # the first time it is the greeting that ends the waiting
            writer.append(transaction(lsn))
            seen = writer.sync().end
            begun = time.monotonic()
            assert woken.result()
            assert time.monotonic() - begun < 20
        while waits.acquire(blocking=False):
            pass
    engine.close()
