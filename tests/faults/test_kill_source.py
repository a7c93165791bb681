"""Faults 8, 15 and 17: the source crashes, stays away, or gives the slot to somebody else; nobody restarts anything."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.database import Database, fresh_database
from support.oracle import Oracle
from support.seed import announced_seed
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.demo.postgres import EmbeddedPostgres

#: Seconds that the source stays away; the issue's minute in the long version.
AWAY_SECONDS = float(os.environ.get("WALBUS_TEST_AWAY_SECONDS", "10"))


@contextmanager
def a_system(database: Database, folder: Path, slot: str) -> Iterator[WholeSystem]:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    make_marker(database)
    with WholeSystem(folder, database.dsn, {"cache": {"sink": "sqlite"}}, source={"slot": slot}) as system:
        yield system


class Writer:
    """A session that writes random transactions, and comes back when the server does."""

    def __init__(self, dsn: str, rng: random.Random) -> None:
        self._dsn = dsn
        self._rng = rng
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.commits = 0

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn, connect_timeout=2) as connection:
                    self._write(connection)
            except psycopg.OperationalError:
                self._stop.wait(0.1)

    def _write(self, connection: psycopg.Connection) -> None:
        while not self._stop.wait(0.002):
            for _ in range(self._rng.randrange(1, 6)):
                key, note = self._rng.randrange(500), "x" * self._rng.randrange(3000)
                if self._rng.random() < 0.3:
                    connection.execute("DELETE FROM items WHERE id = %s", [key])
                else:
                    connection.execute(
                        "INSERT INTO items VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET note = excluded.note",
                        [key, note],
                    )
            connection.commit()
            self.commits += 1


@pytest.mark.parametrize("seconds", [AWAY_SECONDS, pytest.param(60.0, marks=pytest.mark.long)])
@pytest.mark.timeout(240)
def test_a_source_that_crashes_and_stays_away_costs_nothing(
    own_pg_server: Callable[..., EmbeddedPostgres], open_folder: Path, seconds: float
) -> None:
    server = own_pg_server()
    rng = random.Random(announced_seed("the writer"))
    with fresh_database(server) as database, a_system(database, open_folder, "away") as system:
        system.start()
        system.wait_until_streaming()
        truth = Oracle(database.dsn, "walbus")
        with Writer(database.dsn, rng) as writer:
            wait_for(lambda: writer.commits > 100, 60, what="the writer writes")
            server.kill()
            before = writer.commits
            wait_for(lambda: system.status("capture")["state"] == "waiting to reconnect", 60)
            threading.Event().wait(seconds)
            assert system.tail(), "the relay serves while the source is away"
            server.start()
            wait_for(lambda: writer.commits > before + 50, 60, what="the writer writes again")
        wait_for(lambda: system.status("capture")["state"] == "streaming", 60, what="capture is back")
        database.close()  # its session died with the server
        system.wait_until_at_rest(database)
        system.check(database, truth)
        assert {name: child["restarts"] for name, child in system.children().items()} == dict.fromkeys(
            ["capture", "relay", "bootstrap", "consumer-cache"], 0
        )
        told = [line for line in system.log().splitlines() if "capture.interrupted" in line]
        assert told, "one line says why"
        assert "Traceback" not in system.log()
        assert system.stop() == 0


def test_a_slot_that_another_session_streams_from_is_waited_for(database: Database, open_folder: Path) -> None:
    slot = f"s_{database.name}"
    with a_system(database, open_folder, slot) as system:
        database.execute("CREATE PUBLICATION walbus FOR ALL TABLES")
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        with streaming_elsewhere(database, slot):
            system.start()
            wait_for(lambda: "is active for PID" in system.log(), 60, what="capture says who has the slot")
            assert "stop the other session" in system.log()
            assert system.children()["capture"]["restarts"] == 0
        system.wait_until_streaming()
        truth = Oracle(database.dsn, "walbus")
        with Writer(database.dsn, random.Random(announced_seed("the writer"))) as writer:
            wait_for(lambda: writer.commits > 20, 60, what="the writer writes")
        system.wait_until_at_rest(database)
        system.check(database, truth)


@contextmanager
def streaming_elsewhere(database: Database, slot: str) -> Iterator[None]:
    """PostgreSQL's own client holds the slot."""
    program = database.server.program("pg_recvlogical")
    options = ["-o", "proto_version=1", "-o", "publication_names=walbus", "--no-loop", "-f", os.devnull]
    holder = subprocess.Popen([program, "--start", "-S", slot, "-d", database.dsn, *options])
    try:
        wait_for(
            lambda: database.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [slot]),
            60,
            what="the slot is in use",
        )
        yield
    finally:
        holder.kill()
        holder.wait()
