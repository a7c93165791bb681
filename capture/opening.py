"""The log is opened once its cluster answers, which is waited for at the start as it is later."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from walbus.capture.pauses import Backoff
from walbus.capture.report import Report, hindrance
from walbus.capture.retention import RetentionWatch
from walbus.config import SourceConfig
from walbus.errors import LogUnreachable
from walbus.native import core_in_use

logger = structlog.get_logger(__name__)

_T = TypeVar("_T")


def about(source: SourceConfig) -> dict[str, str]:
    """What the status file says of a capture that never changes."""
    return {"slot": source.slot, "publication": source.publication, "core": core_in_use()}


def opened(
    open_log: Callable[[], _T],
    source: SourceConfig,
    *,
    stop: threading.Event,
    status_path: Path | None,
    rand: Callable[[], float] = random.random,
) -> _T | None:
    """Opens the log; None if it was told to stop before the log's cluster answered.

    Args:
        open_log: opens it.
        source: of the log.
        stop: ends the waiting, once the cluster's answer to what was just asked is no longer waited for.
        status_path: of capture's status file, which says what is waited for.
        rand: numbers from 0 to 1, for the back-off.

    Raises:
        WalbusError: whatever else `open_log` raises.
    """
    report = Report(status_path, time.time, about(source), RetentionWatch(source.slot))
    backoff, last = Backoff(rand), None
    while not stop.is_set():
        try:
            return open_log()
        except LogUnreachable as error:
            if error.what != last:  # one line for each reason, however long it lasts
                logger.warning("capture.waits_for_log", error=str(error))
            last = error.what
            report.state, report.error = hindrance(error), str(error)
            report.write()
        stop.wait(backoff.next_pause())
    return None
