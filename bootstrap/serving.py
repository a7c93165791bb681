"""What the server reads of the store, as records behind one position: tables as they are, and what changed in them.

A `ServedView` is one instant of the store. It gives SNAPSHOT records (`snapshot`), DELTA records
(`walbus.bootstrap.delta`), single keys and plain rows. Bytes out, no sockets.

A reader is never left without a word: where long runs of keys give nothing (another partition, tombstones), an empty
record comes from time to time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import structs

from walbus.bootstrap.entry import live_row, served_version
from walbus.bootstrap.state import APPLIED, ROWS, TABLES, Applied, TableState, decode, rows_document
from walbus.bootstrap.store import View, space_of
from walbus.errors import StoreError
from walbus.native.reading import WHOLE, Partition
from walbus.native.serving import Portion
from walbus.records import Flag, Kind, Op, key_hash, pack_change, pack_record

#: Bytes of rows in one record.
RECORD_BYTES = 128 << 10
#: Keys that are looked at before a record is sent, be it empty.
LOOKED_AT = 20_000

_RECORD = Portion(RECORD_BYTES, LOOKED_AT)
_NO_FLAG = Flag(0)


class ServedRow(NamedTuple):
    """One row as it is served.

    Attributes:
        key: its memcomparable key.
        seq: its version.
        schema_id: its layout.
        row: Avro bytes.
    """

    key: bytes
    seq: int
    schema_id: int
    row: bytes


class Version(NamedTuple):
    """What is known of a key: its version, and its row unless it was deleted."""

    seq: int
    schema_id: int
    row: bytes | None


class ServedView:
    """One instant of the store, with the position that it is at."""

    def __init__(self, view: View) -> None:
        """Reads the position and the tables of the view.

        Raises:
            StoreError: the store follows no log yet.
        """
        self.view = view
        applied = view.documents(APPLIED).get(APPLIED)
        if applied is None:
            raise StoreError("the store follows no log yet", mend="start `walbus capture`, and ask again")
        self.applied = decode(applied, Applied)
        states = [decode(content, TableState) for content in view.documents(TABLES).values()]
        rows = view.documents(ROWS)
        states = [_with_rows(state, rows.get(rows_document(state.oid, state.generation))) for state in states]
        self.tables = {state.table: state for state in sorted(states, key=lambda state: state.table)}

    def snapshot(
        self, tables: Sequence[TableState], after_key: bytes = b"", partition: Partition = WHOLE
    ) -> Iterator[bytes]:
        """SNAPSHOT records of the rows of tables, one table after the other, each in key order.

        The first record of each table has the BEGIN flag, and the last of all, perhaps empty, END.

        Args:
            tables: in the order in which they are served.
            after_key: leaves out this key of the first of them, and all before it.
            partition: of the keys.
        """
        for table in tables:
            last = table is tables[-1]
            yield from self._table(table, after_key if table is tables[0] else b"", partition, ends=last)

    def _table(self, table: TableState, after_key: bytes, partition: Partition, *, ends: bool) -> Iterator[bytes]:
        batch = Batch(Kind.SNAPSHOT, self.applied, table.oid)
        if partition == WHOLE:
            for packed in self.view.packed_rows(_space(table), table.oid, _RECORD, after_key):
                batch.add_packed(*packed)
                yield batch.record()
            yield batch.record(Flag.END if ends else _NO_FLAG)
            return
        for row in self._rows(table, after_key, partition):
            if row is None:
                yield batch.record()
                continue
            batch.add(Op.INSERT, row.key, row.seq, row.schema_id, row.row)
            if batch.size >= RECORD_BYTES:
                yield batch.record()
        yield batch.record(Flag.END if ends else _NO_FLAG)

    def rows(self, table: TableState, after_key: bytes = b"", partition: Partition = WHOLE) -> Iterator[ServedRow]:
        """The rows of a table behind a key, in key order."""
        return (row for row in self._rows(table, after_key, partition) if row is not None)

    def _rows(self, table: TableState, after_key: bytes, partition: Partition) -> Iterator[ServedRow | None]:
        """Rows, and None where there was none for long."""
        part, parts = partition
        since = 0
        for key, value in self.view.entries(_space(table), after_key):
            row = live_row(value) if parts == 1 or key_hash(key) % parts == part else None
            if row is not None:
                since = 0
                yield ServedRow(key, *row)
                continue
            since += 1
            if since % LOOKED_AT == 0:
                yield None

    def version(self, table: TableState, key: bytes) -> Version | None:
        """What is known of one key; None if nothing is, or was."""
        (value,) = self.view.get_many(_space(table), [key])
        return None if value is None else Version(*served_version(value))


def _with_rows(state: TableState, rows: bytes | None) -> TableState:
    return state if rows is None else structs.replace(state, rows=int(rows))


def _space(table: TableState) -> bytes:
    return space_of(table.oid, table.generation)


class Batch:
    """Changes of one table on their way into records of one position; the first record has the BEGIN flag."""

    def __init__(self, kind: Kind, applied: Applied, oid: int) -> None:
        self._kind = kind
        self._applied = applied
        self._oid = oid
        self._changes: list[bytes] = []
        self._count = 0
        self._first = Flag.BEGIN
        self.size = 0  #: bytes that wait for `record`

    def add(self, op: Op, key: bytes | None, seq: int, schema_id: int, row: bytes | None) -> None:
        """One more change."""
        change = pack_change(
            op, table=self._oid, schema_id=schema_id, seq_delta=seq, ordinal_delta=0, key=key, after=row
        )
        self.add_packed(change, 1)

    def add_packed(self, changes: bytes, count: int) -> None:
        """Some more, as they stand in a record's body."""
        self._changes.append(changes)
        self._count += count
        self.size += len(changes)

    def record(self, flags: Flag = _NO_FLAG) -> bytes:
        """What waits, as a record; it may be empty."""
        applied, changes, count = self._applied, self._changes, self._count
        flags |= self._first
        self._changes, self._count, self._first, self.size = [], 0, _NO_FLAG, 0
        return pack_record(
            self._kind,
            flags=flags,
            epoch=applied.epoch,
            commit_lsn=applied.commit_lsn,
            first_ordinal=applied.ordinal,
            last_ordinal=applied.ordinal,
            first_seq=0,
            last_seq=applied.last_seq,
            commit_time=applied.commit_time,
            count=count,
            tables=1 << self._oid % 64,
            body=b"".join(changes),
        )
