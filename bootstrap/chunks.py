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

The rows come straight from libpq, a frame a row, into what encodes them (`walbus.native.copying`).
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import pq, sql

from walbus.bootstrap.catalog import SourceMoment, read_moment, read_published
from walbus.bootstrap.state import Part, PublishedTable
from walbus.errors import SourceUnavailable
from walbus.keys import key_texts
from walbus.lsn import parse_lsn
from walbus.native.copying import CopiedRows
from walbus.schema import TableSchema

#: Seconds that a chunk waits for the table's lock before it gives way to others.
_LOCK_TIMEOUT = 3.0
_FLUSH_POLL = 0.005
#: Longer than any wal_writer_delay makes an asynchronous commit wait.
_FLUSH_DEADLINE = 60.0
#: Seconds between two looks whether a COPY that gives nothing is to be stopped.
_STOP_POLL = 0.2

_PARTS = """
SELECT c.oid::bigint, n.nspname, c.relname, COALESCE(pg_relation_filenode(c.oid), 0)::bigint,
       COALESCE(pg_relation_size(c.oid) / current_setting('block_size')::int, 0)::bigint,
       greatest(c.relpages, 0)::float8, greatest(c.reltuples, 0)::float8
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY (%s::bigint[]::oid[])
 ORDER BY c.oid
"""

