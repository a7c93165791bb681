"""A way to a broker on which the first batch of each partition is refused, as by a broker that does not lead it yet.

with refusing(kafka) as way:
    ... clients of way.bootstrap ...
    assert way.refused

The batch is answered in the broker's name with NOT_LEADER_OR_FOLLOWER, and never gets there; what is on its way behind
it does: the refusal waits a moment for the second batch.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

_SECONDS = 0.3  # that a refusal waits for a second batch
_PRODUCE = 0
_FLEXIBLE = 9  # the version of Produce from which on lengths are varints
_NOT_LEADER = 6


class _Batch(NamedTuple):
    """What a Produce request asks for, which librdkafka sends for one partition each."""

    version: int
    correlation: int
    topic: bytes
    partition: int


class RefusingWay:
    """Forwards connections to a broker of the loopback, and refuses first batches.

    Args:
        bootstrap: `HOST:PORT` of the broker, as it calls itself.

    Attributes:
        bootstrap: where clients find it through this way.
        refused: topic and partition of each batch that was refused.
    """

    def __init__(self, bootstrap: str) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._target = int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        here: int = self._listener.getsockname()[1]
        self.bootstrap, self.refused = f"127.0.0.1:{here}", list[tuple[str, int]]()
        name = host.encode()
        self._told, self._tells = name + struct.pack(">i", self._target), name + struct.pack(">i", here)
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no connections any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                answering = threading.Lock()
                for act in (self._asked, self._answered):
                    threading.Thread(target=act, args=(client, server, answering), daemon=True).start()

    def _asked(self, client: socket.socket, server: socket.socket, answering: threading.Lock) -> None:
        waiting = dict[tuple[str, int], Callable[[], None]]()

        def refuse(place: tuple[str, int], batch: _Batch) -> None:
            with answering, contextlib.suppress(OSError):
                if waiting.pop(place, None) is not None:
                    client.sendall(_framed(_refusal(batch)))

        with contextlib.suppress(OSError), closing(server):
            for frame in _frames(client):
                batch = _batch(frame)
                if batch is None:
                    server.sendall(_framed(frame))
                    continue
                place = (batch.topic.decode(), batch.partition)
                if self._is_first(place):
                    waiting[place] = later = lambda place=place, batch=batch: refuse(place, batch)
                    threading.Timer(_SECONDS, later).start()
                    continue
                waiting.get(place, lambda: None)()
                server.sendall(_framed(frame))

    def _answered(self, client: socket.socket, server: socket.socket, answering: threading.Lock) -> None:
        with contextlib.suppress(OSError), closing(client):
            for frame in _frames(server):
                with answering:
                    client.sendall(_framed(frame.replace(self._told, self._tells)))

    def _is_first(self, place: tuple[str, int]) -> bool:
        with self._lock:
            if place in self.refused:
                return False
            self.refused.append(place)
        return True


@contextmanager
def refusing(bootstrap: str) -> Iterator[RefusingWay]:
    """A way to that broker."""
    with closing(RefusingWay(bootstrap)) as way:
        yield way


def _frames(source: socket.socket) -> Iterator[bytes]:
    with source.makefile("rb") as stream:
        while len(head := stream.read(4)) == 4:
            (size,) = struct.unpack(">i", head)
            yield stream.read(size)


def _framed(frame: bytes) -> bytes:
    return struct.pack(">i", len(frame)) + frame


def _batch(frame: bytes) -> _Batch | None:
    """A Produce request; None for another one."""
    kind, version, correlation, name = struct.unpack_from(">hhih", frame)
    if kind != _PRODUCE:
        return None
    assert version >= _FLEXIBLE, version
    at = 10 + max(name, 0) + 1  # no tagged fields
    length, at = _varint(frame, at)  # transactional id
    at += max(length - 1, 0) + 6  # acks and timeout
    topics, at = _varint(frame, at)
    length, at = _varint(frame, at)
    topic, at = frame[at : at + length - 1], at + length - 1
    partitions, at = _varint(frame, at)
    assert (topics, partitions) == (2, 2), "a batch of one partition"
    return _Batch(version, correlation, topic, struct.unpack_from(">i", frame, at)[0])


def _refusal(batch: _Batch) -> bytes:
    one = struct.pack(">ihqqq", batch.partition, _NOT_LEADER, -1, -1, -1) + b"\x01\x00\x00"  # no errors, text, tags
    name = bytes((len(batch.topic) + 1,)) + batch.topic
    return struct.pack(">i", batch.correlation) + b"\x00\x02" + name + b"\x02" + one + b"\x00" + b"\x00" * 4 + b"\x00"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
