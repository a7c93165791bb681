"""Every room of Walbus as a process of its own, each of which dies, stops and begins when the test says so.

with AllRooms(folder, database) as rooms:
    rooms.add_consumer("cache", "sqlite")
    rooms.begin("capture")                  # "relay", "bootstrap", "cache"
    rooms.end("capture", signal.SIGKILL)    # stays down until it is begun again
    rooms.check_nobody_fell()               # nobody ended but at our word
    rooms.wait_until_equal()                # all run; nobody writes to the source

The publication `walbus` is the caller's. What is compared is what it has: each table with a key, in the bootstrap's
store and in every sink.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql

from support import plain_http
from support.bootstrap_rig import BootstrapRig
from support.compare import told
from support.database import Database
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from support.walbus_command import Running
from walbus.bootstrap.requests import RequestFolder
from walbus.demo.compare import differences
from walbus.demo.postgres import free_port
from walbus.demo.sink_rows import SearchRows, SinkRows, SqliteRows
from walbus.demo.source_rows import SourceColumn, SourceTable, read_rows
from walbus.position import Position, parse_position
from walbus.session import settings_sql
from walbus.status import read_status

_SERVERS = ("capture", "relay", "bootstrap")

_TABLES = """
SELECT c.oid::int8, schemaname::text, tablename::text FROM pg_catalog.pg_publication_tables
JOIN pg_catalog.pg_class c ON c.oid = format('%I.%I', schemaname, tablename)::regclass
WHERE pubname = 'walbus' ORDER BY 2, 3"""

#: The key is that of the replica identity's index, or else the primary key.
_COLUMNS = """
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, NULL), coalesce(a.attnum = ANY (k.indkey), false)
FROM pg_catalog.pg_attribute a LEFT JOIN (
    SELECT indrelid, indkey FROM pg_catalog.pg_index WHERE indrelid = %(oid)s AND (indisreplident OR indisprimary)
    ORDER BY indisreplident DESC LIMIT 1) k ON k.indrelid = a.attrelid
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum"""


class AllRooms(BootstrapRig):
    """Capture, relay, bootstrap, and any number of consumers.

    Args:
        folder: for everything.
        database: the source.
        relay: further keys of `[relay]`.
        options: further keys of `[bootstrap]`.
    """

    def __init__(
        self, folder: Path, database: Database, relay: dict[str, object] | None = None, **options: object
    ) -> None:
        address = f"127.0.0.1:{free_port()}"
        super().__init__(folder, database, {"listen": address, **(relay or {})}, **options)
        self.relay_url = f"http://{address}"
        self.requests = RequestFolder(self.data_dir / "requests")
        self.sinks: dict[str, str] = {}  #: kind of each consumer's sink
        self.running: dict[str, Running] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.last_words())
        for running in self.running.values():
            running.process.kill()
            running.stop()

    def names(self) -> list[str]:
        """All rooms, those that are down too."""
        return [*_SERVERS, *self.sinks]

    def add_consumer(self, name: str, sink: str, **keys: object) -> None:
        """A consumer that did not exist so far; it is not begun."""
        self.sinks[name] = sink
        with self.config.open("a") as file:
            file.write(f'[consumer.{name}]\nsink = "{sink}"\n')
            file.writelines(f"{key} = {value}\n" for key, value in keys.items())

    def begin(self, name: str) -> None:
        """Starts a room that is down; returns at once."""
        assert name not in self.running
        command = (name,) if name in _SERVERS else ("consume", name)
        self.running[name] = Running(*command, "-c", str(self.config), log=self._log_path(name))

    def end(self, name: str, number: signal.Signals) -> None:
        """Ends a room by a signal, and returns when it is gone."""
        self._check_runs(name)
        self.running.pop(name).stop(number)

    def check_nobody_fell(self) -> None:
        """Each room that was begun still runs."""
        for name in self.running:
            self._check_runs(name)

    def _check_runs(self, name: str) -> None:
        code = self.running[name].process.poll()
        assert code is None, f"{name} ended by itself, code {code}:\n{self.log_of(name)[-3000:]}"

    def status(self, name: str) -> dict[str, Any]:
        """A room's status file."""
        file = name if name in _SERVERS else f"consumer-{name}"
        return read_status(self.data_dir / "status" / f"{file}.json") or {}

    def log_of(self, name: str) -> str:
        """What a room said in all its lives."""
        path = self._log_path(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def last_words(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"---- {name}\n{self.log_of(name)[-5000:]}" for name in self.names())

    def _log_path(self, name: str) -> Path:
        return self.config.with_name(f"{name}.log")

    def end_of_log(self) -> Position:
        """As the relay tells it."""
        answer = plain_http.get(f"{self.relay_url}/v1/info").raise_for_status()
        return parse_position(answer.json()["end"])

    def wait_until_equal(self, deadline: float = 90) -> None:
        """Until the bootstrap's store and every sink hold the source's rows, with nothing left that would change them.

        The table `marker` (`support.whole_system.make_marker`) is changed last.
        """
        self.database.execute("UPDATE marker SET n = n + 1")
        lsn = self.database.insert_lsn()  # behind the commit, without which the log may be complete up to before it
        tables = list(published_tables(self.database.dsn))
        names = [table.table for table in tables]
        wait_for(lambda: self.end_of_log().commit_lsn >= lsn, deadline, what="the log is complete", every=0.1)
        wait_for(lambda: self._is_settled(names), deadline, what=f"the store is consistent: {names}", every=0.2)
        end = wait_for(self.end_of_log, 30, what="the relay answers")
        for name in self.sinks:
            wait_for(lambda name=name: self._arrived(name, end), deadline, what=f"{name} reaches {end}", every=0.1)
            wait_for(lambda name=name: self._is_equal(name, tables), deadline, what=f"{name} is equal", every=0.5)
        for table in names:
            assert self.differences(table) == 0, f"{self.differences(table)} rows of {table} differ in the store"
        for name in self.sinks:
            self._is_equal(name, tables)

    def _is_settled(self, names: list[str]) -> bool:
        self.check_nobody_fell()
        document = self.tables()
        waiting = [path.name for path in (self.data_dir / "relay" / "differences").glob("*.difference")]
        assert not waiting, f"differences wait: {waiting}"
        assert not self.seeding(), f"tables are seeded: {self.seeding()}"
        for name in names:
            found = {key: document.get(name, {}).get(key) for key in ("state", "stale", "reason")}
            assert found["state"] == "consistent" and not found["stale"], f"{name} is {found}"
        applied = parse_position(self.document()["applied"])
        return applied >= self.end_of_log()

    def _arrived(self, name: str, end: Position) -> bool:
        self.check_nobody_fell()
        status = self.status(name)
        return status.get("phase") == "online" and parse_position(status["last_done"]) >= end

    def _is_equal(self, name: str, tables: list[SourceTable]) -> bool:
        sink = self._sink_rows(name)
        try:
            found = [one for table in tables for one in islice(differences(name, table, sink.rows(table)), 20)]
            assert not found, f"{name}: {told(found)}"
            strangers = sink.tables() - published_names(self.database.dsn)
            assert not strangers, f"{name} has tables that the source has not: {strangers}"
        finally:
            with suppress(Exception):
                sink.close()
        return True

    def _sink_rows(self, name: str) -> SinkRows:
        folder = self.data_dir / "consumers" / name
        return SqliteRows(folder / f"{name}.sqlite") if self.sinks[name] == "sqlite" else SearchRows(folder / "index")


@contextmanager
def proxied_rooms(folder: Path, database: Database, *tables: str) -> Iterator[tuple[AllRooms, TcpProxy]]:
    """All servers run and have these tables; the relay sends consumers to the bootstrap server by the proxy."""
    with TcpProxy(0) as proxy, AllRooms(folder, database, url=f"http://127.0.0.1:{proxy.port}") as rooms:
        proxy.target = int(rooms.url.rpartition(":")[2])
        for room in _SERVERS:
            rooms.begin(room)
        rooms.wait_consistent(*tables)
        yield rooms, proxy


def published_names(dsn: str) -> set[str]:
    """`schema.name` of what the publication has, with or without a key."""
    with psycopg.connect(dsn, autocommit=True) as session:
        return {f"{namespace}.{name}" for _, namespace, name in session.execute(_TABLES)}


def published_tables(dsn: str) -> Iterator[SourceTable]:
    """Each table of the publication that has a key, with its rows; nobody writes meanwhile."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(settings_sql().encode())
        for oid, namespace, name in session.execute(_TABLES).fetchall():
            columns = tuple(SourceColumn(*row) for row in session.execute(_COLUMNS, {"oid": oid}))
            if any(column.in_key for column in columns):
                rows = read_rows(session, sql.Identifier(namespace, name), columns)
                yield SourceTable(namespace, name, columns, rows)
