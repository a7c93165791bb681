"""The PostgreSQL sink against a bare batched upsert of the same rows into the same server.

The rows and the two workloads are those of `sink_rows`. The references get the rows as Python values,
and write and commit as many at a time, in three forms: an array for each column (`unnest`), COPY into a staging table,
and psycopg's `executemany`, all of them INSERT … ON CONFLICT DO UPDATE. The ratio is to the fastest of the three.
Medians over the rounds; each round has tables of its own.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import psycopg

from report import Report
from sink_rows import BATCH, NAMES, TYPES, Record, Row, into_sink, records_of, row_of
from source import Source, open_server
from walbus.consumers.sinks import SinkPlace, open_sink

_SETS = ", ".join(f"{name} = excluded.{name}" for name in NAMES[1:])
_CONFLICT = f"ON CONFLICT (id) DO UPDATE SET {_SETS}"


def run(rows: int, rounds: int) -> Report:
    """Measures both workloads."""
    report = Report(
        "consumers-postgres",
        "The PostgreSQL sink",
        ("workload", "what", "seconds", "rows/s"),
        notes=["Medians over the rounds. The server runs without fsync, on the same machine, for both sides."],
    )
    with open_server() as (server, folder):
        source = Source(server, "replica")
        taken: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds):
            for workload, version in (("insert", 0), ("update", 1)):
                for name, seconds in _round(source.dsn, folder, number, rows, version).items():
                    taken.setdefault((workload, name), []).append(seconds)
    seconds = {key: statistics.median(values) for key, values in taken.items()}
    for (workload, name), took in seconds.items():
        report.row(f"{rows:,} rows, {workload}", name, f"{took:.2f}", f"{rows / took:,.0f}")
    for workload in ("insert", "update"):
        bare = min(took for (which, name), took in seconds.items() if which == workload and name != "sink")
        report.ratio(f"postgres/upsert {workload}", bare / seconds[workload, "sink"])
    return report


def _round(dsn: str, folder: Path, number: int, rows: int, version: int) -> dict[str, float]:
    """One round of one workload: `version` 0 makes the tables and fills them, 1 updates their rows."""
    records = list(records_of(rows, version))
    place = SinkPlace(f"r{number}", folder, ("bench.*",))
    gc.freeze()  # a consumer does not hold its backlog in memory, and its collector does not look at one
    taken = {"sink": _into_sink(dsn, place, records)}
    with psycopg.connect(dsn) as connection:
        _check(connection, f"{place.consumer}_bench.events", rows, version)
    del records
    values = [row_of(key, version) for key in range(rows)]
    gc.freeze()
    for name, write in _BARE.items():
        table = f"bare_{name}_{number}"
        with psycopg.connect(dsn, autocommit=True) as connection:
            if version == 0:
                connection.execute(f"CREATE TABLE {table} (LIKE public.events INCLUDING ALL)".encode())
            begin = time.perf_counter()
            for start in range(0, rows, BATCH):
                with connection.transaction():
                    write(connection, table, values[start : start + BATCH])
            taken[name] = time.perf_counter() - begin
            _check(connection, table, rows, version)
    gc.unfreeze()
    return taken


def _into_sink(dsn: str, place: SinkPlace, records: Sequence[Record]) -> float:
    with closing(open_sink("postgres", {"dsn": dsn, "into": f"{place.consumer}_{{schema}}"}, place)) as sink:
        return into_sink(sink, records)


def _unnest(connection: psycopg.Connection, table: str, rows: Sequence[Row]) -> None:
    arrays = ", ".join(f"%s::{kind}[]" for kind in TYPES)
    statement = f"INSERT INTO {table} SELECT * FROM unnest({arrays}) {_CONFLICT}"
    connection.execute(statement.encode(), [list(column) for column in zip(*rows, strict=True)])


def _staging(connection: psycopg.Connection, table: str, rows: Sequence[Row]) -> None:
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS staged (LIKE {table}) ON COMMIT DELETE ROWS".encode())
    with connection.cursor().copy(b"COPY staged FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    connection.execute(f"INSERT INTO {table} SELECT * FROM staged {_CONFLICT}".encode())


def _executemany(connection: psycopg.Connection, table: str, rows: Sequence[Row]) -> None:
    places = ", ".join(["%s"] * len(NAMES))
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} VALUES ({places}) {_CONFLICT}".encode(), rows)


_BARE: dict[str, Callable[[psycopg.Connection, str, Sequence[Row]], None]] = {
    "unnest": _unnest,
    "staging": _staging,
    "executemany": _executemany,
}


def _check(connection: psycopg.Connection, table: str, rows: int, version: int) -> None:
    """The table holds every row, in its last version."""
    query = f"SELECT count(*), count(*) FILTER (WHERE amount = (id + {version}) * 0.01) FROM {table}"
    if connection.execute(query.encode()).fetchone() != (rows, rows):
        raise RuntimeError(f"{table} does not hold the rows that were written")
