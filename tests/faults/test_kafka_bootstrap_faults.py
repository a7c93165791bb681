"""A bootstrap that reads the cluster is killed, stands still, and loses its broker; its rows end as the source's."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import ElectionType, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from support.bootstrap_rig import ITEMS, Writers
from support.database import Database
from support.kafka_kills import kill_in_turn
from support.kafka_rig import KafkaRig
from support.kafka_server import local_kafka
from support.oracle import Oracle
from support.seed import announced_seed
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.demo.kafka_server import Cluster
from walbus.demo.load import ShopLoad
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings
from walbus.relay.kafka.held_offset import held_on

pytestmark = pytest.mark.one_version

LOST = ("log_left_behind", "log_replaced", "store_damaged")


def fill_items(database: Database) -> None:
    database.execute(ITEMS)
    database.execute(
        "INSERT INTO public.items SELECT i, i, repeat(lpad(i::text, 32, '0'), 90) FROM generate_series(0, 1900) i"
    )


def test_a_store_seeded_from_the_cluster_under_writers_trimming_and_kills_equals_the_source(
    database: Database, kafka: str, tmp_path: Path
) -> None:
    seed = announced_seed("seeding from the cluster")
    choose = random.Random(seed)
    fill_items(database)
    relay: dict[str, object] = {"retention_hours": 0.0005}  # 1.8 s: all goes that is not held
    with KafkaRig(tmp_path, database, kafka, relay, chunk_rows=20, max_rows_per_second=1000) as rig:
        rig.start()
        with Writers(database, seed, truncates=1) as writers:
            wait_for(rig.held, 120, what="there is a hold on the cluster", every=0.2)
            unheld = len(rig.log())  # until here the log may be trimmed past what nobody holds yet
            for _ in range(4):
                before = writers.transactions
                wait_for(lambda mark=before: writers.transactions > mark + 50, 60, what="the writers go on")
                wait_for(rig.tables, 60, what="the bootstrap serves")
                until = time.monotonic() + choose.uniform(0, 1.5)
                wait_for(lambda until=until: time.monotonic() > until)
                rig.kill_bootstrap()
                rig.start_bootstrap()
        rig.assert_equals_source("public.items", deadline=180)
        held = rig.held_behind()
        database.execute("INSERT INTO public.items VALUES (-1, 0, '')")
        rig.trimmed_to(held)
        assert not [event for event in LOST if event in rig.log()[unheld:]], rig.log()


def test_a_cluster_that_is_away_is_waited_for_and_said_once(
    database: Database, own_kafka: Cluster, tmp_path: Path
) -> None:
    fill_items(database)
    broker = own_kafka.brokers[0]
    with KafkaRig(tmp_path, database, own_kafka.bootstrap, chunk_rows=100, max_rows_per_second=500) as rig:
        rig.start()
        wait_for(lambda: rig.tables()["public.items"]["rows"] > 100, 120, what="some rows are there")
        said = rig.log().count("log_not_readable")  # that there is no log yet
        broker.kill()
        database.execute("DELETE FROM public.items WHERE id % 7 = 0")
        wait_for(lambda: rig.status().get("state") == "waits_for_log", 120, what="the bootstrap tells of it")
        assert own_kafka.bootstrap in rig.status()["error"]
        told = time.monotonic() + 20  # and tries meanwhile
        wait_for(lambda: time.monotonic() > told)
        assert rig.tables()["public.items"]["state"] in {"seeding", "consistent"}  # it is served meanwhile
        assert rig.log().count("log_not_readable") == said + 1, rig.log()
        broker.start()
        own_kafka.await_answer()
        rig.assert_equals_source("public.items", deadline=180)
        wait_for(lambda: "state" not in rig.status(), what="the bootstrap tells that all is well")
        assert rig.tables()["public.items"]["generation"] == 1
        assert not [event for event in LOST if event in rig.log()], rig.log()
        before = rig.held_behind()
        database.execute("INSERT INTO public.items VALUES (-1, 0, '')")
        wait_for(lambda: rig.held_behind() > before, 120, what="the hold moves again", every=0.2)


def test_a_bootstrap_whose_cluster_is_away_from_the_start_ends_when_it_is_told_to(
    database: Database, own_kafka: Cluster, tmp_path: Path
) -> None:
    fill_items(database)
    broker = own_kafka.brokers[0]
    with KafkaRig(tmp_path, database, own_kafka.bootstrap) as rig:
        broker.kill()
        rig.start_bootstrap()
        wait_for(lambda: rig.status().get("state") == "waits_for_log", 120, what="the bootstrap tells of it")
        assert rig.bootstrap is not None
        assert rig.bootstrap.stop(deadline=30) == 0
        assert "thread_does_not_end" not in rig.log(), rig.log()
        broker.start()
        own_kafka.await_answer()
        rig.start()
        rig.assert_equals_source("public.items", deadline=120)
        broker.kill()
        wait_for(lambda: rig.status().get("state") == "waits_for_log", 120, what="the bootstrap tells of it")
        assert rig.bootstrap.stop(deadline=30) == 0
        assert "thread_does_not_end" not in rig.log(), rig.log()


def test_of_two_bootstraps_one_of_which_stood_still_one_has_the_hold_in_the_end(
    database: Database, kafka: str, tmp_path: Path
) -> None:
    fill_items(database)
    (tmp_path / "other").mkdir()
    with KafkaRig(tmp_path, database, kafka) as rig, KafkaRig(tmp_path / "other", database, kafka) as other:
        other.join(rig)
        rig.start()
        rig.assert_equals_source("public.items")
        assert rig.bootstrap is not None
        rig.bootstrap.process.send_signal(signal.SIGSTOP)
        other.start_bootstrap()
        other.assert_equals_source("public.items", deadline=120)  # once the first one's session is over
        rig.bootstrap.process.send_signal(signal.SIGCONT)

        def one_waits() -> bool:
            return (rig.status().get("state"), other.status().get("state")).count("waits_for_log") == 1

        wait_for(one_waits, 120, what="one of the two waits", every=0.2)
        database.execute("DELETE FROM public.items WHERE id % 7 = 0")
        settled = time.monotonic() + 15  # longer than a session
        wait_for(lambda: time.monotonic() > settled)
        wait_for(one_waits, 60, what="one of the two waits", every=0.2)
        has, waits = (rig, other) if other.status().get("state") == "waits_for_log" else (other, rig)
        has.assert_equals_source("public.items")
        has.kill_bootstrap()
        waits.assert_equals_source("public.items", deadline=120)


def test_who_is_asked_for_a_hold_may_change_between_two_questions() -> None:
    """A client that goes on asking who knew before ends its process: librdkafka's, by a segmentation fault."""
    with local_kafka(brokers=3) as cluster, closing(ClusterClients(ClusterSettings(cluster.bootstrap, "a"))) as clients:
        assert held_on(clients, 60) is None
        offsets = TopicPartition("__consumer_offsets", 0)
        first = leader_of(cluster, offsets)
        cluster.brokers[first - 1].kill()
        wait_for(lambda: leader_of(cluster, offsets) != first, 60, what="another broker is asked")
        cluster.brokers[first - 1].start()
        cluster.await_answer()
        assert held_on(clients, 60) is None

        def back() -> bool:
            client = admin(cluster)
            client.elect_leaders(ElectionType.PREFERRED, [offsets]).result()
            return leader_of(cluster, offsets) == first

        wait_for(back, 60, what="the first one is asked again", every=0.2)
        for _ in range(3):
            assert held_on(clients, 60) is None


