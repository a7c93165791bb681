"""The PostgreSQL sink against a bare batched upsert of the same rows into the same server.

Two workloads, each of as many rows: inserts of distinct keys into an empty table, and updates of the rows that are then
there; in transactions of a hundred rows. The sink gets the log's records in memory, decodes them, and writes and
commits ten thousand changes at a time, as the runner does that is behind. The references get the rows as Python values,
and write and commit as many at a time, in three forms: an array for each column (`unnest`), COPY into a staging table,
and psycopg's `executemany`, all of them INSERT … ON CONFLICT DO UPDATE. The ratio is to the fastest of the three.
Medians over the rounds; each round has tables of its own.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg

from report import Report
from source import Source, open_server
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.events import window_of
from walbus.records import Flag, Kind, Op, RecordHeader, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

_BATCH, _PER_TRANSACTION = 10_000, 100
_MARKS = Marks(1, 1)
_NAMES = ("id", "account", "kind", "amount", "at", "note")
_TYPES = ("int8", "int4", "text", "numeric", "timestamptz", "text")
_OIDS = (20, 23, 25, 1700, 1184, 25)
_LAYOUT = TableSchema(
    1,
    16_400,
    "bench",
    "events",
    ReplicaIdentity.DEFAULT,
    tuple(
        Column(name, oid, kind, -1, in_key=name == "id") for name, oid, kind in zip(_NAMES, _OIDS, _TYPES, strict=True)
    ),
)
_SETS = ", ".join(f"{name} = excluded.{name}" for name in _NAMES[1:])
_CONFLICT = f"ON CONFLICT (id) DO UPDATE SET {_SETS}"

Row = tuple[int, int, str, Decimal, datetime, str]
Record = tuple[RecordHeader, bytes]


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
    records = list(_records(rows, version))
    place = SinkPlace(f"r{number}", folder, ("bench.*",))
    gc.freeze()  # a consumer does not hold its backlog in memory, and its collector does not look at one
    taken = {"sink": _into_sink(dsn, place, records)}
    with psycopg.connect(dsn) as connection:
        _check(connection, f"{place.consumer}_bench.events", rows, version)
    del records
    values = [_row(key, version) for key in range(rows)]
    gc.freeze()
    for name, write in _BARE.items():
        table = f"bare_{name}_{number}"
        with psycopg.connect(dsn, autocommit=True) as connection:
            if version == 0:
                connection.execute(f"CREATE TABLE {table} (LIKE public.events INCLUDING ALL)".encode())
            begin = time.perf_counter()
            for start in range(0, rows, _BATCH):
                with connection.transaction():
                    write(connection, table, values[start : start + _BATCH])
            taken[name] = time.perf_counter() - begin
            _check(connection, table, rows, version)
    gc.unfreeze()
    return taken


def _into_sink(dsn: str, place: SinkPlace, records: Sequence[Record]) -> float:
    sink = open_sink("postgres", {"dsn": dsn, "into": f"{place.consumer}_{{schema}}"}, place)
    sink.checkpoint()
    begin = time.perf_counter()
    for batch in _batched(records):
        windows = [window_of(header, record, {1: _LAYOUT}.__getitem__) for header, record in batch]
        sink.write(windows, _MARKS)
        sink.commit(Following("bench", _MARKS, Point(windows[-1].last, windows[-1].last_seq)))
    taken = time.perf_counter() - begin
    sink.close()
    return taken


def _batched(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    size = _BATCH // _PER_TRANSACTION
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _row(key: int, version: int) -> Row:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return key, key % 1000, f"kind-{key % 7}", Decimal(key + version).scaleb(-2), at, f"{key:032x}{version:032x}"


def _records(rows: int, version: int) -> Iterator[Record]:
    encoder = row_encoder(_LAYOUT)
    op = Op.UPDATE if version else Op.INSERT
    for start in range(0, rows, _PER_TRANSACTION):
        keys = range(start, min(rows, start + _PER_TRANSACTION))
        body = bytearray()
        for delta, key in enumerate(keys):
            row = _row(key, version)
            texts = [str(value).encode() for value in row[:4]] + [b"2026-01-01 00:00:00+00", row[5].encode()]
            parts = {"table": _LAYOUT.oid, "schema_id": 1, "seq_delta": delta, "ordinal_delta": delta}
            body += pack_change(op, key=encoder.key(texts), after=encoder.encode(texts), **parts)
        first_seq = 1 + version * rows + start
        record = pack_record(
            Kind.TRANSACTION,
            flags=Flag.BEGIN | Flag.END,
            epoch=1,
            commit_lsn=first_seq * 16,
            end_lsn=first_seq * 16 + 8,
            first_ordinal=1,
            last_ordinal=len(keys),
            first_seq=first_seq,
            last_seq=first_seq + len(keys) - 1,
            xid=1,
            commit_time=0,
            count=len(keys),
            tables=1,
            body=bytes(body),
        )
        yield read_header(record), record


def _unnest(connection: psycopg.Connection, table: str, rows: Sequence[Row]) -> None:
    arrays = ", ".join(f"%s::{kind}[]" for kind in _TYPES)
    statement = f"INSERT INTO {table} SELECT * FROM unnest({arrays}) {_CONFLICT}"
    connection.execute(statement.encode(), [list(column) for column in zip(*rows, strict=True)])


def _staging(connection: psycopg.Connection, table: str, rows: Sequence[Row]) -> None:
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS staged (LIKE {table}) ON COMMIT DELETE ROWS".encode())
    with connection.cursor().copy(b"COPY staged FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    connection.execute(f"INSERT INTO {table} SELECT * FROM staged {_CONFLICT}".encode())


def _executemany(connection: psycopg.Connection, table: str, rows: Sequence[Row]) -> None:
    places = ", ".join(["%s"] * len(_NAMES))
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
