"""Tables whose rows the log alone does not give: which records say so, and whether the bootstrap serves them now.

Rows of a table are to be read again where a record tells a table for the first time (it may have had rows before it was
published), that a failover lost transactions of it, or that a statement changed its rows without events; and where the
consumer asks for tables that its checkpoint was not made for. The state machine remembers those tables in every
checkpoint; this is what it is told of them.

A sink may hold rows that lack a value: a change did not repeat it, and the row was not there. The log never gives it. A
bootstrap that is behind that change cannot either: its row is older than the sink's, which keeps what it has. So it is
waited for until it has passed the place where the consumer was when the sink first said so. Waiting for where the
consumer is now would have no end: under a steady load a bootstrap is always a little behind.

A table may be renamed before it is read. The log tells that with the table's next change, which may never come, and the
bootstrap serves it by its new name alone. So tables are known by their OID, and the bootstrap's list says what they are
called (`docs/adr/0153…`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import structlog

from walbus.consumers.checkpoint import CatchingUp, Following, Lacking
from walbus.consumers.listing import unknown_in
from walbus.consumers.phases import State
from walbus.consumers.stale import Freshness, stale_rows
from walbus.consumers.steps import Start, UnreadFound
from walbus.consumers.tables import covered, matching
from walbus.consumers.transport import TableList
from walbus.events import Change
from walbus.position import ORIGIN, Position
from walbus.records import Kind, RecordHeader
from walbus.schema import TableSchema

_log = structlog.get_logger(__name__)


class Told(NamedTuple):
    """What a record says of such tables, as `walbus.consumers.steps.RecordRead` has it."""

    new_table: TableSchema | None = None
    lost: tuple[Lacking, ...] = ()
    renamed: tuple[tuple[Lacking, Lacking], ...] = ()


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
        self._covering: tuple[str, ...] | None = None  # patterns that name all tables that are wanted
        self._freshness = Freshness()
        self._lacking: dict[str, Position] = {}  # tables with rows that lack a value, and where that was first seen
        self._unreadable: frozenset[str] = frozenset()  # to be read, and not served by the bootstrap when last seen

    def forget(self) -> None:
        """Another log begins: places of the last one say nothing."""
        self._freshness = Freshness()
        self._lacking = {}

    def reading(self, tables: Iterable[str], listed: TableList) -> None:
        """Tables are about to be read from the bootstrap, which follows the same log and said what it serves."""
        for table in tables:
            self._lacking.pop(table, None)
            if table in listed.folds_from and table in listed.oids:
                self._freshness.reading(listed.oids[table], listed.folds_from[table])

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

    def asks_for_more(self, state: State) -> bool:
        """Whether the consumer asks for tables that its checkpoint was not made for."""
        if not isinstance(state, Following) or state.asked is None:
            return False
        if state.asked is not self._covering:  # asked before every record
            if not all(covered(pattern, state.asked) for pattern in self._wanted):
                return True
            self._covering = state.asked
        return False

    def found(self, state: Following, listed: TableList) -> UnreadFound | None:
        """The tables that are to be read, by what the bootstrap, which follows the same log, calls them; None: no news.

        One that is gone, as another table with its name shows, is not among them any more, and neither is one that got
        a name that the consumer does not ask for: they keep their last rows.
        """
        present = (self._present(one, listed) for one in state.unread)
        unread = [one for one in present if one is not None and matching([one.table], self._wanted)]
        asked = state.asked
        if self.asks_for_more(state) and listed.applied >= state.point.last_done:  # it knows of all that there was then
            came = self._came(state, listed) if self._start == "snapshot" else []
            unread, asked = unread + came, self._wanted
            if came:
                _log.info("consumer.tables_added", consumer=self._consumer, tables=[one.table for one in came])
            if unknown := unknown_in(listed, self._wanted):
                _log.warning("consumer.unknown_tables", consumer=self._consumer, tables=unknown)
        found = UnreadFound(tuple(dict.fromkeys(unread)), asked)
        return None if (found.unread, found.asked) == (state.unread, state.asked) else found

    def _came(self, state: Following, listed: TableList) -> list[Lacking]:
        """The tables that the consumer asks for and did not before, but for those that can never be read."""
        tables = dict(listed.oids)
        newest = max(listed.tables.values(), default=0)
        tables |= {layout.table: layout.oid for layout in self._layouts() if layout.id > newest}  # not seen by it yet
        had = set(matching(tables, state.asked or ()))
        wanted = matching(tables, self._wanted)
        return [Lacking(table, tables[table]) for table in wanted if table not in had]

    def _present(self, one: Lacking, listed: TableList) -> Lacking | None:
        if not one.oid:
            table = self._name_now(one.table, listed)
            return Lacking(table, listed.oids.get(table, 0))
        name = next((table for table, oid in listed.oids.items() if oid == one.oid), None)
        if name is not None:
            return Lacking(name, one.oid)
        return None if one.table in listed.oids else one

    def lacking(self, tables: Iterable[str], received: Position, listed: TableList) -> tuple[str, ...]:
        """Those of a sink's tables whose rows lack values that the bootstrap has by now, by its names.

        Args:
            tables: with such rows, by the names that the sink knows.
            received: how far the consumer has been handed the log.
            listed: what the bootstrap, which follows the same log, says.
        """
        named = (self._name_now(table, listed) for table in tables)
        self._lacking = {table: self._lacking.get(table, received) for table in named}
        return tuple(table for table, since in self._lacking.items() if listed.applied >= since)

    def _name_now(self, table: str, listed: TableList) -> str:
        if table in listed.tables:
            return table
        layouts = [layout for layout in self._layouts() if layout.table == table]
        oid = max(layouts, key=lambda layout: layout.id).oid if layouts else 0
        return next((name for name, known in listed.oids.items() if known == oid), table)

    def served(self, tables: tuple[str, ...], listed: TableList) -> tuple[str, ...]:
        """Those of the tables whose rows the bootstrap, which follows the same log, serves and has right."""
        if listed.applied < self._since:
            return ()  # it may not know yet that its rows are wrong
        good = tuple(
            table
            for table in tables
            if table in listed.consistent - listed.stale
            and self._freshness.serves(listed.oids.get(table, 0), listed.folds_from.get(table))
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
            unread = {one.table for one in state.unread}
            for table in tables:
                since, told = listed.net_since.get(table), listed.net_told.get(table)
                if table in unread and since is not None and since <= state.rows:
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

    def _renamed(self, changes: Sequence[Change], state: State) -> tuple[tuple[Lacking, Lacking], ...]:
        """Tables that are to be read and have another name from here on."""
        layout = changes[0].schema
        if layout is None or not isinstance(state, Following | CatchingUp) or not state.unread:
            return ()
        if not matching([layout.table], self._wanted):
            return ()
        now, earlier = Lacking(layout.table, layout.oid), self._earlier_names(layout)
        same = [one for one in state.unread if one.oid == layout.oid or (not one.oid and one.table in earlier)]
        return tuple((one, now) for one in same if one != now)

    def _earlier_names(self, layout: TableSchema) -> set[str]:
        return {known.table for known in self._layouts() if known.oid == layout.oid and known.id < layout.id}

    def _lost(self, header: RecordHeader, changes: Sequence[Change]) -> tuple[Lacking, ...]:
        """The tables whose rows an event says must be had again, if the consumer wants all rows of them."""
        if self._start != "snapshot":
            return ()
        told = [stale for change in changes for stale in stale_rows(change, header.last)]
        stale = [one for one in self._freshness.heed(told) if matching([one.table], self._wanted)]
        if stale:
            tables = [one.table for one in stale]
            _log.warning("consumer.rows_stale", consumer=self._consumer, tables=tables, note="read again")
        return tuple(Lacking(one.table, one.oid) for one in stale)
