"""Which transactions have ended, by the source's own book."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from walbus.capture.sessions import Session, refused
from walbus.capture.xids import widen_xid
from walbus.lsn import parse_lsn


def ended_transactions(session: Session, xids: Iterable[int], near_xid: int) -> tuple[list[int], int]:
    """Those prepared ones that have committed or rolled back, and an LSN behind what ended them.

    PostgreSQL flushes the record that ends a prepared transaction before it notes the end; so what is noted lies before
    the flush LSN, which an idle stream reaches.

    Args:
        session: on the source.
        xids: 32 bits each.
        near_xid: `pg_snapshot_xmax` of a moment ago; ids at or beyond it are left out.
    """
    ended = []
    with refused("reading the status of prepared transactions"):
        for xid in xids:
            wide = widen_xid(xid, near_xid)
            if wide >= near_xid:
                continue
            row = session.execute("SELECT pg_xact_status(%s::text::xid8)", [str(wide)]).fetchone()
            if row is None or row[0] != "in progress":  # NULL: so long ago that the book forgot it
                ended.append(xid)
        row = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    return ended, parse_lsn(cast(str, row[0])) if row else 0
