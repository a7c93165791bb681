"""Catch-up: a backlog read in steps through SQL, faster than the walsender sends it, before the stream begins.

The walsender sends and flushes one message at a time, and that is its limit. The same messages read by a COPY of
`pg_logical_slot_peek_binary_changes` come several at a time. So a capture that is far behind goes in steps, each of
them whole before the next one begins:

    look      how far the WAL is durable, where the slot stands; `steps` says how far the step goes
    peek      COPY up to exactly that LSN, into the same assembler as the stream, into the log
    durable   a PROGRESS record, if the last commit ends before that LSN, then the log's sync
    move      the slot to exactly that LSN

What commits before the LSN was given by the peek, and is never given again once the slot is there: PostgreSQL judges
both by where a commit's record begins. A step never splits a transaction. Whatever ends the process between two of
these leaves a slot that stands before what is durable: its messages come again, and are dropped as repeats.

The records are those of the stream, byte for byte: the same assembler goes on from step to step, and into the stream.
Layouts that each step announces anew are known to it, and give no second SCHEMA record.

No snapshot, slot or session is held from step to step or behind the last one. A refusal of the server, and a full
disk, end the steps and not the capture: the walsender does the rest, and the log and the status file say why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import structlog

from walbus.capture.assembly import Assembler
from walbus.capture.copyrows import CopyRows
from walbus.capture.peek import Look, Peek, StatementRefused
from walbus.capture.refusals import publication_gone
from walbus.capture.report import Report
from walbus.capture.steps import Step, StepPolicy
from walbus.capture.timelines import Timelines
from walbus.config import SourceConfig
from walbus.errors import LogFull, ProtocolError
from walbus.log import LogWriter, append_to
from walbus.lsn import format_lsn

logger = structlog.get_logger(__name__)

#: Bytes that are read at most before what they completed is appended.
ROUND_BYTES = 512 << 10
#: Seconds between two looks at `stop` while the server works.
LOOK_SECONDS = 0.1
#: Seconds between two status files, each with a sync of what is whole, and between two applications of the retention.
CHORE_SECONDS, TRIM_SECONDS = 1.0, 5.0
#: Seconds of a step without a sign of life. Only a server that decodes a whole step at a crawl is silent for so long.
SILENT_SECONDS = 600.0
#: SQLSTATE of a slot that another session holds, which passes by itself; what else is refused will be refused again.
_SLOT_IN_USE = "55006"
_STREAM_ABORT = ord("A")


class CatchUp:
    """The catch-up mode of one capture process, through all of its connections.

    Args:
        source: database, slot, publication; whether, and in which steps.
        log_writer: takes the pieces.
        report: gets the figures.
        stop: ends a step at once.
        clock: Unix seconds.
        monotonic: seconds that never step back.
        policy: makes the policy of one catching up, from the bytes of its first step.
    """

    def __init__(  # noqa: PLR0913  (both ends, and what tests replace)
        self,
        source: SourceConfig,
        log_writer: LogWriter,
        report: Report,
        *,
        stop: threading.Event,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        policy: Callable[[int], StepPolicy] = StepPolicy,
    ) -> None:
        self._source = source
        self._log = log_writer
        self._report = report
        self._stop = stop
        self._clock = clock
        self._monotonic = monotonic
        self._policy = policy
        self._off = not source.catch_up  # for good
        self._chored = self._trimmed = self._heard = monotonic()

    def run(self, assembler: Assembler, timelines: Timelines, *, name: str | None, publication: int) -> None:
        """Reads until the rest is for the walsender, or `stop` is set. The slot must be free.

        Args:
            assembler: of the connection that begins.
            timelines: of the server.
            name: `application_name` of the session, if not the usual one.
            publication: its OID.

        Raises:
            SourceError: the connection broke, or the slot or the publication cannot give everything.
            ProtocolError, SourceReplaced: as the stream would raise them.
            LogError, OSError: the log failed.
        """
        if self._off or self._stop.is_set():
            return
        source = self._source
        with closing(Peek(source.dsn, name, source.slot, source.publication, self._stop)) as peek:
            try:
                self._read(peek, assembler, publication)
            except StatementRefused as refused:
                self._off = refused.sqlstate != _SLOT_IN_USE
                why = f"PostgreSQL refused: {refused.why} (SQLSTATE {refused.sqlstate})"
            except LogFull as full:  # the stream waits for room without holding anything on the source
                why = str(full)
            else:
                return
        self._give_up(why)
        bounds = self._log.sync()  # what the step had begun comes again
        assembler.reconnected(timelines, assembler.near_xid, end=bounds.end, bound=bounds.end_lsn)

    def _give_up(self, why: str) -> None:
        logger.warning("catch_up.off", why=why, note="the walsender sends everything, at its pace")
        self._report.catch_up = f"off: {why}"

    def _read(self, peek: Peek, assembler: Assembler, publication: int) -> None:
        """Step by step, while steps pay."""
        look, policy = self._look(peek, assembler, publication), self._policy(self._source.catch_up_step_bytes)
        if not policy.is_far_behind(look.backlog):
            return
        unsuitable = _unsuitable(peek, look)
        if unsuitable is not None:
            self._off = True
            self._give_up(unsuitable)
            return
        logger.info("catch_up.begins", slot=self._source.slot, bytes=look.backlog.left)
        self._report.state, self._report.error = "catching up", None
        self._report.write()
        while isinstance(step := policy.next(look.backlog), Step):
            read = self._step(peek, assembler, step.upto)
            if self._stop.is_set():
                return
            policy.done(step.upto - look.backlog.confirmed, read)
            look = self._look(peek, assembler, publication)
            self._count(assembler)
        logger.info("catch_up.done", why=step.reason, steps=self._report.catch_up_steps, bytes=look.backlog.left)

    def _look(self, peek: Peek, assembler: Assembler, publication: int) -> Look:
        look = peek.look()
        if look.publication != publication:
            raise publication_gone("the publication was dropped, and changes with it", "catching up")
        assembler.near_xid = look.xmax
        report, backlog = self._report, look.backlog
        report.received_lsn, report.confirmed_lsn = max(report.received_lsn, backlog.end), backlog.confirmed
        report.catch_up_left = backlog.left
        return look

    # One step.

    def _step(self, peek: Peek, assembler: Assembler, upto: int) -> int:
        """Reads and makes durable what commits before an LSN, and moves the slot there; how many bytes were read.

        The step is given up where `stop` was set.
        """
        peek.begin_peek(upto)
        read = self._copy(peek, assembler) if self._answered(peek, assembler) else 0
        if self._stop.is_set():
            return read
        self._make_durable(assembler, upto)
        peek.begin_move(upto)
        if self._answered(peek, assembler):
            self._report.catch_up_steps += 1
        return read

    def _copy(self, peek: Peek, assembler: Assembler) -> int:
        """Feeds the assembler with the rows of a COPY; how many bytes there were."""
        rows, total, over = CopyRows(), 0, False
        while not over and not self._stop.is_set():
            try:
                read, over = _read_round(peek, rows, assembler)
            finally:  # what stood before a message that makes no sense is good
                self._append_complete(assembler)
            total += read
            self._rest(peek, assembler, idle=not read and not over)
        return total

    def _answered(self, peek: Peek, assembler: Assembler) -> bool:
        """Waits until a statement has answered; False if `stop` was set before."""
        while not peek.poll():
            if self._stop.is_set():
                return False
            self._rest(peek, assembler, idle=True)
        self._heard = self._monotonic()
        return True

    def _rest(self, peek: Peek, assembler: Assembler, *, idle: bool) -> None:
        """Between two rounds: chores, and a wait if nothing had arrived."""
        now = self._monotonic()
        if not idle:
            self._heard = now
        elif now - self._heard > SILENT_SECONDS:
            raise StatementRefused(f"no answer for {SILENT_SECONDS:.0f} s", None)
        if now - self._chored >= CHORE_SECONDS:
            self._do_chores(assembler, now)
        if idle:
            peek.wait(LOOK_SECONDS)

    def _append_complete(self, assembler: Assembler) -> None:
        for complete in assembler.take():
            append_to(self._log, complete)

    def _make_durable(self, assembler: Assembler, upto: int) -> None:
        """Lets the log's end cover the step."""
        if assembler.in_transaction:
            raise ProtocolError("a step ends inside a transaction", where=f"upto {format_lsn(upto)}")
        assembler.keepalive(upto)
        while (piece := assembler.progress(None)) is not None:
            self._log.append(piece)
        end = self._log.sync().end_lsn
        if end < upto:
            raise ProtocolError(f"the log ends at {format_lsn(end)}", where=f"step up to {format_lsn(upto)}")

    def _do_chores(self, assembler: Assembler, now: float) -> None:
        self._chored = now
        self._log.sync()  # readers need not wait for the step's end
        if now - self._trimmed >= TRIM_SECONDS:
            self._trimmed = now
            assembler.forget(self._log.trim(self._clock()))
        self._count(assembler)

    def _count(self, assembler: Assembler) -> None:
        report = self._report
        report.transactions, report.changes = assembler.transactions, assembler.changes
        report.repeats = assembler.repeated
        report.write()


