"""Fault 37 and its kin, on a real cluster: brokers and captures are killed; what is committed is whole, once, in order.

The judges read the topics by themselves, with `read_committed`, or compare with what a second slot saw.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from support.capturing import CaptureThread, source_of
from support.database import Database
from support.kafka_kills import kill_in_turn
from support.kafka_log import KafkaEngine
from support.kafka_server import local_kafka
from support.kafka_writing import Writing, committed, small
from support.log_view import log_transactions
from support.oracle import Oracle
from support.relay_log import commits, transaction
from support.seed import announced_seed
from support.single_rooms import SingleRooms
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.capture import identify
from walbus.demo.kafka_server import Cluster
from walbus.demo.load import ShopLoad
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.status import read_status


def test_a_broker_that_is_killed_in_the_midst_of_transactions_loses_and_repeats_nothing(
    own_kafka: Cluster, tmp_path: Path
) -> None:
    rng = random.Random(announced_seed("the kills"))
    engine = small(own_kafka.bootstrap, tmp_path / "log")
    writing = Writing(engine, rng)
    try:
        for _ in range(3):
            writing.wait_for_more(rng.randrange(20, 120))
            own_kafka.brokers[0].kill()
            own_kafka.brokers[0].start()
        own_kafka.await_answer()
        writing.wait_for_more(30)
    finally:
        writing.stop()
    headers = committed(engine.cluster)
    assert commits(headers) == writing.written
    assert all(a.last_seq <= b.last_seq for a, b in itertools.pairwise(headers))
    assert len({h.last_seq for h in headers}) == len(headers)
    engine.close()


@pytest.mark.long
def test_of_three_brokers_one_may_die_at_any_time(tmp_path: Path) -> None:
    rng = random.Random(announced_seed("the kills"))
    with local_kafka(brokers=3) as cluster:
        engine = small(cluster.bootstrap, tmp_path / "log")
        writing = Writing(engine, rng)
        try:
            for broker in rng.sample(cluster.brokers, 3):
                writing.wait_for_more(rng.randrange(50, 150))
                broker.kill()
                writing.wait_for_more(50)  # goes on with the two that are left
                broker.start()
                cluster.await_answer()
        finally:
            writing.stop()
        assert commits(committed(engine.cluster)) == writing.written
        engine.close()


@pytest.mark.one_version
def test_the_ends_of_a_topic_whose_broker_dies_before_it_answers_are_asked_for_again(
    own_kafka: Cluster, tmp_path: Path
) -> None:
    engine = KafkaEngine(own_kafka.bootstrap, tmp_path / "log")
    engine.cluster = dataclasses.replace(engine.cluster, answer_seconds=120.0)
    with closing(engine.open_writer()) as writer:
        writer.append(transaction(16))
        writer.sync()
    reader = engine.open_reader()
    known = reader.view()
    assert known.last >= 0
    (broker,) = own_kafka.brokers
    os.kill(broker.pid, signal.SIGSTOP)  # it takes the question, and says nothing
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(reader.view)
        time.sleep(0.5)  # the moment of a kill is the test's input
        assert not asked.done()
        broker.kill()
        broker.start()
        own_kafka.await_answer()
        assert asked.result(120) == known
    engine.close()


@pytest.mark.one_version
def test_a_capture_whose_cluster_is_away_says_so_and_keeps_its_connection(
    database: Database, own_kafka: Cluster, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    engine, status = KafkaEngine(own_kafka.bootstrap, tmp_path / "log"), tmp_path / "capture.json"
    engine.cluster = dataclasses.replace(engine.cluster, answer_seconds=2.0)
    source = source_of(database.dsn)

    def told(name: str) -> object:
        return (read_status(status) or {}).get(name)

    with closing(engine.open_writer(identify(source))) as log:
        capture = CaptureThread(source, log, status)
        capture.streaming()
        walsender = database.value("SELECT active_pid FROM pg_replication_slots")
        own_kafka.brokers[0].kill()
        database.execute("INSERT INTO t VALUES (1)")
        wait_for(lambda: told("state") == "log unreachable", 60, what="capture tells that the cluster is away")
        assert own_kafka.bootstrap in str(told("error"))
        assert (told("walbus_capture_log_unreachable"), told("walbus_capture_disk_full")) == (1, 0)
        own_kafka.brokers[0].start()
        own_kafka.await_answer()
        capture.caught_up()
        wait_for(lambda: told("state") == "streaming", 60, what="capture tells that it streams")
        assert (told("error"), told("walbus_capture_log_unreachable")) == (None, 0)
        assert database.value("SELECT active_pid FROM pg_replication_slots") == walsender
        capture.stop()
    engine.close()


@pytest.fixture
def shop(database: Database) -> Iterator[ShopLoad]:
    load = ShopLoad(database.dsn, rate=120, seed=announced_seed("the shop"))
    load.prepare(300)
    make_marker(database)
    yield load
    load.stop()


@pytest.mark.one_version
def test_killed_rooms_in_front_of_kafka_lose_and_repeat_nothing(
    database: Database, oracle: Callable[..., Oracle], shop: ShopLoad, own_kafka: Cluster, open_folder: Path
) -> None:
    rng = random.Random(announced_seed("the kills"))
    cluster = ClusterSettings(own_kafka.bootstrap, "shop")
    sections = {
        "source": {"slot": f"s_{database.name}"},
        "relay": {"engine": "kafka"},
        "relay.kafka": {"bootstrap_servers": own_kafka.bootstrap.split(","), "topic": "shop"},
    }
    with WholeSystem(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}, **sections) as system:
        system.start()
        system.wait_until_streaming()
        truth = oracle("walbus")
        shop.start()
        kill_in_turn(system, own_kafka, ("capture", "relay", "broker", "capture", "capture"), rng)
        shop.stop()
        system.wait_until_at_rest(database)
        system.check(database, truth)
        with closing(open_kafka_reader(cluster)) as reader:
            assert [one for one in log_transactions(reader) if one.xid] == truth.transactions()
        assert commits(committed(cluster)) == sorted(set(commits(committed(cluster))))
        assert system.stop() == 0


@pytest.mark.one_version
def test_a_cluster_that_is_away_when_capture_starts_is_waited_for_and_says_so(
    own_kafka: Cluster, database: Database, oracle: Callable[..., Oracle], open_folder: Path
) -> None:
    make_marker(database)
    sections = {
        "source": {"slot": f"s_{database.name}"},
        "relay": {"engine": "kafka"},
        "relay.kafka": {"bootstrap_servers": [own_kafka.bootstrap], "topic": "shop"},
    }
    with SingleRooms(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}, **sections) as system:
        own_kafka.brokers[0].kill()
        system.start()
        wait_for(lambda: system.status("capture").get("state") == "log unreachable", 120, what="capture tells of it")
        assert own_kafka.bootstrap in str(system.status("capture").get("error"))
        assert system.stop() == 0  # in the midst of its waiting
        system.start()
        wait_for(lambda: system.log().count("capture.waits_for_log") == 2, 120, what="it waits again")
        own_kafka.brokers[0].start()
        system.wait_until_streaming()
        truth = oracle("walbus")
        system.wait_until_at_rest(database)
        system.check(database, truth)
        assert system.alive()
        assert system.stop() == 0
