"""The writer's socket, by which readers wait without polling: they are told of every end that is published."""

from __future__ import annotations

import socket
import threading

from walbus.relay import wake
from walbus.relay.wake import WakeServer, wake_path


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
        reader.settimeout(5)
        reader.connect(str(wake_path(tmp_path, 1)))
        assert reader.recv(16) == b"\0"
        assert greeted.wait(5)
        server.notify()
        notified.set()
        assert reader.recv(16) == b"\0"
    server.close()
