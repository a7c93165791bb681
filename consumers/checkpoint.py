"""Checkpoints: exactly where a consumer is, in which phase, so that a crash anywhere resumes there.

    Following      the log, live; everything up to `last_done` is dealt with
    Snapshotting   the bootstrap's rows, table by table: all rows of one in key order, or a delta of it in the order of
                   seqs; `low` and `high` bound the states that they came from
    CatchingUp     the log again, from the lowest of those states; consistent once `until` is passed

Every checkpoint carries the `log_id` that its positions and seqs belong to, the `Marks` that make sweeping safe, and
the tables that are `unread`: they came to the log after the consumer's snapshot, with rows that the log does not hold,
and are to be read once the bootstrap has them. `asked` is the patterns of the tables whose rows the consumer has but
for those (None: not known, as in checkpoints of before; those that it reads now are taken for them). `rows` is the
lowest state of the bootstrap that the rows of any table came from before they followed the log (ORIGIN: not known).
`layouts` is the largest number of a layout that the consumer was told: the log's writer may tell an older one again,
which is no new table. `part` is the part of all keys that it is of; None: it is of all keys.

Its stored form is one JSON object with a version: 4 where a member of a group has the part, 3 where it is of a part, 2
where a table is read as a delta, which version 1 did not know, and 1 otherwise. No I/O.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from walbus.errors import InvalidText
from walbus.position import ORIGIN, Position, parse_position

FORMAT = 4
_NUMBER_BITS = 63


class Lacking(NamedTuple):
    """A table whose rows are to be read.

    Attributes:
        table: the name that it had when that was last told.
        oid: its relation OID, which it keeps when it is renamed; 0 where it is not known, as in checkpoints of before.
    """

    table: str
    oid: int = 0

    def is_of(self, table: str, oid: int) -> bool:
        """Whether this is the table that has such a name and OID now."""
        return self.oid == oid if self.oid and oid else self.table == table


class Part(NamedTuple):
    """A part of all keys.

    Attributes:
        partition: `i/n`, the part i, from 0, of n.
        token: under which a member of a group has it, larger than that of whoever had it before; 0: it is not leased.
    """

    partition: str
    token: int = 0


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
    unread: tuple[Lacking, ...] = ()
    layouts: int = 0
    rows: Position = ORIGIN
    asked: tuple[str, ...] | None = None
    part: Part | None = None


@dataclass(frozen=True, slots=True)
class TableProgress:
    """How far the reading of one table is.

    Attributes:
        table: its name.
        after_key: of a snapshot, the key of the last row dealt with; None: not begun.
        done: whether it ended. A table whose snapshot is done has been swept too.
        since: of a delta, where the consumer was when it began, with the seq of the last change dealt with; None: all
            of the table's rows are read.
        oid: of the table that had the name when it was listed; 0: not known, as in checkpoints of before.
    """

    table: str
    after_key: bytes | None = None
    done: bool = False
    since: Point | None = None
    oid: int = 0

    def is_of(self, table: str, oid: int) -> bool:
        """Whether this is the table that has such a name and OID now."""
        return Lacking(self.table, self.oid).is_of(table, oid)


@dataclass(frozen=True, slots=True)
class Snapshotting:
    """Some of what the bootstrap gives is dealt with.

    Attributes:
        tables: in the order in which they are read.
        low: the log is replayed from here: the lowest state that any row came from, and no later than where the
            consumer was if only some of its tables are read again. None before the first answer.
        high: the highest state that any row came from. None before the first answer.
        rows: as in the other phases, if only some tables are read; None: all are, so it will be `low`.
        done: up to where everything was dealt with when the reading began; ORIGIN: nowhere, or it is not known.
    """

    log_id: str
    marks: Marks
    tables: tuple[TableProgress, ...]
    low: Point | None = None
    high: Point | None = None
    unread: tuple[Lacking, ...] = ()
    layouts: int = 0
    rows: Position | None = None
    asked: tuple[str, ...] | None = None
    part: Part | None = None
    done: Position = ORIGIN


@dataclass(frozen=True, slots=True)
class CatchingUp:
    """The snapshot is whole; the log is replayed from its lowest state, and is not consistent before `until`."""

    log_id: str
    marks: Marks
    point: Point
    until: Position
    unread: tuple[Lacking, ...] = ()
    layouts: int = 0
    rows: Position = ORIGIN
    asked: tuple[str, ...] | None = None
    part: Part | None = None


Checkpoint: TypeAlias = Following | Snapshotting | CatchingUp

_PHASES: dict[type[Checkpoint], str] = {
    Following: "online",
    CatchingUp: "catchup",
}


def phase_of(checkpoint: Checkpoint) -> str:
    """The phase's name: `online`, `snapshot`, `delta` or `catchup`."""
    if isinstance(checkpoint, Snapshotting):
        read = next((table for table in checkpoint.tables if not table.done), None)
        return "snapshot" if read is None or read.since is None else "delta"
    return _PHASES[type(checkpoint)]


