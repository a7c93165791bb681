"""Tables whose rows the log alone does not give: which records say so, and whether the bootstrap serves them now.

Rows of a table are to be read again where a record tells a table for the first time (it may have had rows before it was
published), that a failover lost transactions of it, or that a statement changed its rows without events. The state
machine remembers those tables in every checkpoint; this is what it is told of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog

from walbus.consumers.checkpoint import CatchingUp, Following
from walbus.consumers.phases import State
from walbus.consumers.stale import Freshness, stale_rows
from walbus.consumers.steps import Start
from walbus.consumers.tables import matching
from walbus.consumers.transport import TableList
from walbus.events import Change
from walbus.position import ORIGIN, Position
from walbus.records import Kind, RecordHeader
from walbus.schema import TableSchema

_log = structlog.get_logger(__name__)


class Told(NamedTuple):
    """What a record says of such tables, as `walbus.consumers.steps.RecordRead` has it."""

    new_table: TableSchema | None = None
    lost: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


class Unread:
    """What one session knows of them.

    Args:
        consumer: its name, for the log.
        wanted: patterns of the tables that it reads.
        start: where it begins without a checkpoint; only one that begins with a snapshot wants all rows.
        layouts: gives every layout that the log has.
        since: a bootstrap that has not applied this may serve old rows.
    """

    def __init__(
        self,
        consumer: str,
        wanted: tuple[str, ...],
        start: Start,
        *,
        layouts: Callable[[], Iterable[TableSchema]],
        since: Position,
    ) -> None:
        self._consumer = consumer
        self._wanted = wanted
        self._start = start
        self._layouts = layouts
        self._since = since
        self._freshness = Freshness()
        self._unreadable: frozenset[str] = frozenset()  # to be read, and not served by the bootstrap when last seen

    def forget(self) -> None:
        """Another log begins: places of the last one say nothing."""
        self._freshness = Freshness()

    def reading(self, tables: Iterable[str], folds_from: Mapping[str, Position]) -> None:
        """Tables are about to be read from the bootstrap, which serves generations that fold from these places."""
        self._freshness.reading(tables, folds_from)

    def told(self, header: RecordHeader, changes: Sequence[Change], state: State, layouts: int) -> Told:
        """What a record of the log says of the tables that the consumer wants.

        Args:
            header: of the record.
            changes: in it.
            state: of the consumer before it.
            layouts: the largest number of a layout that the consumer was told before it.
        """
        if header.kind not in (Kind.SCHEMA, Kind.EPOCH):
            return Told()
        lost = self._lost(header, changes)
        if lost:
            self._since = header.last
        if header.kind != Kind.SCHEMA:
            return Told(lost=lost)
        return Told(self._new_table(changes, layouts), lost, self._renamed(changes, state))

    def served(self, tables: tuple[str, ...], listed: TableList) -> tuple[str, ...]:
        """Those of the tables whose rows the bootstrap, which follows the same log, serves and has right."""
        if listed.applied < self._since:
            return ()  # it may not know yet that its rows are wrong
        good = tuple(
            table
            for table in tables
            if table in listed.consistent - listed.stale and self._freshness.serves(table, listed.folds_from.get(table))
        )
        unreadable = frozenset(tables).difference(good)
        if unreadable - self._unreadable:
            _log.warning(
                "consumer.rows_missing",
                consumer=self._consumer,
                tables=sorted(unreadable),
                refused=sorted(unreadable.intersection(listed.refused)),
                why="rows or values of them are not in the log, and the bootstrap does not serve them (yet)",
            )
        self._unreadable = unreadable
        return good

    def by_log(self, tables: Iterable[str], listed: TableList, state: State) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Which of these stale tables the log mends, by net differences: those that it has mended, and those to come.

        The bootstrap's rows were reached from older ones by differences in the log, since some state of it. Whoever has
        had the rows as of that state or later, and followed the log, has them too (`docs/adr/0142…`).

        Args:
            tables: that the bootstrap serves, and has right.
            listed: what it says.
            state: of the consumer.
        """
        done: list[str] = []
        to_come: list[str] = []
        if isinstance(state, Following) and state.rows > ORIGIN:
            for table in tables:
                since, told = listed.net_since.get(table), listed.net_told.get(table)
                if table in state.unread and since is not None and since <= state.rows:
                    has = told is not None and state.point.last_done >= told
                    (done if has else to_come).append(table)
        if done:
            _log.info("consumer.rows_came_by_the_log", consumer=self._consumer, tables=done)
        return tuple(done), tuple(to_come)

    def _new_table(self, changes: Sequence[Change], layouts: int) -> TableSchema | None:
        """The layout that a SCHEMA event tells, if the consumer wants all rows and was never told the table before."""
        layout = changes[0].schema
        if self._start != "snapshot" or layout is None or layout.id <= layouts:
            return None
        earlier = matching(self._earlier_names(layout), self._wanted)
        return layout if matching([layout.table], self._wanted) and not earlier else None

    def _renamed(self, changes: Sequence[Change], state: State) -> tuple[tuple[str, str], ...]:
        """Tables that are to be read and have another name from here on: the bootstrap knows them by that alone."""
        layout = changes[0].schema
        if layout is None or not isinstance(state, Following | CatchingUp) or not state.unread:
            return ()
        if not matching([layout.table], self._wanted):
            return ()
        earlier = self._earlier_names(layout).intersection(state.unread) - {layout.table}
        return tuple((name, layout.table) for name in sorted(earlier))

    def _earlier_names(self, layout: TableSchema) -> set[str]:
        return {known.table for known in self._layouts() if known.oid == layout.oid and known.id < layout.id}

    def _lost(self, header: RecordHeader, changes: Sequence[Change]) -> tuple[str, ...]:
        """The tables whose rows an event says must be had again, if the consumer wants all rows of them."""
        if self._start != "snapshot":
            return ()
        told = [stale for change in changes for stale in stale_rows(change, header.last)]
        named = matching(self._freshness.heed(told), self._wanted)
        if named:
            _log.warning("consumer.rows_stale", consumer=self._consumer, tables=named, note="read again")
        return named
