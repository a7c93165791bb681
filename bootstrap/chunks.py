"""Reading one chunk: one short transaction at the source that changes nothing and sees one snapshot.

    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY
    LOCK TABLE t IN ACCESS SHARE MODE       first: it takes no snapshot, and a rewrite now has to wait
    S and W, the relfilenode, the table as published
    wait until the flush position has passed W
    COPY (SELECT ... WHERE ctid in the range) TO STDOUT
    COMMIT

Every commit that S sees lies in the WAL before W. Once W is flushed, all of them survive a crash of the source, so
rows may be folded in as they arrive; before, an asynchronous commit could be lost and its xid be used again. Reading W
right behind S, instead of behind the rows, gives the same guarantee, and keeps memory flat however wide the rows are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from walbus.bootstrap.catalog import SourceMoment, read_moment, read_published
from walbus.bootstrap.state import PublishedTable
from walbus.errors import SourceUnavailable
from walbus.keys import key_texts
from walbus.lsn import parse_lsn
from walbus.schema import TableSchema

#: Seconds that a chunk waits for the table's lock before it gives way to others.
_LOCK_TIMEOUT = 3.0
_FLUSH_POLL = 0.005
#: Longer than any wal_writer_delay makes an asynchronous commit wait.
_FLUSH_DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Head:
    """What a chunk's transaction knows of the table before it reads rows.

    Attributes:
        moment: S and W.
        filenode: the file that the table's blocks are in, 0 if it has none.
        blocks: of that file.
        rows_per_block: the planner's estimate, 0 if the table was never analyzed.
        published: the table as published in S; None if it is not.
    """

    moment: SourceMoment
    filenode: int
    blocks: int
    rows_per_block: float
    published: PublishedTable | None


@contextmanager
def chunk_transaction(connection: psycopg.Connection[Any], table: PublishedTable, publication: str) -> Iterator[Head]:
    """Opens the chunk's transaction and locks the table; ends it at the exit, whatever happened.

    Raises:
        psycopg.Error: among others UndefinedTable, LockNotAvailable.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET LOCAL lock_timeout = {int(_LOCK_TIMEOUT * 1000)}")
        connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(_name(table)))
        moment = read_moment(connection)
        row = connection.execute(
            "SELECT COALESCE(pg_relation_filenode(oid), 0)::bigint,"
            " COALESCE(pg_relation_size(oid) / current_setting('block_size')::int, 0)::bigint,"
            " CASE WHEN relpages > 0 THEN greatest(reltuples, 0) / relpages ELSE 0 END::float8"
            " FROM pg_class WHERE oid = %s",
            [table.oid],
        ).fetchone()
        filenode, blocks, density = row if row else (0, 0, 0.0)
        published = read_published(connection, publication, table.oid).get(table.oid)
        yield Head(moment, filenode, blocks, density, published)


def wait_for_flush(connection: psycopg.Connection[Any], w: int, stop: threading.Event) -> None:
    """Blocks until the source has flushed its WAL to W, on the connection that saw W.

    Raises:
        SourceUnavailable: it did not within a minute, or `stop` was set.
    """
    deadline = time.monotonic() + _FLUSH_DEADLINE
    while True:
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        if row is not None and parse_lsn(row[0]) >= w:
            return
        if stop.wait(_FLUSH_POLL) or time.monotonic() > deadline:
            raise SourceUnavailable("the source does not flush its WAL")


def range_query(table: PublishedTable, schema: TableSchema, first: int, behind: int) -> sql.Composed:
    """COPY of the rows in blocks [first, behind)."""
    condition = sql.SQL("ctid >= {}::pg_catalog.tid AND ctid < {}::pg_catalog.tid").format(
        sql.Literal(f"({first},0)"), sql.Literal(f"({behind},0)")
    )
    return _copy(table, schema, condition)


def keys_query(table: PublishedTable, schema: TableSchema, keys: Sequence[bytes]) -> sql.Composed:
    """COPY of the rows with these keys."""
    names = [sql.Identifier(schema.columns[i].name) for i in schema.key_indexes]
    rows = [
        sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(name, sql.Literal(text)) for name, text in zip(names, key_texts(key), strict=True)
        )
        for key in keys
    ]
    condition = sql.SQL(" OR ").join(sql.SQL("({})").format(row) for row in rows)
    return _copy(table, schema, condition)


def copy_lines(connection: psycopg.Connection[Any], query: sql.Composed) -> Iterator[bytes]:
    """The lines of a COPY TO STDOUT, one a row."""
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for line in copy:
            yield bytes(line)


def _copy(table: PublishedTable, schema: TableSchema, condition: sql.Composable) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in schema.columns)
    where = condition
    if table.row_filter is not None:
        where = sql.SQL("({}) AND ({})").format(condition, sql.SQL(table.row_filter))
    return sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT").format(columns, _name(table), where)


def _name(table: PublishedTable) -> sql.Identifier:
    return sql.Identifier(table.namespace, table.name)
