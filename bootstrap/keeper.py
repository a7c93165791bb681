"""What is done once a second: sync, hold, a little upkeep, status.

About each second the store is synced, and only then the hold that keeps the log's retention away is moved up to what
the sync made durable: whatever a power loss takes from the store, the log still holds. Completions go when the log has
dropped their changes. A log that does not answer is not asked again each time, for an answer may be long in coming.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.report import Report
from walbus.bootstrap.seq_at import seq_at
from walbus.bootstrap.upkeep import IndexUpkeep
from walbus.errors import LogError, LogUnreachable
from walbus.log import LogReader, RetentionHold
from walbus.status import write_status

_SYNC_SECONDS = 1.0
_UPKEEP_SECONDS = 0.1
_AGAIN_SECONDS = 5.0  #: a log that did not answer is not asked for so long


class Keeper:
    """Once a second: sync, hold, a little upkeep, status."""

    def __init__(  # noqa: PLR0913  # it ties the parts together
        self,
        ledger: Ledger,
        report: Report,
        upkeep: IndexUpkeep,
        reader: Callable[[], LogReader],
        *,
        hold: RetentionHold,
        status_path: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._report = report
        self._open_reader = reader
        self._reader: LogReader | None = None
        self._upkeep = upkeep
        self._hold = hold
        self._status_path = status_path
        self._clock = clock
        self._ask_at = clock()

    def run(self, stop: threading.Event) -> None:
        """Goes on until `stop` is set, and once more behind it.

        Raises:
            StoreError: the store cannot be synced; the process must end.
        """
        try:
            while not stop.wait(_SYNC_SECONDS):
                self.keep()
            self.keep()
        finally:
            self._close_log()

    def keep(self) -> None:
        """Makes durable what is applied, and says so."""
        needed = self._ledger.needed()
        self._ledger.store.sync()
        if needed is not None:
            self._hold.move(*needed)
        self._trim_completions()
        self._upkeep.work(_UPKEEP_SECONDS)
        self._report.tombstones = self._upkeep.tombstones
        self._report.observe(self._log_end())
        if self._status_path is not None:
            write_status(self._status_path, self._report.status())

    def _log_end(self) -> int:
        """Commit LSN of the log's end; 0 while there is no log."""
        if self._clock() < self._ask_at:
            return 0
        try:
            return self._log().bounds().end.commit_lsn
        except LogError as error:
            self._failed(error)
            return 0

    def _trim_completions(self) -> None:
        """Drops completions of what the log has dropped."""
        kept = self._ledger.completions.kept
        if kept is None or self._clock() < self._ask_at:
            return
        try:
            log = self._log()
            bounds = log.bounds()
            if bounds.log_id != kept.log_id or bounds.trimmed <= kept.position:
                return
            seq = seq_at(log, bounds.trimmed)
        except LogError as error:
            self._failed(error)
            return
        if seq is not None:
            self._ledger.trim_completions(bounds.trimmed, seq)

    def _failed(self, error: LogError) -> None:
        if isinstance(error, LogUnreachable):
            self._ask_at = self._clock() + _AGAIN_SECONDS
        self._close_log()

    def _log(self) -> LogReader:
        if self._reader is None:
            self._reader = self._open_reader()
        return self._reader

    def _close_log(self) -> None:
        """The next look opens it anew: a reader that failed may be of a log that is gone."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
