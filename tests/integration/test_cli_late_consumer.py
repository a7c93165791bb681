"""A consumer that comes after the log's beginning is gone gets everything, and the source does not notice."""

from __future__ import annotations

from pathlib import Path

from support.compare import assert_sinks_equal
from support.database import Database
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.position import ORIGIN, parse_position

ROWS, ROUNDS = 1_000, 100  #: 100 thousand changes


def scans(database: Database) -> tuple[int, ...]:
    """What PostgreSQL counted of reads of the table, once all sessions have reported."""
    database.execute("SELECT pg_stat_force_next_flush()")
    (row,) = database.execute(
        "SELECT seq_scan, seq_tup_read, idx_scan, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'items'"
    )
    return row


def test_a_late_consumer_is_filled_without_a_scan_of_the_source(database: Database, open_folder: Path) -> None:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, n int NOT NULL, note text)")
    database.execute(f"INSERT INTO items SELECT i, 0, repeat('x', 50) FROM generate_series(1, {ROWS}) i")
    make_marker(database)
    relay = {"segment_bytes": 1 << 16, "retention_bytes": 1 << 18}
    with WholeSystem(open_folder, database.dsn, {}, source={"slot": f"s_{database.name}"}, relay=relay) as system:
        system.start()
        system.wait_until_streaming()
        for _ in range(ROUNDS):
            database.execute("UPDATE items SET n = n + 1")
        database.execute("DELETE FROM items WHERE id % 10 = 0")
        system.wait_until_at_rest(database)
        wait_for(lambda: bootstrap_is_complete(system), 60, what="the bootstrap has everything")
        wait_for(lambda: parse_position(system.info()["trimmed"]) > ORIGIN, 60, what="the log's beginning is gone")

        before = scans(database)
        system.add_consumer("cache", "sqlite")
        database.execute(f"INSERT INTO items SELECT i, 0, 'live' FROM generate_series({ROWS + 1}, {ROWS + 500}) i")
        system.wait_until_at_rest(database)
        assert scans(database) == before
        assert system.status("consumer-cache")["snapshot_rows"] >= ROWS * 9 // 10
        assert_sinks_equal(database.dsn, cache=system.data_dir / "consumers/cache/cache.sqlite")


def bootstrap_is_complete(system: WholeSystem) -> bool:
    status = system.status("bootstrap")
    tables = {table["table"]: table["state"] for table in status["tables"]}
    complete = tables == {"public.items": "consistent", "public.marker": "consistent"}
    return complete and parse_position(status["applied"]) >= system.end()
