"""Read your writes through all of Walbus: whoever commits at the source and waits for a consumer finds it there."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

import walbus
from support import plain_http
from support.database import Database
from support.waiting import wait_for
from support.whole_system import WholeSystem


def lsn_behind(connection: psycopg.Connection, statement: str) -> str:
    """Commits, and asks as a user would."""
    connection.execute(statement)  # type: ignore[call-overload]
    return str(connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0])  # type: ignore[index]


def test_whoever_has_written_and_waited_reads_what_he_wrote(tmp_path: Path, database: Database) -> None:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text); CREATE TABLE items (id int PRIMARY KEY)")
    consumers = {"cache": {"sink": "sqlite", "tables": ["public.orders"]}}
    with WholeSystem(tmp_path, database.dsn, consumers) as system:
        system.start()
        system.wait_until_streaming()
        sink = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        with database.connect() as source, walbus.connect(system.relay_url) as bus:
            wait_for(lambda: bus.wait_for("cache", lsn_behind(source, "SELECT"), 60), 60, what="the consumer")
            took = []
            for n in range(40):
                lsn = lsn_behind(source, f"INSERT INTO orders VALUES ({n}, 'n{n}')")
                begun = time.monotonic()
                bus.wait_for("cache", lsn, 60)
                took.append(time.monotonic() - begun)
                with closing(sqlite3.connect(sink)) as cache:
                    assert cache.execute("SELECT note FROM orders WHERE id = ?", [n]).fetchone() == (f"n{n}",)
            assert sorted(took)[len(took) // 2] < 1.0  # asked for, and not at the next second
            for n in range(5):  # a table that the consumer does not read, one that is not published, and nothing at all
                bus.wait_for("cache", lsn_behind(source, f"INSERT INTO items VALUES ({n})"), 60)
                bus.wait_for("cache", lsn_behind(source, "CREATE TEMP TABLE IF NOT EXISTS t (i int)"), 60)
                bus.wait_for("cache", lsn_behind(source, "SELECT"), 60)
        print(f"read your writes: median {sorted(took)[20] * 1000:.0f} ms, worst {max(took) * 1000:.0f} ms")
        known = wait_for(lambda: told_online(system.relay_url), what="its next report")
        assert (known["sink"], known["lag"]["changes"]) == ("sqlite", 0)


def told_online(url: str) -> dict[str, Any] | None:
    """What the relay knows of the consumer once it has told that it is online."""
    known: dict[str, Any] = plain_http.get(f"{url}/v1/consumers/cache").json()
    return known if known["phase"] == "online" else None
