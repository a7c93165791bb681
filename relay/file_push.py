"""Parts of the log's files, from the disk to a connection, on a thread.

A part is checked and sent by the same thread, one right behind the other, for as long as the peer takes what it is
given: handing parts from one thread to another and waiting for the connection in between took more of the processor
than the checking and the sending. What the peer does not take at once goes back to the event loop, which can wait for
many peers.

The thread works on a handle of its own: whoever closes the connection meanwhile cannot have its number given to
another one while bytes are still sent to it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from walbus.errors import DamagedRecord
from walbus.relay.cursor import Span

NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
_SECONDS = 0.02  #: on the thread at a time; others wait for it
_MORE = getattr(socket, "MSG_MORE", 0)  #: a length goes in one packet with what it is the length of


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


def push(following: Callable[[], Span | None], connection: socket.socket) -> Pushed:
    """Sends checked parts of files as chunks, until the peer is full, time is up, or there are no more.

    Args:
        following: the next part; None if there is none.
        connection: a handle that does not block; closed here.

    Raises:
        ConnectionError: the peer left.
        LogError: a file is shorter than it was, or as `following` does.
    """
    until, sent = time.monotonic() + _SECONDS, 0
    with connection:
        while time.monotonic() < until:
            span = opened(following)
            if span is None:
                return Pushed(sent, None, over=True)
            sent += span.length
            unsent = _chunk(span, connection)
            if unsent is not None:
                return Pushed(sent, unsent, over=False)
    return Pushed(sent, None, over=False)


def whole(span: Span) -> Unsent:
    """A chunk of which nothing was sent."""
    return Unsent(b"%x\r\n" % span.length, span, b"\r\n")


def shorter(at: int) -> DamagedRecord:
    """What is said where a file ends inside a part of it."""
    return DamagedRecord("a segment's file is shorter than it was", where=f"offset {at}")


def opened(following: Callable[[], Span | None]) -> Span | None:
    """The next part; None too where its file cannot be opened for want of descriptors, which a step waits for."""
    try:
        return following()
    except OSError as error:
        if error.errno not in NO_DESCRIPTORS:
            raise
        return None


def _chunk(span: Span, connection: socket.socket) -> Unsent | None:
    """What the peer does not take of a chunk."""
    head, _, tail = whole(span)
    at, end = span.offset, span.offset + span.length
    try:
        while head:
            head = head[connection.send(head, _MORE) :]
        while at < end:
            taken = os.sendfile(connection.fileno(), span.fd, at, end - at)
            if not taken:
                raise shorter(at)
            at += taken
        while tail:
            tail = tail[connection.send(tail) :]
    except BlockingIOError:
        return Unsent(head, span._replace(offset=at, length=end - at) if at < end else None, tail)
    return None
