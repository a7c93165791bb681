"""What the slot holds back on the source's disk, and how near it is to being given up: figures for people and gauges.

Asked about once a second on the session of the catalog's watch, so it goes on while the log's disk is full, and while
the stream waits for anything else. Nothing is decided by it; what PostgreSQL will give up is told while there is time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString, cast

import structlog

from walbus.capture.sessions import Session, refused

logger = structlog.get_logger(__name__)

_RETENTION: LiteralString = """
    SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8, safe_wal_size::int8, wal_status,
           coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), confirmed_flush_lsn), 0)::int8
    FROM pg_replication_slots WHERE slot_name = %s"""


@dataclass(frozen=True, slots=True)
class Retention:
    """What a slot holds back.

    Attributes:
        retained_bytes: WAL from the slot's restart_lsn to the end.
        safe_bytes: WAL that may still be written before the slot is lost; None without max_slot_wal_keep_size.
        wal_status: reserved, extended, unreserved or lost.
        unread_bytes: durable WAL behind what was confirmed.
    """

    retained_bytes: int
    safe_bytes: int | None
    wal_status: str
    unread_bytes: int


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
        self.last = retention = Retention(*cast(tuple[int, int | None, str, int], row))
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
