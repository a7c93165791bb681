"""The catalog is ahead of a stream that lags: layouts are numbered as the log tells them, and sinks follow."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from support.compare import assert_sinks_equal
from support.database import Database
from support.log_view import log_records
from support.seed import announced_seed
from support.single_rooms import SingleRooms
from support.waiting import wait_for
from support.whole_system import make_marker
from support.writers import Writers
from walbus.records import Kind, body_of, iter_changes
from walbus.relay import open_reader

BACK = (
    ("ALTER TABLE t DROP COLUMN note", "INSERT INTO t (id, n) VALUES (2, 2)"),
    ("ALTER TABLE t ADD COLUMN note text", "INSERT INTO t VALUES (3, 3, 'three')"),
    ("ALTER TABLE t RENAME COLUMN note TO remark", "INSERT INTO t VALUES (4, 4, 'four')"),
    ("ALTER TABLE t RENAME COLUMN remark TO note", "INSERT INTO t VALUES (5, 5, 'five')"),
    ("ALTER TABLE t ALTER n TYPE text", "INSERT INTO t VALUES (6, 'six', 'six')"),
    ("ALTER TABLE t ALTER n TYPE int USING length(n)", "INSERT INTO t VALUES (7, 7, 'seven')"),
)


@pytest.fixture
def system(database: Database, open_folder: Path) -> Iterator[SingleRooms]:
    make_marker(database)
    sections = {"source": {"slot": f"s_{database.name}"}}
    with SingleRooms(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}, **sections) as system:
        system.start()
        system.wait_until_streaming()
        wait_for(lambda: system.status("consumer-cache").get("phase") == "online", what="the sink follows")
        yield system


@contextmanager
def no_stream(database: Database, system: SingleRooms) -> Iterator[None]:
    """The walsender stands still meanwhile; what capture asks on its other sessions is answered."""
    asked = f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{system.status('capture')['slot']}'"
    pid = wait_for(lambda: database.value(asked), what="a walsender has the slot")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def assert_equal(system: SingleRooms, database: Database) -> None:
    for name in system.consumers:

        def is_equal(name: str = name) -> bool:
            assert_sinks_equal(database.dsn, cache=system.data_dir / "consumers" / name / f"{name}.sqlite")
            return True

        wait_for(is_equal, 120, what=f"{name} equals the source", every=0.2)


def assert_numbers_rise(system: SingleRooms) -> None:
    """Of each table's layouts, as the log tells them before rows of transactions, and in events.

    A net difference tells those of its rows as they were before, too: they stand between transactions.
    """
    with closing(open_reader(system.data_dir / "relay")) as reader:
        told: dict[int, list[int]] = {}
        for header, record in log_records(reader):
            if header.kind == Kind.SCHEMA:
                (change,) = iter_changes(body_of(record, header))
                if header.xid or b'"reseed"' in (change.after or b""):
                    told.setdefault(change.table, []).append(change.schema_id)
    assert told
    assert all(numbers == sorted(numbers) for numbers in told.values()), told


def test_a_table_that_comes_back_to_a_layout_has_its_columns_in_the_sink(
    system: SingleRooms, database: Database
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int, note text)")
    database.execute("INSERT INTO t VALUES (1, 1, 'one')")
    system.wait_until_at_rest(database)
    for statements in BACK:
        for statement in statements:
            database.execute(statement)
        system.wait_until_at_rest(database)
        assert_equal(system, database)
    assert_numbers_rise(system)


def test_layouts_that_a_lagging_stream_has_still_to_tell_are_older_than_the_catalogs(
    system: SingleRooms, database: Database
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO t VALUES (1, 1)")
    system.wait_until_at_rest(database)
    with no_stream(database, system):
        database.execute("CREATE TABLE u (id int PRIMARY KEY, n int)")
        for table in ("t", "u"):
            database.execute(f"INSERT INTO {table} SELECT i, i FROM generate_series(11, 30) i")
            database.execute(f"ALTER TABLE {table} ADD COLUMN c int DEFAULT 7")
            database.execute(f"INSERT INTO {table} SELECT i, i FROM generate_series(31, 50) i")
            database.execute(f"ALTER TABLE {table} ADD COLUMN d int DEFAULT 8")
        looked = time.monotonic() + 3  # longer than a period of the watch
        wait_for(lambda: time.monotonic() > looked)
    system.wait_until_at_rest(database)
    assert_equal(system, database)
    assert_numbers_rise(system)
    for table in ("t", "u"):
        database.execute(f"UPDATE {table} SET d = id WHERE id = 20")
    system.wait_until_at_rest(database)
    assert_equal(system, database)
    assert_numbers_rise(system)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_whatever_is_altered_while_the_stream_stands_still_sinks_equal_the_source(
    system: SingleRooms, database: Database
) -> None:
    seed = announced_seed("the standstills")
    dice = random.Random(seed)
    with Writers(database, seed, sessions=3, transactions=120) as writers:
        while writers.running:
            until = time.monotonic() + dice.uniform(0, 1.5)
            wait_for(lambda until=until: time.monotonic() > until)
            with no_stream(database, system):
                until = time.monotonic() + dice.choice([1, 3, 8]) * dice.random() + 0.5
                wait_for(lambda until=until: time.monotonic() > until)
            if len(system.consumers) < 4 and dice.random() < 0.7:
                system.add_consumer(f"late{len(system.consumers)}", "sqlite")
    system.wait_until_at_rest(database)
    assert_equal(system, database)
    assert_numbers_rise(system)
