"""Consumers that read the log on Kafka from the cluster: no relay is between, and none needs to run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import walbus
from support.capturing import CaptureThread, source_of
from support.compare import assert_sinks_equal
from support.database import Database
from support.kafka_log import KafkaEngine
from support.kafka_server import Cluster
from support.relay_log import BASE_TIME, fill, piece
from support.seed import announced_seed
from support.single_rooms import SingleRooms
from support.waiting import wait_for
from support.whole_system import make_marker
from walbus.capture import identify
from walbus.consumers import Bus, Delivery, Subscription
from walbus.consumers.kafka_peer import KafkaPeer
from walbus.consumers.transport import LogMismatch, NotReady
from walbus.credentials import ANONYMOUS
from walbus.demo.load import ShopLoad
from walbus.errors import LogError, PositionTrimmed, RelayUnavailable, UsageError
from walbus.kafka_address import KafkaAddress
from walbus.position import ORIGIN, Position, parse_position
from walbus.records import Flag, Op

pytestmark = pytest.mark.one_version


@dataclass(frozen=True)
class Captured:
    """A database whose log goes to Kafka meanwhile."""

    database: Database
    engine: KafkaEngine
    capture: CaptureThread
    folder: Path

    @property
    def url(self) -> str:
        return f"kafka://{self.engine.cluster.bootstrap}/{self.engine.cluster.topic}"

    def connect(self) -> Bus:
        return walbus.connect(self.url, folder=self.folder / "checkpoints")

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.database.execute(statement)
        self.capture.caught_up()


@contextmanager
def capturing_into(bootstrap: str, database: Database, folder: Path, **settings: int) -> Iterator[Captured]:
    engine, source = KafkaEngine(bootstrap, folder / "log"), source_of(database.dsn)
    for name, value in settings.items():
        setattr(engine, name, value)
    with closing(engine.open_writer(identify(source))) as log:
        capture = CaptureThread(source, log)
        try:
            capture.streaming()
            yield Captured(database, engine, capture, folder)
        finally:
            capture.stop()
    engine.close()


@pytest.fixture
def captured(kafka: str, database: Database, tmp_path: Path) -> Iterator[Captured]:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n text)")
    database.execute("CREATE TABLE other (id int PRIMARY KEY)")
    with capturing_into(kafka, database, tmp_path, large_bytes=100_000, kept_bytes=300_000) as made:
        yield made


@pytest.fixture
def engine(kafka: str, tmp_path: Path) -> Iterator[KafkaEngine]:
    made = KafkaEngine(kafka, tmp_path / "log")
    yield made
    made.close()


def peer_of(engine: KafkaEngine) -> KafkaPeer:
    return KafkaPeer(KafkaAddress(engine.cluster.bootstrap, engine.cluster.topic), ANONYMOUS)


def rows(deliveries: list[Delivery]) -> list[tuple[str, object]]:
    """Operations and keys of rows, in their order."""
    return [
        (change.op.name, (change.key or {}).get("id"))
        for delivery in deliveries
        for change in delivery
        if change.op in (Op.INSERT, Op.UPDATE, Op.DELETE)
    ]


def until_end(subscription: Subscription) -> list[Delivery]:
    found = []
    for delivery in subscription:
        found.append(delivery)
        delivery.commit()
    return found


# The client


def test_windows_come_from_the_cluster_and_a_restart_goes_on_behind_the_last_that_was_committed(
    captured: Captured,
) -> None:
    captured.run(
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')", "UPDATE t SET n = 'c' WHERE id = 1", "INSERT INTO other VALUES (7)"
    )
    with captured.connect() as bus:
        found = until_end(bus.subscribe("public.t", name="c", start="earliest", until="latest"))
    assert rows(found) == [("INSERT", 1), ("INSERT", 2), ("UPDATE", 1)]
    captured.run("DELETE FROM t WHERE id = 2")
    with captured.connect() as bus:
        found = until_end(bus.subscribe("public.t", name="c", start="earliest", until="latest"))
    assert rows(found) == [("DELETE", 2)]


def test_a_transaction_that_is_larger_than_memory_comes_whole(captured: Captured) -> None:
    captured.run(
        "INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 5000) n", "DELETE FROM t WHERE id = 3"
    )
    with captured.connect() as bus:
        found = until_end(bus.subscribe("public.t", name="c", start="earliest", until="latest"))
    assert rows(found) == [*(("INSERT", n) for n in range(1, 5001)), ("DELETE", 3)]


def test_parts_of_all_keys_are_those_that_a_relay_gives(captured: Captured) -> None:
    captured.run("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 300) n")
    parts = []
    for number in range(3):
        with captured.connect() as bus:
            asked = bus.subscribe("public.t", name="c", start="earliest", until="latest", partition=f"{number}/3")
            parts.append({id for _, id in rows(until_end(asked))})
    assert sorted(id for part in parts for id in part) == list(range(1, 301))  # type: ignore[type-var]
    assert all(len(part) > 50 for part in parts)


def test_a_reading_begins_and_ends_at_any_place(captured: Captured) -> None:
    captured.run(*(f"INSERT INTO t VALUES ({n}, 'x')" for n in range(5)))
    with captured.connect() as bus:
        all_of_it = [
            d for d in until_end(bus.subscribe("public.t", name="c", start="earliest", until="latest")) if rows([d])
        ]
        second, fourth = all_of_it[1], all_of_it[3]
        seq = next(change.seq for change in second if change.op is Op.INSERT)
        for name, begins in (("by-seq", f"seq:{seq}"), ("by-position", second.last), ("by-time", second.commit_time)):
            found = until_end(bus.subscribe("public.t", name=name, from_=begins, until=fourth.last))
            assert rows(found) == [("INSERT", n) for n in (1, 2, 3)], name


def test_what_commits_later_comes_as_it_does(captured: Captured) -> None:
    captured.run("INSERT INTO t VALUES (1, 'before')")
    with captured.connect() as bus, closing(bus.subscribe("public.t", name="c", start="latest")) as subscription:
        wait_for(lambda: subscription.next(0.1) is None and subscription.phase == "online", what="it follows the log")
        for n in range(2, 6):
            captured.database.execute(f"INSERT INTO t VALUES ({n}, 'x')")
            came = wait_for(lambda: rows([one] if (one := subscription.next(5)) else []), what="the row comes")
            assert came == [("INSERT", n)]


def test_a_broker_that_dies_is_waited_for_and_nothing_is_lost_or_repeated(
    own_kafka: Cluster, database: Database, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n text)")
    seen: list[tuple[str, object]] = []
    with capturing_into(own_kafka.bootstrap, database, tmp_path) as captured, captured.connect() as bus:
        subscription = bus.subscribe("public.t", name="c", start="earliest")

        def read() -> None:
            for delivery in subscription:
                seen.extend(rows([delivery]))
                delivery.commit()

        thread = threading.Thread(target=read)
        thread.start()
        for first in (0, 100, 200):
            captured.run(*(f"INSERT INTO t VALUES ({n}, 'x')" for n in range(first, first + 50)))
            own_kafka.brokers[0].kill()
            database.execute(f"INSERT INTO t SELECT n, 'meanwhile' FROM generate_series({first + 50}, {first + 99}) n")
            own_kafka.brokers[0].start()
            own_kafka.await_answer()
            wait_for(lambda first=first: len(seen) >= first + 100, 120, what="all of it came")
        subscription.stop()
        thread.join(60)
        assert not thread.is_alive()
    assert seen == [("INSERT", n) for n in range(300)]


def test_a_cluster_without_a_log_is_waited_for(engine: KafkaEngine) -> None:
    with closing(peer_of(engine)) as peer:
        with pytest.raises((NotReady, LogError)):
            peer.info()
        fill(engine.open_writer(), 3)
        assert peer.info().log.end > ORIGIN


def test_a_position_that_was_trimmed_or_is_of_another_log_is_told(engine: KafkaEngine) -> None:
    writer = engine.open_writer()
    for lsn in (16, 32, 48):
        writer.append(piece(lsn, 1, 2, Flag.BEGIN | Flag.END))
        writer.sync()
    writer.trim((BASE_TIME + 33) / 1e6 + 3600)
    with closing(peer_of(engine)) as peer:
        log = peer.info().log
        assert log.trimmed > ORIGIN
        with pytest.raises(PositionTrimmed):
            peer.stream(ORIGIN, log.log_id, ("*.*",), "c")
        with pytest.raises(LogMismatch):
            peer.stream(log.end, "another", ("*.*",), "c")
        with pytest.raises(NotReady, match="past the log's end"):
            peer.stream(Position(9, 9, 9), log.log_id, ("*.*",), "c")


def test_a_cluster_that_does_not_answer_is_away() -> None:
    with closing(KafkaPeer(KafkaAddress("127.0.0.1:1", "nothing"), ANONYMOUS)) as peer:
        peer._cluster = type(peer._cluster)("127.0.0.1:1", "nothing", answer_seconds=1.0)
        with pytest.raises(RelayUnavailable):
            peer.info()


@pytest.mark.parametrize("url", ["kafka://", "kafka://broker:9092", "kafka:///topic", "kafka://broker:9092/a/b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no address of a log on Kafka"):
        walbus.connect(url)


def test_what_takes_a_relay_says_so(captured: Captured) -> None:
    with captured.connect() as bus, pytest.raises(UsageError, match="without a relay"):
        bus.wait_for("c", position=Position(1, 1, 1), timeout=1)
    with pytest.raises(UsageError, match="kafka_options"):
        walbus.connect("http://127.0.0.1:1", kafka_options={"client.id": "me"})


# A sink


@pytest.mark.timeout(400)
def test_a_sink_is_filled_by_the_bootstrap_and_goes_on_from_the_cluster_when_the_relay_is_gone(
    database: Database, own_kafka: Cluster, open_folder: Path
) -> None:
    shop = ShopLoad(database.dsn, rate=100, seed=announced_seed("the shop"))
    shop.prepare(300)
    make_marker(database)
    section = {"sink": "sqlite", "read_from": "kafka"}
    sections: dict[str, dict[str, object]] = {
        "source": {"slot": f"s_{database.name}"},
        "relay": {"engine": "kafka"},
        "relay.kafka": {"bootstrap_servers": own_kafka.bootstrap.split(","), "topic": "shop"},
    }
    with SingleRooms(open_folder, database.dsn, {"cache": section}, **sections) as system:
        system.start()
        system.wait_until_at_rest(database)
        cache = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        assert_sinks_equal(database.dsn, cache=cache)  # rows that nothing has changed since came by the bootstrap
        for room in ("bootstrap", "relay"):
            assert system._rooms.pop(room).stop() == 0
        shop.start()
        wait_for(lambda: shop.transactions > 100, what="the shop trades")
        own_kafka.brokers[0].kill()
        own_kafka.brokers[0].start()
        own_kafka.await_answer()
        shop.stop()
        end = database.insert_lsn()
        wait_for(
            lambda: parse_position(system.status("consumer-cache")["last_done"]).commit_lsn >= end,
            180,
            what="the consumer is at the end",
        )
        assert_sinks_equal(database.dsn, cache=cache)
