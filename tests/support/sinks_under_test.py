"""The sinks as the contract suite sees them: how to open one, and how to read it with its own client."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from support import plain_http
from support.redis_cluster import LocalCluster
from walbus.consumers.sinks import Sink, SinkPlace, open_sink

Row = dict[str, str | None]

#: Kinds whose rows stay, and which have any columns.
SINKS = ["sqlite", "postgres", "tantivy", "redis-hash", "redis-json", "cluster-hash", "opensearch", "elasticsearch"]


@dataclass(frozen=True)
class SinkUnderTest:
    """One kind of sink at one place; every `open` is another process's, as far as the sink can tell."""

    name: str
    options: dict[str, Any]
    place: SinkPlace
    read: Callable[[str], dict[str, Row]]  #: table to {id: row}, values as text

    holds_back: bool = False  #: whether a row of which a value is not known is not shown at all

    def open(self, **options: Any) -> Sink:
        return open_sink(self.name, {**self.options, **options}, self.place)

    def rows(self, table: str = "public.items") -> dict[str, Row]:
        return self.read(table)


def of_kind(kind: str, folder: Path, fixture: Callable[[str], Any]) -> SinkUnderTest:
    """A kind of sink at an empty place: one of `SINKS`, or another form of Redis or Kafka; `fixture` gives servers."""
    name, _, form = kind.partition("-")
    if name == "postgres":
        return postgres_under_test(folder, fixture("target_database").dsn)
    if name == "redis":
        given = {"pointer": "items:live"} if form == "pointer" else {}
        return redis_under_test(folder, fixture("redis_url"), "hash" if given else form, **given)
    if name == "cluster":
        return redis_cluster_under_test(folder, fixture("redis_cluster"), form)
    if name == "kafka":
        options = {"format": form, "database": "shop"} if form else {}
        return kafka_under_test(folder, fixture("kafka"), **options)
    if name in ("opensearch", "elasticsearch"):
        return opensearch_under_test(folder, fixture(f"{name}_url"), name)
    return sqlite_under_test(folder) if name == "sqlite" else tantivy_under_test(folder)


def sqlite_under_test(folder: Path) -> SinkUnderTest:
    path = folder / "replica.sqlite"

    def read(table: str) -> dict[str, Row]:
        name = table.removeprefix("public.")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone():
                return {}
            return dict(_as_text(dict(row)) for row in database.execute(f'SELECT * FROM "{name}"'))

    return SinkUnderTest("sqlite", {"path": path}, _place(folder), read)


def tantivy_under_test(folder: Path) -> SinkUnderTest:
    import tantivy

    path = folder / "index"

    def read(table: str) -> dict[str, Row]:
        index = tantivy.Index.open(str(path))
        searcher = index.searcher()
        query = tantivy.Query.term_query(index.schema, "_table", table)
        hits = searcher.search(query, max(1, searcher.num_docs)).hits
        sources = [json.loads(bytes(searcher.doc(address).get_first("_source"))) for _, address in hits]
        assert len({source["id"] for source in sources}) == len(sources), "a document twice"
        return dict(_as_text(source) for source in sources)

    return SinkUnderTest("tantivy", {"path": path, "heap_mb": 16}, _place(folder), read)


#: Rows of `ModelSource` as texts: NULL is as empty as an empty text is.
TEXTS = dict.fromkeys(("public.items", "public.things", "public.between"), "{id}|{name}|{body}")


def redis_under_test(folder: Path, url: str, form: str, **options: Any) -> SinkUnderTest:
    """`form` is the sink's format; `expiring`: hashes with a time to live."""
    import redis

    return _redis_under_test(folder, url, form, lambda: redis.Redis.from_url(url, decode_responses=True), options)


def redis_cluster_under_test(folder: Path, cluster: LocalCluster, form: str, **options: Any) -> SinkUnderTest:
    """As `redis_under_test`, on a cluster."""
    return _redis_under_test(folder, cluster.url, form, cluster.client, options)


def _redis_under_test(
    folder: Path, url: str, form: str, connect: Callable[[], Any], options: dict[str, Any]
) -> SinkUnderTest:
    def read(table: str) -> dict[str, Row]:
        with connect() as client:
            prefix = client.get(options["pointer"]) or "" if "pointer" in options else ""
            rows = [_redis_row(client, key, form) for key in client.scan_iter(match=f"{prefix}{table}:*")]
        return dict(_as_text(row) for row in rows)

    given: dict[str, Any] = {"url": url, "format": form}
    if form == "string":
        given["values"] = TEXTS
    elif form == "expiring":
        given |= {"format": "hash", "ttl": dict.fromkeys(TEXTS, 3600)}
    return SinkUnderTest("redis", given | options, _place(folder), read)


def _redis_row(client: Any, key: str, form: str) -> dict[str, Any]:
    if form == "json":
        return dict(json.loads(client.get(key)))
    if form == "string":
        return {
            name: text or None for name, text in zip(("id", "name", "body"), client.get(key).split("|"), strict=True)
        }
    return {"name": None, "body": None, **client.hgetall(key)}


def opensearch_under_test(folder: Path, url: str, name: str = "opensearch", **options: Any) -> SinkUnderTest:
    def read(table: str) -> dict[str, Row]:
        if plain_http.post(f"{url}/{table}/_refresh").status_code == httpx.codes.NOT_FOUND:
            return {}
        found = plain_http.post(f"{url}/{table}/_search", json={"size": 10_000}).json()
        sources = [{"name": None, "body": None, **hit["_source"]} for hit in found["hits"]["hits"]]
        assert len({source["id"] for source in sources}) == len(sources), "a document twice"
        return dict(_as_text(source) for source in sources)

    return SinkUnderTest(name, {"url": url, "commit_seconds": 0.01, **options}, _place(folder), read)


def kafka_under_test(folder: Path, bootstrap: str, **options: Any) -> SinkUnderTest:
    """Read with `read_committed`, compaction applied."""
    from support.topic_rows import TopicReader

    prefix = f"test-{secrets.token_hex(6)}"
    reader = TopicReader(bootstrap, prefix, options.get("schema_registry", {}).get("url"))

    def read(table: str) -> dict[str, Row]:
        rows = [_as_text(row) for row in reader.turned().rows(table)]
        assert len(dict(rows)) == len(rows), "a row under two keys"
        return dict(rows)

    given = {"bootstrap_servers": bootstrap, "prefix": prefix, "partitions": 3, **options}
    return SinkUnderTest("kafka", given, _place(folder), read, holds_back=True)


def postgres_under_test(folder: Path, dsn: str) -> SinkUnderTest:
    def read(table: str) -> dict[str, Row]:
        namespace, _, name = table.partition(".")
        with psycopg.connect(dsn, row_factory=dict_row) as connection:
            there = "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = %s"
            if connection.execute(there, [namespace, name]).fetchone() is None:
                return {}
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(namespace, name))
            return dict(_as_text(row) for row in connection.execute(query))

    return SinkUnderTest("postgres", {"dsn": dsn}, _place(folder), read)


def _place(folder: Path) -> SinkPlace:
    return SinkPlace("test", folder, ("public.*",))


def _as_text(row: dict[str, Any]) -> tuple[str, Row]:
    columns = {name: None if v is None else str(v) for name, v in row.items() if not name.startswith("_walbus")}
    return str(columns["id"]), columns
