"""Groups straight from Kafka, with real processes and a real broker: its coordinator hands the parts out."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import walbus
from support.group_rig import PARTS
from support.group_tasks import taken_by_tasks
from support.kafka_group import LEASE, LONG_LEASE, SESSION, KafkaGroup
from support.kafka_server import Cluster
from support.waiting import wait_for
from walbus.consumers import LeasedSubscription
from walbus.consumers.checkpoint import Part
from walbus.consumers.clock import Clock
from walbus.consumers.group_member import GroupMember
from walbus.consumers.kafka_lessor import KafkaLessor
from walbus.errors import CheckpointTaken, UsageError

pytestmark = [pytest.mark.one_version, pytest.mark.timeout(300)]

#: For whatever is to happen, once sessions are over: it only keeps a test from hanging.
SOON = 60


@pytest.fixture
def group(kafka: str, tmp_path: Path) -> Iterator[KafkaGroup]:
    made = KafkaGroup(tmp_path, kafka)
    yield made
    made.close()


@contextmanager
def running(member: GroupMember[LeasedSubscription], work: Callable[[LeasedSubscription], object]) -> Iterator[None]:
    """The member in a thread, which has left at the end."""
    thread = threading.Thread(target=member.run, args=(work,))
    thread.start()
    try:
        yield
    finally:
        member.stop()
        thread.join(SOON)
        assert not thread.is_alive(), "the member left"


def ids_of(subscription: LeasedSubscription, into: list[int], enough: int) -> None:
    for window in subscription:
        into += [change.key["id"] for change in window]
        window.commit()
        if len(into) >= enough:
            return


def test_members_that_join_and_leave_share_the_parts_and_miss_nothing(group: KafkaGroup) -> None:
    group.lease = LONG_LEASE
    first = group.member("first")
    group.source.write()
    group.are_whole()
    second = group.member("second")
    group.wait(lambda: group.is_shared_by(2), SOON, what="the second one to get its share")
    group.source.write()
    group.are_whole()
    assert first.end() == 0
    group.wait(lambda: group.is_shared_by(1), LONG_LEASE - 1, what="what was left to be taken at once")
    group.source.write()
    group.are_whole()
    assert len({row.id for row in group.rows("second")}) >= 20
    assert second.end() == 0
    group.wait(lambda: group.held() == {}, LONG_LEASE - 1, what="it to have left")
    assert len(group.rows()) == group.source.count, "nobody died, so nothing came twice"


def test_a_part_goes_to_another_member_when_its_holder_has_finished_and_the_others_go_on(group: KafkaGroup) -> None:
    group.lease = LONG_LEASE
    first = group.member("first")
    group.wait(lambda: group.is_shared_by(1), SOON, what="the first one to have all")
    first.hold()
    group.source.write(60)  # some for each part
    group.wait(lambda: first.holds() == PARTS, SOON, what="the first one to be in the middle of its windows")
    second = group.member("second")
    group.wait(lambda: first.says.count("group.part_given_up") == 2, SOON, what="half of it to be asked back")
    assert group.rows("second") == [], "which is still under way"
    first.let_go()
    group.wait(lambda: group.rows("second"), SOON, what="the second one to go on with it")
    group.are_whole()
    assert (first.end(), second.end()) == (0, 0)
    assert len(group.rows()) == group.source.count, "nothing came twice"


def test_the_parts_of_a_member_that_is_killed_go_to_the_others_when_its_session_is_over(group: KafkaGroup) -> None:
    first, second = group.member("first"), group.member("second")
    group.wait(lambda: group.is_shared_by(2), SOON, what="both to have their shares")
    group.source.write()
    group.are_whole()
    first.send(signal.SIGKILL)
    group.source.write()
    group.wait(lambda: group.is_shared_by(1), SESSION + 20, what="its session is over")
    group.are_whole()
    assert second.end() == 0


def test_a_member_that_stood_still_past_its_session_has_its_late_commit_refused_and_says_so(group: KafkaGroup) -> None:
    first, second = group.member("first"), group.member("second")
    group.wait(lambda: group.is_shared_by(2), SOON, what="both to have their shares")
    group.source.write()
    group.are_whole()
    before = group.tokens()
    first.hold()
    group.source.write(60)
    both = PARTS // 2
    group.wait(lambda: first.holds() == both, SOON, what="the first one to be in the middle of its windows")
    first.send(signal.SIGSTOP)
    group.wait(lambda: group.is_shared_by(1), SESSION + 20, what="the second one has all")
    group.are_whole()
    after = group.tokens()
    assert sum(after[part] > before[part] for part in before) == both, "what moved has a higher token"
    first.let_go()
    first.send(signal.SIGCONT)
    group.wait(lambda: "group.commit_refused" in first.says, SOON, what="it to be told")
    group.wait(lambda: group.is_shared_by(2), SOON, what="it to be a member again")
    group.source.write()
    group.are_whole()
    assert (first.end(), second.end()) == (0, 0)


def test_a_member_that_stood_still_for_less_goes_on_with_what_it_had(group: KafkaGroup) -> None:
    group.lease = LONG_LEASE
    first, second = group.member("first"), group.member("second")
    group.wait(lambda: group.is_shared_by(2), SOON, what="both to have their shares")
    group.source.write()
    group.are_whole()
    before = group.tokens()
    first.send(signal.SIGSTOP)
    group.source.write()
    first.send(signal.SIGCONT)
    group.are_whole()
    assert group.tokens() == before
    assert (first.end(), second.end()) == (0, 0)


def test_a_broker_that_dies_is_waited_for_by_all_members_who_say_so(own_kafka: Cluster, tmp_path: Path) -> None:
    group = KafkaGroup(tmp_path, own_kafka.bootstrap)
    try:
        first, second = group.member("first"), group.member("second")
        group.wait(lambda: group.is_shared_by(2), SOON, what="both to have their shares")
        group.source.write()
        group.are_whole()
        before = group.tokens()
        own_kafka.brokers[0].kill()
        for member in (first, second):
            group.wait(lambda member=member: "group.waiting" in member.says, SOON, what="it to say that it waits")
        own_kafka.brokers[0].start()
        own_kafka.await_answer()
        for member in (first, second):
            group.wait(lambda member=member: "group.answered" in member.says, SOON, what="it to be answered")
        group.wait(lambda: group.is_shared_by(2), SOON, what="both to have their shares again")
        group.source.write()
        group.are_whole()
        assert all(group.tokens()[part] >= before[part] for part in before)
        assert first.end() == 0
        group.wait(lambda: group.is_shared_by(1), SOON, what="the other one to have all")
        said = second.says.count("group.waiting")
        own_kafka.brokers[0].kill()
        group.wait(lambda: second.says.count("group.waiting") > said, SOON, what="it to say that it waits")
        assert second.end() == 0, "it ends without the coordinator"
    finally:
        group.close()


def test_a_broker_that_stands_still_is_noticed_within_a_session(own_kafka: Cluster, tmp_path: Path) -> None:
    group = KafkaGroup(tmp_path, own_kafka.bootstrap)
    try:
        member = group.member("only")
        group.wait(lambda: member.says.count("group.part_taken") == PARTS, SOON, what="it to have all")
        os.kill(own_kafka.brokers[0].pid, signal.SIGSTOP)
        try:
            group.wait(lambda: "group.waiting" in member.says, SESSION + 20, what="it to say that it waits")
        finally:
            os.kill(own_kafka.brokers[0].pid, signal.SIGCONT)
        group.wait(lambda: "group.answered" in member.says, SESSION + 20, what="it to be answered")
        group.source.write()
        group.are_whole()
        assert member.end() == 0
    finally:
        group.close()


def test_a_cluster_that_is_away_is_waited_for_and_said(tmp_path: Path) -> None:
    with walbus.connect("kafka://127.0.0.1:1/nothing", folder=tmp_path) as bus:
        member = bus.join("public.*", name="orders", parts=2, lease_seconds=LEASE)
        with running(member, print):
            why = wait_for(lambda: member.waiting_for, SOON, what="it to say why it waits")
            assert "127.0.0.1:1" in why
            assert member.parts == ()


def test_a_group_with_another_number_of_parts_is_refused_by_both_interfaces(group: KafkaGroup, tmp_path: Path) -> None:
    group.source.write(1)
    seen: list[int] = []

    def others_are_refused(subscription: LeasedSubscription) -> None:
        ids_of(subscription, seen, 1)
        other = walbus.connect(group.url, folder=tmp_path / "other")
        with other, pytest.raises(UsageError, match=r"the group has 1 parts.*of a group of 2") as refused:
            other.join(name="orders", parts=2).run(print)
        assert "give 1 parts" in (refused.value.mend or "")
        assert group.topic in (refused.value.where or "")

        async def by_a_task() -> None:
            async with walbus.aconnect(group.url, folder=tmp_path / "other") as bus:
                await bus.join(name="orders", parts=3).run(print)  # type: ignore[arg-type]

        with pytest.raises(UsageError, match=r"the group has 1 parts.*of a group of 3"):
            asyncio.run(by_a_task())

    with walbus.connect(group.url, folder=tmp_path / "own") as bus:
        bus.join("public.*", name="orders", parts=1, start="earliest").run(others_are_refused)
    assert seen == [1]


def test_a_lease_that_is_too_short_for_the_cluster_is_refused(group: KafkaGroup, tmp_path: Path) -> None:
    with walbus.connect(group.url, folder=tmp_path / "own") as bus:
        member = bus.join("public.*", name="orders", parts=1, lease_seconds=3)
        with pytest.raises(UsageError, match="session timeout") as refused:
            member.run(print)
    assert "lease_seconds" in (refused.value.mend or "")


def test_a_topic_that_gets_more_partitions_ends_the_group(group: KafkaGroup, tmp_path: Path) -> None:
    from confluent_kafka.admin import NewPartitions

    options = {"topic.metadata.refresh.interval.ms": "500"}
    with walbus.connect(group.url, folder=tmp_path / "own", kafka_options=options) as bus:
        member = bus.join("public.*", name="orders", parts=2, start="earliest", lease_seconds=LEASE)
        with running_until_refused(member) as refused:
            wait_for(lambda: len(member.parts) == 2, SOON, what="it to have all")
            group.admin.create_partitions([NewPartitions(group.topic, 3)])[group.topic].result()
            wait_for(lambda: refused, SOON, what="it to be refused")
    assert "the group has 3 parts" in str(refused[0])


@contextmanager
def running_until_refused(member: GroupMember[LeasedSubscription]) -> Iterator[list[BaseException]]:
    """The member in a thread, and what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            member.run(list)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        member.stop()
        thread.join(SOON)
        assert not thread.is_alive(), "the member left"


