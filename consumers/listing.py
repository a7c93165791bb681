"""Which of a consumer's tables the bootstrap has, what a delta of each would cost, and why there are none."""

from __future__ import annotations

from walbus.consumers.checkpoint import Checkpoint, Point
from walbus.consumers.peers import RowsPeer
from walbus.consumers.phases import whole_until
from walbus.consumers.steps import TablesListed
from walbus.consumers.tables import matching
from walbus.consumers.transport import NotReady, TableList
from walbus.errors import PositionUnknown, SourceMisconfigured, WalbusError


def named_in(found: TableList, patterns: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the tables that patterns name, those that can be had and those that never can."""
    return matching(found.tables, patterns), matching(found.refused, patterns)


def tables_listed(
    bootstrap: RowsPeer, found: TableList, patterns: tuple[str, ...], before: Checkpoint | None, stamp: int
) -> TablesListed:
    """What the state machine is told of a list.

    Args:
        bootstrap: gave it, and is asked what deltas cost.
        found: the list.
        patterns: of the tables that are wanted.
        before: where the consumer is, in this log; None if deltas are not to be weighed.
        stamp: Unix milliseconds.

    Raises:
        RelayUnavailable: the bootstrap did not answer.
    """
    wanted, without = named_in(found, patterns)
    deltas: dict[str, int] = {}
    if before is not None and before.log_id == found.log_id:
        for table in wanted:
            since = whole_until(before, table, found.oids.get(table, 0))
            cost = None if since is None else bootstrap.delta_cost(table, since)
            if cost is not None:
                deltas[table] = cost
    layouts = max(found.tables.values(), default=0)
    at = None if found.applied_seq is None else Point(found.applied, found.applied_seq)
    return TablesListed(found.log_id, wanted, stamp, layouts, found.rows, deltas, bool(without), found.oids, at)


def no_way_back(consumer: str) -> WalbusError:
    """The end of a consumer of some operations whose place is gone: rows as they are now say nothing to it."""
    return PositionUnknown(
        "the log no longer holds what comes behind the checkpoint, and rows as they are now say nothing to a "
        "consumer of some operations",
        where=f"consumer {consumer}",
        mend="remove its checkpoint to begin anew at earliest or latest, or have the log kept for longer",
    )


def no_table(consumer: str, patterns: tuple[str, ...], refused: tuple[str, ...], url: str) -> WalbusError:
    """A pattern, or a table that nobody knows, may come to have rows; a table that was refused will not."""
    if set(patterns) <= set(refused):
        return SourceMisconfigured(
            f"there is no snapshot of {', '.join(refused)}: the bootstrap refuses tables without a key",
            where=f"consumer {consumer}",
            mend="give the table a primary key, or start the consumer with start = earliest or latest",
        )
    return NotReady(
        f"the bootstrap has no table {' or '.join(patterns)} with a key yet; if none is to come, mend the "
        "consumer's tables, or those of [source]",
        where=url,
    )
