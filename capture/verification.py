"""Whether the source can go on where the log ends: what is decided before anything is streamed. Pure.

Four things are compared with the log, in this order, and the first that does not fit says what is wrong:

1. The system. Another system identifier or database is another source, whatever its LSNs say.
2. The timeline. The server's history must contain the epoch of the log's end. Where it left that epoch before the
   log's end, commits were lost by a failover (`walbus.capture.epochs`); what counts from then on is the log up to the
   switch point.
3. The reach. A server whose WAL ends before the log does was set back: a volume or a dump was restored.
4. The slot. It must be there, usable, and not be confirmed past what the log holds.

A volume that was restored and has grown past the log's end again passes all four; its history differs in what it sends
again, and `walbus.capture.repeats` finds that out.

What can be streamed again is told as a gap (`SourceGap`), what is not this log's source any more as `SourceReplaced`;
both end the process, with the cause and the mend for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from walbus.capture.epochs import Switch
from walbus.capture.repeats import NEW_LOG, RECONCILE
from walbus.capture.timelines import Timelines
from walbus.errors import SourceGap, SourceMisconfigured, SourceReplaced
from walbus.log import Bounds
from walbus.lsn import format_lsn
from walbus.position import ORIGIN

#: What the slot must be decoded by.
PLUGIN = "pgoutput"

_RAISE_KEEP_SIZE = "raise max_slot_wal_keep_size (or set it to -1) before the next slot is made"
#: Why PostgreSQL gave a slot up (`pg_replication_slots.invalidation_reason`), and what keeps it from happening again.
_CAUSES = {
    "wal_removed": ("WAL that it needs was removed, since it held back more than max_slot_wal_keep_size",
                    _RAISE_KEEP_SIZE),
    "idle_timeout": ("nobody read it for longer than idle_replication_slot_timeout",
                     "raise idle_replication_slot_timeout (or set it to 0) before the next slot is made"),
    "rows_removed": ("rows of the catalog that it needs were removed while the server was a standby",
                     "set hot_standby_feedback = on and a primary_slot_name at the standby"),
    "conflicting": ("it was in the way of what the server replayed as a standby",
                    "set hot_standby_feedback = on and a primary_slot_name at the standby"),
    "wal_level_insufficient": ("WAL was written with wal_level below logical", "keep wal_level = logical everywhere"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """The answer to IDENTIFY_SYSTEM; `flushed` is where the WAL ends, an LSN."""

    system_identifier: str
    timeline: int
    flushed: int
    database: str


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot as pg_replication_slots shows it.

    Attributes:
        plugin, database: None for a physical slot.
        confirmed_lsn: everything that commits before this LSN is never sent again.
        restart_lsn: WAL from here on is kept for it; 0 if nothing is.
        wal_status: reserved, extended, unreserved or lost.
        invalidation: why it cannot be used any more, in the words of PostgreSQL 17; None while it can.
        two_phase: whether it decodes at PREPARE.
        failover: whether it is copied to standbys; None before 17.
        active_pid: of the server's process that streams from it; None while it is free.
    """

    plugin: str | None
    database: str | None
    confirmed_lsn: int
    restart_lsn: int = 0
    wal_status: str | None = None
    invalidation: str | None = None
    two_phase: bool = False
    failover: bool | None = None
    active_pid: int | None = None


def check_system(found: SystemIdentity, known: SystemIdentity) -> None:
    """Whether this is the source that answered before.

    Raises:
        SourceReplaced: it is another one.
    """
    if (found.system_identifier, found.database) == (known.system_identifier, known.database):
        return
    what = f"another database answers: system identifier {found.system_identifier}, database {found.database}"
    where = f"it was {known.system_identifier}, database {known.database}"
    raise SourceReplaced(what, where=where, mend=f"correct source.dsn; {NEW_LOG}")


