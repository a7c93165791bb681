"""Checkpoints in a PostgreSQL database.

Not in the source's: each checkpoint would be a commit there, which moves the log on, which makes another one due.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql

from walbus.consumer_reports import checked_name
from walbus.consumers.checkpoint_fence import FencedCheckpointStore, Replaced
from walbus.errors import CheckpointUnavailable, ConfigError

#: Seconds within which a server that is there answers.
_TIMEOUT_SECONDS: Final = 10
_SETTINGS: Final = (
    "SET synchronous_commit = on",
    f"SET statement_timeout = '{_TIMEOUT_SECONDS}s'",
    f"SET lock_timeout = '{_TIMEOUT_SECONDS}s'",
)


class PostgresCheckpointStore(FencedCheckpointStore):
    """A row of a table, which is made when it is missing; committed with `synchronous_commit = on`.

    Args:
        dsn: of the database, as libpq takes it.
        name: of the consumer.
        table: `name` or `schema.name`.
    """

    def __init__(self, dsn: str, name: str, table: str = "walbus_checkpoints") -> None:
        super().__init__(f"PostgreSQL table {table}, consumer {checked_name(name)}")
        self._dsn, self._name, self._table = dsn, name, sql.Identifier(*table.split("."))
        self._connection: psycopg.Connection[Any] | None = None

    def close(self) -> None:
        """Closes the connection; the next call opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _read(self) -> str | None:
        with self._connected() as connection:
            statement = sql.SQL("SELECT checkpoint FROM {} WHERE name = %s").format(self._table)
            row = connection.execute(statement, (self._name,)).fetchone()
        return None if row is None else str(row[0])

    def _replace(self, before: str | None, text: str) -> Replaced:
        with self._connected() as connection:
            if before is None:
                first = sql.SQL("INSERT INTO {} (name, checkpoint) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING")
                done = connection.execute(first.format(self._table), (self._name, text)).rowcount == 1
            else:
                following = sql.SQL("UPDATE {} SET checkpoint = %s WHERE name = %s AND checkpoint = %s")
                done = connection.execute(following.format(self._table), (text, self._name, before)).rowcount == 1
        return Replaced(done=True) if done else Replaced(done=False, there=self._read())

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            if self._connection is None:
                self._connection = self._connect()
            yield self._connection
        except psycopg.OperationalError as error:  # away, shutting down, full, or too slow
            self.close()
            what = f"the checkpoint's PostgreSQL does not answer ({type(error).__name__})"
            raise CheckpointUnavailable(what, where=self._where) from None
        except psycopg.Error as error:
            self.close()
            mend = (
                "let its role read and write the table, or make it: (name text PRIMARY KEY, checkpoint text NOT NULL)"
            )
            what = f"the checkpoint's PostgreSQL refuses ({type(error).__name__})"
            raise ConfigError(what, where=self._where, mend=mend) from None

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            self._dsn, autocommit=True, connect_timeout=_TIMEOUT_SECONDS, tcp_user_timeout=_TIMEOUT_SECONDS * 1000
        )
        try:
            for setting in _SETTINGS:
                connection.execute(setting)
            named = self._table.as_string(connection)
            there = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (named,)).fetchone()
            if there != (True,):
                made = sql.SQL("CREATE TABLE IF NOT EXISTS {} (name text PRIMARY KEY, checkpoint text NOT NULL)")
                connection.execute(made.format(self._table))
        except psycopg.errors.UniqueViolation:  # another process made it at the same time
            pass
        except BaseException:
            connection.close()
            raise
        return connection
