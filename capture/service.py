"""The room's process: connects, verifies, streams, and connects again after whatever passes by itself.

What passes (`Directive.RETRY`: the server is away, the slot is in use) is tried again with a growing, jittered
back-off and one log line for each new reason. What does not pass is raised, and ends the process.

The order of a start matters. What the server is comes first, so that nothing is made or changed on a wrong one
(`walbus.capture.verification`). The publication is made before the slot, since the slot's first changes are decoded
with the publication as it was then. An empty log first gets a durable PROGRESS record at the slot's confirmed LSN,
which is what later starts compare the slot with. Where a failover lost commits that the log holds, the first record is
an EPOCH record (`walbus.capture.epochs`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import structlog

from walbus.capture.assembly import Assembler
from walbus.capture.catalog import builtin_types, primary_key, read_moment, read_state
from walbus.capture.catchup import CatchUp
from walbus.capture.confirming import Confirming
from walbus.capture.handover import Handover
from walbus.capture.identity import StandbyAnswers, check_source
from walbus.capture.layouts import key_under_full
from walbus.capture.loop import StreamLoop
from walbus.capture.noticed import Noticed
from walbus.capture.opening import about
from walbus.capture.pauses import Backoff
from walbus.capture.publication import Completion, ensure_publication
from walbus.capture.reconciling import Reconciling
from walbus.capture.regrouped import LOOKS_AGAIN_SINCE, regrouped
from walbus.capture.remembered import Remembered
from walbus.capture.repeats import Repeats
from walbus.capture.replication import Walsender
from walbus.capture.report import Report, State, hindrance
from walbus.capture.resumption import Resumption
from walbus.capture.retention import RetentionWatch
from walbus.capture.sessions import Session, cut_off, open_session, stream_names
from walbus.capture.slot import check_succession, create_slot, take_over
from walbus.capture.spooling import Spooling
from walbus.capture.steps import Pauses, StepPolicy
from walbus.capture.timelines import Timelines
from walbus.capture.verification import SlotState
from walbus.capture.watch import CatalogWatch, Due
from walbus.config import SourceConfig
from walbus.errors import ConfigError, Directive, LogFull, SourceError, SourceUnavailable, directive_of
from walbus.log import Bounds, LogWriter, StandbyBound
from walbus.native import core_in_use, new_core
from walbus.position import ORIGIN

logger = structlog.get_logger(__name__)

#: Seconds that a statement of the start may take.
SETUP_SECONDS = 60.0
#: A connection that streamed for so many seconds was a good one: the next pause is the first one again.
GOOD_SECONDS = 5.0


def run_capture(  # noqa: PLR0913  (what a process is given)
    source: SourceConfig,
    log: LogWriter,
    *,
    spool_dir: Path,
    stop: threading.Event,
    status_path: Path | None = None,
    catalog_path: Path | None = None,
    differences_dir: Path | None = None,
    term: int = 1,
    standbys: Callable[[], StandbyBound] | None = None,
) -> None:
    """Captures into the log until `stop` is set.

    Args:
        source: the database, slot, publication and tables.
        log: the log's writer; it stays open.
        spool_dir: folder for transactions that are open or prepared at the source; made when missing.
        stop: ends it; everything whole that was received is then durable and confirmed.
        status_path: of the status file.
        catalog_path: of the file that remembers the source's catalog, so that what is altered while capture is down is
            noticed; None to remember nothing.
        differences_dir: where the bootstrap puts net differences that are to go into the log; None to take none.
        term: of the log: how often a copy of it took over, plus one.
        standbys: gives what the required standbys hold; None where none is required.

    Raises:
        SourceMisconfigured, SourceGap, SourceReplaced: only an operator can mend it.
        ConfigError: the spool's folder cannot be used.
        ProtocolError: the source sent what cannot be decoded.
        LogError, OSError: the log failed.
    """
    Capture(
        source,
        log,
        spool_dir=spool_dir,
        stop=stop,
        status_path=status_path,
        catalog_path=catalog_path,
        differences_dir=differences_dir,
        term=term,
        standbys=standbys,
    ).run()


class Capture:
    """One capture process; `run_capture` says the rest.

    Args:
        source, log, spool_dir, stop, status_path, catalog_path, differences_dir, term, standbys: as there.
        clock: Unix seconds.
        monotonic: seconds that never step back.
        random: numbers from 0 to 1, for the back-off.
        step_policy: makes the policy of a catching up, from the bytes of its first step.
        step_pauses: between two of them.
    """

    def __init__(  # noqa: PLR0913  (what it needs, and what tests replace)
        self,
        source: SourceConfig,
        log: LogWriter,
        *,
        spool_dir: Path,
        stop: threading.Event,
        status_path: Path | None,
        catalog_path: Path | None = None,
        differences_dir: Path | None = None,
        term: int = 1,
        standbys: Callable[[], StandbyBound] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
        step_policy: Callable[[int], StepPolicy] = StepPolicy,
        step_pauses: Pauses | None = None,
    ) -> None:
        self._source = source
        self._log = log
        self._stop = stop
        self._clock = clock
        self._monotonic = monotonic
        self._backoff = Backoff(random)
        self._report = Report(status_path, clock, about(source), RetentionWatch(source.slot))
        self._term = term
        self._confirming = Confirming(standbys, monotonic)
        self._catch_up = CatchUp(
            source,
            log,
            self._report,
            self._confirming,
            stop=stop,
            clock=clock,
            monotonic=monotonic,
            policy=step_policy,
            pauses=step_pauses or Pauses(),
        )
        self._completion = Completion(source)
        self._remembered = Remembered(catalog_path)
        self._handover = Handover(differences_dir, log)
        self._resumption = Resumption(source, log, clock)
        self._reconciling = Reconciling(None if differences_dir is None else differences_dir.parent, source, log, clock)
        self._assembler: Assembler | None = None
        self._spooling = Spooling(source, spool_dir)
        self._last_reason: str | None = None
        self._left: Due | None = None  # what a connection left to the next one to tell

    def run(self) -> None:
        """Captures until stopped."""
        if (core := core_in_use()) != "native":  # the same records at a fraction of the speed: walbus doctor mends it
            logger.warning("capture.slow_core", core=core, mend="build the extension; walbus doctor tells how")
        try:
            self._spooling.check_folder()
        except ConfigError as error:
            self._tell("stopped", str(error))
            raise
        while not self._stop.is_set():
            begun = self._monotonic()
            try:
                self._stream_once()
            except Exception as error:
                if directive_of(error) is not Directive.RETRY and not self._spooling.may_do_unstreamed(error):
                    self._tell("stopped", str(error))
                    self._check_fenced(error)
                    raise
                if not self._stop.is_set():
                    self._pause(error, lasted=self._monotonic() - begun)
        self._spooling.close()
        self._tell("stopped", None)

    def _check_fenced(self, error: Exception) -> None:
        """A writer that was stopped and comes back finds the source as its successor left it: that is no gap.

        Raises:
            Fenced: another writer took over.
        """
        if isinstance(error, SourceError):
            with suppress(LogFull, OSError):
                self._log.sync()

    def _pause(self, error: Exception, lasted: float) -> None:
        if lasted >= GOOD_SECONDS:
            self._backoff.reset()
        reason = f"{type(error).__name__}: {error}"
        if reason != self._last_reason:  # one line for each reason, however long it lasts
            logger.warning("capture.interrupted", error=str(error), kind=type(error).__name__)
        self._last_reason = reason
        self._tell(hindrance(error) if isinstance(error, LogFull) else "waiting to reconnect", str(error))
        if isinstance(error, LogFull):
            with suppress(LogFull):
                self._log.trim(self._clock())  # retention goes on, or the disk might stay full for ever
        self._stop.wait(self._backoff.next_pause())

    def _tell(self, state: State, error: str | None) -> None:
        self._report.state, self._report.error = state, error
        self._report.write()

    def _stream_once(self) -> None:
        """One connection, from its opening to its end."""
        self._handover.reset()
        bounds = self._log.sync()  # what the last connection left whole; repeats are compared with what is durable
        known = {schema.oid for schema in self._log.schemas.all()}
        with ExitStack() as closing:
            session = open_session(self._source.dsn)
            closing.callback(session.close)
            names = stream_names(self._source.dsn, bounds.log_id, self._term)
            name = names[-1] if names else None
            with cut_off(session, self._stop, SETUP_SECONDS):
                self._check_source(session)
                if names:
                    check_succession(session, self._source.slot, names)
                    take_over(session, self._source.slot, names)
            walsender = Walsender(self._source.dsn, name)
            closing.callback(walsender.close)
            with cut_off(walsender, self._stop, SETUP_SECONDS):
                continued = self._resumption.meet(session, walsender, bounds)
                timelines, timeout = continued.timelines, walsender.timeout_seconds()
            consent = self._reconciling.consent(bounds)
            with cut_off(session, self._stop, SETUP_SECONDS):
                publication = self._publication(session, bounds, known, anew=consent is not None)
                state = self._resumption.slot(session, walsender, continued) if consent is None else None
            with cut_off(session, self._stop, None):  # a new slot waits for the transactions that run
                confirmed = self._slot(session, state, anew=consent is not None)
            if consent is None:
                self._resumption.begin(continued, confirmed)
            else:
                self._reconciling.record(continued, confirmed, consent)
            self._confirming.begin(confirmed)
            with cut_off(session, self._stop, SETUP_SECONDS):
                assembler = self._assembler_for(session, timelines)
                other_rows = self._other_rows_come(session, confirmed)
                assembler.owe(self._resumption.owed(state, timelines), other_rows=other_rows)
                intake, ends = self._spooling.intake(session, assembler, bounds.log_id)
            watch = CatalogWatch(
                self._source,
                known,
                self._remembered,
                assembler.builtin_types,
                self._completion,
                self._report.retention,
                ends,
                self._left,
            )
            self._left = None
            closing.callback(watch.close)
            watch.start()
            noticed = Noticed(watch, self._log.schemas, assembler, self._report, publication)
            if not other_rows and not self._catch_up.run(
                session, assembler, noticed, name=name, publication=publication
            ):
                return
            with cut_off(walsender, self._stop, SETUP_SECONDS):
                self._start(walsender)
            with cut_off(session, self._stop, SETUP_SECONDS):
                begun = self._resumption.hold(session, timelines)
            walsender.began_at(begun)
            self._streams(timelines)
            self._left = StreamLoop(
                walsender,
                self._log,
                intake,
                ends,
                assembler,
                noticed,
                self._handover,
                self._report,
                self._confirming,
                stop=self._stop,
                leave=self._catch_up.should_return,
                begun=begun,
                confirmed=partial(self._confirmed, session),
                timeout=timeout,
                clock=self._clock,
                monotonic=self._monotonic,
            ).run()
            if not self._stop.is_set() and self._left is None:
                self._catch_up.returns()

    def _publication(self, session: Session, bounds: Bounds, known: Collection[int], *, anew: bool) -> int:
        """The publication's OID; made or completed.

        Args:
            session: on the source.
            bounds: of the log.
            known: OIDs of the tables that the log knows.
            anew: whether all tables are about to be seeded again, so that what became of it does not matter.
        """
        empty = bounds.end == ORIGIN
        self._remembered.open(bounds.log_id, log_is_empty=empty)
        if anew:
            self._remembered.forget()
        publication = ensure_publication(
            session,
            self._completion,
            log_is_empty=empty or anew,
            known=() if anew else known,
            remembered=self._remembered.state,
        )
        before = self._remembered.state  # there is one where an earlier start has made the slot, and ended
        if (empty or anew) and (before is None or before.publication.oid != publication):
            state = read_state(session, self._source.publication)
            if state is not None:
                self._remembered.begin(state)
        return publication

    def _slot(self, session: Session, state: SlotState | None, *, anew: bool) -> int:
        """The confirmed LSN of the slot, which is made if there is none, or if it is to be another one."""
        if anew:
            return self._reconciling.make_slot(session)
        return create_slot(session, self._source) if state is None else state.confirmed_lsn

    def _check_source(self, session: Session) -> None:
        """A standby is waited for once the source was met: in a failover its promotion may still be under way."""
        try:
            check_source(session, self._source)
        except StandbyAnswers as error:
            if not self._resumption.met:
                raise
            raise SourceUnavailable(error.what, where=error.where, mend=f"promote it, or {error.mend}") from None

    def _other_rows_come(self, session: Session, confirmed: int) -> bool:
        """Whether what the slot sends again may have other rows than the log has of it: behind an ATTACH or a DETACH.

        PostgreSQL 14 alone does that (`walbus.capture.regrouped`). Where the slot went back to before such a statement
        that was told already, the new session goes on wrongly behind the log's end: that is noted before it does.

        Args:
            session: on the source.
            confirmed: of the slot, an LSN.
        """
        remembered, told = self._remembered, self._remembered.state
        if session.info.server_version >= LOOKS_AGAIN_SINCE or told is None:
            return False
        if confirmed < remembered.regrouped_lsn:
            remembered.doubt()
        if confirmed >= self._log.bounds().end_lsn:
            return False
        now = read_state(session, self._source.publication)
        return remembered.doubtful or (now is not None and regrouped(told, now))

    def _confirmed(self, session: Session) -> int:
        with cut_off(session, self._stop, SETUP_SECONDS):
            return self._resumption.confirmed(session)

    def _assembler_for(self, session: Session, timelines: Timelines) -> Assembler:
        near_xid = read_moment(session, self._source.publication).xmax
        bounds = self._log.bounds()
        if self._assembler is not None:
            self._assembler.reconnected(timelines, near_xid, end=bounds.end, bound=bounds.end_lsn)
            return self._assembler
        self._assembler = Assembler(
            core=new_core(),
            schemas=self._log.schemas,
            repeats=Repeats(self._log.find, end=bounds.end, trimmed=bounds.trimmed),
            builtin_types=builtin_types(session),
            primary_key=self._primary_key,
            timelines=timelines,
            near_xid=near_xid,
            bound=bounds.end_lsn,
            last_commit_time=bounds.commit_time,
        )
        return self._assembler

    def _start(self, walsender: Walsender) -> None:
        options = self._spooling.options(walsender.server_version, self._log.bounds().end_lsn)
        walsender.start(self._source.slot, self._source.publication, options)
        self._report.protocol = options.protocol
        logger.info(
            "capture.started", protocol=options.protocol, streaming=options.streaming, two_phase=options.two_phase
        )

    def _primary_key(self, oid: int, columns: Collection[str]) -> Collection[str]:
        return key_under_full(columns, self._remembered.primary_key(oid), lambda: self._primary_key_today(oid))

    def _primary_key_today(self, oid: int) -> frozenset[str]:
        session = open_session(self._source.dsn)
        try:
            with cut_off(session, self._stop, SETUP_SECONDS):
                return primary_key(session, oid)
        finally:
            session.close()

    def _streams(self, timelines: Timelines) -> None:
        if self._last_reason is not None:
            self._report.reconnects += 1
            self._last_reason = None
        self._report.timeline = timelines.current
        self._tell("streaming", None)
        logger.info("capture.streaming", slot=self._source.slot, timeline=timelines.current)
