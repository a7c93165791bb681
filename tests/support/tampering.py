"""Rows of `ModelSource` in a sink, changed by hand behind its back: in SQL, or by the commands of Redis."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol

import psycopg
import redis

from support.model_source import ITEMS
from support.sinks_under_test import SinkUnderTest


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
    """For a sink of SQLite, PostgreSQL or Redis."""
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


def beside(key: str) -> str:
    """Where the consumer `test` has the version of a row that is a text."""
    return f"walbus:test:v:{key}"
