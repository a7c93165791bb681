"""Rows of `ModelSource` in a sink, changed by hand behind its back: in SQL, by commands of Redis, or in an index."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol

import httpx
import psycopg
import redis

from support import plain_http
from support.model_source import ITEMS
from support.sinks_under_test import SinkUnderTest
from support.waiting import wait_for


class Hand(Protocol):
    """What somebody does to single rows."""

    def rename(self, id: int, name: str) -> None:
        """Gives a row another name, under the version that it has."""

    def remove(self, id: int, table: str = ITEMS) -> None:
        """Deletes a row, and its version."""

    def move(self, id: int, new_id: int) -> None:
        """Puts a row, with its version, where another one belongs."""

    def set_seq(self, id: int, seq: int) -> None:
        """Gives a row another version."""


def hand_of(under_test: SinkUnderTest) -> Hand:
    """For any sink that can be read back."""
    if under_test.name == "tantivy":
        return TantivyHand(under_test)
    if under_test.name in ("opensearch", "elasticsearch"):
        return SearchHand(under_test)
    return RedisHand(under_test) if under_test.name == "redis" else _SqlHand(under_test)


class _SqlHand:
    def __init__(self, under_test: SinkUnderTest) -> None:
        self._under_test = under_test

    def rename(self, id: int, name: str) -> None:
        self._run(f"UPDATE items SET name = '{name}' WHERE id = {id}")

    def remove(self, id: int, table: str = ITEMS) -> None:
        self._run(f"DELETE FROM {table.removeprefix('public.')} WHERE id = {id}")

    def move(self, id: int, new_id: int) -> None:
        self._run(f"UPDATE items SET id = {new_id} WHERE id = {id}")

    def set_seq(self, id: int, seq: int) -> None:
        self._run(f"UPDATE items SET _walbus_seq = {seq} WHERE id = {id}")

    def _run(self, statement: str) -> None:
        if self._under_test.name == "sqlite":
            with closing(sqlite3.connect(self._under_test.options["path"])) as database:
                database.execute(statement)
                database.commit()
            return
        with psycopg.connect(self._under_test.options["dsn"], autocommit=True) as connection:
            connection.execute(statement)


class RedisHand:
    """Rows below `{table}:{key}` in every form that a sink has."""

    def __init__(self, under_test: SinkUnderTest) -> None:
        self._url, self._is_hash = under_test.options["url"], under_test.options["format"] == "hash"

    def rename(self, id: int, name: str) -> None:
        key = f"{ITEMS}:{id}"
        with self.client() as client:
            if self._is_hash:
                client.hset(key, "name", name)
            else:
                before = client.get(key)
                client.set(key, before.replace(f"n{id}", name))
                assert client.get(key) != before, "the row is called by its id"

    def remove(self, id: int, table: str = ITEMS) -> None:
        with self.client() as client:
            client.delete(f"{table}:{id}", beside(f"{table}:{id}"))

    def move(self, id: int, new_id: int) -> None:
        old, new = f"{ITEMS}:{id}", f"{ITEMS}:{new_id}"
        with self.client() as client:
            client.rename(old, new)
            if client.exists(beside(old)):
                client.rename(beside(old), beside(new))

    def set_seq(self, id: int, seq: int) -> None:
        key = f"{ITEMS}:{id}"
        with self.client() as client:
            if self._is_hash:
                client.hset(key, "_walbus", f"{seq}:1")
            else:
                _, _, kept = client.get(beside(key)).partition("\n")
                client.set(beside(key), f"{seq}:1\n{kept}" if kept else f"{seq}:1")

    @contextmanager
    def client(self) -> Iterator[Any]:
        """The server itself; answers are texts."""
        with redis.Redis.from_url(self._url, decode_responses=True) as client:
            yield client


class TantivyHand:
    """Documents of an index whose writer is not open. A document is changed by writing another one instead."""

    def __init__(self, under_test: SinkUnderTest) -> None:
        self._path = str(under_test.options["path"])

    def rename(self, id: int, name: str) -> None:
        self._replace(id, source=lambda row: {**row, "name": name})

    def remove(self, id: int, table: str = ITEMS) -> None:
        with self._writer() as (_, writer):
            writer.delete_documents_by_term("_id", f"{table}/{id}")

    def move(self, id: int, new_id: int) -> None:
        self._replace(id, new_id, source=lambda row: {**row, "id": new_id})

    def set_seq(self, id: int, seq: int) -> None:
        self._replace(id, _seq=seq)

    def add(self, *documents: dict[str, Any]) -> None:
        """Adds documents of these fields, whatever is there."""
        import tantivy

        with self._writer() as (index, writer):
            for fields in documents:
                writer.add_document(tantivy.Document.from_dict(fields, index.schema))

    def fields(self, id: int) -> dict[str, Any]:
        """The stored fields of a row's document."""
        import tantivy

        index = tantivy.Index.open(self._path)
        searcher = index.searcher()
        ((_, address),) = searcher.search(tantivy.Query.term_query(index.schema, "_id", f"{ITEMS}/{id}"), 2).hits
        document = searcher.doc(address)
        named = {name: document.get_first(name) for name in ("_id", "_table", "_seq", "_mark")}
        return {**named, "_source": bytes(document.get_first("_source"))}

    def _replace(self, id: int, new_id: int | None = None, source: Any = None, **fields: Any) -> None:
        before = self.fields(id)
        row = json.loads(before["_source"])
        after = json.dumps(source(row) if source else row, separators=(",", ":")).encode()
        self.remove(id)
        self.add({**before, "_id": f"{ITEMS}/{id if new_id is None else new_id}", "_source": after, **fields})

    @contextmanager
    def _writer(self) -> Iterator[tuple[Any, Any]]:
        import tantivy

        index = tantivy.Index.open(self._path)
        writer = index.writer(16 << 20, 1)
        yield index, writer
        writer.commit()
        writer.wait_merging_threads()


