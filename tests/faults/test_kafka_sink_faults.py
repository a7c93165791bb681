"""The writer of table topics is killed at each step of a commit, its broker is killed and comes again, or is away.

The judge reads the topics with `read_committed`: each transaction is there once and whole, and the rows that are left
are those of the source.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compare import told
from support.database import Database
from support.kafka_server import Cluster
from support.kafka_sink_process import STEPS, model_of
from support.model_source import ITEMS, ModelSource, insert, update
from support.running_consumer import consumer, equal, stored
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sink_writing import fill
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import TopicReader, TopicRows, forget_copy, reader_of
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.demo.compare import compare_sinks
from walbus.demo.load import ShopLoad

pytestmark = pytest.mark.one_version

_OF_TRANSACTIONS = {b"insert", b"update", b"delete", b"truncate"}


def assert_once_and_whole(reader: TopicReader) -> int:
    """Each transaction has one end, and as many records in each topic as that says; gives the number of ends."""
    ends = reader.ends()
    assert len({end["transaction"] for end in ends}) == len(ends), "a transaction ends twice"
    expected = {(end["transaction"], one["topic"]): one["records"] for end in ends for one in end["topics"]}
    found: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[bytes, bytes, bool]] = set()
    own = {f"{reader.prefix}.checkpoint", f"{reader.prefix}.transactions"}
    for message in reader.messages(*(topic for topic in reader.topics() if topic not in own)):
        if message.headers["walbus.op"] in _OF_TRANSACTIONS:
            at = message.headers["walbus.position"]
            found[at.decode().rpartition(":")[0], message.topic] += 1
            once = (at, message.key, message.value is None)
            assert once not in seen, "a change is there twice"
            seen.add(once)
    assert found == expected
    return len(ends)


def killed_at(step: str, count: int, under_test: SinkUnderTest) -> None:
    settings = {
        "options": under_test.options,
        "folder": str(under_test.place.folder),
        "step": step,
        "count": count,
    }
    command = [sys.executable, "-m", "support.kafka_sink_process", json.dumps(settings)]
    ended = subprocess.run(
        command, check=False, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("has_copy", [True, False], ids=["on the same machine", "on another machine"])
def test_a_writer_that_is_killed_at_any_step_leaves_each_transaction_once_and_whole(
    kafka: str, tmp_path: Path, has_copy: bool
) -> None:
    under_test = kafka_under_test(tmp_path / "first", kafka)
    reader = reader_of(under_test)
    counts = range(3, 3 + 3 * len(STEPS))
    for number, count in enumerate(counts):
        killed_at(STEPS[number % len(STEPS)], count, under_test)
        if not has_copy:
            forget_copy(under_test)
        sink = under_test.open()
        source = model_of(count)
        checkpoint = sink.checkpoint()
        assert checkpoint is not None
        done = checkpoint.point.last_done  # type: ignore[union-attr]
        assert done == (source.end if STEPS[number % len(STEPS)] == "committed" else model_of(count - 1).end)
        fill(sink, source, done)
        assert sink.incomplete() == ()
        sink.close()
        assert under_test.rows() == source.rows()
    assert assert_once_and_whole(reader) == counts[-1]


def test_a_broker_that_is_killed_and_comes_again_has_each_transaction_once(own_kafka: Cluster, tmp_path: Path) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(20)])
    under_test = kafka_under_test(tmp_path, own_kafka.bootstrap, answer_seconds=5)
    with ScriptedRelay(source) as relay, consumer(relay, under_test, start="earliest") as running:
        equal(under_test, relay)
        for number in range(3):
            source.commit([update(ITEMS, n, name=f"before {number}") for n in range(20)])
            own_kafka.brokers[0].kill()
            source.commit([update(ITEMS, n, name=f"meanwhile {number}") for n in range(20)])
            wait_for(lambda: running.status().get("waiting_for"), what="the consumer waits for the cluster")
            own_kafka.brokers[0].start()
            own_kafka.await_answer()
            stored(running, source)
            assert under_test.rows() == source.rows()
    assert assert_once_and_whole(reader_of(under_test)) == 7


@pytest.fixture
def shop(database: Database) -> Iterator[ShopLoad]:
    load = ShopLoad(database.dsn, rate=80, seed=announced_seed("the shop"))
    load.prepare(300)
    make_marker(database)
    yield load
    load.stop()


@pytest.mark.timeout(400)
def test_killed_rooms_leave_topics_that_equal_the_source(
    database: Database, shop: ShopLoad, own_kafka: Cluster, open_folder: Path
) -> None:
    rng = random.Random(announced_seed("the kills"))
    section = {"sink": "kafka", "bootstrap_servers": own_kafka.bootstrap, "prefix": "shop", "answer_seconds": 5}
    reader = TopicReader(own_kafka.bootstrap, "shop")
    with WholeSystem(open_folder, database.dsn, {"topics": section}, relay={"topic_prefix": "shop"}) as system:
        system.start()
        system.wait_until_streaming()
        system.wait_until_at_rest(database)
        shop.start()
        for victim in ("consumer-topics", "consumer-topics", "relay", "broker", "consumer-topics", "bootstrap"):
            time.sleep(rng.uniform(0.1, 1.5))  # the moment of a kill is the test's input
            if victim == "broker":
                own_kafka.brokers[0].kill()
                own_kafka.brokers[0].start()
                own_kafka.await_answer()
            else:
                wait_for(lambda victim=victim: system.kill(victim), what=f"{victim} to run and be killed")
        shop.stop()
        system.wait_until_at_rest(database)
        differences = compare_sinks(database.dsn, [TopicRows(own_kafka.bootstrap, "shop")]).differences
        assert not differences, told(differences)
        assert assert_once_and_whole(reader) > 10
        assert system.stop() == 0
