"""How far a seeding is: a bar for each table on a terminal, a line of the process's log now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from walbus.errors import SourceMisconfigured, StoreError
from walbus.status import read_status

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.5
_LINE_SECONDS = 10.0  # between two lines where there is no terminal
_SILENCE_SECONDS = 30.0  # a bootstrap that runs writes its status each second
_GONE_SECONDS = 15.0  # that a table may be in no status: a store that was damaged begins anew without any


class SeedingWatch:
    """What the bootstrap's status file says of some generations.

    Args:
        path: of the status file.
        generations: by table.
        monotonic, pause: time.
    """

    def __init__(
        self,
        path: Path,
        generations: dict[str, int],
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._path = path
        self._left = dict(generations)
        self._monotonic = monotonic
        self._pause = pause

    @property
    def left(self) -> list[str]:
        """The tables that are not consistent yet."""
        return sorted(self._left)

    def looks(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Until all are consistent, about twice a second: what is being seeded, by table.

        Raises:
            StoreError: the bootstrap says nothing any more.
            SourceMisconfigured: a table cannot be seeded, or is published no longer under its name.
        """
        heard, seen = self._monotonic(), b""
        told = dict.fromkeys(self._left, heard)
        while self._left:
            content = self._path.read_bytes() if self._path.exists() else b""
            if content != seen:
                heard, seen = self._monotonic(), content
            elif self._monotonic() - heard > _SILENCE_SECONDS:
                raise StoreError(
                    "the bootstrap says nothing any more",
                    where=str(self._path),
                    mend="start it again: the seeding goes on where it was",
                )
            status = read_status(self._path) or {}
            told |= {said["table"]: self._monotonic() for said in status.get("tables", ())}
            gone = [table for table in self.left if self._monotonic() - told[table] > _GONE_SECONDS]
            if gone and "tables" in status:
                raise SourceMisconfigured(
                    f"{', '.join(gone)} is published no longer, or has another name",
                    mend="see `walbus status --json` for the tables that there are",
                )
            yield self._look(status)
            self._pause(_LOOK_SECONDS)

    def _look(self, status: dict[str, Any]) -> dict[str, dict[str, Any]]:
        seeding: dict[str, dict[str, Any]] = {}
        for said in status.get("tables", ()):
            table, wanted = said["table"], self._left.get(said["table"])
            if wanted is None:
                continue
            if said["state"] == "refused":
                raise SourceMisconfigured(f"{table} cannot be seeded: {said.get('reason')}")
            if said["state"] == "consistent" and said["generation"] >= wanted:
                del self._left[table]
                seeding.pop(table, None)
            elif said["state"] == "seeding":
                seeding[table] = said
        return seeding


def told_seeding(watch: SeedingWatch) -> None:
    """Waits until all tables are consistent, and says meanwhile how far they are.

    Raises:
        WalbusError: as `SeedingWatch.looks`.
    """
    console = Console(file=sys.stderr)
    if console.is_terminal:
        _bars(watch, console)
    else:
        _lines(watch)


def _bars(watch: SeedingWatch, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        bars = {table: progress.add_task(table, total=None, note="waits") for table in watch.left}
        for seeding in watch.looks():
            for table, bar in bars.items():
                said = seeding.get(table)
                if said is not None and "blocks_total" in said:
                    progress.update(bar, completed=said["blocks_done"], total=said["blocks_total"], note=_note(said))
                elif table not in watch.left:
                    progress.update(bar, completed=1, total=1, note="consistent")


def _lines(watch: SeedingWatch) -> None:
    said_at = time.monotonic()
    for seeding in watch.looks():
        if time.monotonic() - said_at >= _LINE_SECONDS:
            said_at = time.monotonic()
            for table, said in seeding.items():
                done, total = said.get("blocks_done", 0), said.get("blocks_total", 0)
                percent = round(100 * done / total, 1) if total else 0
                _log.info("seeding", table=table, percent=percent, rows=said["rows"], note=_note(said))


def _note(said: dict[str, Any]) -> str:
    if said.get("held"):
        return "held: the source is busy"
    return f"{said['rows']:,} rows" if said.get("blocks_done") != said.get("blocks_total") else "waits for the log"
