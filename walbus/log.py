"""The relay log as an interface: one ordered, durable, replayable sequence of records.

Engines implement `LogWriter` and `LogReader`; one contract suite (`tests/contract/test_log.py`) runs on each. The
writer is capture (or a chained relay) and nobody else; any number of readers, in any process, see exactly what is
durable and nothing past it.

Order: records stand in the order of `append`; positions and seqs never decrease. A transaction is a run of
TRANSACTION records from a BEGIN to an END piece (SCHEMA records may stand between them), and is visible whole or
not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from walbus.position import Position
from walbus.schema import TableSchema


@dataclass(frozen=True, slots=True)
class Piece:
    """What capture hands to the log: one record but for its seqs.

    Attributes:
        kind, flags: of `walbus.records`.
        epoch, commit_lsn, end_lsn, xid, commit_time, origin: as in `RecordHeader`.
        first_ordinal, last_ordinal, count: of the changes in the body. Each ordinal takes one seq.
        tables: bit `oid % 64` for each table in the body.
        body: encoded changes whose seq_delta equals their ordinal_delta.
    """

    kind: int
    flags: int
    epoch: int
    commit_lsn: int
    end_lsn: int
    first_ordinal: int
    last_ordinal: int
    count: int
    xid: int
    commit_time: int
    origin: bytes = b""
    tables: int = 0
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Run:
    """Small transactions, each whole in one record, in one buffer: what capture hands to the log at once under load.

    All are of one epoch, and their commit LSNs rise.

    Attributes:
        records: the records as they will lie in the log, but for two things that the log gives (`walbus.native.seal`):
            their seqs count from 0 at the first change, and their checksums are 0.
        first, last: positions of the first and of the last change.
        changes: how many; each takes one seq.
        end_lsn, commit_time: of the last transaction.
        latest: the largest commit time.
    """

    records: bytes
    first: Position
    last: Position
    changes: int
    end_lsn: int
    commit_time: int
    latest: int

    @property
    def epoch(self) -> int:
        """Of all its transactions."""
        return self.first.epoch


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which database a log belongs to; a log refuses any other (fault 14).

    Attributes:
        system_identifier: of the cluster, from IDENTIFY_SYSTEM.
        database: name of the database that the slot decodes.
        slot: name of the slot.
    """

    system_identifier: str
    database: str
    slot: str

    def __str__(self) -> str:
        return f"system {self.system_identifier}, database {self.database}, slot {self.slot}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a log holds durably.

    Attributes:
        log_id: random name of the log; seqs and positions compare only within it.
        trimmed: everything up to and including this position is gone; ORIGIN if nothing was ever trimmed. Reading
            `after` any position >= trimmed is served.
        end: "last done" of a reader that has read everything: the position of the last durable record. ORIGIN in an
            empty log.
        end_lsn: the slot may be confirmed up to here: the largest `end_lsn` (or PROGRESS bound) that is durable. An
            EPOCH record sets it to the switch point, which is a step back where a failover lost commits.
        last_seq: the last seq given to a durable change; in a log without one the clock when it was made (Unix
            microseconds), so that whatever is copied beside it is newer than all of a log that it replaces.
        bytes: size of what is held.
        commit_time: of the last durable record, Unix microseconds; 0 in an empty log.
    """

    log_id: str
    trimmed: Position
    end: Position
    end_lsn: int
    last_seq: int
    bytes: int
    commit_time: int


@dataclass(frozen=True, slots=True)
class StandbyBound:
    """Up to where required standbys allow the slot to be confirmed.

    Attributes:
        lsn: the lowest `Bounds.end_lsn` of their durable copies; 0 if one of them has never reported, or is still in an
            epoch before that of the log's end.
        away: names of those that have not reported for a while.
    """

    lsn: int
    away: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """How the log knows a transaction again that the source sends a second time."""

    commit_lsn: int
    end_lsn: int
    xid: int
    commit_time: int


class SchemaRegistry(Protocol):
    """Layouts by number; registering is durable when the call returns."""

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        """The table's last version if it has this layout, else a new one; and whether it is new.

        Args:
            schema: the layout that the table has from here on; its `id` is ignored, and given here. Numbers of a table
                rise as its layouts follow each other.
        """

    def get(self, schema_id: int) -> TableSchema:
        """The version with this number.

        Raises:
            KeyError: there is none.
        """

    def all(self) -> list[TableSchema]:
        """Every version, by number."""


class LogWriter(Protocol):
    """The writing half. One process at a time; not thread-safe."""

    @property
    def schemas(self) -> SchemaRegistry:
        """The log's table layouts."""

    def bounds(self) -> Bounds:
        """What is durable now."""

    def append(self, piece: Piece) -> None:
        """Takes a piece behind all earlier ones; may write, does not sync, never reorders.

        A transaction that was not finished is dropped, and its seqs are free again, when its source begins anew after
        a broken connection: at a BEGIN piece, at a piece that goes back behind its last one, and at a PROGRESS or EPOCH
        piece, which never stand inside a transaction. Otherwise a piece at
        or below the last position that was appended is an error of the caller (ValueError).

        Raises:
            LogFull: there is no room. Nothing of the piece is kept; the caller may append the same piece again.
            Fenced: another writer took over.
        """

    def append_run(self, run: Run) -> None:
        """Takes a run behind all that was appended: as if each of its transactions had been appended as one piece.

        Raises:
            As `append`. Where there is no room nothing of the run is kept.
        """

    def sync(self) -> Bounds:
        """Makes every whole transaction that was appended durable, publishes the new end and wakes readers.

        Blocks for one fdatasync. On return the slot may be confirmed to `Bounds.end_lsn`.

        Raises:
            LogFull: no room; nothing new is durable.
            OSError: the sync failed (EIO). The process must end: a second sync would report success falsely.
            Fenced: another writer took over.
        """

    def drop_unfinished(self) -> None:
        """Forgets the pieces of a transaction that has not ended; where there is none, nothing happens."""

    def find(self, epoch: int, commit_lsn: int) -> Held | None:
        """The durable transaction at this place; None if the log does not hold it.

        Two epochs may have a transaction at the same LSN, where a failover lost the first one.
        """

    def records_after(self, after: Position) -> Iterator[bytes]:
        """The durable records behind a "last done" position, in order.

        Raises:
            PositionTrimmed: what comes after `after` is no longer held.
            DamagedRecord: names file and offset.
        """

    def trim(self, now: float) -> Position:
        """Drops whole old segments by the retention policy; returns the new `Bounds.trimmed`.

        Args:
            now: Unix seconds.
        """

    def close(self) -> None:
        """Syncs what is whole, marks the log as cleanly stopped, frees it. Never raises for a second call."""


