"""Layouts that the watch found, until they have numbers.

A table's numbers rise as its layouts follow each other (`walbus.log.SchemaRegistry`), and the stream may be far behind
the catalog: it may still have to tell layouts that the table had before the one that a look saw, and those take lower
numbers. So a look's layouts are registered once the log has all that commits before the end of the look. What the
stream told from the look's beginning on is as new or newer; then a later look decides.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import NamedTuple

from walbus.log import SchemaRegistry
from walbus.schema import TableSchema

#: Seconds that a call spends on registering layouts; thousands of tables take several calls.
REGISTERING_SECONDS = 0.15
#: Runs an action, as often as a full disk makes it fail.
Patiently = Callable[[Callable[[], object]], object]


class Look(NamedTuple):
    """When the catalog was looked at, by the end of the WAL before it and behind it."""

    before: int
    behind: int


class _Waiting(NamedTuple):
    layout: TableSchema
    look: Look


class Unnumbered:
    """What one connection's looks found.

    Args:
        schemas: the log's layouts.
        begun_at: commit LSN of the connection's first transaction with rows in a table's present layout, by OID; 0
            where there is none.
        monotonic: seconds that never step back.
    """

    def __init__(
        self, schemas: SchemaRegistry, begun_at: Callable[[int], int], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._schemas = schemas
        self._begun_at = begun_at
        self._monotonic = monotonic
        self._seen: dict[int, TableSchema] = {}  # as of the last look, by OID
        self._waiting: deque[_Waiting] = deque()
        self._compared = 0  # the largest number when all that was seen was compared last
        self._again = False  # whether a later look has to decide

    def found(self, layouts: Iterable[TableSchema], look: Look) -> None:
        """Takes what is new since the look before; everything else was seen as it was."""
        new = {layout.oid: layout for layout in layouts}
        self._seen |= new
        newest = {schema.oid: schema for schema in self._schemas.all()}
        largest = max((schema.id for schema in newest.values()), default=0)
        if not (new or self._again or largest != self._compared):
            return
        queued = {one.layout.oid: one.layout for one in self._waiting}
        for oid, layout in self._seen.items():
            known = queued.get(oid) or newest.get(oid)
            if known is None or not known.same_layout(layout):
                self._waiting.append(_Waiting(layout, look))
        self._compared, self._again = largest, False

    def register(self, bound: int, patiently: Patiently) -> None:
        """Registers layouts for a little while: each takes a sync of the disk, and the stream must not stand still.

        Args:
            bound: the log has everything that commits before this LSN.
            patiently: registers.
        """
        end = self._monotonic() + REGISTERING_SECONDS
        while self.waits_for(bound) and self._monotonic() < end:
            layout, look = self._waiting[0]
            if self._begun_at(layout.oid) < look.before:
                patiently(partial(self._schemas.register, layout))
            else:
                self._again = True
            self._waiting.popleft()

    def waits_for(self, lsn: int) -> bool:
        """Whether there are layouts of a look that had ended by an LSN."""
        return bool(self._waiting) and self._waiting[0].look.behind <= lsn

    def waits_with(self, tables: Collection[int]) -> bool:
        """Whether there are layouts of one of these tables, by OID, whatever the look."""
        return any(one.layout.oid in tables for one in self._waiting)
