"""What happens to the brokers under the log: some of three die, the leader moves, copies are too few, a disk is full.

All rooms run meanwhile, under a load; a second slot says what the log has to hold, and the source what the sink has to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import ElectionType, KafkaException, TopicCollection, TopicPartition, TopicPartitionInfo
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from support.database import Database
from support.kafka_server import local_kafka, or_missing
from support.kafka_writing import Writing, committed, small
from support.log_view import log_transactions
from support.maven_jars import JARS
from support.oracle import Oracle, assert_same_transactions
from support.relay_log import commits
from support.seed import announced_seed
from support.small_disk import small_disk
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.demo.kafka_server import Broker, Cluster, embedded_kafka
from walbus.demo.load import ShopLoad
from walbus.errors import LogUnreachable
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterSettings

pytestmark = [pytest.mark.one_version, pytest.mark.timeout(900)]

TOPIC = "shop"


@pytest.fixture
def three() -> Iterator[Cluster]:
    """Three brokers, which are the controllers too."""
    with or_missing(lambda: local_kafka(brokers=3)) as cluster:
        yield cluster


class Rooms:
    """All rooms in front of a cluster, under the shop's load."""

    def __init__(self, system: WholeSystem, cluster: Cluster, database: Database, truth: Oracle) -> None:
        self.system, self._cluster, self._database, self._truth = system, cluster, database, truth

    @property
    def admin(self) -> AdminClient:
        """A new one: an older one may go on asking a broker that is gone."""
        return AdminClient({"bootstrap.servers": self._cluster.bootstrap, "log_level": 0, "error_cb": lambda _: None})

    def state(self) -> object:
        """What capture says that it does."""
        return self.system.status("capture").get("state")

    def wait_until_it_waits(self) -> None:
        """Until capture says that it cannot write, and has said why."""
        wait_for(lambda: self.state() == "log unreachable", 120, what="capture tells that the cluster is away")
        assert self._cluster.bootstrap in str(self.system.status("capture").get("error"))

    def wait_until_more_is_committed(self) -> None:
        """Until a commit that is made now is in the log, and capture says that all is well."""
        lsn = self._database.insert_lsn()
        wait_for(lambda: self.system.end().commit_lsn >= lsn, 120, what="capture goes on")
        wait_for(lambda: self.state() == "streaming", 60, what="capture tells that it streams")

    def leader(self) -> int:
        """Number of the broker that leads the log's topic."""
        found = self._partition().leader
        assert found is not None
        return int(found.id)

    def preferred(self) -> int:
        """Number of the broker that leads it where all are well."""
        return int(self._partition().replicas[0].id)

    def in_sync(self) -> set[int]:
        """Brokers whose copy of the log is whole."""
        return {node.id for node in self._partition().isr}

    def _partition(self) -> TopicPartitionInfo:
        def told() -> TopicPartitionInfo | None:
            try:
                admin = self.admin  # held until it has answered
                asked = admin.describe_topics(TopicCollection([TOPIC]), request_timeout=5)
                return asked[TOPIC].result().partitions[0]
            except KafkaException:
                return None

        return wait_for(told, 60, what="the cluster tells of its topic", every=0.2)

    def broker(self, number: int) -> Broker:
        return self._cluster.brokers[number - 1]

    def check(self) -> None:
        """At rest: log, topic, and sink are what the source says."""
        self.system.wait_until_at_rest(self._database)
        self.system.check(self._database, self._truth)
        settings = ClusterSettings(self._cluster.bootstrap, TOPIC)
        with closing(open_kafka_reader(settings)) as reader:
            found = [one for one in log_transactions(reader) if one.xid]
        assert_same_transactions(found, self._truth.transactions())
        whole = commits([header for header in committed(settings) if header.kind == 1])
        assert whole == sorted(set(whole))


