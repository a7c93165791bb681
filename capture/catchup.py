"""Catch-up: a backlog read in steps through SQL, faster than the walsender sends it, before the stream begins.

The walsender sends and flushes one message at a time, and that is its limit. The same messages read by a COPY of
`pg_logical_slot_peek_binary_changes` come several at a time. So a capture that is far behind goes in steps
(`stepping`), as long as they pay (`steps`), and leaves the rest to the stream. A stream that is far behind again comes
back here on a new connection. While a required standby is away the slot cannot be moved, so no step is taken.

The records are those of the stream, byte for byte: the same assembler goes on from step to step, and into the stream.
Layouts that each step announces anew are known to it, and give no second SCHEMA record.

A refusal of the server, and a full disk, end the steps and not the capture: the walsender goes on, and the log and the
status file say why. What a step had begun then comes again on a new connection. Steps are tried again after a pause,
whether the connection breaks meanwhile or not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import closing

import structlog

from walbus.capture.assembly import Assembler
from walbus.capture.confirming import Confirming
from walbus.capture.noticed import Noticed
from walbus.capture.peek import Look, Peek, StatementRefused, look_at, moves_safely
from walbus.capture.refusals import Refusal, meaning
from walbus.capture.report import Report
from walbus.capture.sessions import Session, cut_off
from walbus.capture.stepping import DOING, LOOK_SECONDS, Stepping
from walbus.capture.steps import Backlog, Pauses, Reason, Step, StepPolicy
from walbus.config import SourceConfig
from walbus.errors import LogFull
from walbus.log import LogWriter

logger = structlog.get_logger(__name__)

#: SQLSTATE of a slot that another session holds, which passes by itself; what else is refused may be refused again.
_SLOT_IN_USE = "55006"


class CatchUp:
    """The catch-up mode of one capture process, through all of its connections.

    Args:
        source: database, slot, publication; whether, and in which steps.
        log_writer: takes the pieces.
        report: gets the figures.
        confirming: up to where the slot may be moved.
        stop: ends a step at once.
        clock: Unix seconds.
        monotonic: seconds that never step back.
        policy: makes the policy of one catching up, from the bytes of its first step.
        pauses: between two of them.
    """

    def __init__(  # noqa: PLR0913  (both ends, and what tests replace)
        self,
        source: SourceConfig,
        log_writer: LogWriter,
        report: Report,
        confirming: Confirming,
        *,
        stop: threading.Event,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        policy: Callable[[int], StepPolicy] = StepPolicy,
        pauses: Pauses,
    ) -> None:
        self._source = source
        self._log = log_writer
        self._report = report
        self._confirming = confirming
        self._stop = stop
        self._clock = clock
        self._monotonic = monotonic
        self._policy = policy
        self._pauses = pauses
        self._begun = 0.0  # when this attempt did
        self._not_before = 0.0  # steps were refused, and keep away until then
        self._return_at = 0.0  # a stream does not come back before
        self._returned = False  # whether a stream came back for this attempt
        self._reason: str | None = None  # why steps are off, as it was said

    def run(
        self, session: Session, assembler: Assembler, noticed: Noticed, *, name: str | None, publication: int
    ) -> bool:
        """Reads until the rest is for the walsender; whether the stream can go on from here.

        If it cannot, `stop` was set or a step broke off, and everything must begin anew: catch-up keeps away then. The
        slot must be free.

        Args:
            session: to look at the slot.
            assembler: of the connection that begins.
            noticed: what the catalog's watch sees meanwhile.
            name: `application_name` of the session that reads, if not the usual one.
            publication: its OID.

        Raises:
            SourceError: the connection broke, the slot is in use, or slot or publication cannot give everything.
            ProtocolError, SourceReplaced: as the stream would raise them.
            LogError, OSError: the log failed.
        """
        returned, self._returned = self._returned, False
        if not self._source.catch_up or self._monotonic() < self._not_before:
            return True
        self._begun = self._monotonic()
        self._return_at = self._begun + self._pauses.first
        source, policy = self._source, self._policy(self._source.catch_up_step_bytes)
        with cut_off(session, self._stop, LOOK_SECONDS):
            look = look_at(session, source.slot, source.publication)
        far_behind, unsuitable = policy.is_far_behind(look.backlog), _unsuitable(session, look)
        if unsuitable is not None:
            self._return_at = math.inf  # only another server, hence another connection, can change that
        elif returned and not far_behind:
            self._return_at = self._after_failure()
        if not far_behind:
            return True
        if unsuitable is not None:
            self._say_off(unsuitable)
            return True
        if self._standby_is_away():
            logger.info("catch_up.waits", note="a required standby is away, and the slot cannot be moved meanwhile")
            self._return_at = self._after_failure()
            return True
        with closing(Peek(source.dsn, name, source.slot, source.publication)) as peek:
            with cut_off(session, self._stop, LOOK_SECONDS):
                peek.check_same_server(session)
            stepping = Stepping(
                peek,
                session,
                source,
                self._log,
                assembler,
                noticed,
                self._report,
                self._confirming,
                publication=publication,
                stop=self._stop,
                clock=self._clock,
                monotonic=self._monotonic,
            )
            return self._read(stepping, policy)

    def should_return(self) -> bool:
        """Whether the stream is so far behind, as was seen last, that steps are worth a new connection.

        What the log has by now counts as read, be the look from before the last steps, or be it held back by standbys.
        """
        seen = self._report.retention.last
        if seen is None or self._source.two_phase or not self._source.catch_up:
            return False
        if self._monotonic() < self._return_at:
            return False
        if self._standby_is_away():
            return False
        durable = self._log.bounds().end_lsn
        if self._confirming.bound(durable) == 0:  # a slot that may not be moved cannot be read in steps
            return False
        policy = self._policy(self._source.catch_up_step_bytes)
        return policy.is_worth_another_connection(Backlog(restart=0, confirmed=durable, end=seen.readable_lsn))

    def _standby_is_away(self) -> bool:
        self._confirming.bound(self._log.bounds().end_lsn)  # looks at them
        return bool(self._confirming.away)

    def returns(self) -> None:
        """The stream has made way: the next connection begins with steps."""
        self._returned = True
        logger.info("catch_up.returns", slot=self._source.slot, note="the stream fell far behind")

    def _read(self, stepping: Stepping, policy: StepPolicy) -> bool:
        """Step by step, while steps pay; as `run`."""
        try:
            ended = self._take_steps(stepping, policy)
        except StatementRefused as refused:
            if refused.sqlstate == _SLOT_IN_USE:
                raise meaning(Refusal(refused.sqlstate, refused.why), DOING) from None
            self._not_before = self._return_at = self._after_failure()
            self._say_off(f"PostgreSQL refused: {refused.why} (SQLSTATE {refused.sqlstate})")
            return False
        except LogFull as full:  # the stream waits for room without holding anything on the source
            logger.warning("catch_up.broken_off", why=str(full), note="the walsender sends the rest")
            self._not_before = self._return_at = self._after_failure()
            return False
        self._return_at = self._after_success() if ended == "the tail is near" else self._after_failure()
        if ended == "a required standby does not have what was read":  # the stream is sent it again
            self._not_before = self._return_at
            return False
        return not self._stop.is_set()

    def _after_success(self) -> float:
        return self._monotonic() + self._pauses.after_success()

    def _after_failure(self) -> float:
        now = self._monotonic()
        return now + self._pauses.after_failure(now - self._begun)

    def _take_steps(self, stepping: Stepping, policy: StepPolicy) -> Reason | None:
        """Why the rest is for the walsender; None if `stop` was set."""
        look = stepping.look()
        logger.info("catch_up.begins", slot=self._source.slot, bytes=look.backlog.left)
        self._report.state, self._report.error = "catching up", None
        left = look.backlog
        while isinstance(step := policy.next(left), Step):
            given = stepping.step(look, step.upto)
            if self._stop.is_set():
                return None
            if given is None:
                return self._ends("a required standby does not have what was read", look)
            self._report.catch_up = self._reason = None
            before, look = look, stepping.look()
            policy.done(given, max(0, look.spilled - before.spilled))
            left = look.backlog.beyond(step.upto)
        return self._ends(step.reason, look)

    def _ends(self, why: Reason, look: Look) -> Reason:
        logger.info("catch_up.done", why=why, steps=self._report.catch_up_steps, bytes=look.backlog.left)
        return why

    def _say_off(self, why: str) -> None:
        self._report.catch_up = f"catch-up off: {why}"
        if why != self._reason:
            logger.warning("catch_up.off", why=why, note="the walsender sends everything, at its pace")
        self._reason = why


def _unsuitable(session: Session, look: Look) -> str | None:
    """Why this slot and server are for the walsender alone; None if they are not."""
    if look.two_phase:  # what was sent at PREPARE is not decoded again at COMMIT PREPARED, or only in part
        return "the slot decodes prepared transactions"
    if not moves_safely(session):  # vacuum could remove what decoding still needs
        return "this minor version of PostgreSQL moves slots wrongly; 14.18, 15.13, 16.9 and 17.5 mended it"
    return None
