"""The replication slot: made when missing, and verified at every start against what the log holds.

The slot is the source's promise to keep what the log does not hold yet. The promise is broken when the slot is gone
or invalidated, and when it was confirmed past the log's end (it was dropped and made again, or another reader used
it): then changes are missing that nobody can have from the slot any more, which is a gap and stops capture.
PostgreSQL itself would not say so: a slot that is asked for older changes silently begins at its own place.

A slot feeds one session at a time; `take_over` ends the one that an earlier connection of the same log left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString, cast

import psycopg
import structlog

from walbus.capture.refusals import refusal
from walbus.capture.repeats import NEW_LOG
from walbus.capture.sessions import Session, refused
from walbus.errors import SourceGap, SourceMisconfigured, WalbusError
from walbus.log import Bounds
from walbus.lsn import format_lsn, parse_lsn
from walbus.position import ORIGIN

logger = structlog.get_logger(__name__)

_PLUGIN = "pgoutput"

_CREATE: LiteralString = "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')"
#: Ends the session that streams, and waits (milliseconds) until it has.
_END_STREAM: LiteralString = """
    SELECT a.pid, pg_terminate_backend(a.pid, 2000)
    FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
    WHERE s.slot_name = %s AND a.application_name = %s"""
#: The slot goes over to a standby that synchronizes slots.
_CREATE_WITH_FAILOVER: LiteralString = (
    "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput', failover => true)"
)


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot as pg_replication_slots shows it.

    Attributes:
        confirmed_lsn: everything that commits before this LSN is never sent again.
        lost: why the slot cannot be used any more; None while it can.
    """

    plugin: str | None
    database: str | None
    confirmed_lsn: int
    lost: str | None


def read_slot(session: Session, slot: str) -> SlotState | None:
    """The slot; None if there is none."""
    with refused(f"reading slot {slot}"):
        row = session.execute("SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = %s", [slot]).fetchone()
    if row is None:
        return None
    columns = cast(dict[str, Any], row[0])  # which of them there are depends on the version
    confirmed = columns["confirmed_flush_lsn"]
    return SlotState(
        columns["plugin"], columns["database"], 0 if confirmed is None else parse_lsn(confirmed), _why_lost(columns)
    )


def ensure_slot(session: Session, slot: str, bounds: Bounds) -> int:
    """Makes or verifies the slot; its confirmed LSN.

    Args:
        session: on the source, in the slot's database.
        slot: its name.
        bounds: of the log.

    Raises:
        SourceGap: the slot cannot give what follows the log's end.
        SourceMisconfigured: a slot of another kind has this name, or a privilege or setting is missing.
    """
    state = read_slot(session, slot)
    if state is None:
        if bounds.end != ORIGIN:
            raise _gap(slot, "it is gone", bounds)
        return _create(session, slot)
    if state.plugin != _PLUGIN or state.database != session.info.dbname:
        kind = f"of plugin {state.plugin} and database {state.database}" if state.plugin else "a physical one"
        mend = "choose another name in source.slot, or drop that slot"
        raise SourceMisconfigured(f"slot {slot} is {kind}", mend=mend)
    if state.lost is not None:
        raise _gap(slot, f"it is lost ({state.lost})", bounds)
    if bounds.end != ORIGIN and state.confirmed_lsn > bounds.end_lsn:
        at = format_lsn(state.confirmed_lsn)
        raise _gap(slot, f"it was dropped and made again, or read by somebody else, up to {at}", bounds)
    return state.confirmed_lsn


def take_over(session: Session, slot: str, name: str) -> None:
    """Ends what an earlier connection of this log's writer left streaming from the slot.

    A writer that was killed, stopped or cut off may leave a walsender behind that still sends, or waits for a
    connection that nobody has any more; until it ends, the slot is in use. There is one writer a log, so whatever
    streams under the log's name is not needed. Sessions of any other name are never touched.

    Args:
        session: on the source.
        slot: its name.
        name: `application_name` of the streams into this log.
    """
    try:
        row = session.execute(_END_STREAM, [slot, name]).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return  # it runs under another role: it is waited for, as any other is
    except psycopg.Error as error:
        raise refusal(error, f"ending the old stream of slot {slot}") from None
    if row is not None:
        logger.warning("slot.old_stream_ended", slot=slot, pid=row[0], ended=row[1])


def _create(session: Session, slot: str) -> int:
    logger.info("slot.creating", slot=slot, note="waits for the transactions that are running now")
    query = _CREATE_WITH_FAILOVER if session.info.server_version >= 170_000 else _CREATE
    try:
        row = session.execute(query, [slot]).fetchone()
    except psycopg.Error as error:
        raise _creation_refusal(error, slot) from None
    confirmed = parse_lsn(cast(str, row[0])) if row else 0
    logger.info("slot.created", slot=slot, lsn=format_lsn(confirmed))
    return confirmed


def _creation_refusal(error: psycopg.Error, slot: str) -> WalbusError:
    if error.sqlstate == "55000":
        return SourceMisconfigured(str(error).split("\n", 1)[0], mend="set wal_level = logical and restart the server")
    if error.sqlstate == "42501":
        return SourceMisconfigured(str(error).split("\n", 1)[0], mend="grant it: ALTER ROLE … REPLICATION")
    return refusal(error, f"creating slot {slot}")


def _why_lost(columns: dict[str, Any]) -> str | None:
    if columns.get("invalidation_reason"):
        return str(columns["invalidation_reason"])
    if columns.get("wal_status") == "lost":
        return "wal_status = lost"
    return "conflict with recovery" if columns.get("conflicting") else None


def _gap(slot: str, why: str, bounds: Bounds) -> SourceGap:
    what = f"slot {slot} cannot give what follows the log's end: {why}"
    return SourceGap(what, where=f"log end {format_lsn(bounds.end_lsn)}", mend=NEW_LOG)
