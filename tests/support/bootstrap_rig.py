"""Capture and bootstrap as processes on one database, and the bootstrap's rows compared with the source's.

with BootstrapRig(folder, database, max_rows_per_second=500) as rig:
    rig.start()
    rig.wait_consistent("public.items")
    ...                                   # workload, rig.kill_bootstrap(), rig.start_bootstrap()
    rig.assert_equals_source("public.items")
"""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString, Self

import httpx
import psycopg
from psycopg import sql

from support import plain_http
from support.database import Database
from support.waiting import wait_for
from support.walbus_command import Running, write_config
from walbus.demo.postgres import free_port
from walbus.log import LogReader
from walbus.position import parse_position
from walbus.record_parser import RecordParser
from walbus.records import Flag, RawChange, RecordHeader, body_of, iter_changes
from walbus.relay import open_reader
from walbus.session import settings_sql
from walbus.values import row_texts


class BootstrapRig:
    """`walbus capture` and `walbus bootstrap`.

    Args:
        folder: for everything.
        database: the source.
        relay: further keys of `[relay]`.
        options: further keys of `[bootstrap]`.
    """

    def __init__(
        self, folder: Path, database: Database, relay: dict[str, object] | None = None, **options: object
    ) -> None:
        self.database = database
        self.data_dir = folder / "data"
        self.url = f"http://127.0.0.1:{free_port()}"
        self._folder = folder
        listen = self.url.removeprefix("http://")
        self.config = write_config(
            folder / "walbus.toml",
            {
                "source": {"dsn": database.dsn},
                "relay": {"listen": f"127.0.0.1:{free_port()}", **(relay or {})},
                "bootstrap": {"listen": listen, **options},
            },
            self.data_dir,
        )
        self.capture: Running | None = None
        self.bootstrap: Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.bootstrap is not None:
            print(f"last lines of walbus bootstrap:\n{self.bootstrap.log()[-5000:]}")
        for running in (self.bootstrap, self.capture):
            if running is not None:
                running.process.kill()
                running.stop()

    def start(self) -> None:
        self.start_capture()
        self.start_bootstrap()

    def start_capture(self) -> None:
        self.capture = Running("capture", "-c", str(self.config), log=self._folder / "capture.log")

    def start_bootstrap(self, constants: Mapping[str, float] | None = None) -> None:
        log = self._folder / "bootstrap.log"
        self.bootstrap = Running("bootstrap", "-c", str(self.config), log=log, constants=constants)

    def kill_bootstrap(self) -> None:
        assert self.bootstrap is not None
        self.bootstrap.stop(signal.SIGKILL)

    def stop_capture(self) -> None:
        assert self.capture is not None
        self.capture.stop()

    def open_log(self) -> LogReader:
        """The log, for its layouts."""
        return open_reader(self.data_dir / "relay")

    def log(self) -> str:
        """What the bootstrap said so far, over all its lives."""
        assert self.bootstrap is not None
        return self.bootstrap.log()

    def tables(self) -> dict[str, dict[str, Any]]:
        """`/v1/tables` by name."""
        document = self.document()
        return {table["table"]: table for table in document["tables"]}

    def document(self) -> dict[str, Any]:
        """`/v1/tables`, asked again for as long as a layout in the log is newer than the last look at the catalog."""

        def told() -> httpx.Response | None:
            response = plain_http.get(f"{self.url}/v1/tables")
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        response = wait_for(told, what="the bootstrap has looked at the catalog", every=0.05)
        assert response is not None
        response.raise_for_status()
        document: dict[str, Any] = response.json()
        return document

    def seeding(self) -> list[dict[str, Any]]:
        """`/v1/seeding`: what is read from the source now."""
        response = plain_http.get(f"{self.url}/v1/seeding")
        response.raise_for_status()
        told: list[dict[str, Any]] = response.json()["seeding"]
        return told

    def snapshot(self, table: str) -> httpx.Response:
        """`/v1/snapshot` of a table, whatever it answers."""
        return plain_http.get(f"{self.url}/v1/snapshot", params={"table": table}, timeout=60)

    def wait_state(self, table: str, state: str, deadline: float = 60) -> None:
        wait_for(lambda: self.tables()[table]["state"] == state, deadline, what=f"{table} is {state}", every=0.05)

    def wait_consistent(self, *tables: str, deadline: float = 60) -> None:
        for table in tables:
            self.wait_state(table, "consistent", deadline)

    def wait_applied(self, deadline: float = 60) -> None:
        """Until the bootstrap has applied all that is committed now."""
        lsn = self.database.insert_lsn()

        def applied() -> bool:
            return parse_position(self.document()["applied"]).commit_lsn >= lsn

        wait_for(applied, deadline, what="the bootstrap has applied everything", every=0.05)

    def records(self, table: str, **parameters: str) -> Iterator[tuple[RecordHeader, list[RawChange]]]:
        """The records of a snapshot, which must be whole."""
        parser = RecordParser()
        ended = False
        request = {"table": table, **parameters}
        with plain_http.stream("GET", f"{self.url}/v1/snapshot", params=request, timeout=60) as response:
            assert response.status_code == 200, response.read()
            for data in response.iter_raw():
                parser.feed(data)
                for header, record in parser.records():
                    ended = bool(header.flags & Flag.END)
                    yield header, list(iter_changes(body_of(record, header)))
        assert ended, "the snapshot broke off"

    def rows(self, table: str) -> dict[bytes, dict[str, str | None]]:
        """Canonical texts of a table's rows by key."""
        reader = self.open_log()
        try:
            found = {}
            for _, changes in self.records(table):
                for change in changes:
                    schema = reader.schemas.get(change.schema_id)
                    assert change.after is not None and change.key is not None
                    names = [column.name for column in schema.columns]
                    found[change.key] = dict(zip(names, row_texts(schema, change.after), strict=True))
            return found
        finally:
            reader.close()

    def ordered_differences(self, table: str, key: str) -> int:
        """Rows that are not the same on both sides, read side by side in the order of an integer key: for any size."""
        with source_cursor(self.database, f"SELECT * FROM {table}", f"ORDER BY q.{key}") as theirs:
            different = 0
            for mine, other in zip_longest(self.texts(table), theirs):
                different += mine != other
                assert different < 1000, f"{table}: {mine} here, {other} at the source"
            return different

    def texts(self, table: str) -> Iterator[tuple[str | None, ...]]:
        """The canonical texts of a table's rows, in the order of their keys."""
        reader = self.open_log()
        try:
            for _, changes in self.records(table):
                for change in changes:
                    assert change.after is not None
                    yield tuple(row_texts(reader.schemas.get(change.schema_id), change.after))
        finally:
            reader.close()

    def differences(self, table: str) -> int:
        """Rows that are here and not at the source, or there and not here; each as a whole."""
        mine = Counter(tuple(sorted(row.items())) for row in self.rows(table).values())
        theirs = Counter(tuple(sorted(row.items())) for row in source_rows(self.database, table))
        return (mine - theirs).total() + (theirs - mine).total()

    def assert_settles(self, table: str, deadline: float = 60) -> None:
        """Without any further change at the source the table comes to hold its rows, and says so."""

        def settled() -> bool:
            told = self.tables()[table]
            served = told["state"] == "consistent" and not told["stale"] and not self.seeding()
            return served and not self.differences(table)

        self.wait_applied(deadline)
        wait_for(settled, deadline, what=f"{table} holds the source's rows", every=0.2)
        self.wait_applied(deadline)
        assert self.differences(table) == 0

    def assert_equals_source(self, *tables: str, deadline: float = 60) -> None:
        """At quiescence: every table is consistent, has applied everything, and holds the source's rows.

        One that was consistent may be dropped just when it is read: capture tells that its key changed a moment behind
        the layout that has the new one. Then it is waited for again; rows that are had must be the source's.
        """

        def fresh(table: str) -> bool:  # and none that is served only until the one beside it is seeded
            told = self.tables()[table]
            return told["state"] == "consistent" and not told["stale"]

        def served(table: str) -> list[dict[bytes, dict[str, str | None]]]:  # of its rows; empty while they are not
            if not fresh(table):
                return []
            self.wait_applied(deadline)
            return [self.rows(table)]

        for table in tables:
            self.wait_applied(deadline)
            (rows,) = wait_for(
                lambda table=table: served(table), deadline, what=f"{table} is consistent and not stale", every=0.05
            )
            mine = sorted(tuple(row.items()) for row in rows.values())
            theirs = sorted(tuple(row.items()) for row in source_rows(self.database, table))
            assert len(mine) == len(theirs), f"{table}: {len(mine)} rows instead of {len(theirs)}"
            different = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
            assert not different, f"{table}: {len(different)} rows differ, first {str(different[0])[:600]}"


