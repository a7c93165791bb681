"""The difference of two generations is told before the newer one takes the older one's place.

A successor that is ready is compared with the generation that is served, in one view of the store, and what separates
the two is handed to capture as a file. Only then the switch follows. A crash in between compares once more, and tells
what is still different by then, which is nothing if capture was quick. Events go on being folded meanwhile; capture
carries the difference over them.

The view has to have all that the newer generation was ready with, or every row that it lacks would be deleted in the
log. So it is taken while the generation is ready and still the one that follows, and never in the middle of a large
transaction: readers are shown the state before it then, and chunks that came since are not there.

Comparing takes as long as reading both generations; it is done by one thread of its own, table after table, and given
up where the newer generation is over. A disk without room for the file is waited for, and the older generation is
served until then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.net_difference import net_difference
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import APPLIED, Applied, decode
from walbus.bootstrap.store import View
from walbus.errors import StoreError

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 2.0
#: Seconds before a generation is looked at again that could not be compared just then.
_LOOK_AGAIN_SECONDS = 0.2
#: Entries that are compared between two looks whether to go on.
_LOOK_EVERY = 1000


class _NotNow(Exception):  # noqa: N818  (it is no error: the generation is looked at again)
    """Two generations cannot be compared now, or need not be any more."""


class Telling:
    """Tells differences. `told` and `close` belong to one thread.

    Args:
        ledger: the generations.
        handing: where differences go.
        clock: monotonic seconds.
    """

    def __init__(self, ledger: Ledger, handing: Handing, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._handing = handing
        self._clock = clock
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="comparing")
        self._running: dict[bytes, Future[int]] = {}
        self._again_at: dict[bytes, float] = {}
        self._closed = threading.Event()

    def told(self, run: TableRun) -> bool:
        """Whether a generation that is ready may be served: whatever it makes of the older one's rows is told.

        Begins to compare the two if nobody did.

        Raises:
            StoreError, DamagedRecord: they cannot be compared.
        """
        served = self._ledger.tables.get(run.state.oid)
        if not self._handing.possible or served is None or served is run or run.told:
            return True
        future = self._running.get(run.space)
        if future is None:
            if self._clock() >= self._again_at.get(run.space, 0.0):
                self._running[run.space] = self._worker.submit(self._tell, served, run)
            return False
        if not future.done():
            return False
        del self._running[run.space]
        try:
            run.told = future.result()
        except _NotNow:
            self._again_at[run.space] = self._clock() + _LOOK_AGAIN_SECONDS
            return False
        except OSError as error:
            self._again_at[run.space] = self._clock() + _RETRY_SECONDS
            log.error("difference_not_written", table=run.state.table, error=str(error), retry_in=_RETRY_SECONDS)
            return False
        return True

    def _tell(self, served: TableRun, run: TableRun) -> int:
        view, applied, since = self._at_once(served, run)
        oid = run.state.oid
        schemas = self._ledger.schemas
        layouts = [schema.id for schema in schemas.all() if schema.oid == oid] if schemas else []
        olds, news = (self._watched(view.entries(one.space), served, run) for one in (served, run))
        number, count = self._handing.give(
            applied,
            run.state.table,
            oid,
            net_difference(olds, news, self._ledger.schema_of),
            schemas=[number for number in layouts if number >= run.state.schema_id],
            reason=run.state.reason,
            since=since,
            folds_from=run.state.p0,
        )
        log.info("generations_compared", table=run.state.table, generation=run.state.generation, differences=count)
        return number

    def _at_once(self, served: TableRun, run: TableRun) -> tuple[View, Applied, str]:
        """A view that has all of both, the position that it is at, and since when the older one's chain of them is."""
        ledger = self._ledger
        with ledger.lock:
            if not self._follows(served, run) or not ledger.ready(run):
                raise _NotNow
            try:
                view = ledger.store.view()
            except StoreError:  # in the middle of a transaction, just after a start
                raise _NotNow from None
            applied = decode(view.documents(APPLIED)[APPLIED], Applied)
            if applied != ledger.applied:  # in the middle of a transaction
                raise _NotNow
            return view, applied, served.state.net_since

    def _follows(self, served: TableRun, run: TableRun) -> bool:
        oid, ledger = run.state.oid, self._ledger
        return ledger.tables.get(oid) is served and ledger.successors.get(oid) is run and run.seeding and not run.again

    def _watched(
        self, entries: Iterable[tuple[bytes, bytes]], served: TableRun, run: TableRun
    ) -> Iterator[tuple[bytes, bytes]]:
        for number, entry in enumerate(entries):
            if number % _LOOK_EVERY == 0 and (self._closed.is_set() or not self._follows(served, run)):
                raise _NotNow
            yield entry

    def close(self) -> None:
        """Gives up what is under way; nothing of it is left."""
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