def admin(cluster: Cluster) -> AdminClient:
    """A new one: an older one may go on asking a broker that is gone."""
    return AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0, "error_cb": lambda _: None})


def leader_of(cluster: Cluster, partition: TopicPartition) -> int | None:
    """The number of the broker that leads a partition; None while there is none."""
    client = admin(cluster)
    asked = client.describe_topics(TopicCollection([partition.topic]), request_timeout=15)
    leader = asked[partition.topic].result().partitions[partition.partition].leader
    return None if leader is None else int(leader.id)


@pytest.mark.timeout(900)
def test_all_rooms_under_kills_with_a_bootstrap_that_reads_the_cluster_end_with_no_difference(
    database: Database, oracle: Callable[..., Oracle], own_kafka: Cluster, open_folder: Path
) -> None:
    rng = random.Random(announced_seed("the kills"))
    load = ShopLoad(database.dsn, rate=60, seed=announced_seed("the shop"))
    load.prepare(300)
    make_marker(database)
    sections = {
        "source": {"slot": f"s_{database.name}"},
        "relay": {"engine": "kafka"},
        "relay.kafka": {"bootstrap_servers": own_kafka.bootstrap.split(","), "topic": "shop"},
        "bootstrap": {"read_from": "kafka"},
    }
    try:
        with WholeSystem(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}, **sections) as system:
            system.start()
            system.wait_until_streaming()
            truth = oracle("walbus")
            load.start()
            kill_in_turn(system, own_kafka, ("bootstrap", "broker", "bootstrap", "capture", "bootstrap"), rng)
            system.add_consumer("late", "sqlite")
            load.stop()
            system.wait_until_at_rest(database)
            system.check(database, truth)
            assert not (system.data_dir / "relay" / "holds" / "bootstrap.json").exists()
            assert system.stop() == 0
    finally:
        load.stop()
