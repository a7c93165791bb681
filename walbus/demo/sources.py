"""The source of a demo: an embedded PostgreSQL with rows in its tables and a load that changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from walbus.demo.load import ShopLoad
from walbus.demo.pgbench import PgbenchLoad
from walbus.demo.postgres import EmbeddedPostgres
from walbus.lsn import Lsn, parse_lsn

DATABASE = "shop"
#: Rows that the shop opens with.
_ROWS = 6_000
_COUNT_ROWS = (
    "SELECT sum(reltuples)::bigint FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
)


class Load(Protocol):
    """What changes the source."""

    @property
    def transactions(self) -> int:
        """How many committed so far."""

    def prepare(self, rows: int) -> None:
        """Makes the tables, with about so many rows."""

    def start(self) -> None:
        """Begins."""

    def stop(self) -> None:
        """Ends, and raises SourceUnavailable if it had failed."""


class DemoSource:
    """The running source.

    Attributes:
        server: the PostgreSQL.
        load: its load, prepared and not yet started.
        dsn: of the database.
    """

    def __init__(self, server: EmbeddedPostgres, load: Load) -> None:
        self.server = server
        self.load = load
        self.dsn = server.dsn(DATABASE)

    def insert_lsn(self) -> Lsn:
        """Where the WAL ends now."""
        return parse_lsn(self._text("SELECT pg_current_wal_insert_lsn()"))

    def version(self) -> str:
        """PostgreSQL's version, as in `18.4`."""
        return self._text("SHOW server_version")

    def rows(self) -> int:
        """Rows in all tables, by the statistics that ANALYZE left."""
        return int(self._text(_COUNT_ROWS))

    def _text(self, query: str) -> str:
        with self.server.connect(DATABASE) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None  # noqa: S101 (queries of this module, which give one row)
        return str(row[0])


@contextmanager
def demo_source(folder: Path, *, workload: str, rate: float, seed: int) -> Iterator[DemoSource]:
    """The source with rows in its tables, for as long as the context lasts.

    Args:
        folder: the server's.
        workload: `shop` or `pgbench`.
        rate: transactions a second.
        seed: of the load.
    """
    with EmbeddedPostgres(folder) as server:
        with server.connect() as admin:
            admin.execute(f"CREATE DATABASE {DATABASE}")
        load = _load(server, workload, rate, seed)
        try:
            load.prepare(_ROWS)
            with server.connect(DATABASE) as connection:
                connection.execute("ANALYZE")
            yield DemoSource(server, load)
        finally:
            load.stop()


def _load(server: EmbeddedPostgres, workload: str, rate: float, seed: int) -> Load:
    dsn = server.dsn(DATABASE)
    if workload == "pgbench":
        return PgbenchLoad(server.program("pgbench"), dsn, rate=rate, seed=seed)
    return ShopLoad(dsn, rate=rate, seed=seed)
