"""The three short jobs that seeding is made of, each for one table on one connection: plan, chunk, read keys again.

Each checks, under the table's lock and in its own snapshot, that the generation's assumptions still hold: same file,
same columns, key, filter, partitions and publication. If one does not, rows may have moved without an event, and the
table needs another generation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import psycopg
import structlog
from psycopg import sql

from walbus.bootstrap.bulk import Bulk
from walbus.bootstrap.catalog import key_operators, other_sessions, read_moment
from walbus.bootstrap.chunks import (
    Head,
    chunk_transaction,
    copy_rows,
    keys_query,
    range_query,
    wait_for_flush,
)
from walbus.bootstrap.entry import FromSnapshot, pack_prefix
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.pace import ChunkRead, Throttle, next_stride
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import ChunkDone, Cut, Part, PublishedTable
from walbus.bootstrap.store import SPACE_SIZE
from walbus.config import BootstrapConfig
from walbus.native import new_copied_rows
from walbus.schema import TableSchema

log = structlog.get_logger(__name__)

#: Bytes of keys and rows that go into the store as one file.
_SLICE_BYTES = 8 << 20
#: Rows that the first chunk of a table aims at.
_FIRST_ROWS = 20_000
#: What a block holds until the planner knows better.
_USUAL_ROWS_PER_BLOCK = 50.0
#: Seconds before a crowded source is looked at again.
_HELD_SECONDS = 0.5

Connection = psycopg.Connection[Any]


class SeedingJobs:
    """The jobs; any number of threads may run them at once, each with its own connection."""

    def __init__(
        self,
        ledger: Ledger,
        publication: str,
        config: BootstrapConfig,
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._bulk = Bulk(ledger)
        self._publication = publication
        self._config = config
        self._throttle = Throttle(config.max_rows_per_second, clock)
        self._told_hidden = False
        self._stop = stop
        self._clock = clock

    def plan(self, connection: Connection, run: TableRun) -> None:
        """Counts the table's blocks, once everything that was logged up to P0 is visible."""
        if run.waiting_for:
            self._ledger.observe(read_moment(connection).snapshot)
            if run.waiting_for:
                return
        with chunk_transaction(connection, _published(run), self._publication) as head:
            if self._differs(run, head):
                return
            wait_for_flush(connection, head.moment.w, self._stop)
        rows = min(_FIRST_ROWS, self._config.chunk_rows)
        run.stride = max(1, round(rows / (head.rows_per_block or _USUAL_ROWS_PER_BLOCK)))
        cut = Cut(head.parts)
        if self._ledger.plan(run, cut, head.moment.w):
            log.info("seeding_planned", table=run.state.table, blocks=cut.blocks, files=len(cut.parts))

    def chunk(self, connection: Connection, run: TableRun, first: int, behind: int) -> None:
        """Reads blocks of one part of the cut, and puts their rows into the store."""
        if run.state.cut is None:
            raise AssertionError("a chunk without a cut")
        run.held = self._crowded(connection)
        if run.held:
            self._stop.wait(_HELD_SECONDS)
            return
        part, offset = run.state.cut.part_at(first)
        with chunk_transaction(connection, _published(run), self._publication, part) as head:
            if self._differs(run, head, part):
                return
            origin = self._admit(connection, run, head)
            if origin is None:
                return
            began = self._clock()
            query = range_query(_published(run), self._schema(run), part, first - offset, behind - offset)
            read = self._read(connection, run, origin, query)
        if read is None:
            return
        rows, size = read
        taken = ChunkRead(behind - first, rows, self._clock() - began, size)
        self._ledger.chunk_done(run, first, ChunkDone(origin.number, head.moment.w, rows, behind, size))
        config = self._config
        run.stride = next_stride(run.stride, taken, aim=config.chunk_seconds, most_rows=config.chunk_rows)
        self._stop.wait(max(self._throttle.delay(rows), run.breath.rest(taken)))

    def read_again(self, connection: Connection, run: TableRun, store_keys: Sequence[bytes]) -> None:
        """Reads single keys whose entries miss columns, and folds them in."""
        keys = [store_key[SPACE_SIZE:] for store_key in store_keys]
        with chunk_transaction(connection, _published(run), self._publication) as head:
            if self._differs(run, head):
                return
            origin = self._admit(connection, run, head)
            if origin is None:
                return
            operators = key_operators(connection, run.state.oid)
            read = self._read(connection, run, origin, keys_query(_published(run), self._schema(run), keys, operators))
        if read is not None:
            self._ledger.forget_missing(run, store_keys)

    def _differs(self, run: TableRun, head: Head, part: Part | None = None) -> bool:
        if head.published != run.state.published:
            run.again = "its columns, key, filter, partitions or publication changed"
        elif part is not None and [found.filenode for found in head.parts] != [part.filenode]:
            run.again = "its file was replaced (TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE)"
        return bool(run.again)

    def _admit(self, connection: Connection, run: TableRun, head: Head) -> FromSnapshot | None:
        wait_for_flush(connection, head.moment.w, self._stop)
        return self._ledger.admit(run, head.moment.snapshot, head.moment.w)

    def _schema(self, run: TableRun) -> TableSchema:
        return self._ledger.schema_of(run.state.schema_id)

    def _read(
        self, connection: Connection, run: TableRun, origin: FromSnapshot, query: sql.Composed
    ) -> tuple[int, int] | None:
        """Takes the rows of a COPY in by slices; how many, and their bytes, or None if the generation is over."""
        state, count, size = run.state, 0, 0
        rows = new_copied_rows(self._schema(run))
        prefix = pack_prefix(state.seq_p0, state.schema_id, origin)
        with closing(copy_rows(connection, query, rows, _SLICE_BYTES, self._stop)) as slices:
            for _ in slices:
                count, size = count + len(rows), size + rows.size
                if not self._bulk.take_in(run, origin, *rows.take(run.space, prefix)):
                    return None
        return count, size

    def _crowded(self, connection: Connection) -> bool:
        """Whether more sessions than allowed run a statement at the source."""
        most = self._config.max_active_sessions
        if most is None:
            return False
        others = other_sessions(connection)
        if others.hidden and not self._told_hidden:
            self._told_hidden = True
            mend = (
                "grant it pg_read_all_stats, without which bootstrap.max_active_sessions counts only its own sessions"
            )
            log.warning("sessions_hidden", sessions=others.hidden, role=connection.info.user, mend=mend)
        return others.active > most


def _published(run: TableRun) -> PublishedTable:
    if run.state.published is None:
        raise AssertionError("a table is seeded only as published")
    return run.state.published
