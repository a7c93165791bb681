"""What stands in a table's topic, whoever wrote it, as rows to be compared: the last record of each key and partition.

A row's place is where the sink's copy has it. What another wrote there is compared as it is read; what stands in any
other place is a stray: a key that no row has, or one in a partition that is not its own, and readers of the topic take
it for a row as well.

    all records ──► the last one of each place, in a temporary file ──► those in the places of rows ──► the rest

Compared are the values by their columns' names today, and that the record is the very one that the sink would write of
them. A null is equal to a column that a row of an older layout does not have.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from typing import Final

from walbus.consumers.sinks.base import HeldRow
from walbus.consumers.sinks.kafka_cluster import SinkClients
from walbus.consumers.sinks.kafka_reading import Committed, read_committed
from walbus.consumers.sinks.kafka_restoring import NotOursError, row_of_record
from walbus.consumers.sinks.kafka_rows import RowCopy, Stray
from walbus.consumers.sinks.kafka_state import SinkState, SinkTable
from walbus.consumers.sinks.layout import layout_change
from walbus.errors import DamagedRecord
from walbus.keys import key_texts
from walbus.records import key_hash
from walbus.schema import TableSchema
from walbus.topics import RecordMaker
from walbus.values import row_texts

#: Strays of a table that a repair deletes at once; the others are left to the next one.
STRAYS_AT_MOST: Final = 100_000

_HIGHEST: Final = (1 << 63) - 1  # the seq of what has none: it is none of an older version
_NO_VALUES: Final = b""  # of what the sink would not have written
_LAST = "CREATE TABLE last (partition, key, named, seq, digest, PRIMARY KEY (partition, key)) WITHOUT ROWID"


class HeldTopic:
    """The rows of one table's topic.

    Args:
        clients: of the cluster.
        table: whose topic it is.
        state: with the layouts that records name.
        copy: where rows are, of the same commit.
        maker: whose records they are.

    Attributes:
        strays: once all rows were read: those found, or the first of them.
    """

    def __init__(
        self, clients: SinkClients, table: SinkTable, state: SinkState, copy: RowCopy, maker: RecordMaker
    ) -> None:
        self._clients, self._table, self._state, self._copy, self._maker = clients, table, state, copy, maker
        self.strays: list[Stray] = []

    def rows(self) -> Iterator[HeldRow]:
        """All of them.

        Raises:
            LogError, LogUnreachable, SinkRefused, SinkUnavailable
        """
        with closing(sqlite3.connect("", isolation_level=None)) as last:  # without a name: a temporary file
            last.execute(_LAST)
            self._gather(last)
            yield from self._in_place(last)
            yield from self._astray(last)

    def _gather(self, last: sqlite3.Connection) -> None:
        topic, partitions = self._table.topic, self._table.partitions
        last.execute("BEGIN")
        for record in read_committed(self._clients, {(topic, number): 0 for number in range(partitions)}):
            place = (record.place[1], record.key)
            if record.value is None:
                last.execute("DELETE FROM last WHERE partition = ? AND key = ?", place)
            else:
                told = (*place, record.headers.get("walbus.key"), *self._told(record))
                last.execute("INSERT OR REPLACE INTO last VALUES (?, ?, ?, ?, ?)", told)
        last.execute("COMMIT")

    def _told(self, record: Committed) -> tuple[int, bytes]:
        """The seq and the values of a record with a value."""
        try:
            row = row_of_record(record, self._state, self._maker, self._table.partitions)
            known = None if row is None else self._state.layouts.get(row.layout)
            if row is None or known is None:
                return _HIGHEST, _NO_VALUES
            is_ours = self._maker.is_of(known.layout, row.row, record.value or b"", record.headers)
            return row.seq, values_of(known.layout, row.row, self._table.layout) if is_ours else _NO_VALUES
        except (NotOursError, DamagedRecord, ValueError):
            return _HIGHEST, _NO_VALUES

    def _in_place(self, last: sqlite3.Connection) -> Iterator[HeldRow]:
        for row in self._copy.all(self._table.oid):
            place = (key_hash(row.key) % self._table.partitions, row.topic_key)
            found = last.execute("SELECT seq, digest FROM last WHERE partition = ? AND key = ?", place).fetchone()
            if found is not None:
                last.execute("DELETE FROM last WHERE partition = ? AND key = ?", place)
                yield HeldRow(key_texts(row.key), found[0], (found[1],))

    def _astray(self, last: sqlite3.Connection) -> Iterator[HeldRow]:
        for partition, key, named in last.execute("SELECT partition, key, named FROM last"):
            if len(self.strays) < STRAYS_AT_MOST:
                self.strays.append(Stray(partition, key))
            yield HeldRow((*_named(key, named), f"partition {partition}"), _HIGHEST, (_NO_VALUES,))


def _named(key: bytes, told: bytes | None) -> tuple[str, ...]:
    """The key of a stray: as its header has it, or its bytes."""
    try:
        return key_texts(told or b"") or (key.hex(),)
    except DamagedRecord:
        return (key.hex(),)


def values_of(layout: TableSchema, row: bytes, now: TableSchema) -> bytes:
    """A digest of a row's values under the names that its columns have now.

    Args:
        layout: of the row.
        row: its bytes in the log.
        now: the newest layout of its table.

    Raises:
        DamagedRecord: the bytes are no row of this layout.
    """
    names = dict(layout_change(layout, now).renamed)
    wanted = {column.name for column in now.columns}
    told = (
        (names.get(column.name, column.name), text)
        for column, text in zip(layout.columns, row_texts(layout, row), strict=True)
        if text is not None
    )
    pairs = sorted(pair for pair in told if pair[0] in wanted)
    return blake2b(repr(pairs).encode(errors="surrogatepass"), digest_size=16).digest()


__all__ = ["STRAYS_AT_MOST", "HeldTopic", "values_of"]
