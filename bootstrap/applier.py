"""Follows the log and folds its events into the store.

Read some records, fold them in memory, write everything they changed together with the position of the last one: a
crash in between repeats the batch from the stored position, and folding is a function of the stored state, so nothing
is skipped and nothing counts twice.

While the log is ahead, a batch takes up to `BATCH_BYTES` of it: the more changes a batch folds, the fewer entries a hot
key costs. The ledger is locked meanwhile, so it takes less where that lasts long, as it does for tables that are being
seeded: their chunks want the ledger too. It ends between two transactions if it can; one that would make it twice as
large is cut, and readers are shown the state before that transaction until it is complete (`Store`).

The log is followed under the hold on its retention: without it, what comes next might go before it was read. A log that
does not answer, or a hold that somebody else has, is waited for, and each reason for that is said once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import structlog

from walbus.bootstrap.batch import Batch
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.state import Applied
from walbus.bootstrap.unseen import UnseenCommits
from walbus.errors import (
    Directive,
    LogError,
    LogUnreachable,
    PositionTrimmed,
    PositionUnknown,
    directive_of,
)
from walbus.log import LogCursor, LogReader, RetentionHold
from walbus.position import ORIGIN
from walbus.records import Flag, Kind, read_header

log = structlog.get_logger(__name__)

# As numbers, since enums are slow where each record asks.
_TRANSACTION, _END = int(Kind.TRANSACTION), int(Flag.END)

READ_BYTES = 1 << 20
BATCH_BYTES = 8 << 20
_LEAST_BATCH_BYTES = 32 << 10
#: Seconds for which a batch is to lock the ledger at most.
_BATCH_SECONDS = 0.25
_IDLE_WAIT = 0.5
_SHORTEST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class EventFolder:
    """Records of the log in, entries of a stage out."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def fold(self, records: Sequence[bytes]) -> float:
        """Folds records that follow the applied position, and writes the result as one batch.

        Returns:
            for how many seconds the ledger was locked.

        Raises:
            StoreError: nothing of it was kept.
        """
        ledger = self._ledger
        with ledger.lock:
            began = time.monotonic()
            if ledger.applied is None:
                raise AssertionError("the store does not follow a log yet")
            batch = Batch(ledger, ledger.applied)
            batch.fold(list(records))
            batch.write()
            seconds = time.monotonic() - began
        ledger.moved()
        return seconds


