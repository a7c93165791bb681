"""The bootstrap process: one life of the store after the other, until it is told to stop.

Nearly always there is one (`walbus.bootstrap.life`); another one begins where the disk was full and has room again, and
where the store was damaged and another one is seeded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from walbus.bootstrap.handing import Handing
from walbus.bootstrap.life import Life
from walbus.bootstrap.requests import RequestFolder
from walbus.bootstrap.store_folder import set_aside
from walbus.config import BootstrapConfig, SourceConfig
from walbus.errors import StoreDamaged
from walbus.log import LogReader, RetentionHold
from walbus.relay.gate import gate_of

log = structlog.get_logger(__name__)


def run_bootstrap(  # noqa: PLR0913  # the composition root passes each part
    source: SourceConfig,
    config: BootstrapConfig,
    *,
    folder: Path,
    reader: Callable[[], LogReader],
    log_dir: Path | None,
    hold: RetentionHold,
    requests_dir: Path,
    verify_dir: Path,
    differences_dir: Path | None,
    differences_taken: Callable[[], bool] = lambda: True,
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
        log_dir: folder of the log, whose files are streamed with complete changes; None where they are not at hand.
        hold: on the log's retention; its owner closes it.
        requests_dir: where `walbus snapshot` leaves requests.
        verify_dir: where `walbus verify` does.
        differences_dir: where net differences are handed to capture; None if no capture writes this log.
        differences_taken: whether a capture takes them there now.
        status_path: the status file; None for none.
        stop: ends it within a few seconds, with everything synced.
        on_listening: is told the HTTP port, each time that it is listened on.

    Raises:
        StoreError: the store cannot be opened, written or synced; not for want of room, which is waited for, nor for
            damage, after which another one is seeded.
        ConfigError: the address cannot be listened on, or a file of tokens or certificates cannot be used.
        LogError: the log is damaged.
    """
    life = Life(
        source,
        config,
        gate_of(config, "bootstrap"),
        folder=folder,
        reader=reader,
        log_dir=log_dir,
        hold=hold,
        requests=RequestFolder(requests_dir),
        verify_dir=verify_dir,
        handing=Handing(differences_dir, differences_taken),
        status_path=status_path,
        on_listening=on_listening,
    )
    while not stop.is_set():
        try:
            life.live(stop)
        except StoreDamaged as error:
            aside = set_aside(folder)
            log.error("store_damaged", error=str(error), moved_to=str(aside), mend="every table is seeded again")
