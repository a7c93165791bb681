"""A table takes the name of another one that a consumer was reading, or had read: none of its rows is taken for read.

New tables that are filled beside the old ones, and swapped with them by their names, do so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from signal import SIGTERM

import pytest

from support.all_rooms import AllRooms, proxied_rooms
from support.database import Database
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from support.whole_system import make_marker

pytestmark = pytest.mark.one_version

SWAPPED = "ALTER TABLE items RENAME TO older; ALTER TABLE fresh RENAME TO items"


@pytest.fixture
def proxied(database: Database, open_folder: Path) -> Iterator[tuple[AllRooms, TcpProxy]]:
    """A consumer of `items` alone is configured."""
    make_marker(database)
    for table, first in (("items", 1), ("fresh", 100)):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, note text)")
        database.execute(f"INSERT INTO {table} SELECT i, repeat('n', 500) FROM generate_series({first}, 20000) i")
    with proxied_rooms(open_folder, database, "public.items", "public.fresh") as (rooms, proxy):
        rooms.add_consumer("cache", "sqlite", tables='["public.items"]', delta_above=10)
        yield rooms, proxy


def swap(rooms: AllRooms) -> None:
    """Returns when the bootstrap server calls the tables as the source does now."""
    oid = rooms.tables()["public.fresh"]["oid"]
    rooms.database.execute(SWAPPED)
    wait_for(lambda: rooms.tables()["public.items"]["oid"] == oid, what="the names are known")


def holds_the_tables_rows(rooms: AllRooms) -> bool:
    rooms.check_nobody_fell()
    with closing(sqlite3.connect(rooms.data_dir / "consumers" / "cache" / "cache.sqlite")) as sink:
        found = set(sink.execute("SELECT id, note FROM items"))
    wanted = set(rooms.database.execute("SELECT id, note FROM items"))
    assert found == wanted, f"{len(found - wanted)} rows too many, {len(wanted - found)} too few"
    return True


def test_a_snapshot_that_broke_off_does_not_go_on_in_another_table(proxied: tuple[AllRooms, TcpProxy]) -> None:
    rooms, proxy = proxied
    proxy.starts, proxy.stream_bytes, proxy.stalls = b"GET /v1/snapshot", 4 << 20, True
    rooms.begin("cache")
    wait_for(lambda: proxy.cuts, what="the snapshot stands still in the middle")
    swap(rooms)
    proxy.reset()
    wait_for(lambda: rooms.status("cache").get("phase") == "online", what="all is read")
    rooms.database.execute("UPDATE items SET note = 'told' WHERE id = 100")  # a name comes with the next change
    wait_for(lambda: holds_the_tables_rows(rooms), what="the sink has the rows of the table of that name", every=0.1)


def test_a_table_that_came_to_a_name_while_its_consumer_was_away_is_read_whole_and_not_by_a_delta(
    proxied: tuple[AllRooms, TcpProxy],
) -> None:
    rooms, _ = proxied
    rooms.begin("cache")
    wait_for(lambda: rooms.status("cache").get("phase") == "online", what="all is read")
    wait_for(lambda: holds_the_tables_rows(rooms), what="the sink is filled", every=0.1)
    rooms.end("cache", SIGTERM)
    swap(rooms)
    for number in range(40):
        rooms.database.execute("UPDATE items SET note = %s WHERE id = 100", [f"number {number}"])
    rooms.wait_applied()
    rooms.begin("cache")
    wait_for(lambda: holds_the_tables_rows(rooms), what="the sink has the rows of the table of that name", every=0.1)
