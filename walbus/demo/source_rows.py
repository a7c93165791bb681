"""The truth to compare with: every row of the source as PostgreSQL's canonical text, as of one moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import psycopg
from psycopg import sql

from walbus.session import settings_sql

#: Texts of a key's columns, in column order.
Key: TypeAlias = tuple[str, ...]

_TABLES = """
SELECT c.oid::int8, n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
ORDER BY 2, 3
"""

_NAMES = """
SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
"""

_COLUMNS = """
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, NULL), coalesce(a.attnum = ANY (i.indkey), false)
FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column: its name, its type's name as `format_type` gives it, and whether it is in the primary key."""

    name: str
    type_name: str
    in_key: bool


@dataclass(frozen=True)
class SourceTable:
    """A table with its rows.

    Attributes:
        namespace, name: unquoted.
        columns: in column order.
        rows: texts of the columns (None is NULL) by key.
    """

    namespace: str
    name: str
    columns: tuple[SourceColumn, ...]
    rows: dict[Key, tuple[str | None, ...]]

    @property
    def table(self) -> str:
        """`namespace.name`."""
        return f"{self.namespace}.{self.name}"

    @property
    def key_columns(self) -> tuple[SourceColumn, ...]:
        """The columns of the key."""
        return tuple(column for column in self.columns if column.in_key)


def table_names(dsn: str) -> set[str]:
    """`namespace.name` of every table, whatever it has for a key."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(settings_sql().encode())
        return {name for (name,) in connection.execute(_NAMES)}


def read_source(dsn: str) -> Iterator[SourceTable]:
    """Every table with a primary key, all as of one snapshot."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(settings_sql().encode())
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for oid, namespace, name in connection.execute(_TABLES).fetchall():
            columns = tuple(SourceColumn(*row) for row in connection.execute(_COLUMNS, [oid]))
            yield SourceTable(namespace, name, columns, read_rows(connection, sql.Identifier(namespace, name), columns))


def read_rows(
    connection: psycopg.Connection, table: sql.Identifier, columns: tuple[SourceColumn, ...]
) -> dict[Key, tuple[str | None, ...]]:
    """A table's rows by key.

    By COPY, which gives each type's output text; a cast to text gives another one for char(n) and boolean.
    """
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    key_indexes = [index for index, column in enumerate(columns) if column.in_key]
    rows = {}
    with connection.cursor().copy(sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(names, table)) as copy:
        for row in copy.rows():
            rows[tuple(row[index] for index in key_indexes)] = row
    return rows
