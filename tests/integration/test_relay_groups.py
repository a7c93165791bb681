"""Groups at a relay's server: parts are given, given up and left; what was told outlives a kill of the relay."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.relay_server import Relay, fill
from support.waiting import wait_for
from walbus.relay.fs import Files
from walbus.relay.group_desk import MAX_GROUPS, GroupDesk
from walbus.relay.group_leases import Asked
from walbus.relay.groups_file import begin_groups

pytestmark = pytest.mark.one_version


@pytest.fixture
def make_relay(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def make(name: str = "one", log: Path | None = None, **options: Any) -> Relay:
        made.append(Relay(tmp_path / name, log, **options))
        return made[-1]

    yield make
    for relay in made:
        relay.close()


def call(relay: Relay, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=60)
    try:
        connection.request(method, f"/v1/groups/{path}", body=None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def ask(relay: Relay, member: str, done: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    body = {"parts": 4, "lease_seconds": 30, "done": done or [], **more}
    status, document = call(relay, "PUT", f"orders/members/{member}", body)
    assert status == 200, document
    return document


def parts(told: dict[str, Any]) -> dict[int, int]:
    return {hold["part"]: hold["token"] for hold in told["holds"]}


def test_members_share_the_parts_and_a_part_is_given_when_it_was_given_up(make_relay: Callable[..., Relay]) -> None:
    relay = fill(make_relay())
    first = ask(relay, "a")
    assert (sorted(parts(first)), first["members"]) == ([0, 1, 2, 3], 1)
    assert parts(ask(relay, "b")) == {}
    beyond = [hold for hold in ask(relay, "a")["holds"] if hold["give_up"]]
    assert len(beyond) == 2
    done = [{"part": hold["part"], "token": hold["token"]} for hold in beyond]
    assert len(parts(ask(relay, "a", done))) == 2
    second = parts(ask(relay, "b"))
    assert {part: token > parts(first)[part] for part, token in second.items()} == {
        hold["part"]: True for hold in beyond
    }
    status, group = call(relay, "GET", "orders")
    assert status == 200
    assert [(one["name"], len(one["parts"])) for one in group["members"]] == [("a", 2), ("b", 2)]
    assert parts(ask(relay, "b", leaves=True)) == {}
    assert call(relay, "DELETE", "orders/members/b")[0] == 404
    assert sorted(parts(ask(relay, "a"))) == [0, 1, 2, 3]
    assert parts(ask(relay, "c")) == {}
    assert call(relay, "DELETE", "orders/members/a") == (200, {"removed": "a"})
    assert sorted(parts(ask(relay, "c"))) == [0, 1, 2, 3]


def test_a_member_that_is_silent_loses_its_parts_when_its_lease_is_over(
    make_relay: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("walbus.relay.server.GroupDesk", partial(GroupDesk, monotonic=lambda: now[0]))
    relay = fill(make_relay())
    before = parts(ask(relay, "a", lease_seconds=3))
    assert parts(ask(relay, "b")) == {}
    now[0] += 3.0
    assert parts(ask(relay, "b")) == {}, "the holder counts from later on"
    now[0] += 2.0
    after = parts(ask(relay, "b"))
    assert sorted(after) == [0, 1, 2, 3]
    assert all(after[part] > before[part] for part in before)
    assert parts(ask(relay, "a")) == {}


def test_a_relay_that_is_started_again_goes_on_with_holders_and_tokens(make_relay: Callable[..., Relay]) -> None:
    first = fill(make_relay())
    held = parts(ask(first, "a"))
    first.stop.set()
    first.thread.join(60)
    second = make_relay("two", first.engine.folder)
    wait_for(lambda: second.get("/readyz")[0] == 200, what="the server to find the log")
    assert parts(ask(second, "b")) == {}, "the holder's lease may still be running"
    assert parts(ask(second, "a")) == held
    done = [{"part": part, "token": token} for part, token in held.items()]
    assert sorted(parts(ask(second, "a", done))) == [0, 1]
    assert all(token > held[part] for part, token in parts(ask(second, "b")).items())


def test_a_damaged_file_gives_nothing_until_every_lease_is_over(make_relay: Callable[..., Relay]) -> None:
    first = fill(make_relay())
    ask(first, "a")
    first.stop.set()
    first.thread.join(60)
    (first.engine.folder / "groups.json").write_bytes(b"{")
    for name in ("two", "started anew meanwhile"):
        relay = make_relay(name, first.engine.folder)
        wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server to find the log")  # noqa: B023
        status, refused = call(relay, "PUT", "orders/members/b", {"parts": 4, "lease_seconds": 5})
        assert (status, refused["error"]) == (503, "what members hold was lost, and is waited out")
        relay.stop.set()
        relay.thread.join(60)


def test_a_lost_file_gives_nothing_until_every_lease_is_over_and_is_made_with_the_log(
    make_relay: Callable[..., Relay],
) -> None:
    first = fill(make_relay())
    ask(first, "a")
    first.stop.set()
    first.thread.join(60)
    (first.engine.folder / "groups.json").unlink()
    second = make_relay("two", first.engine.folder)
    wait_for(lambda: second.get("/readyz")[0] == 200, what="the server to find the log")
    status, refused = call(second, "PUT", "orders/members/b", {"parts": 4, "lease_seconds": 5})
    assert (status, refused["error"]) == (503, "what members hold was lost, and is waited out")


def desk_of(folder: Path, wall: float, now: float = 0.0) -> GroupDesk:
    """The desk of a relay whose clocks are set."""
    return GroupDesk(folder, lambda: True, wall=lambda: wall, monotonic=lambda: now)


def test_tokens_grow_over_another_number_of_parts_dropped_groups_restarts_and_a_clock_that_is_set_back(
    tmp_path: Path,
) -> None:
    begin_groups(tmp_path, Files())

    async def given() -> list[int]:
        with ThreadPoolExecutor(1) as threads:
            desk = desk_of(tmp_path, wall=2_000_000.0)
            groups = [await desk.ask("orders", "a", Asked(4, 5.0), threads)]
            desk = desk_of(tmp_path, wall=1_000_000.0)  # a relay that is started again, with its clock set back
            await desk.ask("orders", "a", Asked(4, 5.0, leaves=True), threads)
            groups.append(await desk.ask("orders", "b", Asked(2, 5.0), threads))
            await desk.ask("orders", "b", Asked(2, 5.0, leaves=True), threads)
            for number in range(MAX_GROUPS):  # there is no room left for the empty one
                name = f"group{number}"
                groups.append(await desk.ask(name, "a", Asked(1, 5.0), threads))
            await desk.ask(name, "a", Asked(1, 5.0, leaves=True), threads)
            assert await desk.group("orders", threads) is None
            groups.append(await desk.ask("orders", "c", Asked(4, 5.0), threads))
            return [group.highest for group in groups]

    tokens = asyncio.run(given())
    assert tokens[0] == 2_000_000_000
    assert all(after > before for before, after in pairwise(tokens))


def test_two_relays_of_one_log_never_give_the_same_part(make_relay: Callable[..., Relay]) -> None:
    first = fill(make_relay())
    second = make_relay("two", first.engine.folder)
    wait_for(lambda: second.get("/readyz")[0] == 200, what="the server to find the log")
    ask(first, "a")
    status, refused = call(second, "PUT", "orders/members/b", {"parts": 4, "lease_seconds": 5})
    assert status == 503
    assert "does not keep the groups" in refused["error"]
    first.stop.set()
    first.thread.join(60)
    taken = wait_for(
        lambda: (
            call(second, "PUT", "orders/members/b", {"parts": 4, "lease_seconds": 5})[0] == 200 and ask(second, "b")
        ),
        60,
        what="the second one takes over",
    )
    assert parts(taken) == {}, "what the first one gave is not given again while it may be used"


def test_a_relay_that_copies_its_log_has_no_groups(make_relay: Callable[..., Relay]) -> None:
    relay = fill(make_relay(upstream=("http://127.0.0.1:9",)))
    for method, path in (("PUT", "orders/members/a"), ("DELETE", "orders/members/a"), ("GET", "orders")):
        status, refused = call(relay, method, path, {"parts": 4, "lease_seconds": 5} if method == "PUT" else None)
        assert (status, refused["where"]) == (409, "path")


@pytest.mark.parametrize(
    ("path", "body", "status", "where"),
    [
        ("orders/members/a", {"parts": 8, "lease_seconds": 5}, 409, "parts"),
        ("orders/members/a", {"parts": 4}, 400, "lease_seconds"),
        ("orders/members/a", {"parts": 4, "lease_seconds": 500}, 400, "lease_seconds"),
        ("orders/members/.a", {"parts": 4, "lease_seconds": 5}, 400, "member"),
        (".orders/members/a", {"parts": 4, "lease_seconds": 5}, 400, "name"),
        ("orders/members/a", "x" * 70_000, 413, "body"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    make_relay: Callable[..., Relay], path: str, body: object, status: int, where: str
) -> None:
    relay = fill(make_relay())
    ask(relay, "first")
    answered, refused = call(relay, "PUT", path, body)
    assert (answered, refused["where"]) == (status, where)
    assert call(relay, "PUT", "unknown/members/a", {"parts": 4, "lease_seconds": 5, "leaves": True})[1]["holds"] == []
    assert call(relay, "GET", "unknown")[0] == 404
