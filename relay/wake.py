"""Waking readers without polling: the writer's Unix socket.

Readers connect, and the writer sends one byte to each after it has published a new end. A reader that has not fetched
its byte yet needs no second one, so the writer never waits for a reader. The byte carries nothing: readers look into
the control file. A connection is greeted with a byte, so that nothing published between connecting and being accepted
is missed; it is one of the readers before anything else can be published.

The socket is named by the writer epoch, and reached through `/proc/self/fd`, since a socket's path may have only 107
bytes and a log's folder may have more.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.05  #: between two looks of a reader that has no writer to wake it
_RECHECK_SECONDS = 1.0  #: between two looks of a reader that is connected, should its writer have stopped


def wake_path(folder: Path, writer_epoch: int) -> Path:
    """The socket of a writer epoch."""
    return folder / f"wake-{writer_epoch:08d}.sock"


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


class WakeServer:
    """The writer's side; a thread accepts, `notify` is called by the writer itself.

    Args:
        folder: of the log.
        writer_epoch: of the writer.
    """

    def __init__(self, folder: Path, writer_epoch: int) -> None:
        self._path = wake_path(folder, writer_epoch)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_name(self._path) as name:
            self._socket.bind(name)
        self._socket.listen(64)
        self._readers: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="walbus-wake", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Wakes every reader; never blocks."""
        with self._lock:
            self._readers = [reader for reader in self._readers if _send(reader)]

    def close(self) -> None:
        """Removes the socket and hangs up."""
        self._closed.set()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends the thread's accept
        self._thread.join()
        self._socket.close()
        with self._lock:
            for reader in self._readers:
                reader.close()
            self._readers = []

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                reader, _ = self._socket.accept()
            except OSError:  # closed, or out of descriptors: those who wait are accepted once there are some again
                self._closed.wait(_POLL_SECONDS)
                continue
            reader.setblocking(False)
            with self._lock:  # or what is published between the greeting and the list would be missed
                if _send(reader):
                    self._readers.append(reader)


def _send(reader: socket.socket) -> bool:
    """Sends the byte; False once the reader has gone (the connection is closed then)."""
    try:
        reader.send(b"\0", socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return True  # it has bytes to fetch already
    except OSError:
        reader.close()
        return False
    return True


class Waker:
    """A reader's side. Not thread-safe.

    Args:
        folder: of the log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket: socket.socket | None = None
        self._writer_epoch = 0
        self._said = False

    def wait(
        self,
        writer_epoch: Callable[[], int],
        arrived: Callable[[], bool],
        timeout: float,
        monotonic: Callable[[], float],
    ) -> bool:
        """Blocks until something has arrived.

        Args:
            writer_epoch: whose socket to listen on, now.
            arrived: whether what is waited for is there.
            timeout: seconds.
            monotonic: the clock.
        """
        deadline = monotonic() + timeout
        while not arrived():
            left = deadline - monotonic()
            if left <= 0:
                return False
            self._pause(writer_epoch(), left)
        return True

    def close(self) -> None:
        """Hangs up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _pause(self, writer_epoch: int, seconds: float) -> None:
        connection = self._connected(writer_epoch)
        if connection is None:
            time.sleep(min(seconds, _POLL_SECONDS))
            return
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if not poll.poll(min(seconds, _RECHECK_SECONDS) * 1000):
            return
        try:
            gone = not connection.recv(4096)
        except OSError:
            gone = True
        if gone:
            self.close()

    def _connected(self, writer_epoch: int) -> socket.socket | None:
        if self._writer_epoch != writer_epoch:
            self.close()
            self._writer_epoch = writer_epoch
        if self._socket is None:
            self._socket = self._connect(writer_epoch)
            self._say(found=self._socket is not None)
        return self._socket

    def _connect(self, writer_epoch: int) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(1.0)
        try:
            with _short_name(wake_path(self._folder, writer_epoch)) as name:
                connection.connect(name)
        except OSError:
            connection.close()
            return None
        return connection

    def _say(self, *, found: bool) -> None:
        """Says once that no writer is there, and once that it is back."""
        if found and self._said:
            _log.info("log_writer_back", folder=str(self._folder))
        if not found and not self._said:
            _log.info("log_writer_away", folder=str(self._folder), polling_seconds=_POLL_SECONDS)
        self._said = not found
