"""Prepared transactions whose end the stream did not tell: found by asking the source, so that their files go.

A kill may let a file outlive its transaction, and so does a failover that lost its PREPARE: then nothing that is sent
ever names it again. The source's book is looked at when a connection begins, and every `LOOK_SECONDS` while something
is prepared, by the thread that watches the catalog. What it knows as ended goes once the log is durable past that
moment; what ended it was sent before, or never will be.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from walbus.capture.prepared import Prepared, PreparedStore
from walbus.capture.sessions import Session
from walbus.capture.xact_status import Ended, ended_transactions

#: Seconds between two looks.
LOOK_SECONDS = 10.0


class PreparedEnds:
    """Of one connection. `look` belongs to another thread than everything else.

    Args:
        store: what is prepared, ready for the connection.
        session: on the server that is streamed from; asked at once, and not kept.
        near_xid: `pg_snapshot_xmax` of a moment ago.
        monotonic: seconds that never step back.
    """

    def __init__(
        self,
        store: PreparedStore,
        session: Session,
        near_xid: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._asked = monotonic()
        self._seen: Ended | None = None  # set by `look`, taken by `settle`
        self._waiting: tuple[Prepared, ...] = ()  # set by `settle`, read by `look`
        first = ended_transactions(session, store.unfinished, near_xid)
        self._server = first.server
        self._expect(first)

    def look(self, session: Session, near_xid: int) -> None:
        """Asks the source, if it is time to.

        Args:
            session: on the source; another server than the one that is streamed from says nothing.
            near_xid: as above.
        """
        waiting, now = self._waiting, self._monotonic()
        if not waiting or now - self._asked < LOOK_SECONDS:
            return
        self._asked = now
        seen = ended_transactions(session, waiting, near_xid)
        if seen.server == self._server:
            self._seen = seen

    def settle(self, durable: int) -> None:
        """Lets go what was seen as ended, as far as the log, durable up to an LSN, has passed it.

        The log of an idle source may have passed already what was seen when the connection began, and go no further.
        """
        seen, self._seen = self._seen, None
        if seen is not None:
            self._expect(seen)
        self._store.passed(durable)
        self._waiting = self._store.unfinished

    def _expect(self, ended: Ended) -> None:
        for prepared in ended.transactions:
            if self._store.find(*prepared.key) is prepared:  # and was not prepared again since
                self._store.expect_end(prepared.key, ended.lsn)
