"""Checkpoints: exactly where a consumer is, in which phase, so that a crash anywhere resumes there.

    Following      the log, live; everything up to `last_done` is dealt with
    Snapshotting   the bootstrap's rows, table by table in key order; `low` and `high` bound the states that they
                   came from
    CatchingUp     the log again, from the lowest of those states; consistent once `until` is passed

Every checkpoint carries the `log_id` that its positions and seqs belong to, the `Marks` that make sweeping safe, and
the tables that are `unread`: they came to the log after the consumer's snapshot, with rows that the log does not hold,
and are to be read once the bootstrap has them. `rows` is the lowest state of the bootstrap that the rows of any table
came from before they followed the log (ORIGIN: not known). `layouts` is the largest number of a layout that the
consumer was told: the log's writer may tell an older one again, which is no new table.

Its stored form is one JSON object with a version. No I/O.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from walbus.errors import InvalidText
from walbus.position import ORIGIN, Position, parse_position

FORMAT = 1


class Point(NamedTuple):
    """A state of the source: everything up to `last_done`, and the last seq given by then."""

    last_done: Position
    seq: int


class Marks(NamedTuple):
    """What tells this snapshot's rows from older ones.

    Attributes:
        generation: sinks mark each row that they write with it; it rises with every snapshot that is begun.
        log_generation: the first generation whose seqs belong to this log. A row whose mark is below carries a seq of
            another log, which says nothing, and is older than anything that comes now.
    """

    generation: int
    log_generation: int


@dataclass(frozen=True, slots=True)
class Following:
    """Everything up to `point` is dealt with; the log goes on behind it."""

    log_id: str
    marks: Marks
    point: Point
    unread: tuple[str, ...] = ()
    layouts: int = 0
    rows: Position = ORIGIN


@dataclass(frozen=True, slots=True)
class TableProgress:
    """How far one table's snapshot is: the key of the last row dealt with (None: not begun), and whether it ended.

    A table that is done has been swept too.
    """

    table: str
    after_key: bytes | None = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class Snapshotting:
    """Some rows of the snapshot are dealt with.

    Attributes:
        tables: in the order in which they are read.
        low: the log is replayed from here: the lowest state that any row came from, and no later than where the
            consumer was if only some of its tables are read again. None before the first answer.
        high: the highest state that any row came from. None before the first answer.
        rows: as in the other phases, if only some tables are read; None: all are, so it will be `low`.
    """

    log_id: str
    marks: Marks
    tables: tuple[TableProgress, ...]
    low: Point | None = None
    high: Point | None = None
    unread: tuple[str, ...] = ()
    layouts: int = 0
    rows: Position | None = None


@dataclass(frozen=True, slots=True)
class CatchingUp:
    """The snapshot is whole; the log is replayed from its lowest state, and is not consistent before `until`."""

    log_id: str
    marks: Marks
    point: Point
    until: Position
    unread: tuple[str, ...] = ()
    layouts: int = 0
    rows: Position = ORIGIN


Checkpoint: TypeAlias = Following | Snapshotting | CatchingUp

_PHASES: dict[type[Checkpoint], str] = {
    Following: "online",
    Snapshotting: "snapshot",
    CatchingUp: "catchup",
}


def phase_of(checkpoint: Checkpoint) -> str:
    """The phase's name: `online`, `snapshot` or `catchup`."""
    return _PHASES[type(checkpoint)]


def dump_checkpoint(checkpoint: Checkpoint) -> str:
    """The checkpoint as one line of JSON; equal checkpoints give equal text."""
    document: dict[str, Any] = {
        "version": FORMAT,
        "phase": phase_of(checkpoint),
        "log_id": checkpoint.log_id,
        "marks": checkpoint.marks,
    }
    match checkpoint:
        case Following(point=point):
            document |= {"point": _dump_point(point)}
        case CatchingUp(point=point, until=until):
            document |= {"point": _dump_point(point), "until": str(until)}
        case Snapshotting(tables=tables, low=low, high=high):
            document |= {
                "tables": [_dump_table(table) for table in tables],
                "low": low and _dump_point(low),
                "high": high and _dump_point(high),
            }
    if checkpoint.unread:
        document["unread"] = checkpoint.unread
    if checkpoint.layouts:
        document["layouts"] = checkpoint.layouts
    if checkpoint.rows is not None and (checkpoint.rows > ORIGIN or isinstance(checkpoint, Snapshotting)):
        document["rows"] = str(checkpoint.rows)
    return json.dumps(document, separators=(",", ":"))


def load_checkpoint(text: str) -> Checkpoint:
    """The inverse of `dump_checkpoint`.

    Raises:
        InvalidText: not a checkpoint, or one of another version.
    """
    try:
        document = json.loads(text)
        if document["version"] != FORMAT:
            raise InvalidText(
                f"a checkpoint of version {document['version']} is not of version {FORMAT}",
                mend="use the Walbus that wrote it, or remove it to start again",
            )
        return _load(document)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidText(
            f"this is not a checkpoint ({type(error).__name__})", mend="remove it to start again from a snapshot"
        ) from None


def _load(document: dict[str, Any]) -> Checkpoint:
    log_id, marks = document["log_id"], Marks(*document["marks"])
    unread, layouts = tuple(document.get("unread", ())), int(document.get("layouts", 0))
    rows = parse_position(document["rows"]) if "rows" in document else None
    match document["phase"]:
        case "online":
            return Following(log_id, marks, _load_point(document["point"]), unread, layouts, rows or ORIGIN)
        case "catchup":
            until = parse_position(document["until"])
            return CatchingUp(log_id, marks, _load_point(document["point"]), until, unread, layouts, rows or ORIGIN)
        case "snapshot":
            tables = tuple(_load_table(table) for table in document["tables"])
            low, high = document["low"], document["high"]
            points = (low and _load_point(low), high and _load_point(high))
            return Snapshotting(log_id, marks, tables, *points, unread, layouts, rows)
        case _:
            raise ValueError("phase")


def _dump_point(point: Point) -> dict[str, object]:
    return {"last_done": str(point.last_done), "seq": point.seq}


def _load_point(document: dict[str, Any]) -> Point:
    return Point(parse_position(document["last_done"]), int(document["seq"]))


def _dump_table(table: TableProgress) -> dict[str, object]:
    after_key = None if table.after_key is None else table.after_key.hex()
    return {"table": table.table, "after_key": after_key, "done": table.done}


def _load_table(document: dict[str, Any]) -> TableProgress:
    after_key = document["after_key"]
    return TableProgress(
        document["table"], None if after_key is None else bytes.fromhex(after_key), bool(document["done"])
    )


def last_done_of(checkpoint: Checkpoint | None) -> Position:
    """Where the log is read on from; ORIGIN while there is no such place yet."""
    match checkpoint:
        case Following(point=point) | CatchingUp(point=point):
            return point.last_done
        case Snapshotting(low=Point(last_done, _)):
            return last_done
        case _:
            return ORIGIN
