"""How far a long look at the log has come: a bar on a terminal, a line of the process's log now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from walbus.amounts import human_bytes

_log = structlog.get_logger(__name__)

_LINE_SECONDS = 10.0  # between two lines where there is no terminal


class Lines:
    """Says how far it is every ten seconds.

    Args:
        what: is being done.
        total: bytes.
        monotonic: the clock.
    """

    def __init__(self, what: str, total: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._monotonic = what, total, monotonic
        self._done, self._said = 0, monotonic()

    def advance(self, size: int) -> None:
        """So many bytes more are done."""
        self._done += size
        now = self._monotonic()
        if now - self._said >= _LINE_SECONDS:
            self._said = now
            _log.info(self._what, done=human_bytes(self._done), of=human_bytes(self._total))


@contextmanager
def told_progress(what: str, total: int, stream: TextIO) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called with each number of bytes that is done.

    Args:
        what: is being done.
        total: bytes.
        stream: where the bar is drawn, if it is a terminal.
    """
    console = Console(file=stream)
    if not console.is_terminal:
        yield Lines(what, total).advance
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.advance(task, size)
