"""The phases of a consumer, and how one follows from another. Pure.

Three of them are checkpoints (`walbus.consumers.checkpoint`); the two here come before the first one, or before the
next, and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Marks,
    Point,
    Snapshotting,
    TableProgress,
    phase_of,
    whole_up_to,
)
from walbus.consumers.steps import AskLog, ListTables, ReadDelta, ReadLog, ReadSnapshot, Start, TablesListed, Want
from walbus.consumers.tables import in_both, matching
from walbus.errors import PositionUnknown
from walbus.events import Change, Window
from walbus.position import ORIGIN, Position
from walbus.schema import TableSchema


@dataclass(frozen=True, slots=True)
class Starting:
    """Nothing is known yet."""

    start: Start


@dataclass(frozen=True, slots=True)
class Listing:
    """A snapshot is needed, and its tables are not known yet.

    Attributes:
        before: the last checkpoint, which stays the stored one meanwhile.
        only: the tables to read again; None for all.
    """

    before: Checkpoint | None
    only: tuple[str, ...] | None = None


State: TypeAlias = Starting | Listing | Snapshotting | CatchingUp | Following


def resumed(checkpoint: Checkpoint, asked: tuple[str, ...] | None = None) -> State:
    """Where a checkpoint goes on, for a consumer that asks for these tables (None: for the same as before).

    A table that is not asked for any more is forgotten: if it is again, it has to be read.

    A snapshot without its first answer begins anew. Rows of that answer may have reached the sink, and the checkpoint
    that names their state may not: what was deleted since then is told by the sweep of a new generation alone. A delta
    goes on: it tells what was deleted.
    """
    if asked is not None:
        asked = asked if checkpoint.asked is None else in_both(checkpoint.asked, asked)
        checkpoint = replace(checkpoint, asked=asked)
    if isinstance(checkpoint, Snapshotting) and checkpoint.low is None:
        return checkpoint if all(table.since is not None for table in checkpoint.tables) else Listing(checkpoint)
    return checkpoint


def whole_until(before: Checkpoint | None, table: str, oid: int = 0) -> Point | None:
    """Up to where a checkpoint has everything of a table, so that a delta since then brings the rest; None: nowhere.

    A table that was read from the bootstrap is as whole as the log's replay behind it: nothing up to `low` is missing.
    """
    if before is None or not has_rows(before, table, oid):
        return None
    match before:
        case Following(point=point) | CatchingUp(point=point):
            return point
        case Snapshotting(tables=tables, low=low):
            progress = next((one for one in tables if one.is_of(table, oid)), None)
            if progress is None:
                return None
            return low if progress.done else progress.since


def has_rows(before: Checkpoint, table: str, oid: int) -> bool:
    """Whether a checkpoint's consumer has the rows of a table, or is reading them, and is to read no other ones."""
    asked = before.asked is None or bool(matching([table], before.asked))
    return asked and not any(one.is_of(table, oid) for one in before.unread)


def was_followed(before: Checkpoint, oid: int, layouts: Iterable[TableSchema]) -> bool:
    """Whether a checkpoint's consumer asked for a table by all names that it had since the consumer was last told one.

    One that came to a name that is asked for has rows that the consumer was never told.
    """
    if before.asked is None or isinstance(before, Snapshotting):
        return True
    names = {layout.id: layout.table for layout in layouts if layout.oid == oid}
    told = max((number for number in names if number <= before.layouts), default=0)
    since = {name for number, name in names.items() if number >= told}
    return len(matching(since, before.asked)) == len(since)


def chosen_reading(before: Checkpoint | None, event: TablesListed, table: str) -> TableProgress:
    """How a table is read: as a delta if that is complete, unless it has far more changes than the table has rows."""
    oid = event.oids.get(table, 0)
    since, changes = whole_until(before, table, oid), event.deltas.get(table)
    if since is None or changes is None or changes > _FEW + _CHANGES_A_ROW * event.rows.get(table, changes):
        return TableProgress(table, oid=oid)
    return TableProgress(table, since=since, oid=oid)


#: A delta may have so many changes, and so many more for each row of the table: half of them might be deletes, which
#: are small, and a snapshot makes a sink write every row and look for those that are gone.
_FEW, _CHANGES_A_ROW = 1_000, 2


def next_marks(before: Checkpoint | None, event: TablesListed) -> Marks:
    """The marks of a snapshot whose tables the bootstrap has just listed, behind the last checkpoint."""
    generation = max(event.stamp, before.marks.generation + 1 if before else 0)
    same_log = before is not None and before.log_id == event.log_id
    return Marks(generation, before.marks.log_generation if before is not None and same_log else generation)


def current(state: Snapshotting) -> TableProgress:
    """The table that is read now."""
    return next(table for table in state.tables if not table.done)


def begun(listing: Listing, event: TablesListed, received: Point, asked: tuple[str, ...] | None = None) -> Snapshotting:
    """The reading of tables that the bootstrap has just listed, of the log that is followed.

    Args:
        listing: what was wanted.
        event: what there is.
        received: the log has been handed on up to here.
        asked: patterns of all tables of the consumer.
    """
    before, only = listing.before, listing.only
    same_log = before is not None and before.log_id == event.log_id
    low = received if only is not None and same_log else None
    known = before if only is None and same_log else None
    tables = tuple(chosen_reading(known, event, table) for table in event.tables)
    unread = before.unread if before is not None and same_log else ()
    left = tuple(one for one in unread if not any(one.is_of(name, event.oids.get(name, 0)) for name in event.tables))
    layouts = before.layouts if low is not None and before is not None else event.layouts
    goes_on = low is not None or any(table.since is not None for table in tables)
    rows = before.rows or ORIGIN if goes_on and before is not None else None
    high = low or highest_of(known)
    asked = asked if only is None or before is None else before.asked
    done = whole_up_to(before) if same_log else ORIGIN
    return Snapshotting(
        event.log_id, next_marks(before, event), tables, low, high, left, layouts, rows, asked, done=done
    )


