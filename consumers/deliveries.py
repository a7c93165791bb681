"""What a subscription yields: windows, each by itself or several as Arrow batches, and what commits them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from walbus.consumers.arrow import record_batches
from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.frames import PandasFrame, PolarsFrame, pandas_frames, polars_frames
from walbus.consumers.steps import Sweep
from walbus.events import Change, Window
from walbus.position import Position
from walbus.records import Kind

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, init=False)
class Delivered:
    """One window as it came to a subscription, whoever commits it.

    Attributes:
        window: the changes.
        phase: `snapshot`, `delta`, `catchup` or `online`; what is read before the last may be older than what follows.
        sweep: set behind a table's last snapshot row, on a delivery without changes: rows of that table that the
            snapshot did not bring, and whose seq is at most `sweep.seq`, are gone at the source.
    """

    window: Window
    phase: str
    sweep: Sweep | None

    def __init__(self, window: Window, phase: str, sweep: Sweep | None) -> None:
        # What a frozen dataclass has of its own takes twice as long, and there are as many as transactions.
        fields = self.__dict__
        fields["window"], fields["phase"], fields["sweep"] = window, phase, sweep

    def __iter__(self) -> Iterator[Change]:
        return iter(self.window.changes)

    def __len__(self) -> int:
        return len(self.window.changes)

    @property
    def changes(self) -> Sequence[Change]:
        """In commit order."""
        return self.window.changes

    @property
    def kind(self) -> Kind:
        """TRANSACTION, SNAPSHOT, DELTA, SCHEMA or EPOCH."""
        return self.window.kind

    @property
    def xid(self) -> int:
        """The transaction's id; 0 for what the bootstrap gives."""
        return self.window.xid

    @property
    def commit_time(self) -> datetime:
        """When the transaction committed, UTC."""
        return self.window.commit_time

    @property
    def last(self) -> Position:
        """The position of the last change."""
        return self.window.last

    @property
    def begins(self) -> bool:
        """Whether this is the transaction's first piece."""
        return self.window.begins

    @property
    def ends(self) -> bool:
        """Whether this is the transaction's last piece."""
        return self.window.ends

    def to_arrow(self) -> list[pa.RecordBatch]:
        """The changes as Arrow record batches, one for each layout; see `walbus.consumers.arrow`.

        Raises:
            UsageError: pyarrow is not installed.
        """
        return record_batches([self.window])

    def to_pandas(self) -> list[PandasFrame]:
        """The changes as data frames of pandas, one for each layout; see `walbus.consumers.frames`.

        Raises:
            UsageError: pyarrow or pandas is not installed.
        """
        return pandas_frames(self.to_arrow())

    def to_polars(self) -> list[PolarsFrame]:
        """The changes as data frames of Polars, one for each layout; see `walbus.consumers.frames`.

        Raises:
            UsageError: pyarrow or Polars is not installed.
        """
        return polars_frames(self.to_arrow())


@dataclass(frozen=True, init=False)
class Delivery(Delivered):
    """One window, and its commit.

    Attributes:
        generation: of the snapshot that it belongs to, or came behind; see `Sweep.marks`.
    """

    generation: int
    _number: int
    _checkpoint: Checkpoint | None  # that holds behind it; of a run, behind its last window
    _committed: Callable[[Delivery], object]

    def __init__(  # noqa: PLR0913, PLR0917  # its fields
        self,
        window: Window,
        phase: str,
        sweep: Sweep | None,
        generation: int,
        number: int,
        checkpoint: Checkpoint | None,
        committed: Callable[[Delivery], object],
    ) -> None:
        fields = self.__dict__
        fields["window"], fields["phase"], fields["sweep"], fields["generation"] = window, phase, sweep, generation
        fields["_number"], fields["_checkpoint"], fields["_committed"] = number, checkpoint, committed

    def commit(self) -> None:
        """Stores that this window, and all before it, have been dealt with; blocks until that is durable.

        For a piece that does not end its transaction nothing is stored: progress is by whole transactions. A commit
        of an earlier window than the one last committed changes nothing: progress never moves backward.

        Raises:
            OSError: the checkpoint's file cannot be written.
        """
        self._committed(self)


@dataclass(frozen=True)
class Batches:
    """Windows that came behind each other, as Arrow record batches.

    Attributes:
        batches: one for each layout; see `walbus.consumers.arrow`.
        deliveries: the windows, whose `sweep` says which rows of a table are gone behind its snapshot.
    """

    batches: list[pa.RecordBatch]
    deliveries: Sequence[Delivery]

    def to_pandas(self) -> list[PandasFrame]:
        """The batches as data frames of pandas; see `walbus.consumers.frames`.

        Raises:
            UsageError: pandas is not installed.
        """
        return pandas_frames(self.batches)

    def to_polars(self) -> list[PolarsFrame]:
        """The batches as data frames of Polars; see `walbus.consumers.frames`.

        Raises:
            UsageError: Polars is not installed.
        """
        return polars_frames(self.batches)

    def commit(self) -> None:
        """Stores that all of it has been dealt with, as `Delivery.commit` does."""
        for delivery in self.deliveries:
            delivery.commit()
