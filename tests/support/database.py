"""A fresh database for one test, and its orderly end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, cast

import psycopg
import pytest
from psycopg import sql

from support.waiting import wait_for
from walbus.demo.postgres import EmbeddedPostgres
from walbus.lsn import parse_lsn

_numbers = itertools.count(1)


class Database:
    """One database of a server.

    Attributes:
        server: the server it lives on.
        name: of the database.
        dsn: its URL as superuser, over TCP.
    """

    def __init__(self, server: EmbeddedPostgres, name: str) -> None:
        self.server = server
        self.name = name
        self.dsn = server.dsn(name)
        self._open: list[psycopg.Connection] = []
        self._own: psycopg.Connection | None = None

    def connect(self, **options: Any) -> psycopg.Connection:
        """A new autocommit connection, closed at the test's end."""
        connection = psycopg.connect(self.dsn, **{"autocommit": True, **options})
        self._open.append(connection)
        return connection

    def execute(self, query: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Runs SQL on a connection of the fixture's own; its rows, or [] where there are none."""
        if self._own is None or self._own.closed:
            self._own = self.connect()
        cursor = self._own.execute(cast(LiteralString, query), parameters)
        return cursor.fetchall() if cursor.description else []

    def value(self, query: str, parameters: Sequence[Any] | None = None) -> Any:
        """The first column of the first row."""
        return self.execute(query, parameters)[0][0]

    @property
    def major(self) -> int:
        """PostgreSQL's major version."""
        return int(self.value("SHOW server_version_num")) // 10_000

    def needs(self, major: int, what: str) -> None:
        """Skips the test on an older PostgreSQL, which lacks what it is about."""
        if self.major < major:
            pytest.skip(f"{what} came with PostgreSQL {major}")

    def insert_lsn(self) -> int:
        """Where the WAL ends now: everything committed so far lies before it."""
        return parse_lsn(self.value("SELECT pg_current_wal_insert_lsn()"))

    def confirmed_lsn(self, slot: str = "walbus") -> int:
        """How far a slot is confirmed."""
        return parse_lsn(self.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name=%s", [slot]))

    def wait_until_free(self, slot: str) -> None:
        """Waits until nobody streams from a slot: a walsender outlives its client for a moment."""
        inactive = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = %s"
        wait_for(lambda: self.value(inactive, [slot]), 60, what=f"nobody streams from {slot}")

    def drop_slot(self, slot: str) -> None:
        """Drops a slot as soon as nobody streams from it."""
        self.wait_until_free(slot)
        self.execute("SELECT pg_drop_replication_slot(%s)", [slot])

    def close(self) -> None:
        """Closes every connection that `connect` gave."""
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._own = None


_HELD = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def hold_commits(database: Database, probe: str) -> psycopg.Connection:
    """From here on every commit is held between the WAL and its visibility, but those of `database.execute`.

    Waiting for a synchronous standby that does not exist begins when the checkpointer has read the new setting, which
    no session can see: so a statement is committed again and again until its commit is held.

    Args:
        database: of a server of the test's own.
        probe: a statement that may be committed often.

    Returns:
        the session whose commit is held; it is the first one that `held_commits` counts.
    """
    database.execute("SET synchronous_commit = local")
    database.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    database.execute("SELECT pg_reload_conf()")

    def held() -> psycopg.Connection | None:
        session = start_held(database, probe)
        wait_for(lambda: held_commits(database) or not is_busy(session), what="the commit is held, or done")
        if held_commits(database):
            return session
        session.close()
        return None

    return wait_for(held, 60, what="commits are held")


def held_commits(database: Database) -> int:
    """How many commits wait for a standby."""
    return int(database.value(_HELD))


def release_commits(database: Database) -> None:
    database.execute("ALTER SYSTEM RESET synchronous_standby_names")
    database.execute("SELECT pg_reload_conf()")
    wait_for(lambda: held_commits(database) == 0, 60, what="the commits go on")


def start_held(database: Database, query: str) -> psycopg.Connection:
    """Sends a statement whose commit will be held, without waiting for it."""
    connection = database.connect()
    connection.pgconn.send_query(query.encode())
    connection.pgconn.flush()
    return connection


def is_busy(session: psycopg.Connection) -> bool:
    """Whether the server has not answered yet what `start_held` has sent."""
    session.pgconn.consume_input()
    return bool(session.pgconn.is_busy())


@contextmanager
def fresh_database(server: EmbeddedPostgres, encoding: str | None = None) -> Iterator[Database]:
    """A new empty database; at the end its walsenders, slots and sessions are ended and it is dropped.

    Args:
        server: where.
        encoding: of its texts; the server's own if None.
    """
    name = f"test_{next(_numbers)}"
    create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if encoding is not None:
        other = sql.SQL(" ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        create += other.format(sql.Literal(encoding))
    with server.connect() as admin:
        admin.execute(create)
    database = Database(server, name)
    try:
        yield database
    finally:
        database.close()
        if server.running:
            with server.connect() as admin:
                _drop(admin, name)


def _drop(admin: psycopg.Connection, name: str) -> None:
    def without_slots() -> bool:
        admin.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = %s AND active_pid IS NOT NULL",
            [name],
        )
        admin.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = %s AND active_pid IS NULL",
            [name],
        )
        row = admin.execute("SELECT count(*) FROM pg_replication_slots WHERE database = %s", [name]).fetchone()
        return row is not None and row[0] == 0

    wait_for(without_slots, 60, what=f"the slots of {name} are gone")
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))  # waits 5 seconds for what it ends
    wait_for(lambda: admin.execute(drop), what=f"{name} is dropped", every=0.5)
