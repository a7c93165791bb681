"""A table is published just while a new consumer begins: behind its list of tables, and before its first rows.

The list does not name it, and the log that is replayed must tell of it. A proxy between the consumer and the bootstrap
server keeps the answer that has the list, or the request for the first rows, until the log and the bootstrap's store
have the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.all_rooms import AllRooms, proxied_rooms
from support.database import Database
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from support.whole_system import make_marker
from walbus.position import parse_position

pytestmark = pytest.mark.one_version

#: What of the conversation with the bootstrap server waits.
KEPT = {"the list": b'"applied_seq"', "the first rows": b"GET /v1/snapshot"}

#: A table that capture leaves alone: in the schema `public` it adds what it sees.
LATE = (
    "CREATE SCHEMA hidden; CREATE TABLE hidden.late (id int PRIMARY KEY, note text);"
    "INSERT INTO hidden.late VALUES (1, 'one'), (2, 'two')"
)
SHOWN = "ALTER TABLE hidden.late SET SCHEMA public"
#: How a table `late` comes to be published that the publication lacked, and the name that it has then.
PUBLISHED = {
    "rows": ("ALTER PUBLICATION walbus ADD TABLE late", "public.late"),
    "none": ("DELETE FROM late; ALTER PUBLICATION walbus ADD TABLE late", "public.late"),
    "partition": ("ALTER TABLE parted ATTACH PARTITION late FOR VALUES FROM (1) TO (10)", "public.late"),
    "renamed": ("ALTER PUBLICATION walbus ADD TABLE late; ALTER TABLE late RENAME TO later", "public.later"),
    "swapped": (
        "ALTER TABLE items RENAME TO older; ALTER TABLE late RENAME TO items; ALTER PUBLICATION walbus ADD TABLE items",
        "public.items",
    ),
}


@pytest.fixture
def proxied(database: Database, open_folder: Path) -> Iterator[tuple[AllRooms, TcpProxy]]:
    make_marker(database)
    database.execute("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items SELECT generate_series(1, 5)")
    database.execute("CREATE TABLE parted (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)")
    database.execute("CREATE PUBLICATION walbus FOR TABLE marker, items, parted")
    with proxied_rooms(open_folder, database, "public.marker", "public.items") as (rooms, proxy):
        database.execute(LATE)
        rooms.add_consumer("cache", "sqlite")
        yield rooms, proxy


@pytest.mark.parametrize("how", PUBLISHED)
@pytest.mark.parametrize("kept", KEPT)
def test_a_table_that_is_published_while_a_consumer_begins_is_in_its_sink(
    proxied: tuple[AllRooms, TcpProxy], database: Database, kept: str, how: str
) -> None:
    rooms, proxy = proxied
    statements, name = PUBLISHED[how]
    oid = database.value("SELECT 'hidden.late'::regclass::oid::int8")
    proxy.stops_at = KEPT[kept]
    rooms.begin("cache")
    wait_for(lambda: not proxy.flowing.is_set(), 60, what=f"{kept} is on its way")
    database.execute(f"{SHOWN}; {statements}")
    wait_for(lambda: served(rooms, name, oid), 60, what=f"the store has {name}", every=0.05)
    proxy.flowing.set()
    if how == "swapped":
        database.execute("UPDATE older SET id = id WHERE id = 1")  # a table's new name comes with its next change
    rooms.wait_until_equal()
    database.execute(f"INSERT INTO {name} (id) VALUES (3)")
    rooms.wait_until_equal()


def served(rooms: AllRooms, name: str, oid: object) -> bool:
    """Whether the store has the table, and all of the log, of which the table's layout is a part."""
    table = rooms.tables().get(name, {})
    if (table.get("oid"), table.get("state")) != (oid, "consistent"):
        return False
    return parse_position(rooms.document()["applied"]) >= rooms.end_of_log()
