"""What the cores of those who read a log do, whichever of the two is in use: filter records, and read rows. Pure.

A `RecordFilter` decides by headers alone, of records and of changes, so that no row is decoded; only where columns are
left out does it walk a row's bytes, without making values of them. What stays of a record:

- A record of which everything passes is passed on as the bytes that it is. Otherwise it is packed again with the
  changes that pass, under `Flag.FILTERED`; positions and seqs still tell the whole record's range.
- A transaction of which nothing passes leaves nothing (the server reports progress behind it). The first piece of which
  something passes carries BEGIN, whichever piece that is; pieces of which nothing passes are left out, but the one with
  END is sent, empty, if BEGIN was. So a client that saw BEGIN always sees END.
- A compressed record is decompressed only if the table bits of its header do not rule it out.
- In a partition a change passes whose key's hash falls into it. An update that moves a row from one partition to
  another passes as it is in the one that the row goes to, and is the delete of its old key in the one that it leaves.
  Truncates, and the records without rows, concern every partition; a row without a key, and a message by its prefix,
  belong to one as everything does that has a hash.
- A column that is left out is NULL in the row, and told by a second bitmap behind the first (`ChangeFlag.PROJECTED`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from walbus.position import ORIGIN, Position
from walbus.records import Kind, RawChange, RecordHeader
from walbus.schema import TableSchema

if TYPE_CHECKING:
    from walbus.events import Change

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)

#: What table bits are for who wants every table.
ALL_TABLES = (1 << 64) - 1


class Partition(NamedTuple):
    """One of `parts` parts of all keys: those whose hash modulo `parts` is `part` (from 0)."""

    part: int
    parts: int


#: All keys.
WHOLE = Partition(0, 1)


class Choice(Protocol):
    """Which changes pass, by what their headers say. `copy.copy` gives one that learns by itself."""

    @property
    def bits(self) -> int:
        """Tables that may pass, as in `RecordHeader.tables`; `ALL_TABLES` where none can be ruled out."""

    def learn(self) -> None:
        """The log has new layouts: `bits` are those of all."""

    def wants_change(self, op: int, table: int, schema_id: int) -> bool:
        """Whether a change passes; always the same where there is a schema id, and where there is no table.

        Raises:
            DamagedRecord: the log has no such layout.
        """


class Columns(Protocol):
    """Which columns of rows pass."""

    @property
    def everything(self) -> bool:
        """Whether no column is ever left out."""

    def left_out(self, schema_id: int) -> tuple[TableSchema, int]:
        """A layout, and the columns of it that are left out (bit i for column i); always the same.

        Raises:
            DamagedRecord: the log has no such layout.
        """


class RecordFilter(Protocol):
    """Filters the records of one stream, in their order.

    `copy.copy` gives another one that goes on from there, with a copy of the choice: the two may run on two threads.

    Attributes:
        in_window: whether BEGIN was sent and END was not.
    """

    in_window: bool

    def filter(self, header: RecordHeader, record: bytes) -> bytes:
        """What is to be sent of a record; empty if nothing.

        Args:
            header: of the record.
            record: the whole record, whose checksum is not looked at.

        Raises:
            DamagedRecord: the record makes no sense. What the filter knows of windows may have changed then.
        """

    def scan(self, records: Sequence[bytes]) -> list[bytes]:
        """`filter` for records that follow each other."""


class NewFilter(Protocol):
    """Makes the filter of one stream."""

    def __call__(self, choice: Choice, columns: Columns, partition: Partition = WHOLE) -> RecordFilter:
        """A filter at the beginning of a stream.

        Args:
            choice: which changes pass.
            columns: which columns of them.
            partition: which keys.

        Raises:
            ValueError: there is no such partition.
        """


class MakeChange(Protocol[T_co]):
    """A class of changes, as `walbus.events.Change`: four attributes of these names, and nothing else to be made."""

    def __call__(self, raw: RawChange, schema: TableSchema | None, position: Position, seq: int) -> T_co:
        """A change."""


class ReadChanges(Protocol):
    """Gives the changes of a record."""

    def __call__(
        self,
        make: MakeChange[T],
        header: RecordHeader,
        record: bytes,
        layout_of: Callable[[int], TableSchema | None],
        after: Position = ORIGIN,
    ) -> list[T]:
        """The changes that `walbus.records.located_changes` gives, with their layouts and seqs.

        Args:
            make: their class.
            header: of the record.
            record: the whole record.
            layout_of: layout by number, asked where another one than before is met; what it raises passes through.
            after: as in `located_changes`.

        Raises:
            DamagedRecord: the body makes no sense.
        """


class MakeWindow(Protocol[W_co]):
    """A class of windows, as `walbus.events.Window`: these attributes, and nothing else to be made."""

    def __call__(  # noqa: PLR0913, PLR0917  # what a window has
        self,
        kind: Kind,
        changes: list[Any],
        xid: int,
        commit_lsn: int,
        commit_time: datetime,
        last: Position,
        last_seq: int,
        begins: bool,
        ends: bool,
        origin: str,
        net: bool,
        /,
    ) -> W_co:
        """A window."""


class ReadTransactions(Protocol):
    """Gives the windows of transactions that lie behind each other."""

    def __call__(  # noqa: PLR0913, PLR0917  # what there is to know
        self,
        make: MakeChange[T],
        make_window: MakeWindow[W],
        data: bytes,
        at: int,
        layout_of: Callable[[int], TableSchema | None],
        received: tuple[Position, int],
    ) -> tuple[list[W], int]:
        """The windows of those first records that are whole transactions, each later than the one before, with changes.

        A record that is damaged, cannot be decoded, or has a seq that is not above the last one, is none of them: it is
        for whoever takes it by itself to say so.

        Args:
            make: the class of changes.
            make_window: that of windows.
            data: records of the log, in order; the last one may be cut off.
            at: where the first one begins.
            layout_of: layout by number, asked where another one than before is met. Its WalbusError and OSError end
                the run; what else it raises passes through.
            received: what was received before, and its last seq; no transaction is open.

        Returns: the windows, and where the next record begins.
        """


class RowReader(Protocol):
    """Reads the rows of one layout out of their Avro form. Has no state of its own; safe in threads."""

    def raw(self, payload: bytes) -> list[Any]:
        """The raw Avro value of each column; a `str` in place of another type is a text outside the native range.

        Raises:
            DamagedRecord: the payload is no row of this layout.
        """

    def python(self, payload: bytes) -> dict[str, Any]:
        """Python values by column name, as `walbus.values.decode_row` describes them; raises as `raw`."""


class NewRowReader(Protocol):
    """Makes the reader of a layout."""

    def __call__(self, schema: TableSchema) -> RowReader:
        """A reader of rows in this layout."""


class ConvertedRows(Protocol):
    """Reads the rows of one layout as another system wants their values."""

    def values(self, payload: bytes) -> list[Any]:
        """The value of each column; None is NULL, and a text outside the native range stays as it is.

        Raises:
            DamagedRecord: the payload is no row of this layout.
            Exception: what a function raised.
        """

    def whole_puts(self, changes: Sequence[Change], at: int, behind: object) -> list[tuple[Any, ...]]:
        """The rows of changes from `at` on, up to the first that is no insert or update of a whole row by its key.

        Args:
            changes: the first one's layout is this one; the first of another one ends the rows.
            at: index of the first one.
            behind: stands at the end of each row.

        Returns: `values`, the seq, and what is to stand behind, of each.

        Raises:
            As `values`.
        """


class NewConvertedRows(Protocol):
    """Makes what reads a layout's rows so."""

    def __call__(self, schema: TableSchema, functions: Sequence[Callable[[Any], Any] | None]) -> ConvertedRows:
        """A reader of rows in this layout.

        Args:
            schema: the layout.
            functions: of each column, what makes of its raw Avro value the one that is wanted; None: it is that.
        """


