"""What a sink is: the contract that every one keeps, and that one suite proves (`tests/contract/test_sinks.py`).

Accepted is not durable. `write` and `sweep` accept changes; `commit` makes all that was accepted since the last
commit durable, together with the checkpoint. After a crash the sink tells the checkpoint last committed, and is sent
everything behind it again.

Order
    Windows come in the order of the log, one caller at a time. What comes again, or late, changes nothing: a sink
    compares each change's seq with that of the row it holds, or refuses to be written by two.
Atomicity
    Data and checkpoint become durable in one act, or the data first: what a checkpoint does not tell is sent again
    after a crash, and compared by seq. Sinks with transactions (SQLite, tantivy) show no part of a window before its
    commit; Redis shows the pieces of a transaction that is larger than its buffer as they come, and OpenSearch, which
    has no transactions, those of any.
Durability
    On return from `commit` the data survives the sink's ordinary crash. What a power failure can take goes together
    with its checkpoint, so that the log brings it again; a sink of which one can take anything is a `SettlingSink`.
Versions
    Each row keeps the seq and the mark (`Marks.generation`) that it was written with. A change of the log applies if
    its seq is above the row's; a snapshot's row applies if its seq is not below, so that an unchanged row is marked. A
    delta's insert is such a row; its deletes and truncates apply as those of the log do.
    A row whose mark is below `Marks.log_generation` is older than everything. A deleted row stays deleted against
    anything older that comes late.
Errors
    SinkUnavailable: away for now; the caller rolls back, waits, and goes on behind `checkpoint()`.
    RowRefused: this row will never be taken, and others will; it names the row, or one of those that `write` was given.
    SinkRefused: this configuration, or anything, will never be taken; `where` names table and position.
    Nothing else is raised for trouble of the sink's own.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from walbus.config_problems import InvalidConfig, option_problems
from walbus.consumers.checkpoint import Checkpoint, Marks
from walbus.consumers.partitions import GroupPart
from walbus.consumers.refused_rows import RowRefused, row_of
from walbus.consumers.steps import (
    Sweep,
)
from walbus.consumers.tables import matching
from walbus.errors import SinkRefused, SinkUnavailable
from walbus.events import Change, Window
from walbus.position import Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema

_TakeSome: TypeAlias = Callable[[Sequence[Change], int], int]


@dataclass(frozen=True, slots=True)
class Batching:
    """How the windows of a sink are put together.

    Attributes:
        linger: seconds that a window may wait for others before it is committed.
        max_changes: changes after which what has come is handed to `write`, committed or not.
        max_bytes: bytes of rows after which it is as well: rows of a megabyte are few in a memory.
    """

    linger: float
    max_changes: int
    max_bytes: int = 16 << 20


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class SinkPlace:
    """Whose sink this is.

    Attributes:
        consumer: name of the consumer.
        folder: the consumer's own folder, for sinks that live on this machine.
        tables: patterns of the tables that it is sent.
        part: that it holds, if members of a group have it after each other; None: it is one process's.
        stopping: whether the consumer is to end: a sink that waits until others let it write gives up then
            (SinkUnavailable).
        mapped: whether a mapping stands before it, so that rows have other columns than the tables.
    """

    consumer: str
    folder: Path
    tables: tuple[str, ...]
    part: GroupPart | None = None
    stopping: Callable[[], bool] = _never
    mapped: bool = False


class Sink(Protocol):
    """Where changes go. One caller at a time; see the module for order, atomicity, durability and errors."""

    @property
    def batching(self) -> Batching:
        """How this sink likes its windows."""

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint last committed, read from where it is stored; None in a sink that never had one.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """Accepts windows, whole or in pieces, in order; rows are marked with `marks.generation`.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def sweep(self, sweep: Sweep) -> None:
        """Accepts that a table's ghosts are deleted (`Sweep` says which rows those are).

        Raises:
            SinkUnavailable, SinkRefused
        """

    def commit(self, checkpoint: Checkpoint) -> None:
        """Makes what was accepted durable together with the checkpoint. Blocks until it is.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def rollback(self) -> None:
        """Forgets what was accepted since the last commit. Never raises."""

    def incomplete(self) -> tuple[str, ...]:
        """Tables with committed rows that lack a value which PostgreSQL left out and the sink did not hold."""

    def close(self) -> None:
        """Rolls back and frees everything. Never raises."""


class HeldRow(NamedTuple):
    """A row as a sink holds it.

    Attributes:
        key: the values of its key, as texts.
        seq: its version; None: it has none, so another than the sink wrote it.
        values: what is stored of it, equal where `repr` is.
    """

    key: tuple[str, ...]
    seq: int | None
    values: tuple[object, ...]


@runtime_checkable
class ReadableSink(Protocol):
    """A sink whose rows can be read back and compared (`walbus verify --sink`); between two commits."""

    def held(self, table: str) -> Iterator[HeldRow]:
        """The rows of a table (`namespace.name` of the source), in any order; none of a table that it does not have.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def as_held(self, change: Change) -> HeldRow:
        """What it would hold of a snapshot's row."""