class SearchHand:
    """Documents of an OpenSearch or Elasticsearch."""

    def __init__(self, under_test: SinkUnderTest) -> None:
        self._url = under_test.options["url"]

    def rename(self, id: int, name: str) -> None:
        found = self.get(id)
        self.put(id, {**found["_source"], "name": name}, found["_version"])

    def remove(self, id: int, table: str = ITEMS) -> None:
        self._ask("DELETE", f"/{table}/_doc/{id}").raise_for_status()

    def move(self, id: int, new_id: int) -> None:
        found = self.get(id)
        self.put(new_id, {**found["_source"], "id": new_id}, found["_version"])
        self.remove(id)

    def set_seq(self, id: int, seq: int) -> None:
        """A version never falls, but where a server has forgotten the document."""
        source = self.get(id)["_source"]
        self._ask("PUT", f"/{ITEMS}/_settings", {"index.gc_deletes": "0s"}).raise_for_status()
        self.remove(id)
        wait_for(lambda: self._forgotten(id, source, seq), what="the deleted document is forgotten")

    def get(self, id: int) -> Any:
        return self._ask("GET", f"/{ITEMS}/_doc/{id}").raise_for_status().json()

    def put(self, id: object, source: object, version: int | None = None) -> None:
        """Without a version the server gives it the next one, as to anybody who writes a document."""
        given = "" if version is None else f"?version={version}&version_type=external_gte"
        self._ask("PUT", f"/{ITEMS}/_doc/{id}{given}", source).raise_for_status()

    def put_text(self, id: object, text: bytes, form: str = "json") -> bool:
        """Whether the server takes this for a document, under the next version; it keeps it byte for byte."""
        return self._ask("PUT", f"/{ITEMS}/_doc/{id}", content=text, form=form).is_success

    def state(self, what: str, source: object | None = None, *, delete: bool = False) -> httpx.Response:
        """Reads, replaces or deletes a document that the sink keeps beside its checkpoints."""
        path = f"/walbus-consumers/_doc/{what}%3Atest"
        if delete:
            return self._ask("DELETE", path).raise_for_status()
        if source is None:
            return self._ask("GET", path).raise_for_status()
        content = source if isinstance(source, bytes) else json.dumps(source).encode()
        return self._ask("PUT", path, content=content).raise_for_status()

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Whatever the server can be asked for."""
        content = None if body is None else json.dumps(body).encode()
        return self._ask(method, path, content=content).raise_for_status()

    def _forgotten(self, id: int, source: object, seq: int) -> bool:
        self._ask("POST", f"/{ITEMS}/_refresh").raise_for_status()
        path = f"/{ITEMS}/_doc/{id}?version={seq}&version_type=external"
        return self._ask("PUT", path, source).status_code == httpx.codes.CREATED

    def _ask(
        self, method: str, path: str, body: object = None, content: bytes | None = None, form: str = "json"
    ) -> httpx.Response:
        given: Any = {"json": body}
        if content is not None:
            given = {"content": content, "headers": {"Content-Type": f"application/{form}"}}
        return plain_http.request(method, f"{self._url}{path}", **given, timeout=60)


def beside(key: str) -> str:
    """Where the consumer `test` has the version of a row that is a text."""
    return f"walbus:test:v:{key}"