#: Operators of keys whose types are all of pg_catalog.
_IN_CATALOG: Mapping[str, tuple[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Head:
    """What a chunk's transaction knows of the table before it reads rows.

    Attributes:
        moment: S and W.
        parts: the table's files, or the one that is to be read.
        rows_per_block: the planner's estimate for them, 0 if it has none.
        published: the table as published in S; None if it is not.
    """

    moment: SourceMoment
    parts: tuple[Part, ...]
    rows_per_block: float
    published: PublishedTable | None


@contextmanager
def chunk_transaction(
    connection: psycopg.Connection[Any], table: PublishedTable, publication: str, part: Part | None = None
) -> Iterator[Head]:
    """Opens the chunk's transaction and locks what it reads; ends it at the exit, whatever happened.

    Args:
        connection: in autocommit mode.
        table: as the generation knows it.
        publication: by name.
        part: the one file that is to be read; None for all, of which the partitions are locked too.

    Raises:
        psycopg.Error: among others UndefinedTable, LockNotAvailable.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET LOCAL lock_timeout = {int(_LOCK_TIMEOUT * 1000)}")
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(_locked(table, part)))
        moment = read_moment(connection)
        oids = [part.oid] if part else [oid for oid, *_ in table.leaves] if table.partitioned else [table.oid]
        rows = connection.execute(_PARTS, [oids]).fetchall()
        parts = tuple(Part(*row[:5]) for row in rows)
        pages, tuples = sum(row[5] for row in rows), sum(row[6] for row in rows)
        published = (read_published(connection, publication, table.oid) or {}).get(table.oid)
        yield Head(moment, parts, tuples / pages if pages > 0 else 0.0, published)


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


def range_query(table: PublishedTable, schema: TableSchema, part: Part, first: int, behind: int) -> sql.Composed:
    """COPY of the rows in blocks [first, behind) of a part."""
    condition = sql.SQL("ctid >= {}::pg_catalog.tid AND ctid < {}::pg_catalog.tid").format(
        sql.Literal(f"({first},0)"), sql.Literal(f"({behind},0)")
    )
    return _copy(table, schema, condition, part)


def keys_query(
    table: PublishedTable,
    schema: TableSchema,
    keys: Sequence[bytes],
    operators: Mapping[str, tuple[str, str]] = _IN_CATALOG,
) -> sql.Composed:
    """COPY of the rows with these keys.

    Args:
        table: as published.
        schema: its layout.
        keys: memcomparable.
        operators: from `walbus.bootstrap.catalog.key_operators`.
    """
    names = [schema.columns[i].name for i in schema.key_indexes]
    forms = [sql.SQL("{} {}").format(sql.Identifier(name), _equals(operators.get(name))) for name in names]
    rows = [
        sql.SQL(" AND ").join(
            sql.SQL("{} {}").format(form, sql.Literal(text)) for form, text in zip(forms, key_texts(key), strict=True)
        )
        for key in keys
    ]
    condition = sql.SQL(" OR ").join(sql.SQL("({})").format(row) for row in rows)
    return _copy(table, schema, condition, None)


def copy_rows(
    connection: psycopg.Connection[Any], query: sql.Composed, rows: CopiedRows, limit: int, stop: threading.Event
) -> Generator[None, None, None]:
    """Runs a COPY TO STDOUT, and gives way each time that so many bytes of rows wait, and at the end.

    Whoever does not read it to its end leaves a connection behind that is closed.

    Args:
        connection: inside the chunk's transaction.
        query: from `range_query` or `keys_query`.
        rows: gets the rows; the caller takes them.
        limit: bytes.
        stop: ends it.

    Raises:
        psycopg.Error: the server refused.
        SourceUnavailable: `stop` was set.
        ProtocolError: a row is not one of the layout.
    """
    pgconn, whole = connection.pgconn, False
    try:
        pgconn.send_query(query.as_bytes(connection))
        pgconn.flush()
        result = _next_result(connection, stop)
        if result.status != pq.ExecStatus.COPY_OUT:
            raise _error_of(result)
        size = 1
        while size >= 0:
            size, taken = rows.drain(pgconn.get_copy_data, max(1, limit - rows.size))
            if rows.size >= limit:
                yield
                if stop.is_set():  # rows may come for as long as a chunk is to last
                    raise SourceUnavailable("the seeding is stopped")
            elif size == 0 and not taken:
                _wait_readable(connection, stop)
        result = _next_result(connection, stop)
        while pgconn.get_result() is not None:
            pass
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise _error_of(result)
        whole = True
        yield
    finally:
        if not whole:
            connection.close()


def _next_result(connection: psycopg.Connection[Any], stop: threading.Event) -> pq.abc.PGresult:
    while connection.pgconn.is_busy():
        _wait_readable(connection, stop)
    result = connection.pgconn.get_result()
    if result is None:
        raise psycopg.OperationalError("the server gave no answer to COPY")
    return result


def _wait_readable(connection: psycopg.Connection[Any], stop: threading.Event) -> None:
    poller = select.poll()
    poller.register(connection.pgconn.socket, select.POLLIN)
    while not poller.poll(_STOP_POLL * 1000):
        if stop.is_set():
            raise SourceUnavailable("the seeding is stopped")
    connection.pgconn.consume_input()


def _error_of(result: pq.abc.PGresult) -> psycopg.Error:
    return psycopg.errors.error_from_result(result)


def _copy(table: PublishedTable, schema: TableSchema, condition: sql.Composable, part: Part | None) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in schema.columns)
    where = condition
    if table.row_filter is not None:
        where = sql.SQL("({}) AND ({})").format(condition, sql.SQL(table.row_filter))
    rows = _rows_of(table, part)
    return sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT").format(columns, rows, where)


def _equals(operator: tuple[str, str] | None) -> sql.Composable:
    if operator is None:
        return sql.SQL("=")
    namespace, name = operator
    return sql.SQL("OPERATOR({}.{})").format(sql.Identifier(namespace), sql.SQL(name))


def _locked(table: PublishedTable, part: Part | None) -> sql.Composable:
    """What is locked, in PostgreSQL's own order, the root first.

    The look at the catalog opens the root. A statement that alters the root holds it, and then wants its partitions:
    whoever holds a partition and wants the root would make a deadlock, which may end that statement.
    """
    rows = _rows_of(table, part)
    if part is None or not table.partitioned:
        return rows
    return sql.SQL("ONLY {}, {}").format(sql.Identifier(table.namespace, table.name), rows)


def _rows_of(table: PublishedTable, part: Part | None) -> sql.Composed:
    """What holds the rows: one file, or the table with its partitions if it has any."""
    named = part or table
    only = sql.SQL("" if part is None and table.partitioned else "ONLY ")
    return sql.SQL("{}{}").format(only, sql.Identifier(named.namespace, named.name))
