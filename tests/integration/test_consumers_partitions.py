"""Parts of all keys through all of Walbus: every row is in one part, and what belongs to no key is where it is told."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import walbus
from support import plain_http
from support.database import Database
from support.single_rooms import SingleRooms
from support.waiting import wait_for
from support.whole_system import make_marker
from walbus.consumers import Callbacks, MemoryCheckpointStore, Subscription
from walbus.errors import UsageError
from walbus.events import Change
from walbus.records import Op

pytestmark = pytest.mark.one_version

PARTS = 3
ALL = [f"{part}/{PARTS}" for part in range(PARTS)]


@pytest.fixture
def source(database: Database) -> Database:
    database.execute("CREATE TABLE items (id int PRIMARY KEY, note text)")
    database.execute("INSERT INTO items SELECT n, 'first' FROM generate_series(1, 300) n")
    database.execute("CREATE TABLE keyless (note text); ALTER TABLE keyless REPLICA IDENTITY FULL")
    make_marker(database)
    return database


@pytest.fixture
def system(source: Database, open_folder: Path) -> Iterator[SingleRooms]:
    slot = {"slot": f"s_{source.name}"}
    with SingleRooms(open_folder, source.dsn, {}, source=slot) as system:
        system.start()
        system.wait_until_streaming()
        yield system


def rows_of(sink: Path) -> dict[int, str]:
    with closing(sqlite3.connect(f"file:{sink}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT id, note FROM items"))


def test_sinks_of_all_parts_have_every_row_once_whatever_happens_to_the_keys(
    source: Database, open_folder: Path
) -> None:
    consumers = {
        f"cache-{part[0]}": {"sink": "sqlite", "tables": ["public.items", "public.marker"], "partition": part}
        for part in ALL
    }
    with SingleRooms(open_folder, source.dsn, consumers, source={"slot": f"s_{source.name}"}) as system:
        folders = [system.data_dir / "consumers" / f"cache-{n}.{n}-of-{PARTS}" for n in range(PARTS)]
        sinks = [folder / f"{folder.name}.sqlite" for folder in folders]

        def assert_each_row_is_in_one_sink() -> None:
            system.wait_until_at_rest(source)
            found = Counter(row for sink in sinks for row in rows_of(sink).items())
            assert found == Counter(dict.fromkeys(source.execute("SELECT id, note FROM items"), 1))

        system.start()
        system.wait_until_streaming()
        assert_each_row_is_in_one_sink()
        assert all(50 < len(rows_of(sink)) < 150 for sink in sinks)
        source.execute("UPDATE items SET note = 'second' WHERE id % 2 = 0")
        source.execute("UPDATE items SET id = id + 1000, note = 'moved' WHERE id % 3 = 0")
        source.execute("DELETE FROM items WHERE id % 5 = 0")
        assert_each_row_is_in_one_sink()
        source.execute("TRUNCATE items")
        source.execute("INSERT INTO items SELECT n, 'third' FROM generate_series(1, 40) n")
        assert_each_row_is_in_one_sink()
        wait_for(lambda: known_to(system.relay_url) == {folder.name for folder in folders}, what="all have reported")
        assert system.stop() == 0


def known_to(relay_url: str) -> set[str]:
    told = plain_http.get(f"{relay_url}/v1/consumers").json()["consumers"]
    return {one["name"] for one in told}


def each(bus: walbus.Bus, *tables: str, name: str = "orders", **options: Any) -> list[Subscription]:
    return [bus.subscribe(*tables, name=name, partition=part, **options) for part in ALL]


def read_until(subscription: Subscription, enough: Callable[[list[Change]], bool]) -> list[Change]:
    """Changes, committed, until there are enough and no more come at once."""
    changes: list[Change] = []

    def done() -> bool:
        delivery = subscription.next(0.2)
        if delivery is not None:
            changes.extend(change for change in delivery if change.op is not Op.SCHEMA)
            delivery.commit()
        return delivery is None and enough(changes)

    wait_for(done, 60, what=f"changes of {subscription.name}")
    return changes


def notes(*wanted: str) -> Callable[[list[Change]], bool]:
    return lambda changes: {*wanted} <= {str((change.after or {}).get("note")) for change in changes}


def everywhere(database: Database, table: str, note: str) -> None:
    """Changes in every part."""
    database.execute(
        f"INSERT INTO {table} SELECT n, %s FROM generate_series(5001, 5060) n "
        "ON CONFLICT (id) DO UPDATE SET note = EXCLUDED.note",
        [note],
    )


def test_a_row_whose_key_moves_is_deleted_in_the_part_that_it_leaves_and_comes_in_the_other(
    source: Database, system: SingleRooms, tmp_path: Path
) -> None:
    with walbus.connect(system.relay_url, folder=tmp_path) as bus:
        parts = each(bus, "public.items", start="latest")
        for one in parts:
            wait_for(lambda one=one: one.next(0.05) is None and one.phase == "online", 30)
        source.execute("UPDATE items SET id = id + 1000, note = 'moved' WHERE id <= 100")
        everywhere(source, "items", "end")
        came = [read_until(one, notes("end")) for one in parts]
        moved = [change for changes in came for change in changes if (change.after or {}).get("note") == "moved"]
        gone = {
            change.key["id"]: change for changes in came for change in changes if change.op is Op.DELETE and change.key
        }
        assert sorted(change.key["id"] for change in moved if change.key) == list(range(1001, 1101))
        assert 30 < len(gone) < 90, "about two of three keys go to another part"
        arrived = {change.key["id"] - 1000: change for change in moved if change.key}
        for key, change in gone.items():
            other = arrived[key]
            assert (change.seq, change.position) == (other.seq, other.position), "one change of the source, one seq"
            assert not any(change in changes and other in changes for changes in came)


def test_what_has_no_key_comes_to_the_first_part_and_a_truncate_to_all(
    source: Database, system: SingleRooms, tmp_path: Path
) -> None:
    with walbus.connect(system.relay_url, folder=tmp_path) as bus:
        parts = each(bus, "public.items", "public.keyless", start="latest")
        for one in parts:
            wait_for(lambda one=one: one.next(0.05) is None and one.phase == "online", 30)
        source.execute("INSERT INTO keyless VALUES ('lonely')")
        source.execute("TRUNCATE items")
        everywhere(source, "items", "end")
        came = [read_until(one, notes("end")) for one in parts]
    assert [sum(change.table == "public.keyless" for change in changes) for changes in came] == [1, 0, 0]
    assert [sum(change.op is Op.TRUNCATE for change in changes) for changes in came] == [1, 1, 1]


def test_each_part_goes_on_behind_its_own_commit_and_no_other_number_of_parts_takes_its_name(
    source: Database, system: SingleRooms, tmp_path: Path
) -> None:
    seen: Counter[int] = Counter()
    with walbus.connect(system.relay_url, folder=tmp_path) as bus:
        for one in each(bus, "public.items"):
            own = source.value("SELECT count(*) FROM items")
            changes = read_until(one, lambda changes, one=one: one.phase == "online")
            assert 0 < len(changes) < own
            seen.update(change.key["id"] for change in changes if change.key)
    assert seen == Counter(dict.fromkeys(range(1, 301), 1))
    source.execute("UPDATE items SET note = 'again'")
    everywhere(source, "items", "end")
    with walbus.connect(system.relay_url, folder=tmp_path) as bus:
        again = [change for one in each(bus, "public.items") for change in read_until(one, notes("end"))]
        assert Counter(c.key["id"] for c in again if (c.after or {}).get("note") == "again" and c.key) == seen
        for other in ("1/4", None):
            with pytest.raises(UsageError, match="in 3 parts before"):
                bus.subscribe("public.items", name="orders", partition=other)
        kept = MemoryCheckpointStore()
        first = bus.subscribe("public.items", name="mine", partition="0/3", checkpoints=kept, start="earliest")
        read_until(first, notes("end"))
        first.close()
        with pytest.raises(UsageError, match="of part 0/3, and the consumer is to read part 0/4"):
            bus.subscribe("public.items", name="mine", partition="0/4", checkpoints=kept)
        bus.subscribe("public.items", name="mine", partition="0/3", checkpoints=kept).close()


@dataclass
class Item:
    id: int
    note: str | None


class Collecting(Callbacks):
    def __init__(self) -> None:
        self.rows: dict[int, Item] = {}
        self.subscription: Subscription | None = None

    def on_change(self, change: Change, window: object) -> None:
        if isinstance(change.row, Item):
            self.rows[change.row.id] = change.row

    def on_bootstrap_end(self) -> None:
        assert self.subscription is not None
        self.subscription.stop()


def test_callbacks_classes_and_the_asyncio_twin_read_parts_too(
    source: Database, system: SingleRooms, tmp_path: Path
) -> None:
    found: list[int] = []
    with ExitStack() as stack:
        bus = stack.enter_context(walbus.connect(system.relay_url, folder=tmp_path))
        for one in each(bus, "public.items", name="called", into=Item):
            collecting = Collecting()
            collecting.subscription = one
            one.run(collecting)
            assert {item.note for item in collecting.rows.values()} == {"first"}
            found += collecting.rows
        assert (tmp_path / "called.0-of-3").is_dir()
    assert sorted(found) == list(range(1, 301))

    async def keys(part: str) -> list[int]:
        read: list[int] = []
        async with walbus.aconnect(system.relay_url, folder=tmp_path) as bus:
            async with asyncio.timeout(60):
                async for window in bus.subscribe("public.items", name="awaited", partition=part):
                    read += [change.key["id"] for change in window if change.key]
                    await window.commit()
                    if window.sweep:
                        break
        return read

    assert sorted(key for part in ALL for key in asyncio.run(keys(part))) == list(range(1, 301))
