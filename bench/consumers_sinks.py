"""The Redis, SQLite and tantivy sinks, each against a bare batched write of the same rows to the same kind of place.

The rows and the two workloads are those of `sink_rows`. Redis: one server for both, hashes of the rows' texts, a
pipeline of HSET for each batch. SQLite: one `executemany` of INSERT … ON CONFLICT DO UPDATE for each batch, in a file
with the sink's own settings. tantivy: its own writer with the sink's schema and memory, a document each of the same
fields and texts, an update being a delete by name and another document; a commit for each batch. The references get
ready values of Python, and keep neither versions nor a checkpoint. Medians over the rounds; each round has places of
its own, and the order changes.
"""

from __future__ import annotations

import gc
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import msgspec
import redis
import tantivy

from report import Report
from sink_rows import BATCH, NAMES, Record, Row, into_sink, records_of, row_of
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.consumers.sinks.tantivy_index import index_schema
from walbus.demo.cache_server import RedisServer

_HEAP_MB = 64
_SQL_TYPES = ("INTEGER", "INTEGER", "TEXT", "TEXT", "TEXT", "TEXT")


class _Side(Protocol):
    """Writes all rows of a version; gives the seconds."""

    def __call__(self, folder: Path, version: int) -> float: ...


def run(rows: int, rounds: int) -> Report:
    """Measures both workloads of the three sinks."""
    report = Report(
        "consumers-sinks",
        "The Redis, SQLite and tantivy sinks",
        ("workload", "what", "seconds", "rows/s"),
        notes=["Medians over the rounds; what is bare has no versions and no checkpoint."],
    )
    records = [list(records_of(rows, version)) for version in (0, 1)]
    gc.freeze()  # a consumer does not hold its backlog in memory, and its collector does not look at one
    with tempfile.TemporaryDirectory(prefix="walbus-bench-") as folder, RedisServer(Path(folder)) as server:
        places: dict[str, tuple[_Side, _Side]] = {
            "redis/hset": (_sink("redis", records, {"url": server.url}), _bare_redis(server.url, rows)),
            "sqlite/upsert": (_sink("sqlite", records, {}), _bare_sqlite(rows)),
            "tantivy/writer": (_sink("tantivy", records, {"heap_mb": _HEAP_MB}), _bare_tantivy(rows)),
        }
        for name, sides in places.items():
            _measure(report, name, sides, rows, rounds)
    gc.unfreeze()
    return report


def _measure(report: Report, name: str, sides: tuple[_Side, _Side], rows: int, rounds: int) -> None:
    taken: dict[tuple[str, int], list[float]] = {}
    kind, _, bare = name.partition("/")
    sink = f"{kind} sink"
    order = list(zip((sink, bare), sides, strict=True))
    for number in range(rounds):
        for what, side in order if number % 2 == 0 else order[::-1]:
            with tempfile.TemporaryDirectory(prefix="walbus-bench-") as folder:
                for version in (0, 1):
                    taken.setdefault((what, version), []).append(side(Path(folder), version))
    medians = {key: statistics.median(seconds) for key, seconds in taken.items()}
    for version, workload in enumerate(("insert", "update")):
        for what in (sink, bare):
            seconds = medians[what, version]
            report.row(f"{rows:,} rows, {workload}", what, f"{seconds:.2f}", f"{rows / seconds:,.0f}")
        report.ratio(f"{name} {workload}", medians[bare, version] / medians[sink, version])


def _sink(kind: str, records: Sequence[Sequence[Record]], options: dict[str, Any]) -> _Side:
    def write(folder: Path, version: int) -> float:
        place = SinkPlace(f"bench{abs(hash(folder))}", folder, ("bench.*",))
        key = {"key": f"{place.consumer}:{{table}}:{{key}}"} if kind == "redis" else {}
        with closing(open_sink(kind, {**options, **key}, place)) as sink:
            return into_sink(sink, records[version])

    return write


