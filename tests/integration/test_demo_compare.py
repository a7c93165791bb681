"""The comparison that ends a demo: it names every difference, and finds none where there is none."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from walbus.demo.compare import compare_sinks
from walbus.demo.sink_rows import open_sinks

pytestmark = pytest.mark.one_version


@pytest.fixture
def pair(database, tmp_path: Path):
    """A source table and a SQLite cache with the same rows."""
    database.execute("CREATE TABLE t (a int, b text, c timestamptz, d bytea, PRIMARY KEY (a, b))")
    database.execute(
        "INSERT INTO t VALUES (1, 'x', '2026-01-01 12:00+01', '\\x00'), (2, '', NULL, ''), (3, 'y', 'infinity', NULL)"
    )
    cache = tmp_path / "cache.sqlite"
    with closing(sqlite3.connect(cache)) as sqlite:
        sqlite.execute("CREATE TABLE t (a, b, c, d)")
        rows = [(1, "x", "2026-01-01 11:00:00+00", b"\0"), (2, "", None, b""), (3, "y", "infinity", None)]
        sqlite.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
        sqlite.commit()
    return database, cache


def test_equal_rows_have_no_difference(pair):
    database, cache = pair
    comparison = compare_sinks(database.dsn, open_sinks(cache))
    assert comparison.differences == []
    assert comparison.rows == {"cache": 3}


@pytest.mark.parametrize(
    ("tampering", "told"),
    [
        ("UPDATE t SET c = NULL WHERE a = 1", "cache: public.t key (1, x) column c: the values differ"),
        ("UPDATE t SET d = x'01' WHERE a = 1", "cache: public.t key (1, x) column d: the values differ"),
        ("DELETE FROM t WHERE a = 2", "cache: public.t key (2, ): the sink does not have this row"),
        (
            "INSERT INTO t VALUES (9, 'z', NULL, NULL)",
            "cache: public.t key (9, z): the sink has a row that the source has not",
        ),
        ("INSERT INTO t SELECT * FROM t WHERE a = 3", "cache: public.t key (3, y): the sink has this row twice"),
    ],
)
def test_what_was_tampered_with_is_named_by_table_key_and_column(pair, tampering, told):
    database, cache = pair
    with closing(sqlite3.connect(cache)) as sqlite:
        sqlite.execute(tampering)
        sqlite.commit()
    assert [str(difference) for difference in compare_sinks(database.dsn, open_sinks(cache)).differences] == [told]


def test_a_table_that_the_sink_does_not_know_lacks_all_its_rows(pair):
    database, cache = pair
    database.execute("CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1), (2)")
    differences = compare_sinks(database.dsn, open_sinks(cache)).differences
    assert [(d.table, d.key) for d in differences] == [("public.u", ("1",)), ("public.u", ("2",))]
