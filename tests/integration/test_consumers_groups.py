"""Groups with real processes: parts move when members join, leave, die and stand still, and nothing is missed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import walbus
from support.group_rig import PARTS, Group
from support.group_tasks import taken_by_tasks
from support.relay_log import FileEngine
from support.serving_relay import ServingRelay
from walbus.consumers import AsyncLeasedSubscription, LeasedSubscription
from walbus.consumers.deliveries import Delivered
from walbus.demo.postgres import free_port
from walbus.errors import CheckpointTaken, RequestRefused, UsageError
from walbus.events import Change

pytestmark = pytest.mark.one_version

LEASE = 3.0
LONG_LEASE = 20.0  # which is over for nobody, be the machine as busy as it may


class RelayGroup(Group):
    """Members of one group, and the relay that they ask."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, FileEngine(folder / "log"), LEASE)
        self.port = free_port()
        self.relay = self._new_relay()

    @property
    def url(self) -> str:
        return self.relay.url

    def _new_relay(self) -> ServingRelay:
        return ServingRelay(self.source.engine.folder, port=self.port).__enter__()

    def restart_relay(self) -> None:
        self.relay.__exit__(None, None, None)
        self.relay = self._new_relay()

    def held(self) -> dict[str, list[int]]:
        status, document = self.relay.json("GET", "/v1/groups/orders")
        return {} if status == 404 else {one["name"]: one["parts"] for one in document["members"]}

    def close_server(self) -> None:
        self.relay.__exit__(None, None, None)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[RelayGroup]:
    made = RelayGroup(tmp_path)
    yield made
    made.close()


def test_members_that_join_and_leave_share_the_parts_and_miss_nothing(group: RelayGroup) -> None:
    group.lease = LONG_LEASE
    first = group.member("first")
    group.source.write()
    group.are_whole()
    second = group.member("second")
    group.wait(lambda: group.is_shared_by(2), 60, what="the second one to get its share")
    group.source.write()
    group.are_whole()
    assert first.end() == 0
    group.wait(lambda: group.is_shared_by(1), LONG_LEASE - 1, what="what was left to be taken at once")
    group.source.write()
    group.are_whole()
    assert len({row.id for row in group.rows("second")}) >= 20
    assert second.end() == 0
    assert group.held() == {}
    assert len(group.rows()) == group.source.count, "nobody died, so nothing came twice"


def test_the_parts_of_a_member_that_is_killed_go_to_the_others_when_its_lease_is_over(group: RelayGroup) -> None:
    first, second = group.member("first"), group.member("second")
    group.wait(lambda: group.is_shared_by(2), 60, what="both to have their shares")
    group.source.write()
    group.are_whole()
    first.send(signal.SIGKILL)
    group.source.write()
    group.wait(lambda: group.is_shared_by(1), LEASE * 1.1 + 1 + 20, what="the lease is over")
    group.are_whole()
    assert second.end() == 0


def test_a_member_that_stood_still_longer_than_its_lease_has_its_late_commit_refused_and_says_so(
    group: RelayGroup,
) -> None:
    group.lease = 2 * LEASE  # or a busy machine could move parts before anybody is stopped
    first, second = group.member("first"), group.member("second")
    group.wait(lambda: group.is_shared_by(2), 60, what="both to have their shares")
    first.hold()
    group.source.write(60)  # some for each part
    both = PARTS // 2  # one that was stopped in the middle of a save would have the lock of its checkpoint
    group.wait(lambda: first.holds() == both, 60, what="the first one to be in the middle of its windows")
    first.send(signal.SIGSTOP)
    group.wait(lambda: group.is_shared_by(1), group.lease * 1.1 + 1 + 20, what="the second one has all")
    group.are_whole()
    first.let_go()
    first.send(signal.SIGCONT)
    group.wait(lambda: "group.commit_refused" in first.says, 60, what="it to be told")
    group.wait(lambda: group.is_shared_by(2), 60, what="it to be a member again")
    group.source.write()
    group.are_whole()
    assert (first.end(), second.end()) == (0, 0)


def test_members_outlast_a_restart_of_the_relay_with_the_parts_that_they_have(group: RelayGroup) -> None:
    group.lease = LONG_LEASE
    members = [group.member("first"), group.member("second")]
    group.wait(lambda: group.is_shared_by(2), 60, what="both to have their shares")
    group.source.write(60)  # some for each part
    group.are_whole()
    group.restart_relay()
    group.source.write()
    group.are_whole()
    tokens = {(row.part, row.token) for row in group.rows()}
    assert len(tokens) == PARTS, "each part had one token all the while"
    assert [member.end() for member in members] == [0, 0]


def ids_of(subscription: LeasedSubscription, into: list[int], enough: int) -> None:
    for window in subscription:
        into += [change.key["id"] for change in window]
        window.commit()
        if len(into) >= enough:
            return


