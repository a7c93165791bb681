"""Walbus beside pgsync, each with the same changes to catch up with: inserts that were made while it was stopped.

Each has a database of its own with the same table, is set up on it while it is empty, and stopped. Then the rows come,
in transactions of a hundred. What is timed is from the start of the processes until the last row is there: pgsync's one
process with its own defaults (`pgsync --config`, and `--wal`, which reads its slot as a stream), which ends by itself
where it does not follow; all rooms of Walbus (`walbus run`: the source's slot into the durable log, relay, bootstrap,
one consumer). pgsync writes to OpenSearch alone, and needs a Redis for its own notes. Walbus fills an index on the same
OpenSearch, which is the comparison of like with like; and then hashes in the same Redis, another place than pgsync's.
The start of each counts, some seconds.

A first `helpers.parallel_bulk` of the same rows warms the server, and is not counted. A second one, from rows that lie
in memory into an index as the server makes it by itself, tells about how much one process can hand to that server.

In the end each place of pgsync and of Walbus holds every row of the source, compared value by value. pgsync comes from
PyPI into an environment of its own that is gone afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import redis
from opensearchpy import OpenSearch, helpers
from psycopg.conninfo import conninfo_to_dict

from report import Report
from rooms import open_rooms
from source import Source, open_server
from walbus.demo.cache_server import RedisServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from support.opensearch_server import emptied, local_opensearch
from support.postgres_programs import programs_of
from support.server_folder import disk_folder

VERSION = "7.3.0"
_JAVA = ("java", "-Xms1g", "-Xmx1g")
_PER_TRANSACTION = 100
_DEADLINE = 1_800.0
_INDEX, _COPY = "public.events", "reference"
_COLUMNS = ("id", "account", "kind", "amount", "at", "note")
_LOOK_SECONDS = 0.5  # a look has OpenSearch make what is new searchable, which costs it something
_SETTINGS = {"number_of_replicas": 0}


@dataclass(frozen=True, slots=True)
class _Places:
    """Where rows go: addresses of OpenSearch and of Redis; and the folder of pgsync's programs."""

    search: str
    cache: str
    programs: Path


def run(rows: int) -> Report:
    """Measures `rows` inserts, once: pgsync takes minutes."""
    report = Report(
        "consumers-pgsync",
        "Walbus beside pgsync",
        ("rows", "what", "seconds", "rows/s"),
        notes=["From the start of the processes, which takes each some seconds."],
    )
    with (
        open_server(programs_of("18", contrib=True)) as (server, folder),  # pgsync reads its slot by test_decoding
        TemporaryDirectory(prefix="walbus-bench-") as packages,
        RedisServer(folder / "redis") as cache,
        local_opensearch(_JAVA, place=disk_folder) as search,
    ):
        programs = Path(packages) / "bin"
        subprocess.run([sys.executable, "-m", "venv", packages], check=True)
        pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"pgsync=={VERSION}"], check=True)
        places = _Places(search.url, cache.url, programs)
        ways: dict[str, Callable[[Source, Path], float]] = {
            "pgsync": lambda source, place: _pgsync(source, place, places, rows, []),
            "pgsync --wal": lambda source, place: _pgsync(source, place, places, rows, ["--wal"]),
            "Walbus, into OpenSearch": lambda source, place: _into_search(source, place, places, rows),
            "Walbus, into Redis": lambda source, place: _into_redis(source, place, places, rows),
            "parallel_bulk": lambda source, _: _parallel_bulk(source, places, rows),
        }
        seconds: dict[str, float] = {}
        _parallel_bulk(Source(server, "warm"), places, rows)
        for number, (name, way) in enumerate(ways.items()):
            emptied(search.url)
            with redis.Redis.from_url(cache.url) as client:
                client.flushall()
            seconds[name] = way(Source(server, f"sync_{number}"), folder / f"place{number}")
            report.row(f"{rows:,}", name, f"{seconds[name]:.2f}", f"{rows / seconds[name]:,.0f}")
    best = min(seconds["pgsync"], seconds["pgsync --wal"])
    report.ratio("opensearch/pgsync", best / seconds["Walbus, into OpenSearch"])
    report.ratio("redis/pgsync", best / seconds["Walbus, into Redis"])
    report.ratio("parallel_bulk/pgsync", best / seconds["parallel_bulk"])
    return report


# pgsync


def _pgsync(source: Source, place: Path, places: _Places, rows: int, options: list[str]) -> float:
    place.mkdir()
    document = {"database": source.database, "index": "events", "nodes": {"table": "events", "schema": "public"}}
    config = place / "schema.json"
    config.write_text(json.dumps([{**document, "setting": _SETTINGS}]))
    environment = {**os.environ, **_addresses(source, places), "CHECKPOINT_PATH": str(place)}

    def command(program: str, *arguments: str) -> list[str]:
        return [str(places.programs / program), "--config", str(config), *arguments]

    with (place / "log").open("w") as log:

        def run_once(program: str, *arguments: str) -> None:
            told = command(program, *arguments)
            subprocess.run(told, check=True, env=environment, cwd=place, stdout=log, stderr=log, timeout=300)

        try:
            run_once("bootstrap")  # slot and triggers
            run_once("pgsync")
            source.many_transactions(rows, _PER_TRANSACTION)
            begin = time.perf_counter()
            with subprocess.Popen(
                command("pgsync", *options), env=environment, cwd=place, stdout=log, stderr=log
            ) as process:
                try:
                    _await(lambda: _documents(places.search, "events") >= rows, lambda: _ended(process, rows, places))
                    seconds = time.perf_counter() - begin
                finally:
                    process.kill()
            _check(source, _searched(places.search, "events"))
            run_once("bootstrap", "--teardown")
        except (subprocess.SubprocessError, RuntimeError) as error:
            raise RuntimeError(f"pgsync: {error}\n{(place / 'log').read_text()[-3000:]}") from None
    return seconds


