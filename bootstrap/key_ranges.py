"""Ranges of a table's keys, at the source: their checksum, and their rows in key order.

The order is that of the store's keys (`walbus.keys`): integers by value, all else by the bytes of its canonical text,
which is COLLATE "C". A key of one integer, uuid or C-collated text column has an index in that order; for any other
the server looks at the whole table for each range, so such tables are cut into few.

The checksum of a range is the number of its rows and the sum of a hash of each: 60 bits of the MD5 of its columns'
canonical texts, each with its length in front. What it is computed from is what COPY prints, so it does not depend on
how types are cast to text; `row_hash` computes the same from the store's rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from walbus.bootstrap.state import PublishedTable
from walbus.keys import key_texts
from walbus.schema import Column, TableSchema

_INTEGERS = frozenset((20, 21, 23, 26))
_TEXTS = frozenset((25, 1043))
_UUID = 2950
_HASH_DIGITS = 15
_NULL = "~"


class Checksum(NamedTuple):
    """Of the rows of a range: how many, and the sum of their hashes."""

    rows: int
    total: int

    def plus(self, texts: Sequence[str | None]) -> Checksum:
        """With one more row."""
        return Checksum(self.rows + 1, self.total + row_hash(texts))


class KeyRange(NamedTuple):
    """The keys behind `after`, up to `upto`; None: without an end. An empty `after` is before every key."""

    after: bytes
    upto: bytes | None


def row_hash(texts: Sequence[str | None]) -> int:
    """60 bits of a row, by the canonical texts of its columns."""
    whole = "".join(_NULL if text is None else f"{len(text)}:{text}" for text in texts)
    return int(hashlib.md5(whole.encode(), usedforsecurity=False).hexdigest()[:_HASH_DIGITS], 16)


def has_cheap_ranges(schema: TableSchema) -> bool:
    """Whether an index of the key may serve ranges of it."""
    columns = [schema.columns[index] for index in schema.key_indexes]
    return all(column.type_oid in _INTEGERS or column.type_oid == _UUID for column in columns)


def read_checksum(
    connection: psycopg.Connection[Any], table: PublishedTable, schema: TableSchema, keys: KeyRange
) -> Checksum:
    """The source's checksum of a range, in the transaction's snapshot."""
    texts = [_text_of(column) for column in schema.columns]
    named = [sql.Identifier(f"t{number}") for number in range(len(texts))]
    inner = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.SQL(", ").join(sql.SQL("{} AS {}").format(*pair) for pair in zip(texts, named, strict=True)),
        _rows_of(table),
        _condition(table, schema, keys),
    )
    whole = sql.SQL(" || ").join(
        sql.SQL("COALESCE(length({name})::text || ':' || {name}, '~')").format(name=name) for name in named
    )
    query = sql.SQL(
        "SELECT count(*)::int8, COALESCE(sum(('x' || substr(md5(convert_to({whole}, 'UTF8')), 1, {digits}))"
        "::bit(60)::int8), 0)::text FROM ({inner}) AS rows"
    ).format(whole=whole, digits=sql.Literal(_HASH_DIGITS), inner=inner)
    row = connection.execute(query).fetchone()
    return Checksum(0, 0) if row is None else Checksum(int(row[0]), int(row[1]))


def read_range(
    connection: psycopg.Connection[Any], table: PublishedTable, schema: TableSchema, keys: KeyRange
) -> Iterator[tuple[str | None, ...]]:
    """The canonical texts of a range's rows, in key order, in the transaction's snapshot."""
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in schema.columns)
    query = sql.SQL("COPY (SELECT {} FROM {} WHERE {} ORDER BY {}) TO STDOUT").format(
        columns, _rows_of(table), _condition(table, schema, keys), sql.SQL(", ").join(_key_of(schema))
    )
    yield from copied_texts(connection, query)


def copied_texts(connection: psycopg.Connection[Any], query: sql.Composed) -> Iterator[tuple[str | None, ...]]:
    """The columns' texts of a COPY TO STDOUT, row by row."""
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for row in copy.rows():
            yield tuple(value.decode() if isinstance(value, bytes) else value for value in row)


def _condition(table: PublishedTable, schema: TableSchema, keys: KeyRange) -> sql.Composed:
    parts: list[sql.Composable] = [sql.SQL("true")]
    if keys.after:
        parts.append(_compared(schema, ">", keys.after))
    if keys.upto is not None:
        parts.append(_compared(schema, "<=", keys.upto))
    if table.row_filter is not None:
        parts.append(sql.SQL("({})").format(sql.SQL(table.row_filter)))
    return sql.SQL(" AND ").join(parts)


def _compared(schema: TableSchema, operator: str, key: bytes) -> sql.Composed:
    values = sql.SQL(", ").join(sql.Literal(text) for text in key_texts(key))
    columns = sql.SQL(", ").join(_key_of(schema))
    single = len(schema.key_indexes) == 1
    form = "{} {} {}" if single else "({}) {} ({})"
    return sql.SQL(form).format(columns, sql.SQL(operator), values)


def _key_of(schema: TableSchema) -> list[sql.Composable]:
    """The key's columns as they sort in the store."""
    return [_sorted_as_stored(schema.columns[index]) for index in schema.key_indexes]


def _sorted_as_stored(column: Column) -> sql.Composable:
    name = sql.Identifier(column.name)
    if column.type_oid in _INTEGERS or column.type_oid == _UUID:
        return name
    if column.type_oid in _TEXTS:
        return sql.SQL('{} COLLATE "C"').format(name)
    return sql.SQL("pg_catalog.format('%s', {}) COLLATE \"C\"").format(name)


def _text_of(column: Column) -> sql.Composed:
    """A column as COPY prints it; NULL for NULL alone, not for a row of NULLs."""
    name = sql.Identifier(column.name)
    return sql.SQL("CASE WHEN {} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {}) END").format(name, name)


def _rows_of(table: PublishedTable) -> sql.Composed:
    """What holds the rows: the table, with its partitions if it is one of those that are published as their root."""
    only = sql.SQL("" if table.kind == "p" else "ONLY ")
    return sql.SQL("{}{}").format(only, sql.Identifier(table.namespace, table.name))