def test_a_member_whose_work_returns_or_raises_ends_and_leaves(group: RelayGroup, tmp_path: Path) -> None:
    group.source.write(10)
    with walbus.connect(group.relay.url, folder=tmp_path / "own") as bus:
        taken: list[int] = []
        member = bus.join("public.*", name="orders", parts=1, start="earliest")
        member.run(lambda subscription: ids_of(subscription, taken, 10))
        assert (taken, group.held(), member.parts) == (list(range(1, 11)), {}, ())
        with pytest.raises(UsageError, match="has left"):
            member.run(lambda subscription: None)

        def fails(subscription: LeasedSubscription) -> None:
            raise ValueError(subscription.name)

        with pytest.raises(ValueError, match=r"orders.0-of-1"):
            bus.join("public.*", name="orders", parts=1).run(fails)
        assert group.held() == {}


def test_tasks_share_the_parts_as_threads_do(group: RelayGroup, tmp_path: Path) -> None:
    taken, held = asyncio.run(taken_by_tasks(group, tmp_path / "own"))
    assert (sorted(taken), held) == (list(range(1, 31)), 2)


def test_what_a_group_cannot_be_is_refused(group: RelayGroup, tmp_path: Path) -> None:
    group.source.write(1)
    with walbus.connect(group.relay.url, folder=tmp_path / "own") as bus:
        holder = bus.join("public.*", name="orders", parts=1, start="earliest")
        seen: list[int] = []

        def others_are_refused(subscription: LeasedSubscription) -> None:
            ids_of(subscription, seen, 1)
            with (
                walbus.connect(group.relay.url, folder=tmp_path / "other") as other,
                pytest.raises(RequestRefused, match="1 parts"),
            ):
                other.join(name="orders", parts=2).run(print)

        holder.run(others_are_refused)
        with pytest.raises(UsageError, match="that of a group"):
            bus.subscribe("public.*", name="orders", partition="0/1")
        with pytest.raises(UsageError, match="in 1 parts"):
            bus.join(name="orders", parts=2)
        with pytest.raises(UsageError, match="number of parts"):
            bus.join(name="orders", parts=0)
    with pytest.raises(UsageError, match="the bus is closed"):
        bus.join(name="orders", parts=1)
    assert issubclass(walbus.errors.PartLost, CheckpointTaken)


class Closes(walbus.Callbacks):
    """Callbacks that close what calls them."""

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close

    def on_change(self, change: Change, window: Delivered) -> None:
        self.close()


class ClosesAwaited(walbus.AsyncCallbacks):
    """The same, awaited."""

    def __init__(self, close: Callable[[], Awaitable[object]]) -> None:
        self.close = close

    async def on_change(self, change: Change, window: Delivered) -> None:
        await self.close()


@pytest.mark.parametrize("what", ["bus", "member"])
@pytest.mark.parametrize("called", ["by the work", "by a callback", "by the handler of a signal"])
def test_what_a_member_has_called_cannot_close_it_and_is_told_so(
    what: str, called: str, group: RelayGroup, tmp_path: Path
) -> None:
    group.source.write(1)
    refused: list[UsageError] = []
    bus = walbus.connect(group.relay.url, folder=tmp_path / "own")
    member = bus.join("public.*", name="orders", parts=1, start="earliest")

    def close(*_: object) -> None:
        try:
            (bus if what == "bus" else member).close()
        except UsageError as error:
            refused.append(error)
        member.stop()

    def work(subscription: LeasedSubscription) -> None:
        if called == "by a callback":
            subscription.run(Closes(close))
            return
        for window in subscription:
            if called == "by the work":
                close()
            else:
                signal.raise_signal(signal.SIGUSR1)
            window.commit()  # nothing is closed

    before = signal.signal(signal.SIGUSR1, close)
    try:
        member.run(work)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [error.mend for error in refused] == ["call stop() of the member, and return"]
    assert group.held() == {}, "it has left"
    bus.close()


@pytest.mark.parametrize("what", ["bus", "member"])
@pytest.mark.parametrize("called", ["by the work", "by a callback", "by a task of the work"])
def test_what_a_member_awaits_cannot_close_it_and_is_told_so(
    what: str, called: str, group: RelayGroup, tmp_path: Path
) -> None:
    group.source.write(1)
    refused: list[UsageError] = []

    async def run() -> None:
        bus = walbus.aconnect(group.relay.url, folder=tmp_path / "own")
        member = bus.join("public.*", name="orders", parts=1, start="earliest")

        async def close() -> None:
            try:
                await (bus if what == "bus" else member).close()
            except UsageError as error:
                refused.append(error)
            member.stop()

        async def work(subscription: AsyncLeasedSubscription) -> None:
            if called == "by a callback":
                await subscription.run(ClosesAwaited(close))
                return
            async for window in subscription:
                await (close() if called == "by the work" else asyncio.gather(close()))
                await window.commit()

        await member.run(work)
        assert group.held() == {}, "it has left"
        await bus.close()

    asyncio.run(run())
    assert [error.mend for error in refused] == ["call stop() of the member, and return"]


def test_a_bus_that_a_callback_closes_ends_its_run(group: RelayGroup, tmp_path: Path) -> None:
    group.source.write(3)
    bus = walbus.connect(group.relay.url, folder=tmp_path / "own")
    bus.subscribe("public.*", name="alone", start="earliest").run(Closes(bus.close))

    async def run() -> None:
        bus = walbus.aconnect(group.relay.url, folder=tmp_path / "others")
        await bus.subscribe("public.*", name="alone", start="earliest").run(ClosesAwaited(bus.close))

    asyncio.run(run())
