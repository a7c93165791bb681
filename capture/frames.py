"""The envelopes of PostgreSQL's streaming replication protocol: bytes in, values out, and back. No I/O.

Inside COPY BOTH the walsender sends WAL data (`w`, one pgoutput message each) and keepalives (`k`); the client sends
standby status updates (`r`). Times are Unix microseconds on our side.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from walbus.capture.messages import POSTGRES_EPOCH
from walbus.errors import ProtocolError

#: Bytes before the pgoutput message in a WAL data frame.
WAL_DATA_HEADER = 25
#: First byte of a WAL data frame.
WAL_DATA = ord("w")
#: First byte of a keepalive.
KEEPALIVE = ord("k")

_WAL_DATA = Struct(">x8xQq")
_KEEPALIVE = Struct(">xQqB")
_STATUS = Struct(">cQQQqB")


class Keepalive(NamedTuple):
    """What the walsender says when it has nothing to send, or wants an answer.

    Attributes:
        wal_end: everything that commits before this LSN has been sent before this frame.
        sent_at: the server's clock, Unix microseconds.
        reply_requested: whether the server ends the connection unless it hears from us soon.
    """

    wal_end: int
    sent_at: int
    reply_requested: bool


def parse_keepalive(frame: bytes) -> Keepalive:
    """A keepalive frame.

    Raises:
        ProtocolError: it has another length.
    """
    if len(frame) != _KEEPALIVE.size:
        raise ProtocolError(f"a keepalive of {len(frame)} bytes", where="frame 'k', offset 0")
    wal_end, sent_at, reply = _KEEPALIVE.unpack(frame)
    return Keepalive(wal_end, sent_at + POSTGRES_EPOCH, bool(reply))


def server_state(frame: bytes) -> tuple[int, int]:
    """How far the server is (an LSN), and its clock (Unix microseconds), by a frame of either kind.

    Raises:
        ProtocolError: the frame is cut short.
    """
    if frame[0] == KEEPALIVE:
        keepalive = parse_keepalive(frame)
        return keepalive.wal_end, keepalive.sent_at
    if len(frame) < WAL_DATA_HEADER:
        raise ProtocolError(f"a frame of WAL data of {len(frame)} bytes", where="frame 'w', offset 0")
    wal_end, sent_at = _WAL_DATA.unpack_from(frame)
    return wal_end, sent_at + POSTGRES_EPOCH


def status_update(received: int, confirmed: int, now: float, *, reply: bool = False) -> bytes:
    """A standby status update.

    Args:
        received: newest LSN that arrived here.
        confirmed: the slot may forget everything that commits before this LSN: it is durable in the log.
        now: Unix seconds.
        reply: asks for a keepalive in return.
    """
    sent_at = int(now * 1_000_000) - POSTGRES_EPOCH
    return _STATUS.pack(b"r", max(received, confirmed), confirmed, confirmed, sent_at, reply)