@contextmanager
def statement_running(database: Database, application: str) -> Iterator[None]:
    """A session of an application that runs a statement meanwhile; with `max_active_sessions=0` no chunk begins."""
    session = database.connect(application_name=application)

    def run() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            session.execute("SELECT pg_sleep(300)")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        running = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
        wait_for(lambda: database.value(running, [session.info.backend_pid]), what="the statement runs")
        yield
    finally:
        session.cancel()
        thread.join()


@contextmanager
def source_cursor(
    database: Database, query: LiteralString, order: LiteralString
) -> Iterator[Iterator[tuple[str | None, ...]]]:
    """A query's rows by canonical text, in an order of the columns of `q`, read as they come."""
    with psycopg.connect(database.dsn) as connection:
        connection.execute(settings_sql())
        names = [column.name for column in connection.execute(f"{query} LIMIT 0").description or ()]
        columns = ", ".join(f"q.{name}::pg_catalog.text" for name in names)
        with connection.cursor("rows") as cursor:
            cursor.itersize = 10_000
            cursor.execute(f"SELECT {columns} FROM ({query}) AS q {order}".encode())
            yield iter(cursor)


def source_rows(database: Database, table: str) -> list[dict[str, str | None]]:
    """The source's rows by canonical text."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(settings_sql())
        name = sql.Identifier(*table.split("."))
        head = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(name))
        names = [column.name for column in head.description or ()]
        columns = sql.SQL(", ").join(sql.SQL("{}::pg_catalog.text").format(sql.Identifier(n)) for n in names)
        rows = connection.execute(sql.SQL("SELECT {} FROM {}").format(columns, name)).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


ITEMS = """
CREATE TABLE public.items (id int PRIMARY KEY, plain int NOT NULL, big text);
ALTER TABLE public.items ALTER COLUMN big SET STORAGE EXTERNAL;
"""


def long_text(number: int) -> str:
    """A text that PostgreSQL keeps out of line."""
    return f"{number:032d}" * 90


class Writers:
    """Sessions that change `public.items` without end: inserts, updates with and without the long text, key changes,
    deletes, savepoints that are rolled back, and now and then a TRUNCATE.

    Args:
        database: where.
        seed: of all choices.
        count: sessions.
        keys: ids are below this.
        truncates: how many of 1000 transactions truncate.
    """

    def __init__(
        self, database: Database, seed: int, *, count: int = 4, keys: int = 2000, truncates: float = 0
    ) -> None:
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._keys = keys
        self._truncates = truncates / 1000
        self.transactions = 0
        self._threads = [
            threading.Thread(target=self._run, args=(database.dsn, random.Random(seed + number)))
            for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def _run(self, dsn: str, choose: random.Random) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                while not self._stop.is_set():
                    try:
                        self._transaction(connection, choose)
                        self.transactions += 1
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                        continue
        except BaseException as error:
            self._errors.append(error)

    def _transaction(self, connection: psycopg.Connection, choose: random.Random) -> None:
        with connection.transaction():
            if choose.random() < self._truncates:
                connection.execute("TRUNCATE public.items")
            for _ in range(choose.randrange(1, 6)):
                self._change(connection, choose)
            if choose.random() < 0.3:
                with connection.transaction(force_rollback=choose.random() < 0.5):
                    self._change(connection, choose)

    def _change(self, connection: psycopg.Connection, choose: random.Random) -> None:
        key, other, value = choose.randrange(self._keys), choose.randrange(self._keys), choose.randrange(10**6)
        kind = choose.random()
        if kind < 0.35:
            connection.execute(
                "INSERT INTO public.items VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET plain = excluded.plain",
                [key, value, long_text(value) if choose.random() < 0.5 else str(value)],
            )
        elif kind < 0.6:
            connection.execute("UPDATE public.items SET plain = %s WHERE id = %s", [value, key])
        elif kind < 0.7:
            connection.execute("UPDATE public.items SET big = %s WHERE id = %s", [long_text(value), key])
        elif kind < 0.85:
            connection.execute(
                "UPDATE public.items SET id = %s, plain = %s WHERE id = %s"
                " AND NOT EXISTS (SELECT FROM public.items WHERE id = %s)",
                [other, value, key, other],
            )
        else:
            connection.execute("DELETE FROM public.items WHERE id = %s", [key])
