"""One connection's life: frames in, pieces into the log, confirmations back. The thin I/O loop around the assembler.

Each round reads (`walbus.capture.receiving`) and appends what is complete. One `sync` makes everything whole that was
appended durable, when its group is due (`walbus.capture.grouping`). Only then is the slot confirmed, to the log's
`end_lsn` (or to what required standbys hold of it, `walbus.capture.confirming`), and never to what was merely received.

An idle stream still moves: the walsender is asked for keepalives, whose LSN says that nothing was committed before
it. Once nothing is on the way, that LSN goes into the log as a PROGRESS record, and is confirmed like a commit; so
the slot of a quiet database does not hold the WAL of its busy neighbours.

While a streamed transaction is replayed out of its spool nothing is read, but status updates and chores go on. A net
difference that was handed over (`walbus.capture.handover`) is appended in the same way, between two transactions.

A stream that is so far behind that catch-up steps would be faster makes way for them (`leave`), where nothing has to be
sent again that is large.

On PostgreSQL 14 an ATTACH or DETACH of a partition takes another session (`walbus.capture.regrouped`). The stream makes
way for it between two transactions, once all that was received is durable and the slot's own place has reached it:
then the new session sends nothing again, which it might send with other rows. What is spooled is sent to it anew.

A full disk stops reading (TCP then holds the walsender back) and confirming; the same piece is tried again until there
is room, while status updates keep the connection alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import structlog

from walbus.capture.assembly import Assembler
from walbus.capture.confirming import Confirming
from walbus.capture.frames import status_update
from walbus.capture.grouping import Grouping
from walbus.capture.handover import Handover
from walbus.capture.intake import Intake
from walbus.capture.noticed import Noticed
from walbus.capture.prepared_ends import PreparedEnds
from walbus.capture.receiving import ROUND_BYTES, Receiving
from walbus.capture.replication import Walsender
from walbus.capture.report import Report, hindrance
from walbus.capture.watch import Due
from walbus.errors import LogFull, LogUnreachable, SourceUnavailable
from walbus.log import LogWriter, Piece, Run, append_to
from walbus.lsn import format_lsn
from walbus.records import Flag, Kind

logger = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds without a look at the socket while more is certainly on its way.
REST_SECONDS = 0.001
#: Seconds between two PROGRESS records, and between two requests for a keepalive.
PROGRESS_SECONDS = 0.25
#: Seconds between two looks for differences and two status files.
CHORE_SECONDS = 1.0
#: Seconds between two applications of the retention policy.
TRIM_SECONDS = 5.0
#: Seconds between two attempts to write to a full disk.
FULL_SECONDS = 0.5
#: Shortest silence that counts as a dead connection, and the one where wal_sender_timeout is off.
MIN_SILENCE, DEFAULT_SILENCE = 3.0, 60.0
#: Seconds that the server may take to note a confirmation before another session begins, and between two looks.
CONFIRMED_SECONDS, CONFIRMED_PAUSE = 15.0, 0.02


class StreamLoop:
    """Streams over one started `Walsender` until it is stopped.

    Args:
        walsender: streaming.
        log_writer: takes the pieces.
        intake: takes the messages.
        ends: of prepared transactions, as the source's book has them.
        assembler: makes the pieces of what the intake gives it.
        noticed: what the catalog's watch finds.
        handover: net differences that are to go into the log.
        report: gets the figures.
        confirming: up to where the slot may be confirmed.
        stop: ends the loop.
        leave: says that the stream is to make way.
        begun: LSN that the slot was confirmed to when the stream began.
        confirmed: asks the source where the slot is confirmed now.
        timeout: the server's wal_sender_timeout in seconds; 0 if it is off.
        clock: Unix seconds.
        monotonic: seconds that never step back.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (both ends, and what tests replace)
        self,
        walsender: Walsender,
        log_writer: LogWriter,
        intake: Intake,
        ends: PreparedEnds,
        assembler: Assembler,
        noticed: Noticed,
        handover: Handover,
        report: Report,
        confirming: Confirming,
        *,
        stop: threading.Event,
        leave: Callable[[], bool],
        begun: int,
        confirmed: Callable[[], int],
        timeout: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._walsender = walsender
        self._log = log_writer
        self._intake = intake
        self._ends = ends
        self._assembler = assembler
        self._noticed = noticed
        self._handover = handover
        self._report = report
        self._stop = stop
        self._leave = leave
        self._leaving = False
        self._begun = begun
        self._slot_confirmed = confirmed
        self._clock = clock
        self._monotonic = monotonic
        self._silence = max(timeout, MIN_SILENCE) if timeout else DEFAULT_SILENCE
        self._status_every = self._silence / 3
        self._confirming = confirming
        self._durable = log_writer.bounds().end_lsn
        self._confirmed = confirming.bound(self._durable)
        self._receiving = Receiving(
            walsender,
            intake,
            assembler,
            append=self._append_complete,
            patiently=self._patiently,
            received=self._durable,
            monotonic=monotonic,
        )
        self._group = Grouping()  # of whole transactions that are here and not durable yet
        self._oldest = 0  # its commit time, Unix microseconds
        now = monotonic()
        self._said = self._asked = self._progressed = self._trimmed = now
        self._chored = now - CHORE_SECONDS  # at once: the status file says that it streams

    def run(self) -> Due | None:
        """Streams until `stop` is set, or until it has made way; then everything whole is durable and confirmed.

        Returns:
            What the next connection must tell, if it made way for that.

        Raises:
            SourceError: the connection broke, or the server refused.
            LogError, OSError: the log failed.
        """
        while not self._stop.is_set() and not (self._leaving and self._nothing_large_is_open()):
            if self._is_to_be_renewed():
                self._wait_until_confirmed()
                return self._noticed.renewal(self._begun)
            dry = self._read_round()
            now = self._monotonic()
            due = self._group.due_in(now)
            if due is not None and due <= 0:
                self._sync()
            self._tell_progress(now)
            self._take_difference()
            self._say_status(now, idle=dry)
            self._do_chores(now)
            if dry:
                self._check_silence(now)
                self._rest(now)
        self._sync()
        return None

    def _is_to_be_renewed(self) -> bool:
        """Whether another session must go on, and can: all that was received is in the log, whole and durable.

        While a required standby is away, nothing is confirmed, and the stream goes on meanwhile.
        """
        due, assembler = self._noticed.renewal(self._begun), self._assembler
        if (
            due is None
            or self._handover.writing
            or assembler.in_transaction
            or assembler.bound < due.lsn
            or self._confirming.away
        ):
            return False
        self._append_complete()
        self._append_progress()
        self._sync()
        return self._durable >= assembler.bound

    def _wait_until_confirmed(self) -> None:
        """Waits until the slot stands where the log ends, so that nothing is sent again.

        Raises:
            SourceUnavailable: it does not get there.
        """
        note = "PostgreSQL 14 publishes partitions as they were when a session met them; what is spooled comes again"
        at, spooled = format_lsn(self._durable), self._intake.spooled_bytes
        logger.info("capture.renews_session", at=at, spooled_bytes=spooled, note=note)
        until = self._monotonic() + CONFIRMED_SECONDS
        while self._slot_confirmed() < self._durable and not self._stop.is_set():
            if self._monotonic() > until:
                where, what = f"log end {format_lsn(self._durable)}", "the slot does not reach what is durable"
                raise SourceUnavailable(f"{what}, before another session can begin", where=where)
            self._send_status(self._monotonic())
            self._stop.wait(CONFIRMED_PAUSE)

    def _nothing_large_is_open(self) -> bool:
        """Whether nothing was handed out or spooled that would come again."""
        return not self._handover.writing and self._receiving.nothing_large_is_open

    def _rest(self, now: float) -> None:
        """Waits for more; where more is certainly on its way, for a moment without looking.

        The walsender sends message by message, so whoever reads as soon as there is anything reads a few bytes a call.
        And it sends a keepalive for each transaction of another database, or of tables that are not published.
        """
        due = self._group.due_in(now)
        receiving = self._receiving
        if due is None and not receiving.in_the_midst and not receiving.keepalives_only:
            self._walsender.wait(PROGRESS_SECONDS)
        else:
            self._stop.wait(REST_SECONDS if due is None else max(0.0, min(due, REST_SECONDS)))

    # Into the log.

    def _read_round(self) -> bool:
        """Reads one round, or writes a part of a difference; whether the socket is dry."""
        if not self._handover.writing or self._intake.replaying:
            return self._receiving.read_round()
        self._write_difference()
        self._receiving.excuse_silence()
        self._append_complete()
        return False

    def _append_complete(self) -> None:
        for complete in self._assembler.take():
            self._append(complete)

    def _append(self, given: Piece | Run) -> None:
        whole = isinstance(given, Run) or given.flags & Flag.END or given.kind == Kind.PROGRESS
        if whole and self._group.since is None:
            self._oldest = given.commit_time
            self._group.gather(self._monotonic())
        self._patiently(lambda: append_to(self._log, given))

    def _tell_progress(self, now: float) -> None:
        if now - self._progressed < PROGRESS_SECONDS or self._handover.writing:
            return
        self._progressed = now
        if self._append_progress():
            self._sync()
        self._tell_noticed()

    def _append_progress(self) -> bool:
        """Appends how far everything is complete; whether there was anything to say."""
        said = False
        while (piece := self._assembler.progress(self._receiving.server_time)) is not None:
            self._append(piece)
            said = True
        return said

    def _tell_noticed(self) -> None:
        due = self._noticed.announce(self._receiving.server_time, self._begun)
        if due is not None:
            self._append_complete()
            self._sync()
            self._noticed.told(due)

    # Net differences.

    def _take_difference(self) -> None:
        """Begins to append a difference, where the log ends with all that was received, between two transactions."""
        handover = self._handover
        if handover.writing or not self._patiently(handover.prepare) or self._assembler.in_transaction:
            return
        self._append_complete()
        self._append_progress()
        self._sync()
        place = self._assembler.difference_place()
        if place is not None and self._patiently(handover.prepare):
            handover.begin(place, self._receiving.server_time)

    def _write_difference(self) -> None:
        end = self._patiently(lambda: self._handover.write(ROUND_BYTES))
        if end is not None:
            self._assembler.difference_taken(end)
            self._sync()
            self._handover.finish()

    # Confirming.

    def _sync(self) -> None:
        self._durable = self._patiently(self._log.sync).end_lsn
        self._intake.durable(self._durable)
        self._note_lag(self._monotonic())
        self._group.made_durable(self._assembler.transactions)
        self._send_status(self._monotonic())

    def _note_lag(self, now: float) -> None:
        """How old the oldest commit is that is, or was until now, not durable; by the server's clock."""
        if self._group.since is None:
            self._report.note_lag(0.0)
        else:
            self._report.note_lag((self._receiving.server_time - self._oldest) / 1e6 + now - self._group.since)

    def _say_status(self, now: float, *, idle: bool) -> None:
        if idle and now - self._asked >= PROGRESS_SECONDS:
            self._asked = now
            self._send_status(now, reply=True)
        elif self._receiving.asked or now - self._said >= self._status_every:
            self._send_status(now)

    def _send_status(self, now: float, *, reply: bool = False) -> None:
        self._confirmed = self._confirming.bound(self._durable)
        self._walsender.send(status_update(self._receiving.received, self._confirmed, self._clock(), reply=reply))
        self._said = now
        self._receiving.asked = False

    def _check_silence(self, now: float) -> None:
        silence = now - self._receiving.heard
        if silence > self._silence:
            raise SourceUnavailable(f"nothing was heard from the server for {silence:.0f} s", where="streaming")

    # A log that takes nothing now: its disk is full, or its cluster away.

    def _patiently(self, action: Callable[[], T]) -> T:
        """Tries until the log takes it."""
        try:
            return action()
        except LogFull as full:
            logger.error("log.takes_nothing", why=hindrance(full), error=str(full), note="confirming stands still")
        while True:
            try:
                result = action()
            except LogFull as full:
                self._wait_for_room(full)
            else:
                logger.info("log.takes_records")
                self._report.state, self._report.error = "streaming", None
                self._receiving.excuse_silence()
                return result

    def _wait_for_room(self, full: LogFull) -> None:
        self._report.state, self._report.error = hindrance(full), str(full)
        if self._group.since is None:  # what waits is not known to be a commit, but something does
            self._oldest = self._receiving.server_time
            self._group.gather(self._monotonic())
        self._write_report()
        if not isinstance(full, LogUnreachable):
            with suppress(LogFull):  # dropping segments takes a new manifest, which may find no room either
                self._log.trim(self._clock())
        now = self._monotonic()
        if now - self._said >= self._status_every / 2:
            self._send_status(now)
        if self._stop.wait(FULL_SECONDS):
            raise full

    # Chores.

    def _do_chores(self, now: float) -> None:
        self._noticed.take(self._patiently)
        if now - self._chored < CHORE_SECONDS:
            return
        self._chored = now
        self._patiently(self._handover.look)
        self._ends.settle(self._confirmed)
        self._leaving = self._leave()
        if now - self._trimmed >= TRIM_SECONDS:
            self._trimmed = now
            self._assembler.forget(self._patiently(lambda: self._log.trim(self._clock())))
        self._write_report()

    def _write_report(self) -> None:
        self._note_lag(self._monotonic())
        report, assembler = self._report, self._assembler
        report.received_lsn, report.confirmed_lsn = self._receiving.received, self._confirmed
        report.transactions, report.changes = assembler.transactions, assembler.changes
        report.repeats = assembler.repeated
        report.spooled_bytes = self._intake.spooled_bytes
        report.standbys_away = self._confirming.away
        report.write()
