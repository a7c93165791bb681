"""Parts of the log's files, from the disk to a connection, on a thread.

A part is read, checked and sent by the same thread, out of one buffer that stays in the processor's cache, for as long
as the peer takes what it is given; so what is sent is what was checked, whatever becomes of the file. Handing parts
from one thread to another and waiting for the connection in between took more of the processor than all that. A peer
that is full is waited for, but for a moment: one that reads as fast as it can has room again by then, and one that does
not is waited for less and less often (`Patience`). What the peer does not take goes back to the event loop, which can
wait for many peers, and lets the kernel send it from the file.

Blocks are gone over in C where that was built, without a step of Python between them; `push_in_python` is its twin.

The thread works on a handle of its own: whoever closes the connection meanwhile cannot have its number given to
another one while bytes are still sent to it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from walbus import native
from walbus.native.pushing import BLOCK_BYTES, STEP_BYTES, Furthest, Left, PushedRecords, Stretch
from walbus.records import HEADER_SIZE, RecordHeader, read_header
from walbus.relay.cursor import Span

NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
_SECONDS = 0.02  #: on the thread at a time; others wait for it
_PATIENCE_SECONDS = 0.002  #: of those, for a peer that is full; one that reads as fast as it can needs less
_FAST_BYTES = 2 * BLOCK_BYTES  #: more than a slow peer takes in one push
_MOST_PUSHES = 32  #: without patience, in a row


class _Scratch(threading.local):
    """Where a thread reads what it only checks."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BLOCK_BYTES))


_SCRATCH = _Scratch()


class Unsent(NamedTuple):
    """What is left of a chunk.

    Attributes:
        head: bytes before the file's.
        span: the part of the file; None if all of it is gone.
        tail: bytes behind the file's.
    """

    head: bytes
    span: Span | None
    tail: bytes


class Pushed(NamedTuple):
    """What a push came to.

    Attributes:
        sent: bytes of files, those of `unsent` too.
        unsent: what the peer has not taken, to be sent before anything else; None: it took everything.
        over: whether there is nothing more to push.
    """

    sent: int
    unsent: Unsent | None
    over: bool


class Patience:
    """How long the thread waits for a stream's peer when it is full.

    Others wait for the thread meanwhile: behind a wait in vain there is none for some pushes, each time for more.
    """

    def __init__(self) -> None:
        self._spell = 0  # of pushes without patience: how long the last one was
        self._left = 0  # of it

    def seconds(self) -> float:
        """For the next push."""
        return 0.0 if self._left else _PATIENCE_SECONDS

    def note(self, pushed: Pushed) -> None:
        """What a push came to."""
        if pushed.sent >= _FAST_BYTES:
            self._spell = self._left = 0
        elif self._left:
            self._left -= 1
        elif pushed.unsent is not None:
            self._spell = self._left = min(2 * self._spell + 1, _MOST_PUSHES)


def push(
    ahead: Callable[[], Stretch | None],
    went: Callable[[int, RecordHeader], None],
    connection: socket.socket,
    patience: Patience,
) -> Pushed:
    """Sends checked parts of files as chunks, until the peer is full, time is up, or there are no more.

    Args:
        ahead: where more lies; None if there is nothing.
        went: is told how many bytes of that were checked, and sent or left, and the header of their last record.
        connection: a handle that does not block; closed here.
        patience: of the stream.

    Raises:
        ConnectionError: the peer left.
        OSError: a file cannot be read.
        LogError: a file is shorter than it was, or as `ahead` does.
    """
    with connection:
        pushed = _pushed(ahead, went, connection, patience.seconds())
    patience.note(pushed)
    return pushed


def hand_out(ahead: Callable[[], Stretch | None], went: Callable[[int, RecordHeader], None]) -> Pushed:
    """As `push` to a peer that takes nothing: one part is unsent."""
    return _pushed(ahead, went, None, 0.0)