def _read_round(peek: Peek, rows: CopyRows, assembler: Assembler) -> tuple[int, bool]:
    """Feeds what has arrived, up to a bound; how many bytes, and whether the COPY is over."""
    read = 0
    while read < ROUND_BYTES:
        size, frame, taken = peek.pump(assembler.core, ROUND_BYTES)
        read += taken + len(frame)
        if frame:
            _feed(assembler, frame, rows.data_at(frame))
        if size <= 0:
            return read, size < 0 and _proved_whole(rows)
    return read, False


def _feed(assembler: Assembler, frame: bytes, at: int) -> None:
    """Feeds a row that the core has left, if the frame has one.

    PostgreSQL 18 tells by a Stream Abort of a transaction that was spilled and rolled back, of which nothing was sent.
    """
    if at and frame[at] != _STREAM_ABORT:
        assembler.feed(frame, at)


def _proved_whole(rows: CopyRows) -> bool:
    if not rows.ended:
        raise ProtocolError("the rows end without their trailer", where="COPY")
    return True


def _unsuitable(peek: Peek, look: Look) -> str | None:
    """Why this slot and server are for the walsender alone; None if they are not."""
    if look.two_phase:  # what was sent at PREPARE is not decoded again at COMMIT PREPARED, or only in part
        return "the slot decodes prepared transactions"
    if not peek.moves_safely:  # vacuum could remove what decoding still needs
        return "this minor version of PostgreSQL moves slots wrongly; 14.18, 15.13, 16.9 and 17.5 mended it"
    return None