def test_tokens_grow_over_a_topic_that_was_deleted_and_is_made_again(group: KafkaGroup, tmp_path: Path) -> None:
    tokens: list[int] = []

    def seen_by(bus: walbus.consumers.Bus) -> None:
        def work(subscription: LeasedSubscription) -> None:
            tokens.append(subscription.part.token)

        bus.join("public.*", name="orders", parts=1, start="earliest", lease_seconds=LEASE).run(work)

    with walbus.connect(group.url, folder=tmp_path / "own") as bus:
        seen_by(bus)
        group.admin.delete_topics([group.topic])[group.topic].result()
        wait_for(lambda: group.topic not in group.admin.list_topics(timeout=10).topics, SOON, what="it to be gone")
        seen_by(bus)
        seen_by(bus)
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 3


def test_who_does_not_finish_in_time_loses_the_part_and_its_commit_is_refused(
    group: KafkaGroup, tmp_path: Path
) -> None:
    group.source.write(40)  # some for each part
    let_go = threading.Event()
    stands, refused, took, others = set[Part](), set[Part](), set[Part](), set[Part]()

    def stands_still(subscription: LeasedSubscription) -> None:
        for window in subscription:
            stands.add(subscription.part)
            let_go.wait(SOON)
            try:
                window.commit()
            except CheckpointTaken:
                refused.add(subscription.part)
                raise
            took.add(subscription.part)

    def goes_on(subscription: LeasedSubscription) -> None:
        for window in subscription:
            window.commit()
            others.add(subscription.part)

    with (
        walbus.connect(group.url, folder=tmp_path / "own") as bus,
        walbus.connect(group.url, folder=tmp_path / "own") as other,
    ):
        slow = bus.join("public.*", name="orders", parts=2, start="earliest", lease_seconds=LONG_LEASE)
        slow._lessor = KafkaLessor("orders", group.source.engine.cluster, Clock(), handover_seconds=2.0)
        with running(slow, stands_still):
            wait_for(lambda: len(stands) == 2, SOON, what="it to be in the middle of a window of each part")
            quick = other.join("public.*", name="orders", parts=2, start="earliest", lease_seconds=LONG_LEASE)
            with running(quick, goes_on):
                wait_for(lambda: others, SOON, what="the other one to have a part all the same")
                let_go.set()
                wait_for(lambda: refused and took, SOON, what="the late commit to be refused, and the other one taken")
    (lost,), (given,) = refused, others
    assert (lost.partition, lost.token < given.token) == (given.partition, True)
    assert lost not in took


def test_tasks_share_the_parts_as_threads_do(group: KafkaGroup, tmp_path: Path) -> None:
    taken, held = asyncio.run(taken_by_tasks(group, tmp_path / "own"))
    assert (sorted(taken), held) == (list(range(1, 31)), 2)
