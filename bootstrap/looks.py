"""When the seeder looks at the source's catalog: about every two seconds, and as soon as something tells that it must.

What tells it is at hand: the log has a layout that is newer than the last look, or a generation needs another one
(somebody asked for it, a statement changed rows without events). It is looked at most four times a second.
"""

from __future__ import annotations

import math
from collections.abc import Container

from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import Phase

_LONGEST_SECONDS, _SHORTEST_SECONDS = 2.0, 0.25


class Looks:
    """Remembers what was looked at when; time is an argument, in seconds.

    Attributes:
        layout: the log's newest layout at the last look that succeeded; None before that.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.layout: int | None = None
        self._ledger = ledger
        self._looked = self._noted = -math.inf

    def notes_due(self, now: float) -> bool:
        """Whether to look for what others have left in folders of this machine."""
        if now - self._noted < _SHORTEST_SECONDS:
            return False
        self._noted = now
        return True

    def due(self, now: float, wanted: Container[int]) -> bool:
        """Whether to look at the catalog.

        Args:
            now: the time.
            wanted: OIDs of the tables of which the last look found that they need a generation.
        """
        since = now - self._looked
        if since < _SHORTEST_SECONDS or (since < _LONGEST_SECONDS and not self._must(wanted)):
            return False
        self._looked = now
        return True

    def _must(self, wanted: Container[int]) -> bool:
        if self._ledger.newest_schema() != self.layout:
            return True
        newest = (self._ledger.newest(oid) for oid in list(self._ledger.tables))
        return any(run is not None and _calls(run) and run.state.oid not in wanted for run in newest)


def stands(run: TableRun) -> bool:
    """Whether a table's latest generation needs no other one, as far as the log tells."""
    return run.state.phase in (Phase.SEEDING, Phase.CONSISTENT) and not run.again and not run.state.stale


def is_being_told(served: TableRun | None) -> bool:
    """Whether the difference by which a table's rows came is still on its way through the log.

    Another generation that begins meanwhile would have it folded over what it has read since.
    """
    if served is None or not served.settled or not served.state.net_since:
        return False
    return served.state.net_seen < served.state.net_number


def _calls(run: TableRun) -> bool:
    """Whether a look may help it: one that is refused waits for its table to be altered, which brings a new layout."""
    return run.state.phase is not Phase.REFUSED and not stands(run)
