"""Going on behind a gap: with a new slot, and a record in the log that says from where to where changes are missing.

Capture never goes on over a gap by itself. `walbus snapshot --reconcile` leaves a consent, one small file beside the
log, which names the log's end that it is for: the next start of capture acts on it, and a consent that is for another
end is none (it was acted on, or is of an earlier gap).

    the slot goes, if there is one, and is made anew: everything that commits from its LSN C on is sent
    an EPOCH record at (epoch of C, C, 0) says so, names every table that the log knows (`reseed`), and is durable
    the consent goes

A crash in between begins with the first step again: as long as the record is not in the log, the consent is for its
end.

What the log lacks is made good by the bootstrap: it seeds every table again, beside the rows that it has of it, and
hands over the net difference (`walbus.capture.handover`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
import structlog

from walbus.capture.difference_file import remove
from walbus.capture.epochs import Lost, Switch, epoch_piece, lost_transactions
from walbus.capture.refusals import refusal
from walbus.capture.remembered import replace_file
from walbus.capture.replication import Walsender
from walbus.capture.sessions import Session, check_same_server, open_session
from walbus.capture.slot import create_slot, read_slot
from walbus.capture.verification import Continued, check_kind, check_reach, check_slot, lossy_switch
from walbus.config import SourceConfig
from walbus.errors import PositionTrimmed, SourceGap
from walbus.log import Bounds, LogWriter
from walbus.lsn import format_lsn
from walbus.schema import TableSchema

logger = structlog.get_logger(__name__)

#: Name of the consent's file, in the folder of the log.
CONSENT_FILE = "reconcile.json"


class Consent(msgspec.Struct, frozen=True):
    """That capture is to go on behind a log's end with a new slot.

    Attributes:
        log_id, end: of the log; `end` is the position of its last record, as text.
        why: what is wrong with the slot; stands in the log.
    """

    log_id: str
    end: str
    why: str


def write_consent(folder: Path, bounds: Bounds, why: str) -> None:
    """Leaves a consent for a log's end; durable on return.

    Raises:
        OSError: it could not be written.
    """
    replace_file(folder / CONSENT_FILE, msgspec.json.encode(Consent(bounds.log_id, str(bounds.end), why)))


def read_consent(folder: Path, bounds: Bounds) -> Consent | None:
    """The consent for a log's end; None if there is none."""
    try:
        consent = msgspec.json.decode((folder / CONSENT_FILE).read_bytes(), type=Consent)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return consent if (consent.log_id, consent.end) == (bounds.log_id, str(bounds.end)) else None


def find_gap(source: SourceConfig, bounds: Bounds) -> str | None:
    """What is wrong with the slot, seen from a log's end; None if it gives what follows.

    Args:
        source: names it.
        bounds: of the log.

    Raises:
        SourceError: the source is away, or another one answers.
    """
    session = open_session(source.dsn)
    try:
        walsender = Walsender(source.dsn, None)
        try:
            check_same_server(session, walsender.session)
            system = walsender.identify()
            timelines = walsender.timelines(system.timeline)
            continued = Continued(bounds, timelines, lossy_switch(bounds, timelines))
            check_reach(system, continued.end_lsn)
            check_slot(source.slot, read_slot(session, source.slot), continued)
        except SourceGap as gap:
            return gap.what
        finally:
            walsender.close()
    finally:
        session.close()
    return None


class Reconciling:
    """Acts on consents, for one capture process.

    Args:
        folder: of the log; None: there are no consents.
        source: names the slot.
        log: gets the record.
        clock: Unix seconds.
    """

    def __init__(self, folder: Path | None, source: SourceConfig, log: LogWriter, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._source = source
        self._log = log
        self._clock = clock

    def consent(self, bounds: Bounds) -> Consent | None:
        """The consent to go on behind a log's end; one for another end goes."""
        if self._folder is None or not (self._folder / CONSENT_FILE).exists():
            return None
        consent = read_consent(self._folder, bounds)
        if consent is None:
            logger.warning("reconcile.consent_is_for_another_end", file=str(self._folder / CONSENT_FILE))
            remove(self._folder / CONSENT_FILE)
        return consent

    def make_slot(self, session: Session) -> int:
        """Makes the slot anew; its confirmed LSN. Waits for the transactions that run now.

        Raises:
            SlotInUse: another session streams from the old one.
            SourceMisconfigured: a slot of another kind has this name.
        """
        name = self._source.slot
        state = read_slot(session, name)
        if state is not None:
            check_kind(name, state, session.info.dbname)
            try:
                session.execute("SELECT pg_drop_replication_slot(%s)", [name])
            except psycopg.Error as error:
                raise refusal(error, f"dropping slot {name}") from None
            logger.warning("slot.dropped", slot=name, note="it could not give what follows the log's end")
        return create_slot(session, self._source)

    def record(self, continued: Continued, confirmed: int, consent: Consent) -> None:
        """Writes into the log what it lacks, and takes the consent back.

        Args:
            continued: the log, and the server's history.
            confirmed: of the new slot, an LSN: everything that commits before it and behind the log's end is missing.
            consent: to this.
        """
        epoch, bounds = continued.timelines.epoch_of(confirmed), continued.bounds
        newest = {schema.oid: schema for schema in self._log.schemas.all()}
        now = max(int(self._clock() * 1_000_000), bounds.commit_time)
        gap = {"after": format_lsn(continued.end_lsn), "before": format_lsn(confirmed), "why": consent.why}
        switch = Switch(bounds.end.epoch, epoch, confirmed)
        lost = None if continued.switch is None else self._lost(continued.switch)
        self._log.append(epoch_piece(switch, lost, _sorted(newest), now, gap))
        self._log.sync()
        logger.error(
            "reconcile.goes_on",
            at=format_lsn(confirmed),
            missing_since=format_lsn(continued.end_lsn),
            lost_transactions=lost.transactions if lost else 0,
            tables=len(newest),
            note="every table is seeded again, and its net difference goes into the log",
        )
        if self._folder is not None:
            remove(self._folder / CONSENT_FILE)

    def _lost(self, switch: Switch) -> Lost | None:
        try:
            return lost_transactions(self._log.records_after(switch.before), switch)
        except PositionTrimmed:
            return None


def _sorted(newest: dict[int, TableSchema]) -> list[TableSchema]:
    return [newest[oid] for oid in sorted(newest)]
