"""Which of a consumer's tables the bootstrap has, what a delta of each would cost, and why there are none."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from walbus.consumers.checkpoint import Checkpoint, Point
from walbus.consumers.peers import RowsPeer
from walbus.consumers.phases import was_followed, whole_until
from walbus.consumers.steps import TablesListed
from walbus.consumers.tables import matching
from walbus.consumers.transport import NotReady, TableList
from walbus.errors import PositionUnknown, SourceMisconfigured, WalbusError
from walbus.schema import TableSchema


def named_in(found: TableList, patterns: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the tables that patterns name, those that can be had and those that never can."""
    return matching(found.tables, patterns), matching(found.refused, patterns)


def unknown_in(found: TableList, patterns: tuple[str, ...]) -> list[str]:
    """Names of tables that the bootstrap does not know (yet): they may be misspelt."""
    return [name for name in patterns if "*" not in name and name not in found.tables and name not in found.refused]


def tables_listed(
    found: TableList, patterns: tuple[str, ...], stamp: int, deltas: Mapping[str, int] | None = None
) -> TablesListed:
    """What the state machine is told of a list.

    Args:
        found: the list.
        patterns: of the tables that are wanted.
        stamp: Unix milliseconds.
        deltas: what those that there are would cost; none are, if they are not to be weighed.
    """
    wanted, without = named_in(found, patterns)
    layouts = max(found.tables.values(), default=0)
    at = None if found.applied_seq is None else Point(found.applied, found.applied_seq)
    return TablesListed(found.log_id, wanted, stamp, layouts, found.rows, deltas or {}, bool(without), found.oids, at)


def delta_costs(
    bootstrap: RowsPeer,
    found: TableList,
    patterns: tuple[str, ...],
    before: Checkpoint,
    layouts: Collection[TableSchema],
) -> dict[str, int]:
    """How many changes the delta of each table has, at most; without those of which there is none.

    Args:
        bootstrap: gave the list.
        found: the list, of the log that the consumer follows.
        patterns: of the tables that are wanted.
        before: where the consumer is.
        layouts: all that the log has.

    Raises:
        RelayUnavailable: the bootstrap did not answer.
    """
    deltas: dict[str, int] = {}
    for table in named_in(found, patterns)[0]:
        oid = found.oids.get(table, 0)
        since = whole_until(before, table, oid) if was_followed(before, oid, layouts) else None
        cost = None if since is None else bootstrap.delta_cost(table, since)
        if cost is not None:
            deltas[table] = cost
    return deltas


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
