"""Sinks that the members of a group fill: whatever becomes of members, relay and leases, the sink equals the source."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from support.database import Database
from support.group_targets import PostgresTarget, RedisTarget, Target, assert_equal
from support.in_the_way import put_a_folder_at
from support.member_fates import meet_fates
from support.seed import announced_seed
from support.sink_group import SinkGroup, with_items
from support.waiting import wait_for
from support.whole_system import WholeSystem
from support.writers import TABLES

pytestmark = pytest.mark.one_version


@pytest.fixture
def source(database: Database) -> Database:
    return with_items(database)


@pytest.fixture
def system(source: Database, open_folder: Path) -> Iterator[WholeSystem]:
    with WholeSystem(open_folder, source.dsn, {}, source={"slot": f"s_{source.name}"}) as system:
        system.start()
        system.wait_until_streaming()
        yield system


@pytest.fixture
def postgres(target_database: Database) -> PostgresTarget:
    return PostgresTarget(target_database, 4)


@pytest.fixture(params=["postgres", "redis hash", "redis json"])
def target(request: pytest.FixtureRequest) -> Target:
    if request.param == "postgres":
        return PostgresTarget(request.getfixturevalue("target_database"), 4)
    return RedisTarget(request.getfixturevalue("redis_url"), 4, request.param.partition(" ")[2])


@pytest.fixture
def grouped(system: WholeSystem, source: Database, tmp_path: Path) -> Iterator[Callable[..., SinkGroup]]:
    made: list[SinkGroup] = []

    def make(target: Target, **keys: object) -> SinkGroup:
        made.append(SinkGroup(tmp_path, system, source, {**target.section, **keys}))
        return made[-1].__enter__()

    yield make
    for group in made:
        group.__exit__(None, None, None)


def test_members_that_join_and_leave_share_what_comes(
    grouped: Callable[..., SinkGroup], target: Target, source: Database
) -> None:
    group = grouped(target)
    first = group.member("first")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    second = group.member("second")
    group.wait_until_shared_by(2)
    source.execute("UPDATE items SET note = 'second' WHERE id % 2 = 0")
    source.execute("UPDATE items SET id = id + 1000, note = 'moved' WHERE id % 3 = 0")
    assert_equal(group, target, source)
    assert first.end() == 0
    source.execute("DELETE FROM items WHERE id % 5 = 0")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    source.execute("TRUNCATE items")
    source.execute("INSERT INTO items SELECT n, 'third' FROM generate_series(1, 40) n")
    assert_equal(group, target, source)
    assert second.end() == 0


def test_parts_of_a_member_that_is_killed_are_gone_on_with(
    grouped: Callable[..., SinkGroup], target: Target, source: Database
) -> None:
    group = grouped(target)
    first, second = group.member("first"), group.member("second")
    group.wait_until_shared_by(2)
    assert_equal(group, target, source)
    source.execute("INSERT INTO items SELECT n, repeat('x', 200) FROM generate_series(1001, 40000) n")
    wait_for(lambda: len(target.rows("items")) > 1000 or first.status().get("windows"), what="the first rows are there")
    first.end(signal.SIGKILL)
    source.execute("UPDATE items SET note = 'meanwhile' WHERE id < 2000")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    assert not second.ends()


def test_one_that_stands_still_past_its_lease_changes_nothing_when_it_goes_on(
    grouped: Callable[..., SinkGroup], target: Target, source: Database
) -> None:
    group = grouped(target)
    first, second = group.member("first"), group.member("second")
    group.wait_until_shared_by(2)
    assert_equal(group, target, source)
    first.send(signal.SIGSTOP)
    source.execute("UPDATE items SET note = 'while it stood still'")
    source.execute("DELETE FROM items WHERE id % 3 = 0")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    first.send(signal.SIGCONT)
    source.execute("UPDATE items SET note = 'behind that' WHERE id % 2 = 0")
    group.wait_until_shared_by(2)
    assert_equal(group, target, source)
    assert "group.part_lost" in first.says or "group.commit_refused" in first.says
    assert not first.ends()
    assert not second.ends()


def test_one_that_stands_still_in_the_middle_of_a_transaction_loses_it(
    grouped: Callable[..., SinkGroup], postgres: PostgresTarget, source: Database
) -> None:
    group = grouped(postgres)
    first = group.member("first")
    group.member("second")
    group.wait_until_shared_by(2)
    assert_equal(group, postgres, source)
    part = next(part for part in range(4) if group.holder_of(part) is first)
    schema = f"public_{part}-of-4"
    with postgres.database.server.connect() as admin, closing(psycopg.connect(postgres.database.dsn)) as locking:
        in_the_middle = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = %s "
            "AND (state = 'idle in transaction' OR wait_event_type = 'Lock')"
        )
        named = [f"walbus orders.{part}-of-4", postgres.database.name]
        locking.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(schema, "items")))
        source.execute("UPDATE items SET note = 'that it loses'")
        wait_for(lambda: admin.execute(in_the_middle, named).fetchone()[0], what="it waits for the table", every=0.005)
        first.send(signal.SIGSTOP)
        locking.rollback()
        source.execute("UPDATE items SET note = 'what is right'")
        group.wait_until_shared_by(1)
        assert_equal(group, postgres, source)
        source.execute("DELETE FROM items WHERE id % 2 = 0")
        first.send(signal.SIGCONT)
        group.wait_until_shared_by(2)
        assert_equal(group, postgres, source)
    assert not first.ends()


def test_members_go_on_with_their_parts_when_the_relay_is_back(
    grouped: Callable[..., SinkGroup], target: Target, source: Database, system: WholeSystem
) -> None:
    group = grouped(target, lease_seconds=10.0)
    group.member("first")
    group.member("second")
    group.wait_until_shared_by(2)
    assert_equal(group, target, source)
    before = group.tokens()
    assert system.kill("relay")
    source.execute("UPDATE items SET note = 'while the relay was away'")
    assert_equal(group, target, source)
    group.wait_until_shared_by(2)
    assert group.tokens() == before
    assert not any(member.ends() for member in group.members)


def test_a_member_whose_status_file_cannot_be_written_goes_on_and_ends_in_order(
    grouped: Callable[..., SinkGroup], target: PostgresTarget, source: Database
) -> None:
    group = grouped(target, lease_seconds=20.0)  # over for nobody meanwhile
    first, second = group.member("first"), group.member("second")
    group.wait_until_shared_by(2)
    assert_equal(group, target, source)
    put_a_folder_at(first.status_path)
    wait_for(lambda: "status.not_written" in first.says, what="it says that it cannot")
    source.execute("UPDATE items SET note = 'without a status'")
    assert_equal(group, target, source)
    assert first.end() == 0
    assert len(group.held()) == 1, "it left, and no lease had to end"
    source.execute("DELETE FROM items WHERE id % 5 = 0")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    assert first.says.count("status.not_written") == 1
    assert not second.ends()


def test_rows_that_another_primary_key_moves_between_parts_are_in_one_part_each(
    grouped: Callable[..., SinkGroup], target: PostgresTarget, source: Database
) -> None:
    source.execute("CREATE TABLE coded (id int PRIMARY KEY, code text NOT NULL, note text)")
    source.execute("INSERT INTO coded SELECT n, 'c' || (n % 150), 'first' FROM generate_series(1, 150) n")
    group = grouped(target)
    group.member("first")
    second = group.member("second")
    group.wait_until_shared_by(2)
    assert_equal(group, target, source, "coded", "items")
    source.execute("ALTER TABLE coded DROP CONSTRAINT coded_pkey, ADD PRIMARY KEY (code)")
    source.execute("UPDATE coded SET note = 'by its code' WHERE id % 3 = 0")
    source.execute("DELETE FROM coded WHERE id % 7 = 0")
    source.execute("INSERT INTO coded SELECT 1, 'd' || n, 'of one id' FROM generate_series(1, 50) n")
    assert_equal(group, target, source, "coded", "items")
    source.execute("ALTER TABLE coded DROP CONSTRAINT coded_pkey, ADD PRIMARY KEY (id, code)")
    second.end(signal.SIGKILL)
    source.execute("UPDATE coded SET id = id + 1 WHERE code LIKE 'd%'")
    source.execute("UPDATE coded SET note = 'by both' WHERE id % 2 = 0")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source, "coded", "items")


def test_whatever_happens_to_members_under_load_the_sink_equals_the_source(
    grouped: Callable[..., SinkGroup], target: Target, source: Database, system: WholeSystem
) -> None:
    group = grouped(target)
    meet_fates(group, source, announced_seed("groups"), relay=lambda: system.kill("relay"))
    assert_equal(group, target, source, *TABLES, "items", "marker")
