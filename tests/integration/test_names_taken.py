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
from walbus.position import parse_position

pytestmark = pytest.mark.one_version

SWAPPED = """
BEGIN;
ALTER TABLE items RENAME TO older; ALTER TABLE fresh RENAME TO items; ALTER TABLE older RENAME TO fresh;
COMMIT"""

#: A table's new name comes into the log with its next change.
TOLD = "UPDATE items SET note = 'told' WHERE id = 100; UPDATE fresh SET note = 'told' WHERE id = 100"


@pytest.fixture
def proxied(database: Database, open_folder: Path) -> Iterator[tuple[AllRooms, TcpProxy]]:
    make_marker(database)
    for table, first in (("items", 1), ("fresh", 50)):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, note text)")
        rows = f"SELECT i, repeat('{table} ', 100) FROM generate_series({first}, 20000) i"
        database.execute(f"INSERT INTO {table} {rows}")
    with proxied_rooms(open_folder, database, "public.items", "public.fresh") as (rooms, proxy):
        yield rooms, proxy


def swap(rooms: AllRooms) -> None:
    """Returns when the bootstrap server calls the tables as the source does now."""
    oid = rooms.tables()["public.fresh"]["oid"]
    rooms.database.execute(SWAPPED)
    wait_for(lambda: rooms.tables()["public.items"]["oid"] == oid, what="the names are known")


def holds_the_rows_of(rooms: AllRooms, *tables: str) -> bool:
    rooms.check_nobody_fell()
    for table in tables:
        with closing(sqlite3.connect(rooms.data_dir / "consumers" / "cache" / "cache.sqlite")) as sink:
            found = set(sink.execute(f"SELECT id, note FROM {table}"))
        wanted = set(rooms.database.execute(f"SELECT id, note FROM {table}"))
        differ = len(found - wanted), len(wanted - found)
        assert differ == (0, 0), f"{table}: {differ[0]} rows too many, {differ[1]} too few"
    return True


@pytest.mark.parametrize(
    ("broken", "told"), [("public.fresh", "while it stands still"), ("public.items", "behind all that is read")]
)
def test_a_snapshot_that_broke_off_does_not_go_on_in_another_table(
    proxied: tuple[AllRooms, TcpProxy], broken: str, told: str
) -> None:
    """Both tables are asked for by both names, so that the log tells neither as a new one, to be read anew."""
    rooms, proxy = proxied
    rooms.add_consumer("cache", "sqlite", tables='["public.items", "public.fresh"]')
    proxy.starts = f"GET /v1/snapshot?table={broken}".encode()
    proxy.stream_bytes, proxy.stalls = 4 << 20, True
    rooms.begin("cache")
    wait_for(lambda: proxy.cuts, what="the snapshot stands still in the middle")
    swap(rooms)
    if told == "while it stands still":
        rooms.database.execute(TOLD)
        rooms.wait_applied()
    proxy.reset()
    wait_for(lambda: rooms.status("cache").get("phase") == "online", what="all is read")
    rooms.database.execute(TOLD)
    wait_for(lambda: holds_the_rows_of(rooms, "items", "fresh"), what="the sink has the rows of both", every=0.5)


def test_a_table_whose_new_name_is_told_while_its_consumer_is_away_is_read_whole_and_not_by_a_delta(
    proxied: tuple[AllRooms, TcpProxy],
) -> None:
    """It came to the name before. Its delta since then is one change, against many of the log."""
    rooms, _ = proxied
    rooms.add_consumer("cache", "sqlite", tables='["public.items"]', delta_above=10)
    rooms.begin("cache")
    wait_for(lambda: rooms.status("cache").get("phase") == "online", what="all is read")
    wait_for(lambda: holds_the_rows_of(rooms, "items"), what="the sink is filled", every=0.5)
    swap(rooms)
    wait_for(lambda: is_read_anew(rooms), what="the bootstrap server has the table by its new name")
    rooms.database.execute("UPDATE marker SET n = n + 1")  # a delta begins behind the place where its table was read
    rooms.wait_applied()
    end = rooms.end_of_log()
    wait_for(lambda: parse_position(rooms.status("cache")["last_done"]) >= end, what="the consumer is there")
    rooms.end("cache", SIGTERM)
    rooms.database.execute(TOLD)
    for _ in range(40):
        rooms.database.execute("UPDATE marker SET n = n + 1")
    rooms.wait_applied()
    rooms.begin("cache")
    wait_for(lambda: holds_the_rows_of(rooms, "items"), what="the sink has the rows of that table", every=0.5)


def is_read_anew(rooms: AllRooms) -> bool:
    told = rooms.tables()["public.items"]
    return told["generation"] > 1 and told["state"] == "consistent" and not told["stale"]