class ColumnBuffers(NamedTuple):
    """The values of one column, as `walbus.values.column_form` has them.

    Attributes:
        length, nulls: number of values, and of nulls among them.
        buffers: bits of those that are not null; then 64-bit offsets where values have no fixed size; then the values.
        items: of a list, its items, which the offsets point into.
    """

    length: int
    nulls: int
    buffers: tuple[bytes, ...]
    items: ColumnBuffers | None


class Outside(NamedTuple):
    """A value that its column's form does not have, and that is null there.

    Attributes:
        row, column: its place.
        text: its canonical text.
    """

    row: int
    column: int
    text: str


class TakenRows(NamedTuple):
    """Rows as columns.

    Attributes:
        length: number of rows.
        columns: in the layout's order.
        outside: by rows, and by columns in a row.
    """

    length: int
    columns: list[ColumnBuffers]
    outside: list[Outside]


class RowColumns(Protocol):
    """Collects rows of one layout as columns."""

    def add(self, rows: Sequence[bytes | None]) -> None:
        """Appends rows; None is a row of nulls.

        Raises:
            DamagedRecord: one is no row of this layout. What was collected is then of no use.
        """

    def take(self) -> TakenRows:
        """What was collected; begins anew.

        Raises:
            DamagedRecord: a number is larger than its type.
        """


class NewRowColumns(Protocol):
    """Makes what collects rows."""

    def __call__(self, schema: TableSchema) -> RowColumns:
        """A collector of rows in this layout."""
