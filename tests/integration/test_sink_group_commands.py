"""The commands of an operator on a sink that a group fills: its parts are listed, paused, compared and read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.database import Database
from support.group_targets import PostgresTarget, RedisTarget, Target, assert_equal
from support.single_rooms import SingleRooms
from support.sink_group import Member, SinkGroup, with_items
from support.waiting import wait_for

pytestmark = pytest.mark.one_version

PARTS = 3


@pytest.fixture
def source(database: Database) -> Database:
    return with_items(database)


@pytest.fixture(params=["postgres", "redis"])
def target(request: pytest.FixtureRequest) -> Target:
    if request.param == "redis":
        return RedisTarget(request.getfixturevalue("redis_url"), PARTS)
    return PostgresTarget(request.getfixturevalue("target_database"), PARTS)


@pytest.fixture
def group(source: Database, target: Target, open_folder: Path, tmp_path: Path) -> Iterator[SinkGroup]:
    with SingleRooms(open_folder, source.dsn, {}, source={"slot": f"s_{source.name}"}) as system:
        system.start()
        system.wait_until_streaming()
        with SinkGroup(tmp_path, system, source, target.section) as group:
            yield group


def kinds(member: Member, *options: str) -> tuple[int, dict[tuple[str, ...], str]]:
    ended = member.command("verify", "--sink", "orders", "--json", *options)
    assert ended.code in (0, 3), ended.stderr
    tables = json.loads(ended.stdout)["tables"]
    return ended.code, {tuple(one["key"]): one["kind"] for table in tables for one in table["keys"]}


def test_a_groups_parts_are_listed_and_rest_together(group: SinkGroup, target: Target, source: Database) -> None:
    member = group.member("first")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    listed = json.loads(member.command("consumers", "list", "--json").stdout)["consumers"]
    assert [(one["name"], one["configured"]) for one in listed] == [(name, True) for name in group.names()]
    shown = json.loads(member.command("consumers", "show", "orders", "--json").stdout)
    assert [one["name"] for one in shown["parts"]] == group.names()
    assert {one["member"] for one in shown["parts"]} == {member.status()["member"]}
    assert "token" in member.command("consumers", "show", "orders").stdout
    assert member.command("consumers", "pause", "orders").code == 0
    wait_for(lambda: {one["phase"] for one in member.status()["held"].values()} == {"paused"}, what="all of them rest")
    assert "walbus consumers resume orders" in member.status()["waiting_for"]
    source.execute("UPDATE items SET note = 'meanwhile'")
    assert member.command("consumers", "resume", "orders").code == 0
    assert_equal(group, target, source)


def test_a_group_is_compared_mended_and_read_again_once_its_members_have_ended(
    group: SinkGroup, target: Target, source: Database
) -> None:
    member = group.member("first")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    for command in (("verify", "--sink", "orders"), ("consumers", "reset", "orders", "--to", "snapshot")):
        assert "is running" in member.command(*command).one_line()
    assert "group" in member.command("rebuild", "orders").one_line()
    assert member.end() == 0
    assert kinds(member) == (0, {})
    target.tamper()
    found = {("1",): "different", ("2",): "missing", ("3",): "missing", ("9999",): "ghost"}
    assert kinds(member) == (3, found)
    kinds(member, "--repair")
    assert kinds(member) == (0, {})
    target.tamper()
    source.execute("UPDATE items SET note = 'meanwhile' WHERE id = 7")
    assert member.command("consumers", "reset", "orders", "--to", "snapshot").code == 0
    group.member("second")
    group.wait_until_shared_by(1)
    assert_equal(group, target, source)
    wait_for(lambda: 9999 not in {int(row["id"]) for row in target.rows("items")}, what="the ghost is swept")
    assert_equal(group, target, source)
