"""The replication slot on the source: looked at, made, and freed of a session that an earlier connection left.

The slot is the source's promise to keep what the log does not hold yet. `walbus.capture.verification` decides whether
it still does; this module asks and acts.

A slot is made with everything that an existing one cannot be given without a new start of decoding: from PostgreSQL 17
on it goes over to standbys that synchronize slots (`source.failover`), and it decodes at PREPARE if `source.two_phase`
says so. `failover` alone can be changed later, and is.

A slot feeds one session at a time; `take_over` ends the one that an earlier connection of the same log left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, cast

import psycopg
import structlog

from walbus.capture.refusals import refusal
from walbus.capture.sessions import Session, refused
from walbus.capture.verification import SlotState
from walbus.config import SourceConfig
from walbus.errors import Fenced, SourceMisconfigured, WalbusError
from walbus.lsn import format_lsn, parse_lsn

logger = structlog.get_logger(__name__)

#: First version that copies slots to standbys.
FAILOVER_VERSION = 170_000

_CREATE: LiteralString = "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput', twophase => %s)"
#: The slot goes over to a standby that synchronizes slots.
_CREATE_WITH_FAILOVER: LiteralString = """
    SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput', twophase => %s, failover => %s)"""
#: Ends the session that streams, and waits (milliseconds) until it has.
_END_STREAM: LiteralString = """
    SELECT a.pid, pg_terminate_backend(a.pid, 2000)
    FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
    WHERE s.slot_name = %s AND a.application_name = ANY(%s)"""
#: Who streams from the slot for a later term of the same log.
_SUCCESSOR: LiteralString = """
    SELECT a.pid, a.application_name
    FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
    WHERE s.slot_name = %s AND starts_with(a.application_name, %s) AND a.application_name <> ALL(%s)"""


def read_slot(session: Session, slot: str) -> SlotState | None:
    """The slot; None if there is none."""
    with refused(f"reading slot {slot}"):
        row = session.execute("SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = %s", [slot]).fetchone()
    return None if row is None else slot_state(cast(dict[str, Any], row[0]))


def slot_state(columns: dict[str, Any]) -> SlotState:
    """A slot by its columns of pg_replication_slots; which of them there are depends on the version."""
    return SlotState(
        plugin=columns["plugin"],
        database=columns["database"],
        confirmed_lsn=_lsn(columns["confirmed_flush_lsn"]),
        restart_lsn=_lsn(columns["restart_lsn"]),
        wal_status=columns["wal_status"],
        invalidation=_invalidation(columns),
        two_phase=bool(columns["two_phase"]),
        failover=columns.get("failover"),
        active_pid=columns.get("active_pid"),
    )


def create_slot(session: Session, source: SourceConfig) -> int:
    """Makes the slot; its confirmed LSN. Waits for the transactions that run now.

    Raises:
        SourceMisconfigured: a privilege or a setting is missing, or every slot is in use.
    """
    slot = source.slot
    logger.info("slot.creating", slot=slot, note="waits for the transactions that are running now")
    query, parameters = _CREATE, [slot, source.two_phase]
    if session.info.server_version >= FAILOVER_VERSION:
        query, parameters = _CREATE_WITH_FAILOVER, [slot, source.two_phase, source.failover]
    try:
        row = session.execute(query, parameters).fetchone()
    except psycopg.Error as error:
        raise _creation_refusal(error, slot) from None
    confirmed = parse_lsn(cast(str, row[0])) if row else 0
    logger.info("slot.created", slot=slot, lsn=format_lsn(confirmed))
    return confirmed


def check_succession(session: Session, slot: str, names: Sequence[str]) -> None:
    """Whether a copy of the log has taken over, and streams for it: then this log is an old one.

    Args:
        session: on the source.
        slot: its name.
        names: `application_name`s of the streams into this log, of all its terms.

    Raises:
        Fenced: it has.
    """
    with refused(f"looking who streams from slot {slot}"):
        row = session.execute(_SUCCESSOR, [slot, f"{names[0]} ", list(names)]).fetchone()
    if row is not None:
        raise Fenced(
            f"a copy of this log has taken over, and streams from slot {slot} (PID {row[0]}, {row[1]})",
            mend="let this capture end; to follow the new log, set relay.upstream and move this log's folder away",
        )


def take_over(session: Session, slot: str, names: Sequence[str]) -> None:
    """Ends what an earlier connection of this log's writer left streaming from the slot.

    A writer that was killed, stopped or cut off may leave a walsender behind that still sends, or waits for a
    connection that nobody has any more; until it ends, the slot is in use. There is one writer a log, so whatever
    streams under the log's name, or under that of an earlier term of it, is not needed. Sessions of any other name are
    never touched.

    Args:
        session: on the source.
        slot: its name.
        names: `application_name`s of the streams into this log, of all its terms.
    """
    try:
        row = session.execute(_END_STREAM, [slot, list(names)]).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return  # it runs under another role: it is waited for, as any other is
    except psycopg.Error as error:
        raise refusal(error, f"ending the old stream of slot {slot}") from None
    if row is not None:
        logger.warning("slot.old_stream_ended", slot=slot, pid=row[0], ended=row[1])


def _creation_refusal(error: psycopg.Error, slot: str) -> WalbusError:
    if error.sqlstate == "55000":
        return SourceMisconfigured(str(error).split("\n", 1)[0], mend="set wal_level = logical and restart the server")
    if error.sqlstate == "42501":
        return SourceMisconfigured(str(error).split("\n", 1)[0], mend="grant it: ALTER ROLE … REPLICATION")
    return refusal(error, f"creating slot {slot}")


def _invalidation(columns: dict[str, Any]) -> str | None:
    """Why the slot was given up, in the words of 17; versions before tell less."""
    if columns.get("invalidation_reason"):
        return str(columns["invalidation_reason"])
    if columns["wal_status"] == "lost":
        return "wal_removed"
    return "conflicting" if columns.get("conflicting") else None


def _lsn(text: str | None) -> int:
    return 0 if text is None else parse_lsn(text)
