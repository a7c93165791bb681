"""Up to where the standbys of `synchronized_standby_slots` have the WAL (PostgreSQL 17).

Of a slot that is copied to standbys (`failover`), the server gives nothing that one of these standbys does not have
yet: neither the walsender nor the functions that read and move slots. What lies behind is no backlog that anybody could
read.
"""

from __future__ import annotations

from typing import LiteralString, cast

from walbus.capture.sessions import Session
from walbus.lsn import parse_lsn

_STANDBYS: LiteralString = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = ANY (%s)"


def given_up_to(session: Session, flushed: int, *, failover: bool, standbys: str | None) -> int:
    """How far the server gives what a slot has, an LSN.

    Args:
        session: on the server.
        flushed: how far its WAL is durable, an LSN.
        failover: whether the slot is copied to standbys.
        standbys: `synchronized_standby_slots`; None where the server has no such setting.

    Raises:
        psycopg.Error: the server did not answer.
    """
    if not (failover and standbys):
        return flushed
    names = {name.strip().strip('"') for name in standbys.split(",")}
    rows = cast(list[tuple[str | None]], session.execute(_STANDBYS, [list(names)]).fetchall())
    reached = [parse_lsn(row[0]) if row[0] else 0 for row in rows]
    return min(flushed, *reached) if len(reached) == len(names) else 0
