"""The difference of two generations is told before the newer one takes the older one's place.

A successor that is ready is compared with the generation that is served, in one view of the store, and what separates
the two is handed to capture as a file. Only then the switch follows. A crash in between compares once more, and tells
what is still different by then, which is nothing if capture was quick. Events go on being folded meanwhile; capture
carries the difference over them.

Comparing takes as long as reading both generations; it is done by one thread of its own, table after table. A disk
without room for the file is waited for, and the older generation is served until then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.net_difference import net_difference
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import APPLIED, Applied, decode
from walbus.errors import StoreError

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 2.0


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
        except OSError as error:
            self._again_at[run.space] = self._clock() + _RETRY_SECONDS
            log.error("difference_not_written", table=run.state.table, error=str(error), retry_in=_RETRY_SECONDS)
            return False
        return True

    def _tell(self, served: TableRun, run: TableRun) -> int:
        with self._ledger.lock:
            try:
                view = self._ledger.store.view()
            except StoreError as error:  # in the middle of a transaction, just after a start
                raise OSError(error.what) from error
            since = served.state.net_since
        applied = decode(view.documents(APPLIED)[APPLIED], Applied)
        oid = run.state.oid
        schemas = self._ledger.schemas
        layouts = [schema.id for schema in schemas.all() if schema.oid == oid] if schemas else []
        differences = net_difference(view, served.space, run.space, self._ledger.schema_of)
        number, count = self._handing.give(
            applied,
            run.state.table,
            oid,
            (one for one in differences if not self._gives_up()),
            schemas=[number for number in layouts if number >= run.state.schema_id],
            reason=run.state.reason,
            since=since,
            folds_from=run.state.p0,
        )
        log.info("generations_compared", table=run.state.table, generation=run.state.generation, differences=count)
        return number

    def _gives_up(self) -> bool:
        if self._closed.is_set():
            raise OSError("stopped")
        return False

    def close(self) -> None:
        """Gives up what is under way; nothing of it is left."""
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
