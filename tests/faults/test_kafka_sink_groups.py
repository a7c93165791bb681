"""Sinks that a group fills straight from Kafka: whatever becomes of members and brokers, the sink equals the source."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.database import Database
from support.group_targets import PostgresTarget, RedisTarget, Target, assert_equal
from support.kafka_group import LEASE, SESSION, KafkaGroup
from support.kafka_server import Cluster, local_kafka
from support.kafka_sink_group import KafkaSinkGroup
from support.member_fates import meet_fates
from support.seed import announced_seed
from support.single_rooms import SingleRooms
from support.sink_group import NAME, with_items
from support.waiting import wait_for
from support.writers import TABLES

pytestmark = [pytest.mark.one_version, pytest.mark.timeout(600)]

PARTS = 4
TOPIC = "shop"


@pytest.fixture
def source(database: Database) -> Database:
    return with_items(database)


@pytest.fixture(params=["postgres", "redis hash"])
def target(request: pytest.FixtureRequest) -> Target:
    if request.param == "postgres":
        return PostgresTarget(request.getfixturevalue("target_database"), PARTS)
    return RedisTarget(request.getfixturevalue("redis_url"), PARTS)


@pytest.fixture
def cluster(own_kafka: Cluster) -> Cluster:
    return own_kafka


@pytest.fixture
def system(source: Database, cluster: Cluster, open_folder: Path) -> Iterator[SingleRooms]:
    sections: dict[str, dict[str, object]] = {
        "source": {"slot": f"s_{source.name}"},
        "relay": {"engine": "kafka"},
        "relay.kafka": {"bootstrap_servers": cluster.bootstrap.split(","), "topic": TOPIC},
    }
    with SingleRooms(open_folder, source.dsn, {}, **sections) as system:
        system.start()
        system.wait_until_streaming()
        yield system


@pytest.fixture
def group(
    system: SingleRooms, source: Database, target: Target, cluster: Cluster, tmp_path: Path
) -> Iterator[KafkaSinkGroup]:
    with KafkaSinkGroup(tmp_path, system, source, target.section, cluster.bootstrap, TOPIC) as group:
        yield group


def test_members_that_join_leave_die_and_stand_still_fill_one_sink(
    group: KafkaSinkGroup, target: Target, source: Database
) -> None:
    first = group.member("first")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)  # rows that nothing has changed since came by the bootstrap
    second = group.member("second")
    group.wait_until_shared_by(2)
    source.execute("UPDATE items SET note = 'second' WHERE id % 2 = 0")
    source.execute("UPDATE items SET id = id + 1000, note = 'moved' WHERE id % 3 = 0")
    assert_equal(group, target, source)
    second.send(signal.SIGSTOP)
    source.execute("UPDATE items SET note = 'while it stood still' WHERE id % 2 = 1")
    source.execute("DELETE FROM items WHERE id % 5 = 0")
    group.wait_until_shared_by(1, SESSION + 60)
    assert_equal(group, target, source)
    second.send(signal.SIGCONT)
    group.wait_until_shared_by(2)
    source.execute("UPDATE items SET note = 'behind that' WHERE id % 2 = 0")
    assert_equal(group, target, source)
    assert "group.part_lost" in second.says or "group.commit_refused" in second.says
    source.execute("INSERT INTO items SELECT n, repeat('x', 200) FROM generate_series(5001, 30000) n")
    first.end(signal.SIGKILL)
    source.execute("UPDATE items SET note = 'behind the death of one' WHERE id < 6000")
    group.wait_until_shared_by(1, SESSION + 60)
    assert_equal(group, target, source)
    assert not second.ends()
    assert second.end() == 0
    wait_for(lambda: group.held() == {}, LEASE, what="it has left")


@pytest.mark.long
def test_whatever_becomes_of_members_and_the_broker_the_sink_equals_the_source(
    group: KafkaSinkGroup, target: Target, source: Database, cluster: Cluster
) -> None:
    def broker() -> None:
        cluster.brokers[0].kill()
        cluster.brokers[0].start()
        cluster.await_answer()

    meet_fates(group, source, announced_seed("the fates of members"), broker=broker)
    assert_equal(group, target, source, *TABLES, "items", "marker")


def test_an_operators_commands_see_that_members_run(group: KafkaSinkGroup, target: Target, source: Database) -> None:
    member = group.member("first")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    target.tamper()
    other = group.member("other")
    group.wait_until_shared_by(2)
    refused = other.command("verify", "--sink", NAME)
    assert refused.code == 2, refused.stderr
    assert "is running" in refused.one_line()
    assert member.end() == 0
    refused = member.command("consumers", "reset", NAME, "--to", "snapshot")  # of another machine's member
    assert "is running" in refused.one_line()
    assert other.end() == 0
    done = member.command("consumers", "reset", NAME, "--to", "snapshot")
    assert done.code == 0, done.stderr
    group.member("again")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)


def test_the_coordinators_broker_dies_and_the_others_go_on(tmp_path: Path) -> None:
    with local_kafka(brokers=3) as three:
        group = KafkaGroup(tmp_path, three.bootstrap)
        try:
            first, second = group.member("first"), group.member("second")
            group.wait(lambda: group.is_shared_by(2), 90, what="both to have their shares")
            group.source.write()
            group.are_whole()
            before = group.tokens()
            told = group.admin.describe_consumer_groups([group.topic], request_timeout=30)[group.topic].result()
            three.brokers[told.coordinator.id - 1].kill()
            group.wait(lambda: group.is_shared_by(2), 90, what="another one to have the group")
            group.source.begin_anew()
            group.source.write()
            group.are_whole()
            second.send(signal.SIGKILL)
            group.wait(lambda: group.is_shared_by(1), SESSION + 60, what="its session is over")
            group.source.write()
            group.are_whole()
            after = group.tokens()
            assert all(after[part] >= before[part] for part in before)
            assert first.end() == 0
        finally:
            group.close()
