"""One connection's catch-up steps: the slot into the log, a bounded piece of WAL at a time. A thin I/O loop.

Each step is whole before the next one begins:

    look      how far the WAL is durable, and where the slot stands
    peek      COPY of all that commits before an LSN, into the assembler, into the log
    durable   a PROGRESS record, if the last commit ends before that LSN, then the log's sync
    move      the slot to exactly that LSN, which the log's end covers

What commits before the LSN was given by the peek, and is never given again once the slot is there: PostgreSQL judges
both by where a commit's record begins. A step never splits a transaction. Whatever ends the process between two of
these leaves a slot that stands before what is durable: its messages come again, and are dropped as repeats.

No snapshot and no slot is held from step to step.

Where required standbys must hold what was read before the slot may move, a step waits for them, as long as they come
nearer. It does not wait for one that is away: the stream goes on without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from walbus.capture.assembly import Assembler
from walbus.capture.confirming import Confirming
from walbus.capture.copyrows import CopyRows
from walbus.capture.noticed import Noticed
from walbus.capture.peek import Look, Peek, StatementRefused, look_at
from walbus.capture.refusals import publication_gone
from walbus.capture.report import Report
from walbus.capture.sessions import Session, cut_off
from walbus.config import SourceConfig
from walbus.errors import ProtocolError, SourceUnavailable
from walbus.log import LogWriter, append_to
from walbus.lsn import format_lsn

#: What errors say was done.
DOING = "catching up"

#: Bytes that are read at most before what they completed is appended.
ROUND_BYTES = 512 << 10
#: Seconds between two looks at `stop` while the server works.
WAIT_SECONDS = 0.1
#: Seconds between two status files, each with a sync of what is whole, and between two applications of the retention.
CHORE_SECONDS, TRIM_SECONDS = 1.0, 5.0
#: Seconds that a look at the slot may take.
LOOK_SECONDS = 60.0
#: Seconds that required standbys may come no nearer to what was read.
STANDBY_SECONDS = 30.0
#: Seconds of a statement without a sign of life. Only a server that decodes a step at a crawl is silent for so long.
SILENT_SECONDS = 600.0

_STREAM_ABORT = ord("A")


class Stepping:
    """Takes steps over one `Peek`.

    Args:
        peek: free of statements.
        session: to look at the slot while the other one peeks.
        source: names slot and publication.
        log_writer: takes the pieces.
        assembler: makes the pieces.
        noticed: of the catalog.
        report: gets the figures.
        confirming: up to where the slot may be moved.
        publication: OID that the publication must keep.
        stop: ends a step.
        clock: Unix seconds.
        monotonic: seconds that never step back.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (both ends, and what tests replace)
        self,
        peek: Peek,
        session: Session,
        source: SourceConfig,
        log_writer: LogWriter,
        assembler: Assembler,
        noticed: Noticed,
        report: Report,
        confirming: Confirming,
        *,
        publication: int,
        stop: threading.Event,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._peek = peek
        self._session = session
        self._source = source
        self._log = log_writer
        self._assembler = assembler
        self._noticed = noticed
        self._report = report
        self._confirming = confirming
        self._publication = publication
        self._stop = stop
        self._clock = clock
        self._monotonic = monotonic
        self._heard = self._chored = self._trimmed = monotonic()

    def look(self) -> Look:
        """The slot and its server now.

        Raises:
            SourceGap: the publication is gone.
            SourceUnavailable: the slot is gone or was moved beyond the log's end, which the next start judges.
        """
        with cut_off(self._session, self._stop, LOOK_SECONDS):
            look = look_at(self._session, self._source.slot, self._source.publication)
        if look.publication != self._publication:
            raise publication_gone("the publication was dropped, and changes with it", DOING)
        backlog = look.backlog
        if backlog.confirmed > self._log.bounds().end_lsn:
            raise _moved(backlog.confirmed)
        self._assembler.near_xid = look.xmax
        self._report.received_lsn, self._report.confirmed_lsn = backlog.end, backlog.confirmed
        self._report.catch_up_left = backlog.left
        self._write_report()
        return look

    def step(self, look: Look, upto: int) -> int | None:
        """Reads and makes durable what commits before an LSN, and moves the slot there.

        Returns:
            How many bytes were read; None if the slot was not moved: `stop` was set, or a required standby does not
            have what was read.

        Args:
            look: the last one.
            upto: not beyond the end of its backlog.

        Raises:
            StatementRefused: the server refuses peek or move.
            LogFull: there is no room; the step broke off.
            SourceError: the connection broke, or slot or publication cannot give everything.
        """
        self._peek.begin_peek(upto)
        if not self._answered():
            return None
        began = self.look().backlog.confirmed  # before the first row is taken
        if began != look.backlog.confirmed:
            raise _moved(began)
        self._peek.began_at(began)
        read = self._copy()
        if self._stop.is_set():
            return None
        if not self._peek.decodes:
            raise StatementRefused("it is not told from where on a peek decodes", None)
        to = min(upto, self._make_durable(upto))
        self._tell_noticed(look.now, begins=to)
        if not self._confirmable(to):
            return None
        self._peek.begin_move(to)
        if not self._answered():
            return None
        self._report.catch_up_steps += 1
        return read

    # From the source into the log.

    def _copy(self) -> int:
        """Feeds the assembler with the rows of a COPY; how many bytes there were."""
        rows, total, over = CopyRows(), 0, False
        while not over and not self._stop.is_set():
            try:
                read, over = self._read_round(rows)
            finally:  # what stood before a message that makes no sense is good
                self._append_complete()
            total += read
            self._rest(idle=not read and not over)
        return total

    def _read_round(self, rows: CopyRows) -> tuple[int, bool]:
        """Feeds what has arrived, up to a bound; how many bytes, and whether the COPY is over."""
        read = 0
        while read < ROUND_BYTES:
            size, frame, taken = self._peek.pump(self._assembler.core, ROUND_BYTES)
            read += taken + len(frame)
            if frame:
                self._feed(frame, rows.data_at(frame))
            if size < 0 and not rows.ended:
                raise ProtocolError("the rows end without their trailer", where="COPY")
            if size <= 0:
                return read, size < 0
        return read, False

    def _feed(self, frame: bytes, at: int) -> None:
        """Feeds a row that the core has left, if the frame has one.

        PostgreSQL 18 tells by a Stream Abort of transactions that were spilled and rolled back, of which nothing was
        sent.
        """
        if at and frame[at] != _STREAM_ABORT:
            self._assembler.feed(frame, at)

    def _append_complete(self) -> None:
        for complete in self._assembler.take():
            append_to(self._log, complete)

    def _make_durable(self, upto: int) -> int:
        """Lets the log's end cover the step; that end.

        It covers less if an earlier process told the layout of a transaction behind the step, and no more of it: no
        PROGRESS record may stand before that one. The slot must wait for the step that has that transaction.
        """
        assembler = self._assembler
        if assembler.in_transaction:
            raise ProtocolError("a step ends inside a transaction", where=f"upto {format_lsn(upto)}")
        assembler.keepalive(upto)
        while (piece := assembler.progress(None)) is not None:
            self._log.append(piece)
        return self._log.sync().end_lsn

    def _tell_noticed(self, now: int, *, begins: int) -> None:
        """Tells what is due; each step is a session of its own to pgoutput, and the next one begins at an LSN."""
        due = self._noticed.announce(now, begins)
        if due is not None:
            self._append_complete()
            self._log.sync()
            self._noticed.told(due)

    def _confirmable(self, upto: int) -> bool:
        """Waits until required standbys hold it too; False if one does not, or `stop` was set before."""
        reached, since = 0, self._monotonic()
        while (bound := self._confirming.bound(upto)) < upto:
            now = self._heard = self._monotonic()  # nothing was asked of the server
            if bound > reached:
                reached, since = bound, now
            if self._stop.is_set() or self._confirming.away or now - since > STANDBY_SECONDS:
                return False
            self._rest(idle=True)
        return True

    # Between.

    def _answered(self) -> bool:
        """Waits until the statement has answered; False if `stop` was set before."""
        self._heard = self._monotonic()
        while not self._peek.poll():
            if self._stop.is_set():
                return False
            self._rest(idle=True)
        return True

    def _rest(self, *, idle: bool) -> None:
        """Between two rounds: chores, and a wait if nothing had arrived."""
        now = self._monotonic()
        if not idle:
            self._heard = now
        elif now - self._heard > SILENT_SECONDS:
            raise StatementRefused(f"no answer for {SILENT_SECONDS:.0f} s", None)
        if now - self._chored >= CHORE_SECONDS:
            self._do_chores(now)
        if idle:
            self._peek.wait(WAIT_SECONDS)

    def _do_chores(self, now: float) -> None:
        self._chored = now
        self._log.sync()  # readers need not wait for the step's end
        self._noticed.take(lambda action: action())
        if now - self._trimmed >= TRIM_SECONDS:
            self._trimmed = now
            self._assembler.forget(self._log.trim(self._clock()))
        self._write_report()

    def _write_report(self) -> None:
        report, assembler = self._report, self._assembler
        report.transactions, report.changes = assembler.transactions, assembler.changes
        report.repeats = assembler.repeated
        report.standbys_away = self._confirming.away
        report.write()


def _moved(confirmed: int) -> SourceUnavailable:
    return SourceUnavailable(f"somebody else moved the slot to {format_lsn(confirmed)}", where=DOING)
