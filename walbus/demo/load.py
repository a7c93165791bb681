"""Drives the shop's work at a rate: a few sessions, each a thread with a connection and keys of its own.

Each transaction goes to the server as one pipeline. A session that falls behind its schedule by more than a second
lets the missed ones go, so that a slow machine lowers the rate instead of ending in a burst.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from itertools import groupby
from typing import LiteralString

import psycopg

from walbus.demo.shop_schema import SCHEMA
from walbus.demo.workload import Shop, Statement, Work
from walbus.errors import SourceUnavailable

_SESSIONS = 4
_TOLERATED_DELAY = 1.0


class ShopLoad:
    """The shop's tables and the sessions that work on them.

    Args:
        dsn: of an empty database.
        rate: transactions a second, all sessions together.
        seed: decides all of the work.
    """

    def __init__(self, dsn: str, *, rate: float, seed: int) -> None:
        self._dsn = dsn
        self._rate = rate
        self._shops = [Shop(random.Random(seed + i), i, _SESSIONS) for i in range(_SESSIONS)]  # noqa: S311 (no secret)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._done = [0] * _SESSIONS

    @property
    def transactions(self) -> int:
        """Transactions that committed so far, the opening not counted."""
        return sum(self._done)

    def prepare(self, rows: int) -> None:
        """Makes the tables and fills them with about `rows` rows."""
        with psycopg.connect(self._dsn) as connection:
            connection.execute(SCHEMA)
            for shop in self._shops:
                _execute_grouped(connection, shop.opening(rows // _SESSIONS))
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")

    def start(self) -> None:
        """Starts the sessions."""
        for number in range(_SESSIONS):
            thread = threading.Thread(target=self._session, args=(number,), name=f"load-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ends the sessions after their current transaction.

        Raises:
            SourceUnavailable: one of them failed meanwhile.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        if self._failure is not None:
            raise SourceUnavailable(f"the load failed: {self._failure}") from self._failure

    def _session(self, number: int) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                self._work(number, connection)
        except Exception as error:
            self._failure = error

    def _work(self, number: int, connection: psycopg.Connection) -> None:
        pause = _SESSIONS / self._rate
        due = time.monotonic() + pause * number / _SESSIONS
        for work in self._shops[number].work():
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            perform(connection, work)
            self._done[number] += work.commits
            due = max(due + pause, time.monotonic() - _TOLERATED_DELAY)


def perform(connection: psycopg.Connection, work: Work) -> None:
    """One transaction on an autocommit connection, as one pipeline."""
    with connection.pipeline():
        connection.execute("BEGIN")
        for statement in work.statements:
            connection.execute(statement.sql, statement.parameters)
        connection.execute("COMMIT" if work.commits else "ROLLBACK")


def _execute_grouped(connection: psycopg.Connection, statements: Iterable[Statement]) -> None:
    def sql_of(statement: Statement) -> LiteralString:
        return statement.sql

    for sql, group in groupby(statements, key=sql_of):
        connection.cursor().executemany(sql, [statement.parameters for statement in group])
