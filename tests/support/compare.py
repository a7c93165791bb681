"""A source's tables against what a sink holds, value by value; also the demo's last act (`walbus.demo.compare`).

    assert_sinks_equal(database.dsn, cache=path_of_sqlite, search=folder_of_index, redis_url=url)
    assert_rows_equal("tail", database.dsn, {"public.orders": rows})     # rows: dicts, one a row (JSON lines, dicts…)

Both wait for nothing: call them when the consumer has passed the last commit (`support.waiting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from walbus.demo.compare import compare_sinks, differences
from walbus.demo.sink_rows import key_of, open_sinks
from walbus.demo.source_rows import read_source


def assert_sinks_equal(
    dsn: str, *, cache: Path | None = None, search: Path | None = None, redis_url: str | None = None
) -> None:
    """Every table with a primary key equals its copy in every sink that is given, and no sink has another table."""
    comparison = compare_sinks(dsn, open_sinks(cache, search, redis_url))
    assert not comparison.differences, told(comparison.differences)


def assert_rows_equal(name: str, dsn: str, tables: Mapping[str, Iterable[Mapping[str, object]]]) -> None:
    """The tables named equal the rows given for them, each a dict by column name."""
    found = []
    for table in read_source(dsn):
        if table.table in tables:
            rows = ((key_of(table, row), row) for row in tables[table.table])
            found += list(differences(name, table, rows))
    assert not found, told(found)


def told(found: Iterable[object]) -> str:
    """The first differences, one a line."""
    lines = [str(difference) for difference in found]
    return "\n".join([f"{len(lines)} differences", *lines[:20]])