def dump_checkpoint(checkpoint: Checkpoint) -> str:
    """The checkpoint as one line of JSON; equal checkpoints give equal text."""
    document: dict[str, Any] = {
        "version": _version(checkpoint),
        "phase": _PHASES.get(type(checkpoint), "snapshot"),
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
            if checkpoint.done > ORIGIN:
                document["done"] = str(checkpoint.done)
    if checkpoint.unread:
        document["unread"] = [one.table for one in checkpoint.unread]
        if any(one.oid for one in checkpoint.unread):
            document["unread_oids"] = [one.oid for one in checkpoint.unread]
    if checkpoint.asked is not None:
        document["asked"] = checkpoint.asked
    if checkpoint.part is not None:
        document["partition"] = checkpoint.part.partition
        if checkpoint.part.token:
            document["token"] = checkpoint.part.token
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
        version = _number(document["version"])
        if version in range(1, FORMAT + 1):
            return _load(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidText) as error:
        raise InvalidText(
            f"this is not a checkpoint ({type(error).__name__})", mend="remove it to start again from a snapshot"
        ) from None
    raise InvalidText(
        f"a checkpoint of version {version} is not of version 1 to {FORMAT}",
        mend="use the Walbus that wrote it, or remove it to start again",
    )


def _load(document: dict[str, Any]) -> Checkpoint:
    log_id, marks = _text(document["log_id"]), Marks(*map(_number, document["marks"]))
    unread, layouts = _load_unread(document), _number(document.get("layouts", 0))
    asked = tuple(map(_text, document["asked"])) if "asked" in document else None
    rows = parse_position(document["rows"]) if "rows" in document else None
    part = Part(_text(document["partition"]), _number(document.get("token", 0))) if "partition" in document else None
    match document["phase"]:
        case "online":
            point = _load_point(document["point"])
            return Following(log_id, marks, point, unread, layouts, rows or ORIGIN, asked, part)
        case "catchup":
            point, until = _load_point(document["point"]), parse_position(document["until"])
            return CatchingUp(log_id, marks, point, until, unread, layouts, rows or ORIGIN, asked, part)
        case "snapshot":
            tables = tuple(_load_table(table) for table in document["tables"])
            low, high = document["low"], document["high"]
            points = (low and _load_point(low), high and _load_point(high))
            done = parse_position(document["done"]) if "done" in document else ORIGIN
            return Snapshotting(log_id, marks, tables, *points, unread, layouts, rows, asked, part, done)
        case _:
            raise ValueError("phase")


def _load_unread(document: dict[str, Any]) -> tuple[Lacking, ...]:
    tables = document.get("unread", ())
    oids = document.get("unread_oids", [0] * len(tables))
    return tuple(Lacking(_text(table), _number(oid)) for table, oid in zip(tables, oids, strict=True))


def _dump_point(point: Point) -> dict[str, object]:
    return {"last_done": str(point.last_done), "seq": point.seq}


def _load_point(document: dict[str, Any]) -> Point:
    return Point(parse_position(document["last_done"]), _number(document["seq"]))


def _version(checkpoint: Checkpoint) -> int:
    if checkpoint.part is not None:
        return 4 if checkpoint.part.token else 3
    has_delta = isinstance(checkpoint, Snapshotting) and any(table.since is not None for table in checkpoint.tables)
    return 2 if has_delta else 1


def _dump_table(table: TableProgress) -> dict[str, object]:
    after_key = None if table.after_key is None else table.after_key.hex()
    document: dict[str, object] = {"table": table.table, "after_key": after_key, "done": table.done}
    if table.oid:
        document["oid"] = table.oid
    return document if table.since is None else document | {"since": _dump_point(table.since)}


def _load_table(document: dict[str, Any]) -> TableProgress:
    after_key, since = document["after_key"], document.get("since")
    return TableProgress(
        _text(document["table"]),
        None if after_key is None else bytes.fromhex(after_key),
        bool(document["done"]),
        None if since is None else _load_point(since),
        _number(document.get("oid", 0)),
    )


def _number(value: object) -> int:
    if type(value) is not int or value >> _NUMBER_BITS:
        raise TypeError("a number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    value.encode()  # half of a sign is no text
    return value


def last_done_of(checkpoint: Checkpoint | None) -> Position:
    """Where the log is read on from; ORIGIN while there is no such place yet."""
    match checkpoint:
        case Following(point=point) | CatchingUp(point=point):
            return point.last_done
        case Snapshotting(low=Point(last_done, _)):
            return last_done
        case _:
            return ORIGIN


def whole_up_to(checkpoint: Checkpoint | None) -> Position:
    """Up to where everything is done, whatever is being read beyond; ORIGIN: nowhere, or it is not known."""
    return checkpoint.done if isinstance(checkpoint, Snapshotting) else last_done_of(checkpoint)


def is_whole(checkpoint: Checkpoint | None) -> bool:
    """Whether everything up to `last_done_of` is done: not while a snapshot, or deltas, are being read."""
    return isinstance(checkpoint, Following | CatchingUp)


def is_behind(one: Checkpoint | None, other: Checkpoint | None) -> bool:
    """Whether a consumer that was at the one and goes on from there comes to the other, of the same log."""
    if one is None or other is None or one.log_id != other.log_id:
        return False
    return (one.marks, is_whole(one), last_done_of(one)) < (other.marks, is_whole(other), last_done_of(other))


def token_of(checkpoint: Checkpoint | None) -> int:
    """Of the member of a group that stored it; 0: it was none, or there is no checkpoint."""
    return 0 if checkpoint is None or checkpoint.part is None else checkpoint.part.token