@pytest.fixture
def rooms(database: Database, oracle: Callable[..., Oracle], three: Cluster, open_folder: Path) -> Iterator[Rooms]:
    load = ShopLoad(database.dsn, rate=60, seed=announced_seed("the shop"))
    load.prepare(300)
    make_marker(database)
    sections = {
        "source": {"slot": f"s_{database.name}"},
        "relay": {"engine": "kafka"},
        "relay.kafka": {"bootstrap_servers": three.bootstrap.split(","), "topic": TOPIC},
    }
    try:
        with WholeSystem(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}, **sections) as system:
            system.start()
            system.wait_until_streaming()
            made = Rooms(system, three, database, oracle("walbus"))
            load.start()
            yield made
            load.stop()
            made.check()
            assert system.stop() == 0
    finally:
        load.stop()


@pytest.mark.long
def test_of_three_brokers_any_may_die_and_the_leader_may_move_under_load(rooms: Rooms) -> None:
    rng = random.Random(announced_seed("the kills"))
    first = rooms.leader()
    rooms.broker(first).kill()
    rooms.wait_until_more_is_committed()  # by another leader
    assert rooms.leader() != first
    rooms.broker(first).start()
    wait_for(lambda: rooms.in_sync() == {1, 2, 3}, 120, what="the copy is whole again", every=0.2)
    admin = rooms.admin
    admin.elect_leaders(ElectionType.PREFERRED, [TopicPartition(TOPIC, 0)]).result()
    wait_for(lambda: rooms.leader() == rooms.preferred(), 60, what="the leader moves", every=0.2)
    rooms.wait_until_more_is_committed()
    for number in rng.sample((1, 2, 3), 2):
        rooms.broker(number).kill()
        rooms.wait_until_more_is_committed()
        rooms.broker(number).start()
        wait_for(lambda: rooms.in_sync() == {1, 2, 3}, 120, what="the copy is whole again", every=0.2)


@pytest.mark.long
def test_where_too_few_copies_are_in_sync_capture_waits_says_so_and_goes_on(rooms: Rooms) -> None:
    names = [TOPIC, f"{TOPIC}.large", f"{TOPIC}.meta"]
    needed = [ConfigEntry("min.insync.replicas", "3", incremental_operation=AlterConfigOpType.SET)]
    resources = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=needed) for name in names]
    admin = rooms.admin
    for done in admin.incremental_alter_configs(resources).values():
        done.result()
    follower = next(number for number in (1, 2, 3) if number != rooms.leader())
    rooms.broker(follower).kill()
    rooms.wait_until_it_waits()  # the cluster answers, and takes nothing
    assert len(rooms.in_sync()) < 3
    rooms.broker(follower).start()
    rooms.wait_until_more_is_committed()
    wait_for(lambda: rooms.in_sync() == {1, 2, 3}, 120, what="the copy is whole again", every=0.2)
    for number in (1, 2):
        rooms.broker(number).kill()
    rooms.wait_until_it_waits()
    for number in (1, 2):
        rooms.broker(number).start()
    rooms.wait_until_more_is_committed()


@pytest.mark.long
def test_a_broker_whose_disk_is_full_is_waited_for(tmp_path: Path) -> None:
    rng = random.Random(announced_seed("what is written"))
    (tmp_path / "kafka").mkdir()
    with (
        small_disk(tmp_path / "kafka" / "broker1", megabytes=96) as disk,
        or_missing(lambda: embedded_kafka(tmp_path / "kafka", JARS)) as cluster,
    ):
        engine = small(cluster.bootstrap, tmp_path / "log")
        writing = Writing(engine, rng)
        try:
            writing.wait_for_more(100)
            fill(disk)
            wait_for(lambda: not cluster.brokers[0].alive(), 120, what="the broker gives its disk up")
            with pytest.raises(LogUnreachable):
                open_kafka_reader(engine.cluster)
            (disk / "filler").unlink()
            cluster.brokers[0].start()
            cluster.await_answer()
            writing.wait_for_more(100)
        finally:
            (disk / "filler").unlink(missing_ok=True)
            writing.stop()
        assert commits(committed(engine.cluster)) == writing.written
        engine.close()


def fill(disk: Path) -> None:
    """Takes all the room that is left."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        size = 1 << 20
        while size >= 4096:
            try:
                filler.write(bytes(size))
            except OSError:
                size //= 2