def _batches(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]


def _timed(values: list[Any], write: Callable[[list[Any]], object]) -> float:
    begin = time.perf_counter()
    for batch in _batches(values):
        write(batch)
    return time.perf_counter() - begin


# Bare


def _texts(row: Row) -> dict[str, str]:
    return {name: str(value) for name, value in zip(NAMES, row, strict=True)}


def _bare_redis(url: str, rows: int) -> _Side:
    def write(folder: Path, version: int) -> float:
        prefix = f"bare{abs(hash(folder))}"
        hashes = [(f"{prefix}:bench.events:{key}", _texts(row_of(key, version))) for key in range(rows)]
        with redis.Redis.from_url(url) as client:

            def send(batch: list[tuple[str, dict[str, str]]]) -> None:
                with client.pipeline(transaction=False) as pipeline:
                    for key, fields in batch:
                        pipeline.hset(key, mapping=fields)
                    pipeline.execute()

            seconds = _timed(hashes, send)
            _check(
                client.hget(f"{prefix}:bench.events:{rows - 1}", "amount"), _texts(row_of(rows - 1, version))["amount"]
            )
            return seconds

    return write


def _bare_sqlite(rows: int) -> _Side:
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(NAMES, _SQL_TYPES, strict=True))
    sets = ", ".join(f"{name} = excluded.{name}" for name in NAMES[1:])
    upsert = f"INSERT INTO events VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET {sets}"

    def write(folder: Path, version: int) -> float:
        values = [(*row[:3], *map(str, row[3:])) for row in (row_of(key, version) for key in range(rows))]
        with closing(sqlite3.connect(folder / "bare.sqlite", isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"CREATE TABLE IF NOT EXISTS events ({columns}, PRIMARY KEY (id))")

            def send(batch: list[tuple[Any, ...]]) -> None:
                database.execute("BEGIN")
                database.executemany(upsert, batch)
                database.execute("COMMIT")

            seconds = _timed(values, send)
            _check(database.execute("SELECT count(*) FROM events").fetchone()[0], rows)
            return seconds

    return write


def _bare_tantivy(rows: int) -> _Side:
    changes = [list(_documents(rows, version)) for version in (0, 1)]

    def write(folder: Path, version: int) -> float:
        path = folder / "bare"
        path.mkdir(exist_ok=True)
        index = tantivy.Index(index_schema(), path=str(path))
        writer = index.writer(_HEAP_MB << 20, 1)

        def send(batch: list[tuple[str, str, list[str]]]) -> None:
            for name, source, texts in batch:
                if version:
                    writer.delete_documents_by_term("_id", name)
                document = tantivy.Document()
                document.add_text("_id", name)
                document.add_text("_table", "bench.events")
                document.add_unsigned("_seq", 1)
                document.add_unsigned("_mark", 1)
                document.add_bytes("_source", source.encode())
                document.add_json("row", source)
                for text in texts:
                    document.add_text("text", text)
                writer.add_document(document)
            writer.commit()

        seconds = _timed(changes[version], send)
        writer.wait_merging_threads()  # they write into the folder yet, which is deleted next
        index.reload()
        _check(index.searcher().num_docs, rows)
        return seconds

    return write


def _documents(rows: int, version: int) -> Iterator[tuple[str, str, list[str]]]:
    """Name, JSON and texts of each row, as the sink has them."""
    for key in range(rows):
        row = row_of(key, version)
        fields = dict(zip(NAMES, (row[0], row[1], row[2], str(row[3]), str(row[4]), row[5]), strict=True))
        texts = [value for value in fields.values() if isinstance(value, str)]
        yield f"bench.events/{key}", msgspec.json.encode(fields).decode(), texts


def _check(found: object, expected: object) -> None:
    told = found.decode() if isinstance(found, bytes) else found
    if told != expected:
        raise RuntimeError(f"{expected!r} was written, and {told!r} is there")
