"""What the members of a group fill, with its rows as they are in all parts together.

target = PostgresTarget(target_database, 4)
SinkGroup(folder, system, database, target.section)
assert_equal(group, target, database, "items")
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from support.compare import assert_rows_equal
from support.database import Database
from support.sink_group import SinkGroup
from support.waiting import wait_for

Rows = list[dict[str, Any]]


class PostgresTarget:
    """The replicas of all parts, each in a schema of its own."""

    def __init__(self, database: Database, parts: int) -> None:
        self.database, self._parts = database, parts
        self.section = {"sink": "postgres", "dsn": database.dsn, "into": "{schema}_{partition}", "parts": parts}

    def schemas(self) -> list[str]:
        return [f"public_{part}-of-{self._parts}" for part in range(self._parts)]

    def rows(self, table: str) -> Rows:
        found: Rows = []
        with psycopg.connect(self.database.dsn, row_factory=dict_row) as session:
            for schema in self.schemas():
                there = "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = %s"
                if session.execute(there, [schema, table]).fetchone():
                    query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))
                    found += [as_texts(row) for row in session.execute(query)]
        return found


def as_texts(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if value is None else str(value) for name, value in row.items() if not name.startswith("_walbus")
    }


def assert_equal(group: SinkGroup, target: PostgresTarget, source: Database, *tables: str) -> None:
    """Every row is in one part, and none that the source has not; once tables that are read again have come.

    Nobody may write to the source meanwhile.
    """
    group.wait_until_done()
    columns = {table: _columns(source, table) for table in tables or ("items", "marker")}

    def is_equal() -> bool:
        found = {
            f"public.{table}": [{name: row.get(name) for name in names} for row in target.rows(table)]
            for table, names in columns.items()
        }
        assert_rows_equal("the group's sink", source.dsn, found)
        return True

    wait_for(is_equal, 120, what="the group's sink equals the source", every=0.2)


def _columns(source: Database, table: str) -> list[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    return [str(row[0]) for row in source.execute(query, [table])]
