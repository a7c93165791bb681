"""Which prepared transactions have ended, by the source's own book."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString, cast

from walbus.capture.prepared import Prepared
from walbus.capture.sessions import Session, refused
from walbus.capture.xids import widen_xid
from walbus.lsn import parse_lsn

#: textsend gives a gid the encoding of the session, as pgoutput does. A status of NULL: so long ago that the book
#: forgot it.
_ENDED: LiteralString = """
    SELECT t.n FROM unnest(%s::text[], %s::bytea[]) WITH ORDINALITY t (xid, gid, n)
    WHERE pg_xact_status(t.xid::xid8) IS DISTINCT FROM 'in progress'
       OR EXISTS (
           SELECT FROM pg_prepared_xacts p WHERE p.transaction = t.xid::xid8::xid AND textsend(p.gid) <> t.gid)"""
_NOW: LiteralString = "SELECT pg_current_wal_flush_lsn()::text, pg_postmaster_start_time()::text"


@dataclass(frozen=True, slots=True)
class Ended:
    """What a server knows as ended at one moment.

    Attributes:
        transactions: they have committed or rolled back, or are not of this server's history.
        lsn: whatever ended them lies before it; an idle stream reaches it.
        server: which one this is, until it starts again.
    """

    transactions: tuple[Prepared, ...]
    lsn: int
    server: str


def ended_transactions(session: Session, prepared: Sequence[Prepared], near_xid: int) -> Ended:
    """Those of the prepared transactions that are not prepared any more.

    PostgreSQL flushes the record that ends a prepared transaction before it notes the end; so what is noted lies before
    the flush LSN. An xid that another gid is prepared under was used again, by the history that a failover began.

    Args:
        session: on the source.
        prepared: what is asked about.
        near_xid: `pg_snapshot_xmax` of a moment ago; ids at or beyond it are left out, since nothing is known of them.
    """
    asked = [(each, xid) for each in prepared if (xid := widen_xid(each.xid, near_xid)) < near_xid]
    with refused("reading the status of prepared transactions"):
        xids, gids = [str(xid) for _, xid in asked], [bytes.fromhex(each.gid) for each, _ in asked]
        rows = cast(list[tuple[int]], session.execute(_ENDED, [xids, gids]).fetchall())
        now = session.execute(_NOW).fetchone()
    flushed, server = cast(tuple[str, str], now)
    return Ended(tuple(asked[number - 1][0] for (number,) in rows), parse_lsn(flushed), server)