@runtime_checkable
class OutrankingSink(Protocol):
    """A `ReadableSink` whose server gives a row another version when somebody writes to it, which never falls again."""

    def outrank(self, table: str) -> None:
        """From now on what is written to a table is newer than whatever it holds; durable at once.

        Raises:
            SinkUnavailable, SinkRefused
        """


@runtime_checkable
class ExpiringSink(Protocol):
    """A `ReadableSink` some of whose rows go by themselves."""

    def expires(self, table: str) -> bool:
        """Whether a row of this table need not be there."""


@runtime_checkable
class RowlessSink(Protocol):
    """A sink that was configured to hold no rows, so that there is nothing to read back."""

    @property
    def has_no_rows_by(self) -> str:
        """The option that says so."""


@dataclass(frozen=True, slots=True)
class ChangeTakers:
    """Who takes what of the windows that a sink is sent.

    Attributes:
        tables: patterns of the tables that it is sent.
        apply: takes a change of the log, and a delta's deletes and truncates.
        load: takes a row as it is: a snapshot's, and a delta's inserts.
        fit: takes a layout that is told by itself, of a table that it is sent.
        apply_some, load_some: take those of several changes, from an index on, that can be taken together; they tell
            how many those were. At the first one that is left the other two go on.
    """

    tables: tuple[str, ...]
    apply: Callable[[Change], object]
    load: Callable[[Change], object]
    fit: Callable[[TableSchema], object]
    apply_some: _TakeSome | None = None
    load_some: _TakeSome | None = None

    def take(self, windows: Sequence[Window], done: Position) -> Position:
        """Hands each change of the windows over, in order.

        Args:
            windows: whole or in pieces.
            done: everything up to here is accepted, and dropped where it comes again.

        Returns: up to where everything is accepted then.
        """
        for window in windows:
            match window.kind:
                case Kind.TRANSACTION if window.last > done:
                    _take_all(window.changes, self.apply, self.apply_some)
                    done = window.last if window.ends else done
                case Kind.SNAPSHOT:
                    _take_all(window.changes, self.load, self.load_some)
                case Kind.DELTA:
                    for change in window.changes:
                        (self.load if change.raw.op == Op.INSERT else self.apply)(change)
                case Kind.SCHEMA:
                    self._fit(window.changes)
        return done

    def _fit(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.schema is not None and matching([change.schema.table], self.tables):
                self.fit(change.schema)


def _take_all(changes: Sequence[Change], take: Callable[[Change], object], take_some: _TakeSome | None) -> None:
    at = 0
    while at < len(changes):
        some = 0 if take_some is None else take_some(changes, at)
        if not some:
            take(changes[at])
        at += some or 1


@runtime_checkable
class SettlingSink(Protocol):
    """A sink of whose commits a power failure may take the last ones."""

    def settle(self) -> None:
        """Blocks until a power failure takes nothing of what is committed, as far as the sink is asked to see to that.

        Raises:
            SinkUnavailable, SinkRefused
        """


@runtime_checkable
class WatchfulSink(Protocol):
    """A sink whose commit may be refused for a row that it cannot name, unless it watches what it is given."""

    def watch(self) -> bool:
        """Has the next changes be watched until a commit of some succeeds: one that is refused names a row.

        A checkpoint may be committed before any change comes again, and ends nothing.

        Returns: False where that is so already, or would be of no use.
        """


class SinkType(Protocol):
    """What a registry entry or an entry point of the group `walbus.sinks` names: usually the sink's class."""

    def open(self, options: Mapping[str, Any], place: SinkPlace) -> Sink:
        """Opens the sink.

        Raises:
            ConfigError: an option is unknown, missing or wrong; names it.
            SinkUnavailable, SinkRefused
        """


class SinkOptions(BaseModel):
    """Base of each sink's options: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """The options, checked.

        Raises:
            InvalidConfig: names each key.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise InvalidConfig(option_problems(error, cls, f"consumer.{place.consumer}")) from None


def refused(what: str, change: Change, mend: str) -> RowRefused:
    """The error for a change that the sink will never take: names table and position, never a value."""
    table = change.table or f"relation {change.raw.table}"
    return RowRefused(what, where=f"{table} at {change.position}", mend=mend, row=row_of(change))


def no_folder(error: OSError, path: Path) -> SinkRefused | SinkUnavailable:
    """The error for a sink on this machine whose folder cannot be made, or written; a full disk is waited for."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SinkUnavailable("the disk under the sink's folder is full", where=str(path), mend="make room on it")
    mend = "name another path, or let this user write there"
    return SinkRefused(f"the sink's folder cannot be used: {error.strerror}", where=str(path), mend=mend)
