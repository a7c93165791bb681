"""Concurrent writers for tests of capture: everything that a transaction can hold, from several sessions at once.

with Writers(database, seed, transactions=60) as writers:   # makes its tables; each session on a thread
    writers.join()                                          # until all of them are done; raises what ended one

Each transaction holds some of: inserts of few or many rows, updates, key changes, deletes, savepoints with partial
rollback, TRUNCATE, DDL (columns added, dropped, renamed), logical messages in and out of transactions; some roll back.
Deadlocks end the transaction, as they would an application's.
"""

from __future__ import annotations

import random
import threading
from contextlib import closing
from types import TracebackType
from typing import Self

import psycopg

from support.database import Database

TABLES = ("alpha", "beta", "gamma")


class Writers:
    """Sessions that write until each has done its share.

    Args:
        database: where; the tables are made at once.
        seed: of everything that they do.
        sessions: how many.
        transactions: of each session.
    """

    def __init__(self, database: Database, seed: int, *, sessions: int = 4, transactions: int = 60) -> None:
        self._database = database
        self._transactions = transactions
        self._error: BaseException | None = None
        for table in TABLES:
            database.execute(f"CREATE TABLE IF NOT EXISTS {table} (id bigint PRIMARY KEY, a int, note text)")
        database.execute(f"ALTER TABLE {TABLES[-1]} REPLICA IDENTITY FULL")
        self._threads = [
            threading.Thread(target=self._write, args=(number, random.Random(f"{seed}-{number}")), daemon=True)
            for number in range(sessions)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.join()

    @property
    def running(self) -> bool:
        """Whether any of them still writes."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self, deadline: float = 120) -> None:
        """Waits for all of them; raises what ended one too early."""
        for thread in self._threads:
            thread.join(deadline)
            assert not thread.is_alive(), "a writer does not end"
        if self._error is not None:
            raise self._error

    def _write(self, number: int, dice: random.Random) -> None:
        try:
            with closing(psycopg.connect(self._database.dsn, autocommit=True)) as session:
                session.execute("SET deadlock_timeout = '20ms'")
                for turn in range(self._transactions):
                    Transaction(session, dice, first_id=(number * 10_000 + turn) * 10_000).run()
        except BaseException as error:  # the test looks at it
            self._error = error


class Transaction:
    """One transaction of a writer; its ids begin at `first_id`, so that sessions seldom collide."""

    def __init__(self, session: psycopg.Connection, dice: random.Random, first_id: int) -> None:
        self._session = session
        self._dice = dice
        self._next = first_id
        self._acts = [self._insert, self._insert, self._update, self._delete, self._move_key, self._savepoint]

    def run(self) -> None:
        try:
            with self._session.transaction() as whole:
                for _ in range(self._dice.randrange(1, 6)):
                    self._dice.choice(self._acts)()
                self._seldom()
                if self._dice.random() < 0.08:
                    raise psycopg.Rollback(whole)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.UndefinedColumn, psycopg.errors.DuplicateColumn):
            pass
        if self._dice.random() < 0.1:
            self._message(transactional=False)

    def _seldom(self) -> None:
        fate = self._dice.random()
        if fate < 0.02:
            self._sql(f"TRUNCATE {self._table()}")
        elif fate < 0.06:
            self._ddl()
        elif fate < 0.1:
            self._insert(self._dice.randrange(500, 4000))
        elif fate < 0.2:
            self._message(transactional=True)

    def _insert(self, rows: int = 0) -> None:
        rows = rows or self._dice.randrange(1, 8)
        first, self._next = self._next, self._next + rows
        note = "'n' || i || repeat('x', mod(i, 50)::int)" if self._dice.random() < 0.9 else "repeat('toast' || i, 900)"
        self._sql(
            f"INSERT INTO {self._table()} (id, a, note) SELECT i, mod(i, 9), {note}"
            f" FROM generate_series({first}::bigint, {first + rows - 1}) i"
        )

    def _update(self) -> None:
        self._sql(f"UPDATE {self._table()} SET a = a + 1 WHERE id IN ({self._some(20)})")

    def _delete(self) -> None:
        self._sql(f"DELETE FROM {self._table()} WHERE id IN ({self._some(3)})")

    def _move_key(self) -> None:
        self._sql(f"UPDATE {self._table()} SET id = -id WHERE id IN ({self._some(2)})")

    def _savepoint(self) -> None:
        with self._session.transaction() as inner:
            self._insert()
            self._update()
            if self._dice.random() < 0.5:
                raise psycopg.Rollback(inner)

    def _ddl(self) -> None:
        table, column = self._table(), f"c{self._dice.randrange(3)}"
        kind = self._dice.randrange(3)
        if kind == 0:
            self._sql(f"ALTER TABLE {table} ADD COLUMN {column} int DEFAULT 7")
        elif kind == 1:
            self._sql(f"ALTER TABLE {table} DROP COLUMN IF EXISTS {column}")
        else:
            self._sql(f"ALTER TABLE {table} ALTER COLUMN a TYPE bigint")
        self._insert()

    def _message(self, *, transactional: bool) -> None:
        self._sql(f"SELECT pg_logical_emit_message({transactional}, 'outbox', 'message {self._next}')")

    def _some(self, rows: int) -> str:
        """Ids of rows that are there."""
        return f"SELECT id FROM {self._table_again} WHERE id >= {self._dice.randrange(40_000) * 10_000} LIMIT {rows}"

    def _table(self) -> str:
        self._table_again = self._dice.choice(TABLES)
        return self._table_again

    def _sql(self, statement: str) -> None:
        self._session.execute(statement.encode())
