"""What the slot holds back on the source's disk, and how near it is to being given up: figures for people and gauges.

Asked about once a second on the session of the catalog's watch, so it goes on while the log's disk is full, and while
the stream waits for anything else. Nothing is decided by it; what PostgreSQL will give up is told while there is time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString, cast

import structlog

from walbus.capture.sessions import Session, refused
from walbus.capture.standby_slots import given_up_to
from walbus.lsn import parse_lsn

logger = structlog.get_logger(__name__)

_RETENTION: LiteralString = """
    SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8, safe_wal_size::int8, wal_status,
           pg_current_wal_flush_lsn()::text, to_jsonb(s) ->> 'failover' = 'true',
           current_setting('synchronized_standby_slots', true)
    FROM pg_replication_slots s WHERE slot_name = %s"""

_Row = tuple[int, int | None, str, str, bool | None, str | None]


@dataclass(frozen=True, slots=True)
class Retention:
    """What a slot holds back.

    Attributes:
        retained_bytes: WAL from the slot's restart_lsn to the end.
        safe_bytes: WAL that may still be written before the slot is lost; None without max_slot_wal_keep_size.
        wal_status: reserved, extended, unreserved or lost.
        readable_lsn: up to here WAL can be read now: it is durable, on the standbys that must have it first
            (`synchronized_standby_slots`) too.
    """

    retained_bytes: int
    safe_bytes: int | None
    wal_status: str
    readable_lsn: int


class RetentionWatch:
    """Looks at one slot, and warns once each time that it comes near its end.

    Attributes:
        last: what was seen last; None before the first look, and while there is nothing to see.
    """

    def __init__(self, slot: str) -> None:
        self._slot = slot
        self._warned = False
        self.last: Retention | None = None

    def look(self, session: Session) -> None:
        """Sees what the slot holds back now."""
        with refused(f"reading slot {self._slot}"):
            row = session.execute(_RETENTION, [self._slot]).fetchone()
            if row is None or row[0] is None:
                self.last = None
                return
            retained, safe, status, flushed, failover, standbys = cast(_Row, row)
            end = given_up_to(session, parse_lsn(flushed), failover=bool(failover), standbys=standbys)
        self.last = retention = Retention(retained, safe, status, end)
        in_danger = retention.wal_status == "unreserved"
        if in_danger and not self._warned:
            logger.error(
                "slot.nearly_lost",
                slot=self._slot,
                retained_bytes=retention.retained_bytes,
                note="at its next checkpoint PostgreSQL removes WAL that was not read yet",
                mend="raise max_slot_wal_keep_size now (ALTER SYSTEM SET …; SELECT pg_reload_conf())",
            )
        self._warned = in_danger
