"""What goes into the consumer's state machine, and what comes out of it. No I/O, no behaviour.

An `Event` is something that happened; a `Want` is the connection that the machine needs; an `Output` is what the
consumer is to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from walbus.consumers.checkpoint import Checkpoint, Following, Lacking, Marks, Point
from walbus.events import Change, Window
from walbus.position import Position
from walbus.records import RecordHeader
from walbus.schema import TableSchema

Start: TypeAlias = Literal["snapshot", "earliest", "latest"]

# --- events: what happened -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogSeen:
    """The relay said what it holds.

    Attributes:
        log_id: of the log.
        trimmed, end: what it holds lies between them.
        last_seq: the last seq given at `end`.
        behind: changes of the log that the consumer has not done, at most.
    """

    log_id: str
    trimmed: Position
    end: Position
    last_seq: int
    behind: int = 0


@dataclass(frozen=True, slots=True)
class PositionGone:
    """The relay no longer holds what comes after the position asked for (410)."""


@dataclass(frozen=True, slots=True)
class TablesListed:
    """The bootstrap said which of the consumer's tables it holds.

    Attributes:
        log_id: of the log that it follows.
        tables: those that the consumer wants.
        stamp: Unix milliseconds, passed in: marks must rise even where the last checkpoint was lost.
        layouts: the largest number of a layout that any of its tables has.
        rows: about how many rows each table has, where that is known.
        deltas: of the tables whose delta since the consumer's place is complete, at most how many changes it has.
        refused: whether the consumer wants tables that the bootstrap never serves.
        oids: of the tables.
        at: the state of the list: the log tells tables that come behind it; None where that is not known.
    """

    log_id: str
    tables: tuple[str, ...]
    stamp: int
    layouts: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    deltas: Mapping[str, int] = field(default_factory=dict)
    refused: bool = False
    oids: Mapping[str, int] = field(default_factory=dict)
    at: Point | None = None


@dataclass(frozen=True, slots=True)
class RecordRead:
    """A record of the log, its changes decoded.

    Attributes:
        new_table: of a SCHEMA record that is the first word of a table, the layout: rows that the table had before it
            was published are not in the log.
        lost: of an EPOCH record, the tables of which the source has lost transactions: rows of theirs must go. Of a
            SCHEMA record with `reseed`, the table whose rows changed without events.
        renamed: of a SCHEMA record, (table that is still to be read, the same by its name from here on).
    """

    header: RecordHeader
    changes: Sequence[Change]
    origin: str = ""
    new_table: TableSchema | None = None
    lost: tuple[Lacking, ...] = ()
    renamed: tuple[tuple[Lacking, Lacking], ...] = ()


@dataclass(frozen=True, slots=True)
class TransactionsRead:
    """Records of the log, each a whole transaction behind the one before, as the windows that they are.

    Attributes:
        windows: of `walbus.consumers.windows.whole_transactions`; at least one.
    """

    windows: Sequence[Window]


@dataclass(frozen=True, slots=True)
class TableOpened:
    """A table's snapshot, or its delta, is about to be read; its rows have this layout, or an earlier one."""

    layout: TableSchema


@dataclass(frozen=True, slots=True)
class RowsRead:
    """A record of a table's snapshot or delta; its header carries the state Q, and END in the answer's last record."""

    header: RecordHeader
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class RowsStale:
    """The table that is being read is served as it was before something changed its rows unheard (`Walbus-Stale`).

    Attributes:
        oid: its own.
    """

    oid: int = 0


@dataclass(frozen=True, slots=True)
class RowsSettled:
    """Tables that were stale are right by the log: what they lacked came as net differences."""

    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnreadFound:
    """What the bootstrap's list says of the tables that are to be read.

    Attributes:
        unread: all of them, by their present names, and with them those that the consumer asks for and did not before.
        asked: patterns of the tables whose rows the consumer has but for those.
    """

    unread: tuple[Lacking, ...]
    asked: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class TableGone:
    """A table that is to be read is there no more: dropped meanwhile, or renamed, be its name another one's or not."""


@dataclass(frozen=True, slots=True)
class DeltaGone:
    """The delta that is wanted would not be complete any more (410)."""


@dataclass(frozen=True, slots=True)
class LogReplaced:
    """Relay or bootstrap belongs to another log than the one asked for (409, or another `log_id`)."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended or broke."""


@dataclass(frozen=True, slots=True)
class RowsIncomplete:
    """Of these tables, rows or values are missing that the log never held: they must be read from the bootstrap."""

    tables: tuple[str, ...]


Event: TypeAlias = (
    LogSeen
    | PositionGone
    | TablesListed
    | RecordRead
    | TransactionsRead
    | TableOpened
    | RowsRead
    | RowsStale
    | RowsSettled
    | UnreadFound
    | TableGone
    | DeltaGone
    | LogReplaced
    | Disconnected
    | RowsIncomplete
)

# --- wants: the connection that the machine needs ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskLog:
    """Ask the relay what it holds (`LogSeen`)."""


@dataclass(frozen=True, slots=True)
class ListTables:
    """Ask the bootstrap which tables it holds (`TablesListed`).

    Attributes:
        only: these; None means all that the consumer subscribes to.
        before: where the consumer is, if deltas since then are to be weighed.
        waits: whether nothing else can be done until the bootstrap answers.
    """

    only: tuple[str, ...] | None
    before: Checkpoint | None = None
    waits: bool = True


@dataclass(frozen=True, slots=True)
class ReadSnapshot:
    """Read a table's rows behind a key (`RowsRead`).

    Attributes:
        oid: of the table that had the name when it was listed; 0: not known. Another one is not what is to be read.
    """

    log_id: str
    table: str
    after_key: bytes | None
    oid: int = 0


@dataclass(frozen=True, slots=True)
class ReadDelta:
    """Read what became of a table's keys that changed (`RowsRead`).

    Attributes:
        since: the seq behind which it is read, and where the consumer was when the delta began.
        oid: as of `ReadSnapshot`.
    """

    log_id: str
    table: str
    since: Point
    oid: int = 0


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Follow the log behind a position (`RecordRead`)."""

    log_id: str
    after: Position


Want: TypeAlias = AskLog | ListTables | ReadSnapshot | ReadDelta | ReadLog

# --- outputs: what the consumer is to do --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand a window on. `checkpoint` holds once it has been dealt with; None: more of its transaction follows."""

    window: Window
    marks: Marks
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class DeliverRun:
    """Hand windows on, each a whole transaction; `checkpoint` holds once all of them have been dealt with.

    So does it behind an earlier one, with that one's end for its point (`walbus.consumers.phases.behind_window`).
    """

    windows: Sequence[Window]
    marks: Marks
    checkpoint: Following


@dataclass(frozen=True, slots=True)
class Sweep:
    """Delete a table's ghosts; then `checkpoint` holds.

    Ghosts are rows whose mark is below `marks.generation` and whose seq is at most `seq` (deleted as of version
    `seq`), and those whose mark is below `marks.log_generation`, whatever their seq.
    """

    table: str
    seq: int
    marks: Marks
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Advance:
    """Nothing for this consumer up to here: `checkpoint` holds."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Discard:
    """Pieces handed on since the last checkpoint will not be completed: roll them back."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody waits for the consumer to be here: what is whole is to be stored at once, and to be reported."""

    position: Position


Output: TypeAlias = Deliver | DeliverRun | Sweep | Advance | Discard | Asked