def lossy_switch(bounds: Bounds, timelines: Timelines) -> Switch | None:
    """The switch behind which the log holds what the source has lost; None if the source continues the log's end.

    Raises:
        SourceReplaced: the server's history does not contain the log's epoch.
    """
    epoch, current = bounds.end.epoch, timelines.current
    if bounds.end == ORIGIN or epoch == current:
        return None
    where = f"log end {bounds.end}"
    if epoch > current:
        what = f"the server is on timeline {current}, and the log on {epoch}: it is a primary that was replaced"
        mend = "stop that server, and name the primary that replaced it in source.dsn"
        raise SourceReplaced(what, where=where, mend=mend)
    left_at = timelines.left_at(epoch)
    if left_at is None:
        what = f"the server's timeline {current} does not descend from timeline {epoch}, which the log follows"
        mend = f"name the server that continues timeline {epoch} in source.dsn; {NEW_LOG}"
        raise SourceReplaced(what, where=where, mend=mend)
    return Switch(epoch, timelines.epoch_of(left_at), left_at) if bounds.end_lsn > left_at else None


def check_reach(system: SystemIdentity, end_lsn: int) -> None:
    """Whether the server has all the WAL that the log was made from.

    Args:
        system: of the server.
        end_lsn: the log holds everything of the server's history that commits before it.

    Raises:
        SourceReplaced: its WAL ends before.
    """
    if system.flushed < end_lsn:
        what = f"the server's WAL ends at {format_lsn(system.flushed)}, before what the log holds: it was set back"
        raise SourceReplaced(what, where=f"log end {format_lsn(end_lsn)}", mend=NEW_LOG)


def check_kind(slot: str, state: SlotState, database: str) -> None:
    """Whether the slot of this name is of our kind.

    Raises:
        SourceMisconfigured: it is another plugin's, another database's, or a physical one.
    """
    if (state.plugin, state.database) == (PLUGIN, database):
        return
    kind = f"of plugin {state.plugin} and database {state.database}" if state.plugin else "a physical one"
    mend = "choose another name in source.slot, or drop that slot"
    raise SourceMisconfigured(f"slot {slot} is {kind}", mend=mend)


@dataclass(frozen=True, slots=True)
class Continued:
    """A log, and the history of the server that is to continue it.

    Attributes:
        bounds: of the log.
        timelines: of the server.
        switch: behind it the log holds what the server has lost; None if there is nothing of that kind.
    """

    bounds: Bounds
    timelines: Timelines
    switch: Switch | None

    @property
    def empty(self) -> bool:
        """Whether the log begins here."""
        return self.bounds.end == ORIGIN

    @property
    def end_lsn(self) -> int:
        """The log holds everything of the server's history that commits before this LSN."""
        return self.bounds.end_lsn if self.switch is None else self.switch.lsn

    @property
    def promoted(self) -> bool:
        """Whether a standby was promoted since the log's end."""
        return self.timelines.current > self.bounds.end.epoch


def check_slot(slot: str, state: SlotState | None, continued: Continued) -> None:
    """Whether the slot can give what follows the log's end; one that is missing may be made for an empty log.

    Raises:
        SourceGap: it cannot.
    """
    if state is None and continued.empty:
        return
    if state is None:
        raise _gap(slot, "it is gone", continued, _no_slot(continued.promoted))
    if state.invalidation is not None:
        why, mend = _CAUSES.get(state.invalidation, (state.invalidation, ""))
        raise _gap(slot, f"it is lost: {why} (wal_status {state.wal_status})", continued, mend)
    if not continued.empty and state.confirmed_lsn > continued.end_lsn:
        why = f"{_who_moved(state, continued.end_lsn)} up to {format_lsn(state.confirmed_lsn)}"
        raise _gap(slot, why, continued, "")


def _no_slot(promoted: bool) -> str:
    if not promoted:
        return ""
    return (
        "a standby was promoted to which the slot had not been copied; from PostgreSQL 17 on it is, with"
        " source.failover and the standby's sync_replication_slots, hot_standby_feedback and primary_slot_name"
    )


def _who_moved(state: SlotState, end_lsn: int) -> str:
    """A slot that keeps WAL from before the log's end is the old one: a new one keeps none older than itself."""
    if 0 < state.restart_lsn < end_lsn:
        return "somebody else has read or advanced it,"
    return "it was dropped and made again, or advanced by somebody else,"


def _gap(slot: str, why: str, continued: Continued, more: str) -> SourceGap:
    what = f"slot {slot} cannot give what follows the log's end: {why}"
    mend = f"{RECONCILE}; {more}" if more else RECONCILE
    return SourceGap(what, where=f"log end {format_lsn(continued.end_lsn)}", mend=mend)
