"""Whether single keys of the store are as the source has them, while both are written to.

    before      the keys' entries, and the applied position P that they are at
    the source  the keys' rows in a snapshot S, as the seeding reads single keys
    wait        until the log has been applied up to where S was taken
    the log     behind P: what S sees of it makes of the entries what S must show (`walbus.bootstrap.seen_rows`)

A key that cannot be judged is asked for again, until a time is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psycopg

from walbus.bootstrap.catalog import SourceMoment, key_operators
from walbus.bootstrap.chunks import Head, chunk_transaction, keys_query, wait_for_flush
from walbus.bootstrap.entry import Entry, unpack_entry
from walbus.bootstrap.key_ranges import copied_texts
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.net_difference import Difference
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.seen_rows import SeenRows
from walbus.bootstrap.state import Applied, PublishedTable
from walbus.errors import SourceUnavailable, StoreError
from walbus.log import LogReader
from walbus.position import Position
from walbus.records import Kind, Op, RawChange, located_changes, read_header
from walbus.schema import TableSchema
from walbus.values import row_encoder, row_texts

Connection = psycopg.Connection[Any]
Texts = Sequence[str | None]

_KEYS_AT_ONCE = 300
_JUDGING_SECONDS = 20.0
_PAUSE = 0.05
#: Seconds that the log may take to be applied up to where the source was read.
_APPLIED_SECONDS = 120.0
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A key that the store has not as the source has it.

    Attributes:
        difference: what makes the store's row the source's; without the row where nothing is to be mended.
        applied: the position that it is the difference at; None where the log has changed the key since.
    """

    difference: Difference
    applied: Applied | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of some keys.

    Attributes:
        found: those that differ.
        undecided: those that could not be judged.
    """

    found: list[Found]
    undecided: list[bytes]


class TableMoved(Exception):  # noqa: N818  (it is no error: whoever verifies goes on with the next table)
    """The table is not the one any more that its generation was seeded from."""


class Judge:
    """Judges keys of one generation.

    Args:
        ledger: has them.
        run: the generation.
        publication: that publishes the table.
        reader: of the log.
        stop: ends it.
        mends: whether what differs is to be mended, for which its rows are kept.
    """

    def __init__(  # noqa: PLR0913  (both sides, and what to do)
        self,
        ledger: Ledger,
        run: TableRun,
        publication: str,
        reader: LogReader,
        stop: threading.Event,
        *,
        mends: bool,
    ) -> None:
        if run.state.published is None:
            raise AssertionError("only a published table is verified")
        self._ledger = ledger
        self._run = run
        self._publication = publication
        self._reader = reader
        self._stop = stop
        self._mends = mends
        self.table: PublishedTable = run.state.published
        self.schema: TableSchema = ledger.schema_of(run.state.schema_id)
        self._encoder = row_encoder(self.schema)
        self._names = [column.name for column in self.schema.columns]

    def in_snapshot(self, connection: Connection, read: Callable[[SourceMoment], None]) -> None:
        """Reads in a short transaction, once everything that it sees is flushed.

        Raises:
            TableMoved: the table is not what its generation was seeded from any more.
            SourceUnavailable: the source does not flush its WAL, or `stop` was set.
        """
        with chunk_transaction(connection, self.table, self._publication) as head:
            self._check(head)
            wait_for_flush(connection, head.moment.w, self._stop)
            read(head.moment)

    def _check(self, head: Head) -> None:
        current = self._ledger.tables.get(self.table.oid)
        if head.published != self.table or current is not self._run:
            raise TableMoved

    def wait_applied(self, w: int) -> None:
        """Blocks until the log has been applied up to an LSN.

        Raises:
            StoreError: it is not within two minutes.
            SourceUnavailable: `stop` was set.
        """
        deadline = time.monotonic() + _APPLIED_SECONDS
        while (applied := self._ledger.applied) is None or applied.commit_lsn < w:
            if self._stop.wait(0.005):
                raise SourceUnavailable("stopped")
            if time.monotonic() > deadline:
                raise StoreError("the log is not applied", mend="see whether `walbus capture` runs")

    def key_of(self, texts: Texts) -> bytes:
        """The store's key of a row of the source."""
        key = self._encoder.key(_bytes_of(texts))
        if key is None:
            raise AssertionError("a published table has a key")
        return key

    def texts_of(self, entry: Entry) -> list[str | None]:
        """An entry's row as the source would print it."""
        schema = self._ledger.schema_of(entry.schema_id)
        texts = row_texts(schema, entry.row or b"")
        if schema.id == self.schema.id:
            return list(texts)
        by_name = dict(zip((column.name for column in schema.columns), texts, strict=True))
        return [by_name.get(name) for name in self._names]

    def judge(self, connection: Connection, keys: Sequence[bytes]) -> Verdict:
        """Judges keys, each again and again until that can be done.

        Raises:
            TableMoved, SourceUnavailable, StoreError: as above.
        """
        found: list[Found] = []
        left, until = list(dict.fromkeys(keys)), time.monotonic() + _JUDGING_SECONDS
        while left:
            open_: list[bytes] = []
            for at in range(0, len(left), _KEYS_AT_ONCE):
                some = left[at : at + _KEYS_AT_ONCE]
                judged = self._judge(connection, some)
                found += [one for one in judged.values() if one is not None]
                open_ += [key for key in some if key not in judged]
            left = open_
            if left and (time.monotonic() > until or self._stop.wait(_PAUSE)):
                break
        return Verdict(found, left)

    def _judge(self, connection: Connection, keys: Sequence[bytes]) -> dict[bytes, Found | None]:
        applied, entries = self._entries(keys)
        shown: dict[bytes, Texts] = {}
        moments: list[SourceMoment] = []

        def read(moment: SourceMoment) -> None:
            moments.append(moment)
            query = keys_query(self.table, self.schema, keys, key_operators(connection, self.table.oid))
            shown.update((self.key_of(texts), texts) for texts in copied_texts(connection, query))

        self.in_snapshot(connection, read)
        self.wait_applied(moments[0].w)
        seen = SeenRows(self.table.oid, moments[0].snapshot, entries, self._ledger.fill)
        with closing(self._reader.cursor(applied.position)) as cursor:
            records = chain.from_iterable(iter(lambda: cursor.read(_READ_BYTES), []))
            for xid, changes in logged_changes(records, self.table.oid, applied.position, moments[0].w):
                seen.fold(xid, changes)
        return {
            key: self._found(key, one.row, shown.get(key), None if one.touched else applied)
            for key, one in seen.rows().items()
        }

    def _entries(self, keys: Sequence[bytes]) -> tuple[Applied, dict[bytes, Entry | None]]:
        with self._ledger.lock:
            if self._ledger.applied is None:
                raise StoreError("the store follows no log yet", mend="start `walbus capture`")
            values = self._ledger.store.get_many([self._run.space + key for key in keys])
            snapshots = self._run.snapshots
            entries = {
                key: None if value is None else unpack_entry(value, snapshots)
                for key, value in zip(keys, values, strict=True)
            }
            return self._ledger.applied, entries

    def _found(self, key: bytes, row: Entry | None, shown: Texts | None, applied: Applied | None) -> Found | None:
        """What is wrong with a key, if anything is."""
        if shown is None:
            if row is None:
                return None
            return Found(Difference(Op.DELETE, key, row.schema_id, None), applied)
        if row is not None and self.texts_of(row) == list(shown):
            return None
        op = Op.INSERT if row is None else Op.UPDATE
        encoded = self._encoder.encode(_bytes_of(shown)) if self._mends else None
        return Found(Difference(op, key, self.schema.id, encoded), applied)


def logged_changes(
    records: Iterable[bytes], oid: int, after: Position, w: int
) -> Iterator[tuple[int, Iterator[RawChange]]]:
    """What a log says of a table behind a position, up to the last commit before W: the xid, and changes, of records.

    No snapshot of then sees what is behind that, and beside a writer that is as fast as this it would not end.
    """
    bit = oid % 64
    for record in records:
        header = read_header(record)
        if header.commit_lsn > w:
            return
        if header.kind == Kind.TRANSACTION and header.tables >> bit & 1:
            yield header.xid, (change for _, change in located_changes(header, record, after))


def _bytes_of(texts: Texts) -> list[bytes | None]:
    return [None if text is None else text.encode() for text in texts]
