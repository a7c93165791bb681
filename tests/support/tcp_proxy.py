"""A TCP proxy that a test can let go wrong: to reset connections, to swallow bytes, to pass them one at a time.

with TcpProxy(port) as proxy:
    connect to 127.0.0.1:proxy.port
    proxy.swallow = True       # half-open: both ends stay connected, and nothing passes
    proxy.reset()              # every connection is reset
    proxy.reset(100)           # ... and the next stream is reset behind its 100th byte
    proxy.piece = 1            # one byte a write
    proxy.stream_bytes = 100   # the next stream is reset behind its 100th byte
    proxy.again = 5            # ... and five more behind it
    proxy.stalls = True        # ... or only stands still there
    proxy.starts = b"GET /"    # what a client sends before a stream; START_REPLICATION unless told otherwise
    proxy.flowing.clear()      # everything stands still, and is passed on after proxy.flowing.set()
    proxy.stops_at = b"GET /"  # flowing is cleared by the next bytes, of either end, that hold these
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_STARTS = b"START_REPLICATION"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    """Forwards connections to a port of the loopback.

    Attributes:
        port: where it listens.
        target: where connections made from now on lead.
        swallow: what arrives is read and dropped.
        piece: bytes forwarded in one write at most.
        stream_bytes: behind how many bytes from the server the next connection is reset that asks for replication;
            None for never. Counted from the answer to START_REPLICATION on, and used once.
        again: for how many streams more it is used.
        stalls: whether it is left open there, without anything more from the server.
        cuts: how many connections that ended.
        flowing: cleared while nothing is passed on.
        stops_at: what clears it, before it is passed on itself; None for nothing. Used once.
        connections: how many were ever accepted.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.swallow = False
        self.piece = 1 << 16
        self.stream_bytes: int | None = None
        self.again = 0
        self.stalls = False
        self.starts = _STARTS
        self.cuts = 0
        self.flowing = threading.Event()
        self.flowing.set()
        self.stops_at: bytes | None = None
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flowing.set()
        self.reset()

    def reset(self, stream_bytes: int | None = None) -> None:
        """Resets every connection; the next stream is reset behind so many bytes, if a number is given.

        A stream that begins in this moment is either one of those that are reset, or the next one.
        """
        with self._lock:
            pairs, self._pairs = self._pairs, []
            if stream_bytes is not None:
                self.stream_bytes = stream_bytes
        for pair in pairs:
            _reset(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()  # as if nobody listened
                continue
            self.connections += 1
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        other, left = {client: server, server: client}, None
        with client, server, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            for end in other:
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source = next(end for end in other if end is key.fileobj)
                    data = source.recv(1 << 16)
                    if self.stops_at is not None and self.stops_at in data:
                        self.stops_at = None
                        self.flowing.clear()
                    self.flowing.wait()
                    if not data:
                        return
                    if source is client and self.starts in data:
                        left = self._taken_bytes(client)
                    elif source is server and left is not None:
                        data, left = data[:left], left - len(data)
                    if not self.swallow:
                        self._write(other[source], data)
                    if source is server and left is not None and left <= 0:
                        self.cuts += 1
                        if self.stalls:
                            selector.unregister(server)
                            continue
                        _reset((client, server))
                        return

    def _taken_bytes(self, client: socket.socket) -> int | None:
        """Behind how many bytes a stream is to end that begins now; nothing for one that is being reset."""
        with self._lock:
            if all(client is not one for one, _ in self._pairs):
                return None
            taken = self.stream_bytes
            if self.again:
                self.again -= 1
            else:
                self.stream_bytes = None
            return taken

    def _write(self, end: socket.socket, data: bytes) -> None:
        for at in range(0, len(data), self.piece):
            end.sendall(data[at : at + self.piece])


def _reset(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.shutdown(socket.SHUT_RDWR)
