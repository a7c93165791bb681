"""Tables whose names need quotes, or mean something elsewhere: to SQL, Avro, JSON, a URL, or Walbus.

tables = make_odd_tables(session)        # (schema, table), in the schemas SCHEMAS
fill_odd_tables(session, tables, key=1)  # each column gets its own name and place
"""

from __future__ import annotations

import psycopg
from psycopg import sql

LONG = "l" * 61 + "ü"  # 63 bytes
SCHEMAS = ["plain", 'odd "schema"', "ünï cödé", "select", "1", "S" * 63, "-", "pg", "walbus"]
#: Tables, each in one of the schemas; some are words of SQL, Avro, JSON or Walbus.
TABLES = [
    "t", "T t", 'quo"te', "do.t", "com,ma", "per%cent%s", "sla/sh\\", "new\nline\ttab", "'", "{b}", "[c]", "*",
    "?a=b&c#d", "select", "int", "string", "record", "null", "\U0001f600", LONG, "0", "_", " ", "__proto__", "é",
    "e\u0301", "order", "\u202e", "\u2028",
    ";--", "$1", "@",
]  # fmt: skip
COLUMNS = [*TABLES, "a_x20_b", "a b", "op", "key", "after", "table", "walbusSchemaId", "oid", "c0"]


def make_odd_tables(session: psycopg.Connection) -> list[tuple[str, str]]:
    """A table of each name, in the schemas by turns, with a key and a column of every name."""
    run = session.execute
    for schema in SCHEMAS:
        run(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    made = [(SCHEMAS[number % len(SCHEMAS)], table) for number, table in enumerate(TABLES)]
    for number, name in enumerate(made):
        kind = sql.Identifier(name[0], f"type {name[1]}"[:40])
        key, *others = (COLUMNS[number % len(COLUMNS) :] + COLUMNS)[: len(COLUMNS)]
        run(sql.SQL("CREATE TYPE {} AS ENUM ('x')").format(kind))
        parts = [sql.SQL("{} int PRIMARY KEY").format(sql.Identifier(key))]
        parts += [sql.SQL("{} text").format(sql.Identifier(column)) for column in others]
        typed = sql.SQL("typed {}").format(kind)
        run(sql.SQL("CREATE TABLE {} ({}, {})").format(sql.Identifier(*name), sql.SQL(", ").join(parts), typed))
    return made


def fill_odd_tables(session: psycopg.Connection, tables: list[tuple[str, str]], key: int) -> None:
    """A row in each table, every column with its own name and place."""
    for name in tables:
        columns = session.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(*name))).description or []
        values = [key, *(f"{column.name} {number}" for number, column in enumerate(columns[1:-1])), "x"]
        literals = sql.SQL(", ").join(map(sql.Literal, values))  # parameters would give a meaning to the % of names
        session.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(sql.Identifier(*name), literals))
