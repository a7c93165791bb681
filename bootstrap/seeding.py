"""The three short jobs that seeding is made of, each for one table on one connection: plan, chunk, read keys again.

Each checks, under the table's lock and in its own snapshot, that the generation's assumptions still hold: same file,
same columns, key, filter and publication. If one does not, rows may have moved without an event, and the table needs
another generation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
import structlog

from walbus.bootstrap.catalog import read_moment
from walbus.bootstrap.chunks import (
    Head,
    chunk_transaction,
    copy_lines,
    keys_query,
    range_query,
    wait_for_flush,
)
from walbus.bootstrap.copytext import parse_line
from walbus.bootstrap.entry import FromSnapshot
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.pace import Throttle
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import ChunkDone, Plan, PublishedTable
from walbus.bootstrap.store import SPACE_SIZE
from walbus.errors import ProtocolError
from walbus.schema import TableSchema
from walbus.values import row_encoder

log = structlog.get_logger(__name__)

#: Rows and bytes folded in one critical section, so that the applier is not held up for long.
_SLICE_ROWS = 2000
_SLICE_BYTES = 1 << 20
#: What a block holds until the planner knows better.
_USUAL_ROWS_PER_BLOCK = 50.0

Connection = psycopg.Connection[Any]


class SeedingJobs:
    """The jobs; any number of threads may run them at once, each with its own connection."""

    def __init__(
        self, ledger: Ledger, publication: str, *, chunk_rows: int, throttle: Throttle, stop: threading.Event
    ) -> None:
        self._ledger = ledger
        self._publication = publication
        self._chunk_rows = chunk_rows
        self._throttle = throttle
        self._stop = stop

    def plan(self, connection: Connection, run: TableRun) -> None:
        """Counts blocks and cuts chunks, once everything logged up to P0 is visible; does nothing before."""
        if run.waiting_for:
            self._ledger.observe(read_moment(connection).snapshot)
            if run.waiting_for:
                return
        with chunk_transaction(connection, _published(run), self._publication) as head:
            if self._differs(run, head):
                return
            wait_for_flush(connection, head.moment.w, self._stop)
        step = max(1, round(self._chunk_rows / (head.rows_per_block or _USUAL_ROWS_PER_BLOCK)))
        if self._ledger.plan(run, Plan(head.filenode, head.blocks, step), head.moment.w):
            log.info("seeding_planned", table=run.state.table, blocks=head.blocks, chunks=-(-head.blocks // step))

    def chunk(self, connection: Connection, run: TableRun, block: int) -> None:
        """Reads the chunk that begins with a block, and folds it in."""
        plan = run.state.plan
        if plan is None:
            raise AssertionError("a chunk without a plan")
        with chunk_transaction(connection, _published(run), self._publication) as head:
            if self._differs(run, head, plan):
                return
            origin = self._admit(connection, run, head)
            if origin is None:
                return
            behind = min(block + plan.step, plan.blocks)
            query = range_query(_published(run), self._schema(run), block, behind)
            rows = self._fold(run, origin, copy_lines(connection, query))
        if rows is not None:
            self._ledger.chunk_done(run, block, ChunkDone(origin.number, head.moment.w, rows))
            self._stop.wait(self._throttle.delay(rows))

    def read_again(self, connection: Connection, run: TableRun, store_keys: Sequence[bytes]) -> None:
        """Reads single keys whose entries miss columns, and folds them in."""
        keys = [store_key[SPACE_SIZE:] for store_key in store_keys]
        with chunk_transaction(connection, _published(run), self._publication) as head:
            if self._differs(run, head):
                return
            origin = self._admit(connection, run, head)
            if origin is None:
                return
            query = keys_query(_published(run), self._schema(run), keys)
            rows = self._fold(run, origin, copy_lines(connection, query))
        if rows is not None:
            self._ledger.forget_missing(run, store_keys)

    def _differs(self, run: TableRun, head: Head, plan: Plan | None = None) -> bool:
        if head.published != run.state.published:
            run.again = "its columns, key, filter or publication changed"
        elif plan is not None and head.filenode != plan.filenode:
            run.again = "its file was replaced (TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE)"
        return bool(run.again)

    def _admit(self, connection: Connection, run: TableRun, head: Head) -> FromSnapshot | None:
        wait_for_flush(connection, head.moment.w, self._stop)
        return self._ledger.admit(run, head.moment.snapshot, head.moment.w)

    def _schema(self, run: TableRun) -> TableSchema:
        return self._ledger.schema_of(run.state.schema_id)

    def _fold(self, run: TableRun, origin: FromSnapshot, lines: Iterator[bytes]) -> int | None:
        """Folds the rows in by slices; their number, or None if the generation ended meanwhile."""
        rows = 0
        for part in _slices(_encoded(self._schema(run), lines)):
            if self._stop.is_set() or not self._ledger.fold_rows(run, origin, part):
                return None
            rows += len(part)
        return rows


def _published(run: TableRun) -> PublishedTable:
    if run.state.published is None:
        raise AssertionError("a table is seeded only as published")
    return run.state.published


def _encoded(schema: TableSchema, lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    encoder = row_encoder(schema)
    columns = len(schema.columns)
    for line in lines:
        texts = parse_line(line, columns)
        key = encoder.key(texts)
        if key is None:
            raise ProtocolError("a row came without its key", where=schema.table)
        yield key, encoder.encode(texts)


def _slices(rows: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    part: list[tuple[bytes, bytes]] = []
    size = 0
    for key, row in rows:
        part.append((key, row))
        size += len(row)
        if len(part) == _SLICE_ROWS or size > _SLICE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
