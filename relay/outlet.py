"""Where a stream's bytes leave: one HTTP response, with its framing and its compression.

Bytes are put into the connection's transport directly, framed as chunks here, so that a block that goes to many
followers is framed and compressed once. What the peer does not take waits in the transport's buffer, whose size the
stream looks at before it puts more. Parts of a file that need no compression are sent by the kernel (`file_push`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import BinaryIO, cast

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from walbus.errors import DamagedRecord
from walbus.position import Position
from walbus.relay.content_coding import CodingName, new_coding
from walbus.relay.file_push import NO_DESCRIPTORS, Unsent
from walbus.relay.host_names import is_loopback_address

LAG_BYTES = 64 << 10  #: that wait for a peer, from which a stream stands still; TLS would take eight times as many
_UNSENT_BYTES = 512 << 10  #: that the kernel takes for a peer whose window is full; what is on its way does not count
_UNPACED = b"reno"  #: a way of finding the peer's pace that every Linux has, and lets everybody choose


class Outlet:
    """The body of one response.

    Args:
        request: which is answered.
        coding: of the body.

    Attributes:
        sent: bytes so far, framing and all.
        asked: places behind which the client is to be told that somebody waits for it there; ascending.
        compresses: whether a block takes time to be made.
        shared: whether the body is framed as chunks, so that a block framed for others will do.
        takes_files: whether parts of files may be sent as they are.
    """

    def __init__(self, request: web.Request, coding: CodingName) -> None:
        if request.transport is None:
            raise ConnectionResetError("the client left")
        self._request = request
        self._transport = request.transport
        self._coding = new_coding(coding)
        self.compresses = coding != "identity"
        self._writer: AbstractStreamWriter | None = None
        self._response: web.StreamResponse | None = None
        self.shared = request.version >= HttpVersion11
        self.takes_files = self.shared and coding == "identity" and self._transport.get_extra_info("sslcontext") is None
        self.sent = 0
        self.asked: list[Position] = []

    def take_asked(self, scanned: Position) -> bool:
        """Whether the client is to be told that now, the log having been sent up to here; it is then told once."""
        left = [position for position in self.asked if position > scanned]
        reached, self.asked = len(left) < len(self.asked), left
        return reached

    async def open(self, response: web.StreamResponse) -> None:
        """Sends the response's head."""
        connection = self._transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
            do_not_pace(connection)
        self._transport.set_write_buffer_limits(LAG_BYTES)
        self._writer, self._response = await response.prepare(self._request), response
        self._put(self._coding.began())

    def put(self, data: bytes) -> None:
        """Sends a block, or leaves it in the transport's buffer; never waits. Data may be empty."""
        if data:
            self.put_block(self.block(data), data)

    def block(self, data: bytes) -> bytes:
        """A block as it travels; on any thread."""
        return self._coding.block(data)

    def put_block(self, block: bytes, data: bytes) -> None:
        """As `put` of data that `block` has made into this."""
        self._put(block)
        self._coding.note(data)

    def put_framed(self, block: bytes) -> None:
        """Sends a block out of `framed`. A stream that takes these never comes to its `finish`."""
        self._transport.write(block)
        self.sent += len(block)

    def framed(self, data: bytes) -> bytes:
        """A block as `put_framed` takes it, for every shared outlet of the same coding."""
        return _chunk(self._coding.block(data))

    def handle(self) -> socket.socket | None:
        """The connection once more, for `push`; None while bytes wait that must go first, and without a descriptor.

        Raises:
            ConnectionError: the client left.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the client left")
        if self._transport.get_write_buffer_size():
            return None
        try:
            connection: socket.socket = self._transport.get_extra_info("socket").dup()
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS:
                raise
            return None
        return connection

    async def put_unsent(self, unsent: Unsent) -> None:
        """Sends what a push has left over; waits until the kernel has taken the file's part of it.

        Raises:
            ConnectionError: the client left.
            DamagedRecord: the file has become shorter.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the client left")
        self._transport.write(unsent.head)
        if (span := unsent.span) is not None:
            file = cast(BinaryIO, span)  # of which a file's number is all that is used
            loop = asyncio.get_running_loop()
            sent = await loop.sendfile(self._transport, file, span.offset, span.length, fallback=False)
            if sent != span.length:  # the client was promised so many bytes
                raise DamagedRecord("a segment's file is shorter than it was", where=f"offset {span.offset + sent}")
        self._transport.write(unsent.tail)

    def waiting(self) -> int:
        """Bytes that the peer has not taken, beside those that the kernel holds."""
        return self._transport.get_write_buffer_size()

    async def drained(self) -> None:
        """Waits until few bytes are waiting.

        Raises:
            ConnectionError: the client left.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the client left")
        if self._writer is not None:
            await self._writer.drain()

    async def finish(self) -> None:
        """Ends the body as a whole one."""
        self._put(self._coding.end())
        if self._response is not None:
            await self._response.write_eof()

    def abort(self) -> None:
        """Breaks the connection: the body is not whole."""
        self._transport.abort()

    def _put(self, data: bytes) -> None:
        if data:
            self.put_framed(_chunk(data) if self.shared else data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def do_not_pace(connection: socket.socket) -> None:
    """Has the kernel send to a peer on this machine as fast as it reads.

    Where BBR is the system's choice, what is sent is held back until a link would have carried what went before: that
    takes a quarter of the processor's time, and there is no link. Where the kernel does not let us it stays so.
    """
    if sys.platform == "linux" and _is_on_this_machine(connection):
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _UNPACED)


def _is_on_this_machine(connection: socket.socket) -> bool:
    try:
        here, there = connection.getsockname()[0], connection.getpeername()[0]
    except OSError:  # the peer left
        return False
    return here == there or is_loopback_address(there)