def _pushed(
    ahead: Callable[[], Stretch | None],
    went: Callable[[int, RecordHeader], None],
    connection: socket.socket | None,
    patience: float,
) -> Pushed:
    until, sent = time.monotonic() + _SECONDS, 0
    while (seconds := until - time.monotonic()) > 0:
        stretch = _opened(ahead)
        if stretch is None:
            return Pushed(sent, None, over=True)
        pushed = _push_records(stretch, connection, _SCRATCH.view, seconds, patience)
        length = pushed.end - stretch.begin
        if length:
            sent += length
            went(length, read_header(pushed.last))
        if pushed.left is not None:
            return Pushed(sent, _unsent(stretch.file, pushed.end, pushed.left), over=False)
        if not length:
            return Pushed(sent, None, over=not pushed.more)
    return Pushed(sent, None, over=False)


def _unsent(fd: int, end: int, left: Left) -> Unsent:
    return Unsent(left.head, Span(fd, left.offset, end - left.offset) if left.offset < end else None, left.tail)


def _opened(ahead: Callable[[], Stretch | None]) -> Stretch | None:
    """What lies ahead; None too where its file cannot be opened for want of descriptors, which a step waits for."""
    try:
        return ahead()
    except OSError as error:
        if error.errno not in NO_DESCRIPTORS:
            raise
        return None


def push_in_python(
    stretch: Stretch, connection: socket.socket | None, scratch: memoryview, seconds: float, patience: float
) -> PushedRecords:
    """See `walbus.native.pushing.PushRecords`."""
    file, at, limit, furthest = stretch
    until, peer = time.monotonic() + seconds, _Peer(connection, patience)
    last = b""
    while time.monotonic() < until:
        used, start = _checked_block(file, at, scratch[: max(limit - at, 0)])
        if not used or _is_beyond(header := bytes(scratch[start : start + HEADER_SIZE]), furthest):
            return PushedRecords(at, last, None, more=False)
        last, at = header, at + used
        left = peer.send_chunk(scratch[:used], at)
        if left is not None:
            return PushedRecords(at, last, left, more=False)
    return PushedRecords(at, last, None, more=True)


def _checked_block(file: int, at: int, room: memoryview) -> tuple[int, int]:
    """Reads a step, or one record that is larger: bytes of good records, and where the last one begins."""
    used, start = native.good_records(room[: os.preadv(file, [room[:STEP_BYTES]], at)])
    if not used and len(room) > STEP_BYTES:
        used, start = native.good_records(room[: os.preadv(file, [room], at)])
    return used, start


def _is_beyond(data: bytes, furthest: Furthest) -> bool:
    header = read_header(data)
    return header.last > furthest.position or header.last_seq > furthest.seq


class _Peer:
    """A peer, and how long it is still waited for; None takes nothing."""

    def __init__(self, connection: socket.socket | None, patience: float) -> None:
        self._connection = connection
        self._patience = patience

    def send_chunk(self, block: memoryview, end: int) -> Left | None:
        """What the peer does not take of a chunk, whose part of the file ends at `end`."""
        parts: list[bytes | memoryview] = [b"%x\r\n" % len(block), block, b"\r\n"]
        while parts[2] and self._connection is not None:
            try:
                sent = self._connection.sendmsg(parts)
            except BlockingIOError:
                if not self._has_room(self._connection):
                    break
            else:
                for i, part in enumerate(parts):
                    parts[i] = part[sent:]
                    sent -= len(part) - len(parts[i])
        head, rest, tail = parts
        return Left(bytes(head), end - len(rest), bytes(tail)) if tail else None

    def _has_room(self, connection: socket.socket) -> bool:
        """Waits for it, for as long as there is patience."""
        if self._patience <= 0:
            return False
        poll, begun = select.poll(), time.monotonic()
        poll.register(connection, select.POLLOUT)
        ready = poll.poll(self._patience * 1000)
        self._patience -= time.monotonic() - begun
        return bool(ready)


_push_records = native.push_records or push_in_python
