"""What the members of a group fill, with its rows as they are in all parts together.

target = PostgresTarget(target_database, 4)
SinkGroup(folder, system, database, target.section)
assert_equal(group, target, database, "items")
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import psycopg
import redis
from psycopg import sql
from psycopg.rows import dict_row

from support.compare import assert_rows_equal
from support.database import Database
from support.sink_group import SinkGroup
from support.waiting import wait_for

Rows = list[dict[str, Any]]


class Target(Protocol):
    """What a group fills.

    Attributes:
        section: of the consumer.
    """

    section: dict[str, Any]

    def rows(self, table: str) -> Rows:
        """Those of all parts, as texts."""

    def tamper(self) -> None:
        """Changes row 1 of `items`, deletes row 2, and makes a row 9999 of row 3."""


class PostgresTarget:
    """The replicas of all parts, each in a schema of its own."""

    def __init__(self, database: Database, parts: int) -> None:
        self.database, self._parts = database, parts
        self.section: dict[str, Any] = {
            "sink": "postgres",
            "dsn": database.dsn,
            "into": "{schema}_{partition}",
            "parts": parts,
        }

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

    def tamper(self) -> None:
        for schema in self.schemas():
            self.database.execute(f"UPDATE \"{schema}\".items SET note = 'by hand' WHERE id = 1")
            self.database.execute(f'DELETE FROM "{schema}".items WHERE id = 2')
            self.database.execute(f'UPDATE "{schema}".items SET id = 9999 WHERE id = 3')


class RedisTarget:
    """The rows of all parts under one layout of keys, as hashes or JSON texts; its reader knows of no parts."""

    def __init__(self, url: str, parts: int, form: str = "hash") -> None:
        self._url, self._parts, self._form = url, parts, form
        self.section: dict[str, Any] = {"sink": "redis", "url": url, "format": form, "parts": parts}

    def rows(self, table: str) -> Rows:
        with self._client() as client:
            keys = sorted(set(client.scan_iter(match=f"public.{table}:*", count=1000)))  # which may give one twice
            with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hgetall(key) if self._form == "hash" else pipeline.get(key)
                answers = pipeline.execute()
        return [as_texts(row if isinstance(row, dict) else json.loads(row)) for row in answers if row]

    def tamper(self) -> None:
        with self._client() as client:
            own = [f"walbus:orders.{part}-of-{self._parts}:v:public.items:" for part in range(self._parts)]
            if self._form == "hash":
                client.hset("public.items:1", "note", "by hand")
                client.hset("public.items:3", "id", "9999")
            else:
                client.set("public.items:1", '{"id":1,"note":"by hand"}')
                client.set("public.items:3", client.get("public.items:3").replace('"id":3', '"id":9999'))
            for prefix in ("public.items:", *own):
                if client.exists(f"{prefix}3"):
                    client.rename(f"{prefix}3", f"{prefix}9999")
                client.delete(f"{prefix}2")

    def _client(self) -> Any:
        return redis.Redis.from_url(self._url, decode_responses=True)


def as_texts(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if value is None else str(value) for name, value in row.items() if not name.startswith("_walbus")
    }


def assert_equal(group: SinkGroup, target: Target, source: Database, *tables: str) -> None:
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