def _addresses(source: Source, places: _Places) -> dict[str, str]:
    parts = {name: str(value) for name, value in conninfo_to_dict(source.dsn).items()}
    search, cache = urlsplit(places.search), urlsplit(places.cache)
    return {
        "PG_HOST": parts["host"],
        "PG_PORT": parts["port"],
        "PG_USER": parts["user"],
        "PG_PASSWORD": parts.get("password", ""),
        "PG_DATABASE": source.database,
        "OPENSEARCH": "true",
        "ELASTICSEARCH": "false",
        "ELASTICSEARCH_HOST": str(search.hostname),
        "ELASTICSEARCH_PORT": str(search.port),
        "REDIS_HOST": str(cache.hostname),
        "REDIS_PORT": str(cache.port),
        "LOG_LEVEL": "ERROR",
    }


def _ended(process: subprocess.Popen[bytes], rows: int, places: _Places) -> bool:
    """Whether it has ended without having written all; one that has written all may end."""
    return process.poll() is not None and _documents(places.search, "events") < rows


# Walbus


@contextmanager
def _walbus(source: Source, place: Path, sink: Mapping[str, str], rows: int) -> Iterator[Callable[[], None]]:
    """Rooms that were set up on the empty table, and stopped before the rows came; starts them."""
    with open_rooms(source, place, start="snapshot", sink=sink) as rooms:
        rooms.wait(lambda: rooms.status("consumer-cache").get("phase") == "online", 60)
        rooms.stop()
        source.many_transactions(rows, _PER_TRANSACTION)
        yield rooms.start


def _into_search(source: Source, place: Path, places: _Places, rows: int) -> float:
    with _walbus(source, place, {"sink": "opensearch", "url": places.search}, rows) as start:
        begin = time.perf_counter()
        start()
        _await(lambda: _documents(places.search, _INDEX) >= rows)
        seconds = time.perf_counter() - begin
        _check(source, _searched(places.search, _INDEX))
    return seconds


def _into_redis(source: Source, place: Path, places: _Places, rows: int) -> float:
    with (
        redis.Redis.from_url(places.cache, decode_responses=True) as client,
        _walbus(source, place, {"sink": "redis", "url": places.cache}, rows) as start,
    ):
        begin = time.perf_counter()
        start()
        _await(lambda: bool(client.exists(f"{_INDEX}:{rows}")))
        seconds = time.perf_counter() - begin
        _check(source, _cached(client, rows))
    return seconds


def _parallel_bulk(source: Source, places: _Places, rows: int) -> float:
    source.many_transactions(rows, _PER_TRANSACTION)
    httpx.put(f"{places.search}/{_COPY}", json={"settings": _SETTINGS}, timeout=30).raise_for_status()
    with psycopg.connect(source.dsn) as connection:
        cursor = connection.execute("SELECT id, account, kind, amount::text, at::text, note FROM events")
        names = [column.name for column in cursor.description or ()]
        documents = [dict(zip(names, row, strict=True)) for row in cursor]
    actions = [{"_index": _COPY, "_id": row["id"], "_source": row} for row in documents]
    with OpenSearch(places.search) as client:
        begin = time.perf_counter()
        deque(helpers.parallel_bulk(client, actions, chunk_size=5_000), maxlen=0)
        seconds = time.perf_counter() - begin
    if _documents(places.search, _COPY) < rows:
        raise RuntimeError("parallel_bulk has lost documents")
    return seconds


# What is there


def _await(done: Callable[[], bool], failed: Callable[[], bool] = lambda: False) -> None:
    end = time.monotonic() + _DEADLINE
    while not done():
        if failed() or time.monotonic() > end:
            raise RuntimeError("the rows did not all get there")
        time.sleep(_LOOK_SECONDS)


def _documents(url: str, index: str) -> int:
    """How many documents an index has, those included that no search finds yet."""
    httpx.post(f"{url}/{index}/_refresh", timeout=60)
    answer = httpx.get(f"{url}/{index}/_count", timeout=60)
    return int(answer.json()["count"]) if answer.is_success else 0


def _searched(url: str, index: str) -> Iterator[tuple[Any, ...]]:
    with OpenSearch(url) as client:
        for hit in helpers.scan(client, index=index, size=5_000):
            yield _values([hit["_source"][name] for name in _COLUMNS])


def _cached(client: redis.Redis, rows: int) -> Iterator[tuple[Any, ...]]:
    for first in range(1, rows + 1, 5_000):
        with client.pipeline(transaction=False) as pipeline:
            for key in range(first, min(first + 5_000, rows + 1)):
                pipeline.hmget(f"{_INDEX}:{key}", *_COLUMNS)
            yield from map(_values, pipeline.execute())


def _values(texts: Sequence[Any]) -> tuple[Any, ...]:
    """A row as Python has it, from JSON or from texts; one that is not there differs from all."""
    if None in texts:
        return (None,)
    id_, account, kind, amount, at, note = map(str, texts)
    return int(id_), int(account), kind, Decimal(amount), datetime.fromisoformat(at), note


def _check(source: Source, found: Iterator[tuple[Any, ...]]) -> None:
    """Compares what is there with the source, value by value."""
    there = {row[0]: row for row in found}
    with psycopg.connect(source.dsn) as connection:
        rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM events".encode()).fetchall()
    differ = sum(there.get(row[0]) != row for row in rows) + len(there) - len(rows)
    if differ:
        raise RuntimeError(f"{differ} of {len(rows)} rows differ")
