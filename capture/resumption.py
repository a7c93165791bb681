"""Taking up where the log ends: asks the source what `walbus.capture.verification` decides on, and acts on it.

A connection goes through these steps, in this order:

    meet        which server this is, and whether its history continues the log
    slot        whether the slot gives what follows; None where the log is empty and the slot is to be made
    begin       the record that a start needs: the first of a log, or the EPOCH record of a failover that lost commits
    owed        the transaction that must come again before anything new
    hold        once the stream holds the slot: that nobody moved it since it was looked at
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from walbus.capture.epochs import Lost, Switch, epoch_piece, last_transaction, lost_transactions
from walbus.capture.pgoutput_options import check_two_phase
from walbus.capture.pieces import progress_piece
from walbus.capture.refusals import slot_in_use
from walbus.capture.replication import Walsender
from walbus.capture.sessions import Session, check_same_server
from walbus.capture.slot import FAILOVER_VERSION, read_slot
from walbus.capture.timelines import Timelines
from walbus.capture.verification import (
    Continued,
    SlotState,
    SystemIdentity,
    check_kind,
    check_reach,
    check_slot,
    check_system,
    lossy_switch,
)
from walbus.config import SourceConfig
from walbus.errors import PositionTrimmed
from walbus.log import Bounds, Held, LogWriter
from walbus.lsn import format_lsn
from walbus.position import Position
from walbus.schema import TableSchema

logger = structlog.get_logger(__name__)


class Resumption:
    """Takes up one source at the end of one log, connection after connection.

    Args:
        source: names slot and database.
        log: what is continued.
        clock: Unix seconds.
    """

    def __init__(self, source: SourceConfig, log: LogWriter, clock: Callable[[], float]) -> None:
        self._source = source
        self._log = log
        self._clock = clock
        self._system: SystemIdentity | None = None

    @property
    def met(self) -> bool:
        """Whether this process has met its source before."""
        return self._system is not None

    def meet(self, session: Session, walsender: Walsender, bounds: Bounds) -> Continued:
        """The server's history over the log's end.

        Args:
            session: to the source.
            walsender: a second connection to it.
            bounds: of the log; everything that was appended is durable.

        Raises:
            SourceReplaced: another source answers, or one whose history the log cannot follow.
            SourceUnavailable: the connections reached two servers.
        """
        check_same_server(session, walsender.session)
        system = walsender.identify()
        check_system(system, self._system or system)
        self._system = system
        timelines = walsender.timelines(system.timeline)
        continued = Continued(bounds, timelines, lossy_switch(bounds, timelines))
        check_reach(system, continued.end_lsn)
        return continued

    def slot(self, session: Session, walsender: Walsender, continued: Continued) -> SlotState | None:
        """The slot, which can give what follows the log's end; None if it is to be made.

        Raises:
            SourceGap: it cannot give that.
            SourceMisconfigured: a slot of another kind has this name.
            SlotInUse: it is to be changed, and another session streams from it.
        """
        name, version = self._source.slot, session.info.server_version
        state = read_slot(session, name)
        if state is not None:
            check_kind(name, state, session.info.dbname)
        check_slot(name, state, continued)
        check_two_phase(self._source, version, slot_two_phase=None if state is None else state.two_phase)
        if version >= FAILOVER_VERSION and state is not None and state.failover is not self._source.failover:
            self._set_failover(walsender, state)
        return state

    def _set_failover(self, walsender: Walsender, state: SlotState) -> None:
        """Brings the slot in line with the configuration; PostgreSQL would wait in silence for one that is in use."""
        name, failover = self._source.slot, self._source.failover
        if state.active_pid is not None:
            raise slot_in_use(f'replication slot "{name}" is active for PID {state.active_pid}', "changing the slot")
        walsender.set_failover(name, failover)
        logger.info("slot.failover_set", slot=name, failover=failover)

    def begin(self, continued: Continued, confirmed: int) -> None:
        """Writes what the log must say before anything else; durable on return.

        Args:
            continued: from `meet`.
            confirmed: of the slot, an LSN.
        """
        if continued.empty:  # later starts compare the slot with this record
            epoch, now = continued.timelines.epoch_of(confirmed), int(self._clock() * 1_000_000)
            self._log.append(progress_piece(epoch, confirmed, now))
            self._log.sync()
            logger.info("log.begun", at=format_lsn(confirmed))
        elif continued.switch is not None:
            self._record(continued.switch, continued.bounds)

    def owed(self, slot: SlotState | None, timelines: Timelines) -> Held | None:
        """The log's last transaction, if the slot begins before it."""
        bounds = self._log.bounds()
        if slot is None:
            return None
        begins = max(Position(timelines.epoch_of(slot.confirmed_lsn), slot.confirmed_lsn, 0), bounds.trimmed)
        if begins >= bounds.end:
            return None
        last = Position(*bounds.end[:2], 0)  # where the last record is a transaction, nothing else need be read
        found = last_transaction(self._log.records_after(last), timelines) if last > begins else None
        return found or last_transaction(self._log.records_after(begins), timelines)

    def hold(self, session: Session, timelines: Timelines) -> int:
        """Looks at the slot again, now that the stream holds it and nobody else can move or drop it; its confirmed LSN.

        Raises:
            SourceGap: somebody did since it was verified.
        """
        continued = Continued(self._log.bounds(), timelines, None)
        state = read_slot(session, self._source.slot)
        check_slot(self._source.slot, state, continued)
        return 0 if state is None else state.confirmed_lsn

    def confirmed(self, session: Session) -> int:
        """Where the slot is confirmed now; 0 if it is gone."""
        state = read_slot(session, self._source.slot)
        return 0 if state is None else state.confirmed_lsn

    def _record(self, switch: Switch, bounds: Bounds) -> None:
        """Tells the log what a failover lost, and goes back to where the source's history leaves the log's."""
        lost, reseed = self._lost(switch)
        now = max(int(self._clock() * 1_000_000), bounds.commit_time)
        self._log.append(epoch_piece(switch, lost, reseed, now))
        self._log.sync()
        logger.error(
            "source.failover_lost_commits",
            epoch=switch.epoch,
            switch=format_lsn(switch.lsn),
            transactions=lost.transactions if lost else 0,
            tables=[f"{table.namespace}.{table.name}" for table in reseed],
            note="the log holds what the source lost; these tables are seeded again",
        )

    def _lost(self, switch: Switch) -> tuple[Lost | None, list[TableSchema]]:
        """What the log holds behind a switch, and the layouts of the tables that must be seeded again."""
        newest = {schema.oid: schema for schema in self._log.schemas.all()}
        try:
            lost = lost_transactions(self._log.records_after(switch.before), switch)
        except PositionTrimmed:  # nobody can say any more what it was
            return None, list(newest.values())
        return lost, [newest[oid] for oid in sorted(lost.tables if lost else ()) if oid in newest]
