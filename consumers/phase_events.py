"""What a consumer is told of its way through the bootstrap: when it begins and ends, and the same of each table. Pure.

    bootstrap_begins
      table_begins orders (snapshot)    … its layout, its rows, its sweep …    table_ends orders
      table_begins items (delta)        … its layout, its changes …            table_ends items
                                        … the log, up to the newest state that was read …
    bootstrap_ends

In each process that a bootstrap goes through it begins anew, behind what was committed. A table that is begun again
without having ended is read from its beginning, or from where it was left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from walbus.consumers.checkpoint import CatchingUp, Following, Snapshotting
from walbus.consumers.phases import State, current
from walbus.consumers.steps import Event, RowsRead, TableGone, TableOpened
from walbus.records import Flag

Reading: TypeAlias = Literal["snapshot", "delta"]


@dataclass(frozen=True, slots=True)
class PhaseEvent:
    """One step of the way.

    Attributes:
        what: see the module.
        table: of a table's steps, its name.
        reading: of a table's steps, how it is read.
    """

    what: Literal["bootstrap_begins", "table_begins", "table_ends", "bootstrap_ends"]
    table: str = ""
    reading: Reading | None = None


class PhaseEvents:
    """Tells them from what the state machine goes through. Belongs to one session."""

    def __init__(self) -> None:
        self._under_way = False
        self._table: tuple[str, Reading] | None = None

    def before(self, was: State, event: Event, state: State) -> list[PhaseEvent]:
        """What an event begins; it comes before the event's outputs.

        Args:
            was: the state before the event.
            event: what happened.
            state: the state behind it.
        """
        told: list[PhaseEvent] = []
        if not self._under_way and isinstance(state, Snapshotting | CatchingUp):
            self._under_way = True
            told.append(PhaseEvent("bootstrap_begins"))
        if isinstance(was, Snapshotting) and isinstance(event, TableOpened | RowsRead):
            progress = current(was)
            table: tuple[str, Reading] = progress.table, "snapshot" if progress.since is None else "delta"
            if table != self._table:
                self._table = table
                told.append(PhaseEvent("table_begins", *table))
        return told

    def behind(self, event: Event, state: State) -> list[PhaseEvent]:
        """What an event ends; it comes behind the event's outputs."""
        told: list[PhaseEvent] = []
        ended = isinstance(event, TableGone) or (isinstance(event, RowsRead) and bool(event.header.flags & Flag.END))
        if self._table is not None and ended:
            told.append(PhaseEvent("table_ends", *self._table))
        if ended or not isinstance(state, Snapshotting):
            self._table = None
        if self._under_way and isinstance(state, Following):
            self._under_way = False
            told.append(PhaseEvent("bootstrap_ends"))
        return told
