"""The bootstrap process: applier, seeder and HTTP server as threads of one process, and what ties them together.

About each second the store is synced, and only then the hold that keeps the log's retention away is moved up to what
the sync made durable: whatever a power loss takes from the store, the log still holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from walbus.bootstrap.applier import Applier
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.report import Report
from walbus.bootstrap.requests import RequestFolder
from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.seeder import Seeder
from walbus.bootstrap.server import BootstrapServer
from walbus.bootstrap.upkeep import IndexUpkeep
from walbus.bootstrap.verify_requests import Verifier
from walbus.config import BootstrapConfig, SourceConfig
from walbus.errors import LogError
from walbus.log import LogReader
from walbus.relay.gate import gate_of
from walbus.status import write_status

log = structlog.get_logger(__name__)

_SYNC_SECONDS = 1.0
_UPKEEP_SECONDS = 0.1
_JOIN_SECONDS = 8.0
HOLD_FILE = "bootstrap.json"


def run_bootstrap(  # noqa: PLR0913  # the composition root passes each part
    source: SourceConfig,
    config: BootstrapConfig,
    *,
    folder: Path,
    reader: Callable[[], LogReader],
    holds_dir: Path,
    requests_dir: Path,
    verify_dir: Path,
    differences_dir: Path | None,
    status_path: Path | None,
    stop: threading.Event,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """Keeps the latest row of every key and serves it, until `stop` is set.

    Args:
        source: the database; asked only while a table is seeded, and for its catalog.
        config: `[bootstrap]`.
        folder: of the store.
        reader: opens the log; LogMissing is waited for.
        holds_dir: where the hold on the log's retention is written.
        requests_dir: where `walbus snapshot` leaves requests.
        verify_dir: where `walbus verify` does.
        differences_dir: where net differences are handed to capture; None if no capture writes this log.
        status_path: the status file; None for none.
        stop: ends it within a few seconds, with everything synced.
        on_listening: is told the HTTP port.

    Raises:
        StoreError: the store cannot be opened, written or synced.
        ConfigError: the address cannot be listened on, or a file of tokens or certificates cannot be used.
        LogError: the log is damaged.
    """
    gate = gate_of(config, "bootstrap")
    store = RocksStore(folder)
    try:
        ledger = Ledger(store)
        report = Report(ledger, time.monotonic, gate.audit.counts)
        threads = Threads(stop)
        threads.start("applier", Applier(ledger, reader, stop=stop).run)
        requests = RequestFolder(requests_dir)
        handing = Handing(differences_dir)
        threads.start("seeder", Seeder(source, config, ledger, requests, handing, stop=stop).run)
        threads.start("verifier", Verifier(verify_dir, ledger, source, reader, handing, stop=stop).run)
        threads.start("http", lambda: BootstrapServer(ledger, report, reader).serve(gate, stop, on_listening))
        keeper = Keeper(ledger, report, reader, hold=holds_dir / HOLD_FILE, status_path=status_path)
        threads.start("keeper", lambda: keeper.run(stop))
        threads.join()
    finally:
        store.close()


class Threads:
    """Threads that end together: an error of one stops all, and is raised by `join`."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, name: str, run: Callable[[], None]) -> None:
        """Runs something until it returns."""

        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # raised again by `join`
                self._errors.append(error)
            finally:
                self._stop.set()

        thread = threading.Thread(target=guarded, name=f"walbus-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Waits for the end of all.

        Raises:
            BaseException: the first error of any.
        """
        self._stop.wait()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                log.error("thread_does_not_end", thread=thread.name)
        if self._errors:
            raise self._errors[0]


class Keeper:
    """Once a second: sync, hold, a little upkeep, status."""

    def __init__(
        self,
        ledger: Ledger,
        report: Report,
        reader: Callable[[], LogReader],
        *,
        hold: Path,
        status_path: Path | None,
    ) -> None:
        self._ledger = ledger
        self._report = report
        self._open_reader = reader
        self._reader: LogReader | None = None
        self._upkeep = IndexUpkeep(ledger, time.monotonic)
        self._hold = hold
        self._status_path = status_path

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
            if self._reader is not None:
                self._reader.close()

    def keep(self) -> None:
        """Makes durable what is applied, and says so."""
        needed = self._ledger.needed_after()
        self._ledger.store.sync()
        if needed is not None:
            write_status(self._hold, {"last_done": str(needed)})
        self._upkeep.work(_UPKEEP_SECONDS)
        self._report.observe(self._log_end())
        if self._status_path is not None:
            write_status(self._status_path, self._report.status())

    def _log_end(self) -> int:
        """Commit LSN of the log's end; 0 while there is no log."""
        try:
            if self._reader is None:
                self._reader = self._open_reader()
            return self._reader.bounds().end.commit_lsn
        except LogError:
            return 0