def worthwhile_deltas(before: Following | CatchingUp, event: TablesListed, behind: int) -> Snapshotting | None:
    """The reading of deltas in place of the log; None where that lacks a table, or is hardly less.

    Args:
        before: where the consumer is.
        event: what deltas since then cost.
        behind: changes of the log that are still to be read.
    """
    wanted = [table for table in event.tables if has_rows(before, table, event.oids.get(table, 0))]
    if not wanted or any(table not in event.deltas for table in wanted):
        return None
    if _DELTAS_WORTH * sum(event.deltas[table] for table in wanted) > behind:
        return None
    tables = tuple(TableProgress(table, since=before.point, oid=event.oids.get(table, 0)) for table in wanted)
    marks, layouts = next_marks(before, event), max(before.layouts, event.layouts)
    high, rows = highest_of(before), before.rows
    return Snapshotting(
        event.log_id, marks, tables, None, high, before.unread, layouts, rows, before.asked, before.part,
        whole_up_to(before),
    )  # fmt: skip


#: Changes of the log that one change of a delta must be worth, or the log is read on: a delta has no transactions.
_DELTAS_WORTH = 2


def reading_of(state: Snapshotting) -> ReadSnapshot | ReadDelta:
    """The connection that a reading needs."""
    table = current(state)
    if table.since is not None:
        return ReadDelta(state.log_id, table.table, table.since, table.oid)
    return ReadSnapshot(state.log_id, table.table, table.after_key, table.oid)


#: Which connection it is: one that is open for another target is closed.
Target: TypeAlias = tuple[str, ...]


def target_of(want: Want) -> Target:
    """What a connection reads; nothing, where none is kept."""
    match want:
        case ReadLog(log_id=log_id):
            return ("log", log_id)
        case ReadSnapshot(log_id=log_id, table=table):
            return ("snapshot", log_id, table)
        case ReadDelta(log_id=log_id, table=table):
            return ("delta", log_id, table)
        case AskLog() | ListTables():
            return ()


def name_of(state: State) -> str:
    """`starting`, `listing`, `snapshot`, `delta`, `catchup` or `online`."""
    match state:
        case Starting():
            return "starting"
        case Listing():
            return "listing"
        case checkpoint:
            return phase_of(checkpoint)


def read_up_to(table: TableProgress, change: Change) -> TableProgress:
    """A table of which a change, or a row, has been read."""
    if table.since is None:
        return replace(table, after_key=change.raw.key)
    return replace(table, since=Point(table.since.last_done, change.seq))


def lowest(at: Point, listed: Point | None, table: TableProgress) -> Point:
    """From where the log is replayed behind a reading whose first answer is of a state.

    Args:
        at: the state.
        listed: that of the list of tables, if it is known: tables that came behind it are told by the log alone.
        table: the one that is read first; of a delta nothing before its beginning is replayed.
    """
    if listed is None:
        return at
    return listed if table.since is None else max(listed, Point(table.since.last_done, listed.seq))


def with_table(state: Snapshotting, progress: TableProgress) -> Snapshotting:
    """With another progress of one of its tables."""
    tables = tuple(progress if table.table == progress.table else table for table in state.tables)
    return replace(state, tables=tables)


def advanced(state: CatchingUp | Following, point: Point) -> CatchingUp | Following:
    """The log is dealt with up to a point; catching up ends where the newest state that was read has been passed."""
    if isinstance(state, CatchingUp) and point.last_done < state.until:
        rest = state.unread, state.layouts, state.rows, state.asked, state.part
        return CatchingUp(state.log_id, state.marks, point, state.until, *rest)
    return _following(state, point)


def behind_window(state: Following, window: Window) -> Following:
    """The log is dealt with up to the end of a window that is a whole transaction."""
    return _following(state, Point(window.last, window.last_seq))


def _following(state: CatchingUp | Following, point: Point) -> Following:
    # Not by `dataclasses.replace`, which takes as long as all else that the machine does for a small transaction.
    return Following(state.log_id, state.marks, point, state.unread, state.layouts, state.rows, state.asked, state.part)


def highest_of(before: Checkpoint | None) -> Point | None:
    """The highest state that any row of a checkpoint came from; None where that is not above what is done."""
    match before:
        case Snapshotting(high=high):
            return high
        case CatchingUp(until=until):
            return Point(until, 0)
        case _:
            return None


def point_of(checkpoint: Checkpoint | None) -> Point:
    """Up to where the log was handed on; its beginning where that is not known yet."""
    match checkpoint:
        case Following(point=point) | CatchingUp(point=point):
            return point
        case Snapshotting(low=Point() as low):
            return low
        case _:
            return Point(ORIGIN, 0)


def log_regressed(seq: int, position: Position, received: Point) -> PositionUnknown:
    """A later position carries a seq that is not above the last one."""
    return PositionUnknown(
        f"seq {seq} is not above {received.seq}, which the earlier position {received.last_done} had: this log does "
        "not continue the one that the checkpoint was made on",
        where=str(position),
        mend="find out whether the relay's folder was restored from a copy; "
        "remove the consumer's checkpoint to start again from a snapshot",
    )