class Applier:
    """The loop around `EventFolder`."""

    def __init__(  # noqa: PLR0913  # it ties the parts together
        self,
        ledger: Ledger,
        open_reader: Callable[[], LogReader],
        hold: RetentionHold,
        *,
        stop: threading.Event,
        tell: Callable[[str | None], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """A loop that is not running yet.

        Args:
            ledger: where events go.
            open_reader: opens the log; called again after an error, for it may be another log by then.
            hold: on its retention.
            stop: ends the loop between two batches.
            tell: is told why the log is not followed, and None once it is.
            jitter: numbers in [0, 1) that spread retries.
        """
        self._ledger = ledger
        self._open_reader = open_reader
        self._hold = hold
        self._tell = tell
        self._waits_for: str | None = None
        self._folder = EventFolder(ledger)
        self._stop = stop
        self._jitter = jitter
        self._batch_bytes = BATCH_BYTES

    def run(self) -> None:
        """Follows the log until `stop` is set.

        Raises:
            WalbusError: what only an operator can mend; what may pass is tried again with a growing pause.
        """
        pause = _SHORTEST_PAUSE
        while not self._stop.is_set():
            started = self._ledger.applied
            try:
                self._read_log()
            except LogError as error:
                if directive_of(error) is Directive.STOP:
                    raise
                if self._ledger.applied != started:
                    pause = _SHORTEST_PAUSE
                self._wait_for(error)
                self._stop.wait(pause * (0.5 + self._jitter()))
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _wait_for(self, error: LogError) -> None:
        """Says why the log is not followed, if that is another reason than it was.

        What a cluster's clients say of their connections is another text each time.
        """
        self._tell(str(error))
        reason = type(error).__name__ if isinstance(error, LogUnreachable) else error.what
        if reason != self._waits_for:
            log.warning("log_not_readable", error=str(error), note="it is tried again until it can be read")
        self._waits_for = reason

    def _is_read(self) -> None:
        self._tell(None)
        if self._waits_for is not None:
            self._waits_for = None
            log.info("log_readable", applied=str(self._applied().position))

    def _read_log(self) -> None:
        self._hold.require()
        reader = self._open_reader()
        try:
            self._ledger.schemas, self._ledger.source = reader.schemas, reader.source
            try:
                self._follow(reader)
            except (PositionTrimmed, PositionUnknown) as error:
                log.error("log_left_behind", error=str(error), mend="nothing to do: every table is seeded again")
                self._restart(reader)
        finally:
            reader.close()

    def _follow(self, reader: LogReader) -> None:
        applied = self._ledger.applied
        log_id = reader.bounds().log_id
        if applied is None or applied.log_id != log_id:
            if applied is not None:
                log.error("log_replaced", was=applied.log_id, now=log_id, mend="every table is seeded again")
            self._restart(reader)
        self._ledger.resume(list(self._logged_since(reader)))
        cursor = reader.cursor(self._applied().position)
        try:
            while not self._stop.is_set():
                self._hold.require()
                records = read_batch(cursor, self._batch_bytes)
                size = sum(map(len, records))
                self._ledger.behind = size >= self._batch_bytes
                self._is_read()
                if records:
                    self._batch_bytes = next_batch_bytes(self._batch_bytes, size, self._folder.fold(records))
                elif not reader.wait(self._applied().position, _IDLE_WAIT) and reader.bounds().log_id != log_id:
                    return
        finally:
            self._ledger.behind = False
            cursor.close()

    def _restart(self, reader: LogReader) -> None:
        """Begins anew at the start of what the log holds."""
        bounds = reader.bounds()
        last_seq = bounds.last_seq if bounds.end == bounds.trimmed else 0
        applied = Applied.at(bounds.log_id, bounds.trimmed, last_seq, 0)
        self._ledger.begin(applied, UnseenCommits(complete=bounds.trimmed == ORIGIN))

    def _logged_since(self, reader: LogReader) -> Iterator[int]:
        """The xids between the position that the stored set of unseen ones is complete for and the applied one."""
        applied, start = self._applied().position, self._ledger.unseen_at
        if start is None or start >= applied:
            return
        cursor = reader.cursor(start)
        try:
            while records := cursor.read(READ_BYTES):
                for header in map(read_header, records):
                    if header.first > applied:
                        return
                    if header.kind == _TRANSACTION:
                        yield header.xid
        finally:
            cursor.close()

    def _applied(self) -> Applied:
        if self._ledger.applied is None:
            raise AssertionError("the applier has not begun")
        return self._ledger.applied


def next_batch_bytes(limit: int, taken: int, seconds: float) -> int:
    """How much the next batch is to take.

    Args:
        limit: how much the last one was to take, bytes of the log.
        taken: how much it took.
        seconds: for which it locked the ledger.
    """
    if seconds > _BATCH_SECONDS:
        return max(_LEAST_BATCH_BYTES, min(limit, taken) // 2)
    if seconds < _BATCH_SECONDS / 2 and taken >= limit:
        return min(BATCH_BYTES, limit * 2)
    return limit


def read_batch(cursor: LogCursor, limit: int) -> list[bytes]:
    """The next records: about `limit` bytes, or what there is; then to a transaction's end, if that is not too far."""
    records = cursor.read(min(limit, READ_BYTES))
    size = sum(map(len, records))
    while records and (size < limit or (size < 2 * limit and _inside(records))):
        more = cursor.read(min(limit, READ_BYTES))
        if not more:
            break
        records += more
        size += sum(map(len, more))
    return records


def _inside(records: list[bytes]) -> bool:
    for header in map(read_header, reversed(records)):
        if header.kind == _TRANSACTION:
            return not header.flags & _END
    return False
