"""One life of the bootstrap: a store that is opened, and the threads that work on it until they cannot any more.

Three ways lead out. `stop` is set, or an error comes that only an operator can mend: all threads end, and the store is
closed. The store is damaged: likewise, and the caller sets it aside. The disk is full: the threads that write end, for
RocksDB takes no more writes and what they hold in memory may be ahead of what is stored; the server goes on reading
until there is room again, and the next life begins from what is stored, which is exactly where the last write ended.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from walbus.bootstrap.applier import Applier
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.keeper import Keeper
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.report import Report
from walbus.bootstrap.requests import RequestFolder
from walbus.bootstrap.seeder import Seeder
from walbus.bootstrap.server import BootstrapServer
from walbus.bootstrap.store_folder import has_room, open_store
from walbus.bootstrap.threads import Threads
from walbus.bootstrap.upkeep import IndexUpkeep, Retention
from walbus.bootstrap.verify_requests import Verifier
from walbus.config import BootstrapConfig, SourceConfig
from walbus.errors import StoreFull
from walbus.log import LogReader, RetentionHold
from walbus.relay.gate import Gate
from walbus.status import write_status

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2
_ROOM_SECONDS = 1.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Life:
    """Begins again and again on the same folder; see `run_bootstrap` for the parts."""

    def __init__(  # noqa: PLR0913  # as `run_bootstrap`
        self,
        source: SourceConfig,
        config: BootstrapConfig,
        gate: Gate,
        *,
        folder: Path,
        reader: Callable[[], LogReader],
        log_dir: Path | None,
        hold: RetentionHold,
        requests: RequestFolder,
        verify_dir: Path,
        handing: Handing,
        status_path: Path | None,
        on_listening: Callable[[int], None] | None,
    ) -> None:
        self._source = source
        self._config = config
        self._gate = gate
        self._folder = folder
        self._reader = reader
        self._log_dir = log_dir
        self._hold = hold
        self._requests = requests
        self._verify_dir = verify_dir
        self._handing = handing
        self._status_path = status_path
        self._on_listening = on_listening

    def live(self, stop: threading.Event) -> None:
        """One life, until `stop` is set or the disk was full.

        Raises:
            StoreDamaged: what the store holds makes no sense.
            WalbusError: as of `run_bootstrap`.
        """
        try:
            store = open_store(self._folder)
        except StoreFull as error:
            self._wait_for_room(stop, error, lambda: {})
            return
        try:
            ledger = Ledger(store, complete=self._config.complete)
            retention = Retention(self._config.tombstone_hours * 3600, self._config.tombstone_limit)
            upkeep = IndexUpkeep(ledger, time.monotonic, time.time, retention)
            report = Report(ledger, time.monotonic, self._gate.audit.counts)
            keeper = Keeper(ledger, report, upkeep, self._reader, hold=self._hold, status_path=self._status_path)
            self._work(stop, ledger, report, keeper)
        finally:
            store.close()

    def _work(self, stop: threading.Event, ledger: Ledger, report: Report, keeper: Keeper) -> None:
        server, workers = Threads(), Threads()
        listen = BootstrapServer(ledger, report, self._reader, self._log_dir)
        server.start("http", lambda: listen.serve(self._gate, server.over, self._on_listening))

        def tell(problem: str | None) -> None:
            report.log_problem = problem

        workers.start("applier", Applier(ledger, self._reader, self._hold, stop=workers.over, tell=tell).run)
        seeder = Seeder(self._source, self._config, ledger, self._requests, self._handing, stop=workers.over)
        workers.start("seeder", seeder.run)
        verifier = Verifier(self._verify_dir, ledger, self._source, self._reader, self._handing, stop=workers.over)
        workers.start("verifier", verifier.run)
        workers.start("keeper", lambda: keeper.run(workers.over))
        while not (stop.wait(_LOOK_SECONDS) or server.over.is_set() or workers.over.is_set()):
            pass
        error = workers.end()
        if error is not None and _tells_a_full_disk(error):
            report.disk_full = True
            self._wait_for_room(stop, error, report.status)
            error = None
        error = server.end() or error
        if error is not None:
            raise error

    def _wait_for_room(
        self, stop: threading.Event, error: BaseException, status: Callable[[], dict[str, object]]
    ) -> None:
        log.error("store_disk_full", folder=str(self._folder), error=str(error), mend="free some of the disk")
        while True:
            if self._status_path is not None:
                try:
                    write_status(self._status_path, {**status(), "state": "disk_full", "error": str(error)})
                except OSError as failed:
                    if failed.errno not in _FULL:
                        raise
            if stop.wait(_ROOM_SECONDS):
                return
            if has_room(self._folder):
                log.warning("store_disk_has_room", folder=str(self._folder))
                return


def _tells_a_full_disk(error: BaseException) -> bool:
    return isinstance(error, StoreFull) or (isinstance(error, OSError) and error.errno in _FULL)
