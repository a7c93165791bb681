"""Frames of WAL data on their way into an assembler, as long as no block of a streamed transaction is open. No I/O.

The core takes as many as it can, by itself. Of what it leaves, plain messages are taken here with as little ado as may
be: a core in Python leaves them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from walbus.capture.assembly import Assembler
from walbus.capture.frames import WAL_DATA, WAL_DATA_HEADER, server_state
from walbus.capture.messages import PLAIN_KINDS
from walbus.errors import LogFull
from walbus.native.interface import CopyData, Drained, Envelope


class PlainFrames:
    """Takes the frames of one connection; not to be used while the assembler `sees_begins`.

    Attributes:
        server_state: how far the server was (an LSN), and its clock (Unix microseconds), by the last frame that was
            taken.
    """

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self.server_state = (0, 0)

    def drain(self, next_frame: CopyData, alarm: Sequence[object], limit: int) -> Drained:
        """As `Core.drain`; what is left is no plain message, or finds no room for a layout, and is to be fed.

        Raises:
            ProtocolError, SourceReplaced: as `Assembler.feed`.
        """
        drained, last = self._drain(next_frame, alarm, limit)
        if last:
            self.server_state = server_state(last)
        elif drained.taken:
            self.server_state = self._assembler.core.server_lsn, self._assembler.core.server_time
        return drained

    def _drain(self, next_frame: CopyData, alarm: Sequence[object], limit: int) -> tuple[Drained, bytes]:
        """What became of the frames, and the last one, if it was taken here and not by the core."""
        core, take, total, last = self._assembler.core, self._assembler.take_left, 0, b""
        while True:
            size, left, taken = core.drain(next_frame, alarm, limit - total, Envelope.WAL_DATA)
            if taken:
                total, last = total + taken, b""
            if alarm or not _is_plain(left):
                return Drained(size, left, total), last
            try:
                take(left, WAL_DATA_HEADER)
            except LogFull:
                return Drained(size, left, total), last
            total, last = total + len(left), left
            if total >= limit:
                return Drained(size, b"", total), last


def _is_plain(frame: bytes) -> bool:
    return len(frame) > WAL_DATA_HEADER and frame[0] == WAL_DATA and frame[WAL_DATA_HEADER] in PLAIN_KINDS


__all__ = ["PlainFrames"]
