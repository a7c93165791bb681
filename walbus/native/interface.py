"""What the core of capture does, whichever of the two is in use. Pure.

pgoutput's messages come by the million, and five kinds of them are nearly all: Begin, Commit, and the rows of tables
whose layout is known. A `Core` holds the transaction that is open and packs its changes; the native one also takes
those five kinds of messages by itself, straight from the bytes. Whatever it does not take, it leaves untouched to its
owner (`walbus.capture.assembly`), which knows every kind of message, judges what is sent again, and names errors. So
the owner's Python code defines what a message becomes, and the native core is a shortcut through it.

How it packs:

- A transaction that is small and whole is put into a run: many records in one buffer, sealed by the log.
- A larger one leaves in pieces while it still arrives; Begin tells commit LSN, commit time and xid up front, and the
  log publishes only whole transactions. The last piece waits for Commit, which alone knows `end_lsn`.

      BEGIN piece  ordinals 1..k
      SCHEMA       at k                 a layout, before the first row that uses it (at 0 before the first change)
      piece        ordinals k+1..m
      END piece    ordinals m+1..n
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from walbus.log import Piece, Run
from walbus.position import Position
from walbus.schema import TableSchema

#: Rises when the native core must be built again to fit the Python code around it.
INTERFACE = 15

#: A piece leaves when it holds this many bytes of changes, or this many changes.
PIECE_BYTES = 256 << 10
PIECE_CHANGES = 4096
#: A run is closed when it holds this many bytes of records.
RUN_BYTES = 64 << 10

#: libpq's answer to a request for the next frame: its size (0: none is there; below: the stream ended) and its bytes.
CopyData = Callable[[int], tuple[int, memoryview]]


class SpoolRows(Protocol):
    """Rows of a streamed transaction's block, on their way into the spool (`walbus.capture.spool` has their form)."""

    def __call__(self, next_frame: CopyData, alarm: Sequence[object], limit: int, sink: bytearray) -> Drained:
        """Appends the rows of frames to `sink` until one must be left, none is there, or `limit` bytes were taken.

        Args:
            next_frame: as of `Core.drain`.
            alarm: as there.
            limit: as there.
            sink: gets the entries. What raises leaves it as it was; the frames are then lost.
        """


class ReplayRows(Protocol):
    """Rows of a streamed transaction, on their way out of the spool."""

    def __call__(self, core: Core, entries: bytes, at: int, aborted: frozenset[bytes]) -> int:
        """Feeds entries from `at` on to a core; where the first one begins that was left untouched.

        Args:
            core: of the same implementation.
            entries: the last one may be cut off; it is left.
            at: where an entry begins.
            aborted: xids, as they are sent, whose rows are passed over.
        """


class Envelope(enum.IntEnum):
    """What stands around a message in a frame."""

    WAL_DATA = 0  #: streaming replication's `w`
    COPY_ROW = 1  #: a row (pg_lsn, bytea) of COPY … (FORMAT binary), without the file's header


class Drained(NamedTuple):
    """What became of frames.

    Attributes:
        size: the size that was told last: above 0 there may be more, at 0 none is there, below 0 the stream ended.
        left: the frame that was left to the owner; empty if none was.
        taken: bytes of the frames that were taken.
    """

    size: int
    left: bytes
    taken: int


class Transaction(NamedTuple):
    """One transaction, as its Begin tells it; the fields are those of `walbus.records.RecordHeader`."""

    epoch: int
    commit_lsn: int
    commit_time: int
    xid: int


class Core(Protocol):
    """The open transaction, what is packed, and how far the stream has come.

    Attributes:
        near_xid: a recent 64-bit transaction id of the server; refreshed at least once in a billion transactions.
        end: position of the last record that was handed out.
        bound: everything that commits before this LSN has been received.
        handed: the log has been handed everything that commits before this LSN.
        shown: LSN of the last position that the log was handed; below `handed` behind a commit.
        last_commit_time: the latest commit time so far, Unix microseconds.
        transactions, changes: how many were handed out.
        origin: of the open transaction, UTF-8; at most 65,535 bytes.
        server_lsn, server_time: how far the server was, and its clock (Unix microseconds), by the last frame of WAL
            data that `drain` took.
    """

    near_xid: int
    end: Position
    bound: int
    handed: int
    shown: int
    last_commit_time: int
    transactions: int
    changes: int
    origin: bytes
    server_lsn: int
    server_time: int

    # The stream.

    def restart(self, epoch: int, since: int, *, end: Position, bound: int) -> None:
        """A new connection: forgets tables, the open transaction, and what was not taken.

        Args:
            epoch: the timeline that the server writes now.
            since: where it began, an LSN. Transactions before it are left to the owner.
            end: position of the log's last record. Transactions at or below it are left to the owner.
            bound: the log has everything that commits before this LSN.
        """

    def know(self, schema: TableSchema) -> None:
        """Rows of this table may be taken from now on, in this layout."""

    def forget(self, oid: int) -> None:
        """Rows of this table are left to the owner until it is known again."""

    def feed(self, data: bytes, offset: int) -> bool:
        """Takes the pgoutput message that fills `data` from `offset`; False if it was left untouched."""

    def drain(self, next_frame: CopyData, alarm: Sequence[object], limit: int, envelope: Envelope) -> Drained:
        """Takes the messages of frames until one must be left, none is there, or `limit` bytes were taken.

        Args:
            next_frame: asked for one frame after the other, with 1.
            alarm: a list; once it is not empty, the frame at hand is the first one that is not taken.
            limit: bytes of frames, above 0.
            envelope: of the frames; one that does not look like it is left.
        """

    # The open transaction.

    @property
    def transaction(self) -> Transaction | None:
        """The one whose Commit has still to come."""

    @property
    def waiting(self) -> int:
        """Number of its changes that were not handed out yet."""

    @property
    def done(self) -> int:
        """Ordinal of its last change that was handed out."""

    def begin(self, transaction: Transaction) -> None:
        """Opens a transaction, whose rows are left to the owner until it is accepted."""

    def accept(self) -> None:
        """The log does not have the open transaction: its rows may be taken."""

    @property
    def accepted(self) -> bool:
        """Whether the open transaction is known to be new."""

    def next_delta(self) -> int:
        """seq_delta and ordinal_delta of the next change; what waits is handed out first if a piece is full."""

    def add(self, change: bytes, bit: int = 0) -> None:
        """Takes the next change, packed with `next_delta`; `bit` is its table's."""

    def hand_out(self) -> None:
        """Makes a piece of the waiting changes, if there are any."""

    def put(self, piece: Piece) -> None:
        """Puts a piece of the owner's behind all that was handed out."""

    def commit(self, end_lsn: int) -> None:
        """Ends the open transaction; one without a change only moves `bound`."""

    # What is complete.

    @property
    def waiting_bytes(self) -> int:
        """Size of what `take` would give."""

    def take(self) -> list[Piece | Run]:
        """What is complete and was not taken yet, in order."""
