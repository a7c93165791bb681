"""Net differences on their way out: as files that capture takes into the log (`walbus.capture.difference_file`).

A bootstrap beside a copied log hands over nothing, for no capture takes it there: the differences of the log that is
copied come by the log. Nor does one of a log on a cluster as long as no capture runs on its machine: what waits there
for nobody would keep consumers waiting too, and without it they read the table again.

Numbers rise, whatever the clock does: each is above the log's last seq, which is microseconds too, and above all that
wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog

from walbus.bootstrap.net_difference import Difference
from walbus.bootstrap.state import Applied
from walbus.capture.difference_file import (
    About,
    Refused,
    difference_path,
    named,
    refusals,
    remove,
    sweep,
    waiting,
    write_difference,
)
from walbus.records import RawChange

log = structlog.get_logger(__name__)


class Handing:
    """Hands differences over. Any thread.

    Args:
        folder: of the files; None: nobody takes them.
        taken: whether somebody takes them now.
        clock: Unix seconds.
    """

    def __init__(
        self, folder: Path | None, taken: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._taken = taken
        self._clock = clock
        self._lock = threading.Lock()
        self._last = 0
        if folder is not None:
            sweep(folder)

    @property
    def possible(self) -> bool:
        """Whether anybody takes what is handed over."""
        return self._folder is not None and self._taken()

    def give(  # noqa: PLR0913  (all that a file says)
        self,
        applied: Applied,
        table: str,
        oid: int,
        differences: Iterable[Difference],
        *,
        schemas: Iterable[int],
        reason: str,
        since: str = "",
        folds_from: str = "",
    ) -> tuple[int, int]:
        """Makes a file of differences as of an applied position; durable on return.

        Args:
            applied: the position.
            table: by name.
            oid: of the table.
            differences: each key once.
            schemas: numbers of the layouts that their rows are in.
            reason: for people.
            since: as `walbus.capture.difference_file.About` has it.
            folds_from: likewise.

        Returns:
            the file's number, and how many differences there are.

        Raises:
            OSError: it could not be written.
        """
        if self._folder is None:
            raise AssertionError("nobody takes a difference")
        number = self._next_number(applied.last_seq)
        about = About(
            number=number,
            log_id=applied.log_id,
            table=table,
            oid=oid,
            schemas=tuple(sorted(set(schemas))),
            after=str(applied.position),
            reason=reason,
            since=since,
            folds_from=folds_from,
        )
        count = write_difference(self._folder, about, _changes(differences, oid))
        log.info("difference_handed_over", table=table, number=number, changes=count, reason=reason)
        return number, count

    def _next_number(self, last_seq: int) -> int:
        with self._lock:
            waits = [named(path)[0] for path in waiting(self._folder)] if self._folder else []
            self._last = max(int(self._clock() * 1_000_000), last_seq + 1, self._last + 1, *(n + 1 for n in waits), 1)
            return self._last

    def waits(self, number: int, oid: int) -> bool:
        """Whether capture has not taken a table's file yet."""
        return self._folder is not None and difference_path(self._folder, number, oid).exists()

    def refused(self) -> Iterator[Refused]:
        """What capture refused since the last call; behind the next step each note is gone."""
        for path, refused in refusals(self._folder) if self._folder else ():
            yield refused
            remove(path)


def _changes(differences: Iterable[Difference], oid: int) -> Iterator[RawChange]:
    for difference in differences:
        yield difference.change(oid)
