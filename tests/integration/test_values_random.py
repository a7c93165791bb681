"""Random rows of many types through slot and log: hypothesis makes the values, PostgreSQL says what they are.

A row has a value for each column of one table. Rows are inserted, changed (each takes the values of the one before it)
and deleted, each time all of them in one transaction. Hypothesis shrinks what comes out wrong to the smallest row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString, cast

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.capturing import CaptureThread, capturing
from support.database import Database
from support.zoo import rows_of
from support.zoo_check import problems, types_of
from support.zoo_log import row_changes_in
from support.zoo_values import Expected
from walbus.position import ORIGIN
from walbus.records import Op
from walbus.session import settings_sql

MICROS = st.integers(-211_813_488_000_000_000, 9_223_371_331_199_999_999)  # of a timestamp, from the year 2000
DAYS = st.integers(-2_451_545, 2_145_031_948)  # of a date, from the year 2000
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ODD = TEXT | st.text('"\\{}(),[]; \t\nNULnul\u2028', max_size=8)
INT4 = st.integers(-(2**31), 2**31 - 1)
INT8 = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(st.none() | st.booleans() | INT8 | ODD, lambda each: st.lists(each) | st.dictionaries(ODD, each))
NUMERIC = st.builds("{}e{}".format, st.integers(-(10**50), 10**50), st.integers(-400, 400)) | st.sampled_from(
    ["NaN", "Infinity", "-Infinity"]
)

INTERVAL = st.builds("{} months {} days {}.{:06d} seconds".format, INT4, INT4, INT4, st.integers(0, 999_999))


def several(each: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
    return st.lists(st.none() | each, max_size=5)


def square(each: st.SearchStrategy[object]) -> st.SearchStrategy[list[list[object]]]:
    return st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(st.none() | each, min_size=n, max_size=n), min_size=1, max_size=3)
    )


def as_interval(micros: int) -> str:
    """PostgreSQL 14 takes no more than four bytes of each unit."""
    seconds, fraction = divmod(micros, 1_000_000)
    return f"{seconds // 86_400} days {seconds % 86_400}.{fraction:06d} seconds"


def literal(rows: list[list[object]]) -> str:
    """A two-dimensional array of numbers as PostgreSQL reads it; a list of empty lists would be none."""
    return str(rows).replace("[", "{").replace("]", "}").replace("None", "NULL")


#: Type, the expression that makes the value of one parameter, and the parameter.
COLUMNS: list[tuple[str, str, st.SearchStrategy[object]]] = [
    ("bool", "%s", st.booleans()),
    ("int2", "%s", st.integers(-(2**15), 2**15 - 1)),
    ("int4", "%s", INT4),
    ("int8", "%s", INT8),
    ("oid", "%s", st.integers(0, 2**32 - 1)),
    ("float4", "%s", st.floats(width=32)),
    ("float8", "%s", st.floats()),
    ("numeric", "%s::text::numeric", NUMERIC),
    ("text", "%s", ODD),
    ("varchar(20)", "%s", ODD),
    ("char(20)", "%s", ODD),
    ("name", "%s", ODD),
    ('"char"', '%s::int::"char"', st.integers(-128, 127)),
    ("bytea", "%s", st.binary(max_size=20)),
    ("date", "date '2000-01-01' + %s::int", DAYS),
    ("time", "%s", st.times()),
    ("timestamp", "timestamp '2000-01-01' + %s::text::interval", MICROS.map(as_interval)),
    ("timestamptz", "timestamptz '2000-01-01 00:00+00' + %s::text::interval", MICROS.map(as_interval)),
    ("interval", "%s::text::interval", INTERVAL),
    ("uuid", "%s", st.uuids()),
    ("json", "%s::text::json", JSON.map(json.dumps)),
    ("jsonb", "%s::text::jsonb", JSON.map(json.dumps)),
    ("inet", "%s::text::inet", st.ip_addresses().map(str)),
    ("varbit", "%s::text::varbit", st.text("01", max_size=20)),
    ("bool[]", "%s", several(st.booleans())),
    ("int4[]", "%s", several(INT4)),
    ("int8[]", "%s::text::int8[]", square(INT8).map(literal)),
    ("float4[]", "%s", several(st.floats(width=32))),
    ("float8[]", "%s", several(st.floats())),
    ("text[]", "%s", several(ODD)),
    ("bytea[]", "%s", several(st.binary(max_size=8))),
    ("date[]", "ARRAY(SELECT date '2000-01-01' + n FROM unnest(%s::int[]) n)", several(DAYS)),
    ("timestamptz[]", "ARRAY(SELECT to_timestamp(n / 1000.0) FROM unnest(%s::int8[]) n)", several(INT4)),
    ("uuid[]", "%s", several(st.uuids())),
    ("numeric[]", "%s::text[]::numeric[]", several(NUMERIC)),
    ("pair", "ROW(1, %s)::cage.pair", st.none() | ODD),
    ("pair[]", "ARRAY(SELECT ROW(n, t)::cage.pair FROM unnest(%s::text[]) WITH ORDINALITY u (t, n))", several(ODD)),
    ("nest", "ROW(ROW(1, 'x'), ARRAY(SELECT ROW(7, t)::cage.pair FROM unnest(%s::text[]) t))::cage.nest", several(ODD)),
    ("int4range", "int4range(least(0, %s), 5, '[)')", INT4),
    ("numrange", "(SELECT numrange(least(n, 0), greatest(n, 0), '(]') FROM (SELECT %s::text::numeric n) s)", NUMERIC),
    ("texts", "cage.texts('', %s, '[]')", ODD),
    ("int8multirange", "(SELECT range_agg(int8range(n, n, '[]')) FROM unnest(%s::int4[]) n)", several(INT4)),
]  # fmt: skip
ROWS = st.lists(st.tuples(*(st.none() | values for _, _, values in COLUMNS)), min_size=1, max_size=12)


@pytest.fixture
def source(database: Database) -> psycopg.Connection:
    connection = database.connect()
    connection.execute(settings_sql())
    connection.execute("CREATE SCHEMA cage; CREATE TYPE cage.pair AS (a int, b text)")
    connection.execute("CREATE TYPE cage.nest AS (p cage.pair, ps cage.pair[])")
    connection.execute('CREATE TYPE cage.texts AS RANGE (subtype = text, collation = "C")')
    own = {"pair", "pair[]", "nest", "texts"}
    kinds = [f"c{i} {'cage.' if kind in own else ''}{kind}" for i, (kind, _, _) in enumerate(COLUMNS)]
    connection.execute(cast(LiteralString, f"CREATE TABLE cage.r (id serial PRIMARY KEY, {', '.join(kinds)})"))
    connection.execute("ALTER TABLE cage.r REPLICA IDENTITY FULL")
    return connection


class Round:
    """One list of rows after the other, on one table."""

    def __init__(self, source: psycopg.Connection, capture: CaptureThread, folder: Path) -> None:
        self._source, self._capture, self._folder = source, capture, folder
        self._expected, self._types = Expected(source), types_of(source)["r"]
        self._done = ORIGIN
        names = [f"c{i}" for i in range(len(COLUMNS))]
        makes = ", ".join(make for _, make, _ in COLUMNS)
        self._insert = cast(LiteralString, f"INSERT INTO cage.r ({', '.join(names)}) VALUES ({makes})")
        sets = ", ".join(f"{name} = b.{name}" for name in names)
        self._update = cast(LiteralString, f"UPDATE cage.r SET {sets} FROM cage.r b WHERE cage.r.id = b.id + 1")

    def run(self, rows: list[tuple[object, ...]]) -> None:
        """Inserts, updates and deletes the rows, and checks what the log has of it."""
        with self._source.cursor() as cursor, self._source.transaction():
            cursor.executemany(self._insert, rows)
        inserted = rows_of(self._source, "r")
        self._source.execute(self._update)
        updated = rows_of(self._source, "r")
        self._source.execute("DELETE FROM cage.r")
        self._capture.caught_up()
        assert len(inserted) == len(rows)
        places = {Op.INSERT: {"after": inserted}, Op.UPDATE: {"after": updated, "before": inserted}}
        found, seen = [], Counter[Op]()
        for change, line in row_changes_in(self._folder, self._done):
            self._done = change.position
            seen[change.op] += 1
            for place, values in places.get(change.op, {"before": updated}).items():
                found += problems(self._expected, self._types, place, change, line, values[change.key["id"]])
        assert not found, found
        assert seen == Counter({Op.INSERT: len(rows), Op.UPDATE: len(rows) - 1, Op.DELETE: len(rows)})


@pytest.fixture
def rounds(source: psycopg.Connection, database: Database, open_folder: Path) -> Iterator[Round]:
    with capturing(database.dsn, open_folder / "relay", tables=("cage.*",)) as capture:
        yield Round(source, capture, open_folder / "relay")


def check(rounds: Round, examples: int) -> None:
    shared = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @settings(max_examples=examples, deadline=None, suppress_health_check=shared, phases=set(Phase) - {Phase.explain})
    @given(ROWS)
    def each(rows: list[tuple[object, ...]]) -> None:
        rounds.run(rows)

    each()


@pytest.mark.timeout(300)
def test_random_rows_of_many_types_are_in_the_log_as_postgresql_prints_them(rounds: Round) -> None:
    check(rounds, 20)


@pytest.mark.long
@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_thousands_of_random_rows_are_in_the_log_as_postgresql_prints_them(rounds: Round) -> None:
    check(rounds, 1000)
