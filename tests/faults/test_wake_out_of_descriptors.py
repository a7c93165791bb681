"""Fault 39: a writer that ran out of descriptors accepts its readers again once it has some."""

from __future__ import annotations

import errno
import itertools
import socket

from walbus.relay.wake import WakeServer, wake_path


def test_readers_are_accepted_again_once_there_are_descriptors(tmp_path, monkeypatch):
    accept, calls = socket.socket.accept, itertools.count()

    def refuse_first(listener):
        if next(calls) < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", refuse_first)
    server = WakeServer(tmp_path, 1)
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(60)
        reader.connect(str(wake_path(tmp_path, 1)))
        assert reader.recv(1) == b"\0"
    server.close()