def append_to(log: LogWriter, given: Piece | Run) -> None:
    """`LogWriter.append` or `append_run`, whichever it takes."""
    if isinstance(given, Run):
        log.append_run(given)
    else:
        log.append(given)


class LogCursor(Protocol):
    """A reader's place in the log. Not thread-safe."""

    def read(self, max_bytes: int) -> list[bytes]:
        """The next whole records, about `max_bytes` of them and at least one; [] at the durable end.

        Never blocks longer than the disk.

        Raises:
            DamagedRecord: names file and offset.
            PositionTrimmed: retention overtook this cursor.
        """

    def close(self) -> None:
        """Frees files."""


class LogReader(Protocol):
    """The reading half; any number of them, in any process."""

    @property
    def schemas(self) -> SchemaRegistry:
        """The log's table layouts (`register` is the writer's alone)."""

    @property
    def source(self) -> SourceIdentity:
        """Which database the log belongs to."""

    def bounds(self) -> Bounds:
        """What is durable now; cheap enough to call for every wake-up."""

    def cursor(self, after: Position) -> LogCursor:
        """A cursor whose first record is the first one with a change behind `after` (a "last done" position).

        That record may begin before `after`; the reader leaves out what it has done.

        Raises:
            PositionTrimmed: what comes after `after` is no longer held.
            PositionUnknown: `after` is past the end.
        """

    def position_at(self, time: float) -> Position:
        """The position to read `after` so as to get every transaction committed at or after a time (Unix seconds).

        Raises:
            PositionTrimmed: the log may no longer hold all of them.
        """

    def position_at_seq(self, seq: int) -> Position:
        """The position to read `after` so as to get every change from a seq on; exact within a record.

        Seqs may leave gaps: a seq in a gap leads to the change behind it, and one past the last to the end.

        Raises:
            PositionTrimmed: the change of this seq is no longer held.
            PositionUnknown: the seq is more than one past the last.
        """

    def wait(self, seen: Position, timeout: float) -> bool:
        """Blocks until the durable end is past `seen`; False after `timeout` seconds without that."""

    def close(self) -> None:
        """Frees files and sockets."""


class RetentionHold(Protocol):
    """Keeps a log's retention behind what one reader of it still needs. Thread-safe, and never blocks for long."""

    def require(self) -> None:
        """Returns where the hold is had, so that its owner may follow the log.

        Raises:
            LogBusy: another process has it.
            LogError: it cannot be had; says why, and by its directive whether it is tried again.
        """

    def move(self, log_id: str, last_done: Position) -> None:
        """Of this log only what comes behind a "last done" position is needed from now on.

        Retention may learn it later, and until then keeps more. A position that moves back is taken as it is.
        """

    def close(self) -> None:
        """Ends it for this process; what is held stays held, until its owner comes back or somebody lets go of it."""
