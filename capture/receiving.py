"""What a connection is sent: frames from the walsender into the intake, a round at a time. A thin I/O loop.

A round ends when the socket is dry, when a bound of bytes is reached, or when a streamed transaction has committed and
is to be replayed out of its spool; a replay goes in parts of a round's size, and nothing is read meanwhile. Rows go
from libpq straight into the core, or into the spool of the transaction that is being streamed; what neither takes is
looked at here.

Each frame says how far the server is and what its clock shows. When the last one came is what silence is judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

from walbus.capture.assembly import Assembler
from walbus.capture.frames import KEEPALIVE, WAL_DATA, WAL_DATA_HEADER, parse_keepalive, server_state
from walbus.capture.intake import Intake
from walbus.capture.plain_frames import PlainFrames
from walbus.capture.replication import Walsender
from walbus.errors import LogFull, ProtocolError

logger = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds in which the server tells from where on it decodes, if it ever does.
TOLD_SECONDS = 30.0
#: Bytes that one round reads at most.
ROUND_BYTES = 1 << 20
#: What is complete goes to the log when it has this many bytes, or at the end of a round.
TAKE_BYTES = 256 << 10


class Patiently(Protocol):
    """Does an action as often as a full disk makes it fail."""

    def __call__(self, action: Callable[[], T], /) -> T:
        """What the action gave in the end."""
        ...


class Receiving:
    """Reads over one started `Walsender`.

    Args:
        walsender: streaming.
        intake: takes the messages.
        assembler: makes the pieces of what the intake gives it.
        append: takes what the assembler has complete to the log.
        patiently: for what a full disk may refuse.
        received: LSN up to which everything was received before.
        monotonic: seconds that never step back.

    Attributes:
        heard: when the last frame came.
        received: how far the server was by then, an LSN.
        server_time: its clock by then, Unix microseconds; 0 before the first frame.
        asked: it wants to be answered at once.
        keepalives_only: whether the last round brought nothing else.
    """

    def __init__(  # noqa: PLR0913  (both ends, and what tests replace)
        self,
        walsender: Walsender,
        intake: Intake,
        assembler: Assembler,
        *,
        append: Callable[[], None],
        patiently: Patiently,
        received: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._walsender = walsender
        self._intake = intake
        self._assembler = assembler
        self._plain_frames = PlainFrames(assembler)
        self._append = append
        self._patiently = patiently
        self._monotonic = monotonic
        self.heard = monotonic()
        self.received = received
        self.server_time = 0
        self.asked = False
        self.keepalives_only = False
        self._keepalive_bytes = 0  # of this round
        self._begun = monotonic()
        self._believes = False  # though nothing was told

    @property
    def in_the_midst(self) -> bool:
        """Whether more is certainly on its way."""
        return not self._intake.plain or (self._assembler.in_transaction and self._assembler.core.done > 0)

    @property
    def nothing_large_is_open(self) -> bool:
        """Whether no piece of an open transaction was handed out, and none is spooled: those would come again."""
        return not self.in_the_midst and self._intake.spooled_bytes == 0

    def excuse_silence(self) -> None:
        """Nobody listened until now, and whoever does not listen hears nothing."""
        self.heard = self._monotonic()

    def read_round(self) -> bool:
        """Reads one round, or goes on with a replay; whether the socket is dry.

        Raises:
            ProtocolError: a message makes no sense; what stood before it is appended.
            SourceError: the connection broke, or the server refused.
            LogError, OSError: the log failed.
        """
        try:
            if not self._intake.replaying:
                return self._read_frames()
            self._patiently(lambda: self._intake.replay(ROUND_BYTES))
            self.excuse_silence()
            return False
        finally:
            self._append()

    def _read_frames(self) -> bool:
        """Reads until a bound, or until a replay is due; whether the socket is dry."""
        left, dry, self._keepalive_bytes = ROUND_BYTES, False, 0
        while left > 0 and not dry and not self._intake.replaying:
            plain = self._intake.plain and not self._assembler.sees_begins
            taken, dry = self._read_plain() if plain else self._read_diverted()
            if self._assembler.waiting_bytes >= TAKE_BYTES:
                self._append()
            left -= taken
        self.keepalives_only = 0 < self._keepalive_bytes == ROUND_BYTES - left
        return dry

    def _read_plain(self) -> tuple[int, bool]:
        """Most frames are taken as they come; what is left is looked at here. Bytes read; whether it is dry."""
        drained = self._walsender.pump(self._plain_frames, TAKE_BYTES)
        if drained.taken:
            self._note_server(*self._plain_frames.server_state)
        if drained.left:
            self._take_frame(drained.left)
        return drained.taken + len(drained.left), drained.size == 0

    def _read_diverted(self) -> tuple[int, bool]:
        """Rows of a streamed block go straight into its spool; all else frame by frame. As `_read_plain`."""
        sink = self._patiently(self._intake.sink)
        if sink is None:
            frame = self._walsender.receive()
            if frame is not None:
                self._take_frame(frame)
            return len(frame or b""), frame is None
        drained = self._walsender.pump_rows(sink, TAKE_BYTES)
        self.heard = self._monotonic() if drained.taken else self.heard
        if drained.left:
            self._take_frame(drained.left)
        return drained.taken + len(drained.left), drained.size == 0

    def _take_frame(self, frame: bytes) -> None:
        if frame[0] == WAL_DATA:
            self._note_server(*server_state(frame))
            self._feed(frame)
        elif frame[0] == KEEPALIVE:
            self._keepalive_bytes += len(frame)
            keepalive = parse_keepalive(frame)
            self._note_server(keepalive.wal_end, keepalive.sent_at)
            if self._decodes():
                self._intake.keepalive(keepalive.wal_end)
            self.asked = self.asked or keepalive.reply_requested
        else:
            raise ProtocolError(f"a frame of unknown kind {frame[:1]!r}", where="frame, offset 0")

    def _decodes(self) -> bool:
        """Whether a keepalive's place may be believed: the server has said from where on it decodes.

        A server that tells nothing (a pooler may swallow it) is believed after a while, and that is said once; one that
        has told that it looks for that place is not: as long as a transaction is open there, it passes over commits.
        """
        if self._walsender.decodes or self._believes:
            return True
        if not self._walsender.searches and self._monotonic() - self._begun > TOLD_SECONDS:
            self._believes = True
            note = (
                "PostgreSQL's message did not come; commits that a slot without its snapshot passes over go unnoticed"
            )
            logger.warning("source.beginning_not_told", note=note)
        return self._believes

    def _feed(self, frame: bytes) -> None:
        try:
            self._intake.feed(frame, WAL_DATA_HEADER)
        except LogFull:  # no room for a new layout, or in the spool; nothing of the message was taken
            self._patiently(lambda: self._intake.feed(frame, WAL_DATA_HEADER))

    def _note_server(self, lsn: int, time: int) -> None:
        """Notes how far the server is, and its clock, by a frame that has just arrived."""
        self.heard, self.server_time = self._monotonic(), time
        self.received = max(self.received, lsn)
