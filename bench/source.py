"""The source of every benchmark: an embedded PostgreSQL 18, one table of ~120-byte rows, and backlogs for slots.

A slot that nobody reads keeps everything that comes after it, and `pg_copy_logical_replication_slot` makes another one
at the same place. So one backlog can be read many times, by Walbus and by its reference, under slots of equal history.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from walbus.demo.postgres import EmbeddedPostgres
from walbus.lsn import Lsn, parse_lsn

#: The server answers as in production but for fsync, which both sides of a ratio do without.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_wal_size": "8GB"}
TABLE = """
CREATE TABLE events (
    id bigint PRIMARY KEY,
    account integer NOT NULL,
    kind text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    at timestamptz NOT NULL,
    note text NOT NULL
)
"""
_ROW = "i, mod(i, 1000), 'kind-' || mod(i, 7), i * 0.01, now(), md5(i::text) || md5((-i)::text)"
_ONE_TRANSACTION = f"INSERT INTO events SELECT {_ROW} FROM generate_series(%s::bigint, %s::bigint) AS i"
_SINGLE_ROWS = """
DO $$ BEGIN
    FOR i IN {first}..{last} LOOP
        INSERT INTO events SELECT {row};
        COMMIT;
    END LOOP;
END $$
"""
_FILL = """
DO $$ BEGIN
    FOR base IN 1..{rows} BY {step} LOOP
        INSERT INTO {table} SELECT {row} FROM generate_series(base, least(base + {step} - 1, {rows})) AS i;
        COMMIT;
    END LOOP;
END $$
"""


class Source:
    """A database with the table `events`, published as `walbus`.

    Attributes:
        database: its name.
        dsn: of it, as superuser.
        server: the server that it lies on.
    """

    def __init__(self, server: EmbeddedPostgres, database: str) -> None:
        self.server = server
        self.database = database
        with server.connect() as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        self.dsn = server.dsn(database)
        self._rows = 0
        self.execute(TABLE)

    def execute(self, statement: str) -> None:
        """Runs SQL that gives nothing back."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement.encode())

    def one_transaction(self, rows: int) -> Lsn:
        """Inserts rows in one transaction; the LSN behind its commit."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(_ONE_TRANSACTION, (self._rows + 1, self._rows + rows))
            self._rows += rows
            return _insert_lsn(connection)

    def single_rows(self, transactions: int) -> Lsn:
        """Inserts rows in a transaction each; the LSN behind the last commit."""
        first, last = self._rows + 1, self._rows + transactions
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(_SINGLE_ROWS.format(first=first, last=last, row=_ROW).encode())
            self._rows = last
            return _insert_lsn(connection)

    def many_transactions(self, rows: int, per_transaction: int) -> Lsn:
        """Inserts rows in transactions of some; the LSN behind the last commit."""
        return self.fill("events", _ROW, rows, per_transaction)

    def insert_lsn(self) -> Lsn:
        """Where the WAL ends now."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return _insert_lsn(connection)

    def fill(self, table: str, row: str, rows: int, per_transaction: int) -> Lsn:
        """Inserts rows in transactions of some; `row` is an expression over `i`. The LSN behind the last commit."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            block = _FILL.format(table=table, row=row, rows=rows, step=per_transaction)
            connection.execute(block.encode())
            return _insert_lsn(connection)

    def copy_slot(self, slot: str, copy: str) -> None:
        """Makes `copy` a slot at the place of `slot`; an older one of that name goes."""
        self.drop_slot(copy)
        self.execute(f"SELECT pg_copy_logical_replication_slot('{slot}', '{copy}')")

    def drop_slot(self, slot: str) -> None:
        """Drops a slot if it is there."""
        self.execute(f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'")

    def streams(self, slot: str) -> bool:
        """Whether a session streams from the slot."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchone()
            return bool(row and row[0])

    def libpq_environment(self) -> dict[str, str]:
        """The connection as libpq's variables, for programs of PostgreSQL."""
        parts = conninfo_to_dict(self.dsn)
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        return {names[key]: str(value) for key, value in parts.items() if key in names}


def _insert_lsn(connection: psycopg.Connection) -> Lsn:
    row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    if row is None:
        raise RuntimeError("the server does not tell its LSN")
    return parse_lsn(row[0])


@contextmanager
def open_server(bin_dir: Path | None = None) -> Iterator[tuple[EmbeddedPostgres, Path]]:
    """A server, and a folder for logs and data; both are gone afterwards.

    Args:
        bin_dir: folder of another PostgreSQL's programs than those that come along.
    """
    with tempfile.TemporaryDirectory(prefix="walbus-bench-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        server = EmbeddedPostgres(folder / "postgres", settings=SETTINGS, bin_dir=bin_dir)
        try:
            server.start()
            yield server, folder
        finally:
            server.remove()
