"""Tells the relay where a consumer is, from a thread of its own.

    consumer's thread ──► ReportSchedule.latest ──► this thread ──► PUT /v1/consumers/NAME

The consumer leaves its newest checkpoint here and goes on; whatever the relay does with it (slow, full, an older one
that knows no reports) holds nobody up, and is told once. What is reported is what is durable: the checkpoint that the
session began with, and each one that the sink or the store has taken.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from walbus.consumer_reports import ConsumerReport
from walbus.consumers.addresses import Relays, Twins
from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Snapshotting,
    is_whole,
    last_done_of,
    phase_of,
)
from walbus.consumers.clock import Clock
from walbus.consumers.report_schedule import ReportSchedule
from walbus.consumers.transport import NotReady
from walbus.errors import RequestRefused, WalbusError
from walbus.position import ORIGIN, Position

_log = structlog.get_logger(__name__)

_CLOSE_SECONDS = 1.0  # that closing waits for a report under way
_NOT_COUNTED = 409


@dataclass(frozen=True, slots=True)
class Reported:
    """Who reports.

    Attributes:
        name: of the consumer.
        tables: patterns that it reads.
        sink: what it writes to; None for one of the client library.
    """

    name: str
    tables: tuple[str, ...]
    sink: str | None = None


class Reporter:
    """The reports of one consumer. All methods but `close` return at once.

    Args:
        consumer: who reports.
        relay: the relay; a connection of its own to it is made, and closed at the end.
        clock: time.
    """

    def __init__(self, consumer: Reported, relay: Relays, clock: Clock) -> None:
        self._consumer = consumer
        self._relay = relay
        self._clock = clock
        self._schedule = ReportSchedule()
        self._changed = threading.Condition()
        self._closed = False
        self._session = ""
        self._begins = False
        self._phase = "starting"
        self._waiting_for: str | None = None
        self._checkpoint: Checkpoint | None = None
        self._refused = False  # whether it was told that the relay does not take reports
        self._thread: threading.Thread | None = None

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """A session begins at a stored checkpoint: whatever was reported before counts no longer."""
        with self._changed:
            self._session, self._begins = secrets.token_hex(8), True
            self._phase = "starting" if checkpoint is None else phase_of(checkpoint)
            self._note(checkpoint)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="walbus-report", daemon=True)
                self._thread.start()

    def durable(self, checkpoint: Checkpoint) -> None:
        """A checkpoint has been stored."""
        with self._changed:
            self._note(checkpoint)

    def doing(self, phase: str, waiting_for: str | None) -> None:
        """What the consumer is doing, and why it waits, if it does."""
        if (phase, waiting_for) != (self._phase, self._waiting_for):
            with self._changed:
                self._phase, self._waiting_for = phase, waiting_for
                self._note(self._checkpoint)

    def asked(self, position: Position) -> None:
        """Somebody waits for the consumer to get here."""
        with self._changed:
            self._schedule.asked(position)
            self._changed.notify()

    def close(self) -> None:
        """Ends reporting; waits for at most a second for a report that is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _note(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        begins, self._begins = self._begins, False
        self._schedule.note(
            report_of(checkpoint, self._consumer, self._session, begins, self._phase, self._waiting_for)
        )
        self._changed.notify()

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        relay = self._relay.twin()
        try:
            while (report := self._next()) is not None:
                self._send(relay, report)
        finally:
            relay.close()

    def _next(self) -> ConsumerReport | None:
        """Waits for the next report; None once closed, when the last place has been told or cannot be."""
        with self._changed:
            while not self._closed:
                wait = self._schedule.due() - self._clock.monotonic()
                if wait <= 0:
                    return self._schedule.latest
                self._changed.wait(min(wait, threading.TIMEOUT_MAX))
            return self._schedule.last_word()

    def _send(self, relay: Twins, report: ConsumerReport) -> None:
        try:
            relay.report(self._consumer.name, report)
        except NotReady as error:
            self._failed(error, error.retry_after)
        except RequestRefused as error:
            if error.status == _NOT_COUNTED:
                self._passed_over(report, error)
            else:
                self._failed(error, 0.0)
        except (WalbusError, OSError) as error:
            self._failed(error, 0.0)
        else:
            with self._changed:
                self._schedule.taken(report, self._clock.monotonic())
            self._refused = False

    def _passed_over(self, report: ConsumerReport, error: RequestRefused) -> None:
        with self._changed:
            self._schedule.passed_over(report, self._clock.monotonic())
        self._tell("consumer.report_not_counted", error)

    def _failed(self, error: WalbusError | OSError, at_least: float) -> None:
        with self._changed:
            self._schedule.failed(self._clock.monotonic(), at_least)
        self._tell("consumer.not_reporting", error)

    def _tell(self, event: str, error: BaseException) -> None:
        if not self._refused:
            _log.info(event, consumer=self._consumer.name, reason=str(error), note="reading is not touched by this")
        self._refused = True


def report_of(  # noqa: PLR0913, PLR0917  # what makes up a report
    checkpoint: Checkpoint | None,
    consumer: Reported,
    session: str,
    begins: bool,
    phase: str,
    waiting_for: str | None,
) -> ConsumerReport:
    """What a stored checkpoint says to others."""
    last_done = last_done_of(checkpoint)
    return ConsumerReport(
        session,
        begins,
        log_id="" if checkpoint is None else checkpoint.log_id,
        phase=phase,
        last_done=None if last_done == ORIGIN else last_done,
        seq=_seq_of(checkpoint),
        generation=0 if checkpoint is None else checkpoint.marks.generation,
        whole=is_whole(checkpoint),
        tables=consumer.tables,
        sink=consumer.sink,
        waiting_for=waiting_for,
        unread=() if checkpoint is None else tuple(one.table for one in checkpoint.unread),
    )


def _seq_of(checkpoint: Checkpoint | None) -> int:
    match checkpoint:
        case Following(point=point) | CatchingUp(point=point):
            return point.seq
        case Snapshotting(low=low) if low is not None:
            return low.seq
        case _:
            return 0
