"""The Kafka engine beyond what every engine of the log promises, on a real broker."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from support.database import Database
from support.kafka_log import KafkaEngine
from support.kafka_writing import LosesExceptions
from support.relay_log import (
    BASE_TIME,
    SOURCE,
    commits,
    fill,
    piece,
    read_all,
    read_records,
    schema_piece,
    table_schema,
    transaction,
)
from support.waiting import wait_for
from walbus.cli.capture import capture
from walbus.config import KafkaConfig, RelayConfig, Settings, SourceConfig
from walbus.errors import (
    ConfigError,
    DamagedRecord,
    Fenced,
    LogBusy,
    LogError,
    LogUnreachable,
    PositionTrimmed,
    SourceReplaced,
)
from walbus.log import SourceIdentity
from walbus.position import ORIGIN, Position
from walbus.records import Flag, read_header
from walbus.relay.kafka import open_kafka_writer
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.relay.kafka.partition import ends_of
from walbus.relay.kafka.writer import KafkaLogWriter


@pytest.fixture
def engine(kafka: str, tmp_path: Path):
    made = KafkaEngine(kafka, tmp_path / "log")
    yield made
    made.close()


def administer(engine: KafkaEngine, act: Callable[[AdminClient], dict[Any, Future[Any]]]) -> None:
    """Does it on the cluster, and waits for it."""
    client = AdminClient({"bootstrap.servers": engine.cluster.bootstrap, "log_level": 0})
    for future in act(client).values():
        future.result()


def large_offsets(engine: KafkaEngine, writer):
    return ends_of(writer._parts.clients, engine.cluster.large)[0]


def test_a_record_that_is_larger_than_a_message_comes_back_whole(engine):
    engine.plan = engine.plan._replace(largest=64 << 10)
    writer = engine.open_writer()
    fill(writer, 3)
    given = piece(64, 1, 3, Flag.BEGIN | Flag.END, size=200_000)
    writer.append(given)
    writer.append(transaction(80))
    writer.sync()
    reader = engine.open_reader()
    records = read_records(reader)
    assert records[3].endswith(given.body)
    assert commits(read_all(reader)) == [16, 32, 48, 64, 80]
    assert commits(read_all(reader, Position(1, 48, 2))) == [64, 80]


def test_a_transaction_that_outgrows_memory_becomes_part_of_the_log_at_its_end(engine):
    engine.large_bytes, engine.kept_bytes = 100_000, 300_000
    writer, reader = engine.open_writer(), engine.open_reader()
    fill(writer, 2)
    schema, _ = writer.schemas.register(table_schema())
    writer.append(piece(48, 1, 10, Flag.BEGIN, size=1000))
    writer.append(schema_piece(48, 10, schema))
    for first in range(11, 2001, 10):
        writer.append(piece(48, first, 10, 0, size=1000))
        assert writer._sender.bytes + writer._open_bytes < 500_000
    writer.sync()
    assert commits(read_all(reader)) == [16, 32]
    assert large_offsets(engine, writer).stable > 5
    writer.append(piece(48, 2001, 5, Flag.END))
    writer.append(transaction(64))
    writer.sync()
    headers = read_all(reader)
    assert commits(headers) == [16, 32, 48, 64]
    assert [h.count for h in headers if h.commit_lsn == 48 and h.kind == 1] == [10] * 200 + [5]
    assert all(a.last_seq <= b.last_seq for a, b in itertools.pairwise(headers))
    assert read_all(reader, Position(1, 48, 1500))[0].first.ordinal == 1501
    assert commits(read_all(reader, Position(1, 48, 2005))) == [64]
    engine.kill(writer)
    again = engine.open_writer()
    fill(again, 1, first=5)
    assert commits(read_all(reader)) == [16, 32, 48, 64, 80]


@pytest.mark.parametrize("dies", [True, False], ids=["its writer dies", "its source begins anew"])
def test_a_try_at_a_large_transaction_that_came_to_nothing_is_not_in_the_log(engine, dies):
    engine.large_bytes, engine.kept_bytes = 50_000, 100_000
    writer = engine.open_writer()
    for first in range(1, 501, 10):
        writer.append(piece(16, first, 10, 0 if first > 1 else Flag.BEGIN, size=1000))
    if dies:
        engine.kill(writer)
        writer = engine.open_writer()
    for first in range(1, 301, 10):
        flags = (Flag.BEGIN if first == 1 else 0) | (Flag.END if first == 291 else 0)
        writer.append(piece(16, first, 10, flags, size=500))
    writer.append(transaction(32))
    writer.sync()
    headers = read_all(engine.open_reader())
    assert commits(headers) == [16, 32]
    assert sum(h.count for h in headers) == 301


def test_trimming_takes_large_transactions_with_their_references(engine):
    engine.large_bytes, engine.kept_bytes, engine.block_bytes = 50_000, 100_000, 5_000
    writer = engine.open_writer()
    for lsn in (16, 32, 48):
        for first in range(1, 101, 10):
            flags = (Flag.BEGIN if first == 1 else 0) | (Flag.END if first == 91 else 0)
            writer.append(piece(lsn, first, 10, flags, size=1000))
        writer.sync()
    before = large_offsets(engine, writer)
    trimmed = writer.trim((BASE_TIME + 33) / 1e6 + 3600)
    assert trimmed == Position(1, 32, 100)
    after = large_offsets(engine, writer)
    assert before.first < after.first < after.stable
    reader = engine.open_reader()
    assert commits(read_all(reader, trimmed)) == [48]
    with pytest.raises(PositionTrimmed):
        reader.cursor(Position(1, 16, 1))


def test_the_log_is_never_cut_within_a_transaction(engine):
    engine.block_bytes = 5_000
    writer = engine.open_writer()
    fill(writer, 1)
    for first in range(1, 101, 10):
        flags = (Flag.BEGIN if first == 1 else 0) | (Flag.END if first == 91 else 0)
        writer.append(piece(32, first, 10, flags, size=400))
    fill(writer, 1, first=3)
    engine.kill(writer)
    engine.retention_bytes = 20_000
    writer = engine.open_writer()
    assert writer.bounds().bytes > 40_000
    assert writer.trim(0) == Position(1, 16, 2)
    assert commits(read_all(engine.open_reader(), Position(1, 16, 2))) == [32, 48]


def test_what_a_bootstrap_on_this_machine_still_reads_is_held(engine):
    writer = engine.open_writer()
    fill(writer, 100)
    (engine.folder / "holds").mkdir(parents=True)
    hold = engine.folder / "holds" / "bootstrap.json"
    hold.write_text('{"last_done": "1:0/320:2"}')  # 50 transactions
    now = (BASE_TIME + 1600) / 1e6 + 7200
    assert Position(1, 640, 2) <= writer.trim(now) <= Position(1, 800, 2)
    hold.unlink()
    assert writer.trim(now) > Position(1, 1300, 2)


def test_a_commit_whose_answer_was_lost_is_neither_lost_nor_repeated(engine):
    writer = engine.open_writer()
    fill(writer, 3)
    for lsn, answered in ((64, True), (80, False)):
        writer._sender._producer = _Faulty(writer._sender._producer, arrives=answered)
        writer.append(transaction(lsn, 3))
        with pytest.raises(LogUnreachable):
            writer.sync()
        assert writer.bounds().end < Position(1, lsn, 3)
        assert writer.sync().end == Position(1, lsn, 3)
    reader = engine.open_reader()
    writer.append(transaction(96))
    writer.sync()
    headers = read_all(reader)
    assert commits(headers) == [16, 32, 48, 64, 80, 96]
    assert all(a.last_seq + 1 == b.first_seq for a, b in itertools.pairwise(headers))


class _Faulty:
    """A producer whose commit is not answered, whether it arrives or not."""

    def __init__(self, producer, *, arrives: bool):
        self._producer, self._arrives = producer, arrives

    def __getattr__(self, name):
        return getattr(self._producer, name)

    def commit_transaction(self, timeout):
        if self._arrives:
            self._producer.commit_transaction(timeout)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def test_a_transaction_with_messages_that_are_acknowledged_without_offsets_is_sent_again(engine, monkeypatch):
    engine.large_bytes, engine.kept_bytes = 50_000, 100_000
    writer = engine.open_writer()
    clients = writer._parts.clients
    producer, numbers = clients.producer, itertools.count()
    monkeypatch.setattr(clients, "producer", lambda largest: _Placeless(producer(largest), numbers))
    writer._sender.begin()
    pieces = [piece(16, first, 10, 0 if first > 1 else Flag.BEGIN, size=1000) for first in range(1, 301, 10)]
    pieces += [piece(16, 301, 1, Flag.END), transaction(32)]
    refused = [again_while_unreachable(lambda given=given: writer.append(given)) for given in pieces]
    assert sum(refused) >= 2  # in the midst of the large transaction
    refused.append(again_while_unreachable(writer.sync))
    assert sum(refused) == len(range(0, next(numbers), 3))
    headers = read_all(engine.open_reader())
    assert commits(headers) == [16, 32]
    assert sum(h.count for h in headers if h.commit_lsn == 16) == 301


def again_while_unreachable(act: Callable[[], object]) -> int:
    """Does it, and tells how many tries came to nothing; each is over with the next one."""
    for refused in range(5):
        try:
            act()
        except LogUnreachable as error:
            assert "not where it lies" in error.what
        else:
            return refused
    raise AssertionError("it comes to no end")


class _Placeless:
    """A producer that in every third transaction tells messages as delivered, and not where they lie."""

    def __init__(self, producer, numbers):
        self._producer, self._numbers, self._number = producer, numbers, 0

    def begin_transaction(self):
        self._number = next(self._numbers)
        self._producer.begin_transaction()

    def __getattr__(self, name):
        return getattr(self._producer, name)

    def produce(self, *args, on_delivery, **options):
        def told(error, message):
            lies = message if self._number % 3 else SimpleNamespace(topic=message.topic, offset=lambda: OFFSET_INVALID)
            on_delivery(error, lies)

        self._producer.produce(*args, on_delivery=told, **options)


def test_a_second_writer_is_told_who_writes(engine):
    engine.open_writer()
    with pytest.raises(LogBusy, match="walbus-"):
        engine.open_writer()


def test_a_writer_that_writes_for_long_is_still_told_to_a_second_one(engine):
    """A member of a group that is not polled leaves it after a time: of its own accord, though its heartbeats go on."""
    engine.lease_seconds = 6.0
    options = {"max.poll.interval.ms": "6000", "session.timeout.ms": "6000"}  # a day and ten seconds, elsewhere
    engine.cluster = dataclasses.replace(engine.cluster, options=options)
    writer = engine.open_writer()
    fill(writer, 3)
    until = time.monotonic() + 15

    def trimmed() -> bool:
        writer.trim(0)
        return time.monotonic() > until

    wait_for(trimmed, 60, every=1.0)
    with pytest.raises(LogBusy, match=r"another process writes this log: walbus-"):
        engine.open_writer()
    writer.append(transaction(64))
    writer.sync()


def test_a_process_that_let_go_of_a_log_opens_it_again_even_where_the_cluster_did_not_hear_of_it(engine):
    old = engine.open_writer()
    fill(old, 1)
    lock = old._parts.lock
    member, lock._member = lock._member, SimpleNamespace(memberid=lock._member.memberid, close=lambda: None)
    old.close()
    try:
        fill(engine.open_writer(), 1, first=2)
    finally:
        member.close()
    assert commits(read_all(engine.open_reader())) == [16, 32]


@pytest.mark.parametrize("kept", [pytest.param(True, id="told"), pytest.param(False, id="the exception is lost")])
def test_a_writer_that_was_followed_is_fenced_and_leaves_nothing(engine, kept):
    old = engine.open_writer()
    fill(old, 3)
    old.append(transaction(64, 3))
    if not kept:
        old._sender._producer = LosesExceptions(old._sender._producer)
    old._parts.lock.release()  # as the broker does for one that stands still
    new = engine.open_writer()
    new.append(transaction(64, 1))
    new.sync()
    with pytest.raises(Fenced, match="took the log over"):
        old.sync()
    with pytest.raises(LogError, match="cannot be written any more"):
        old.append(transaction(96))
    old.close()
    fill(new, 1, first=5)
    assert commits(read_all(engine.open_reader())) == [16, 32, 48, 64, 80]
    assert [h.count for h in read_all(engine.open_reader())] == [2, 2, 2, 1, 2]


def test_a_writer_that_is_followed_between_a_look_and_its_beginning_anew_is_fenced_all_the_same(engine, monkeypatch):
    old = engine.open_writer()
    fill(old, 3)
    old.append(transaction(64, 3))
    old._sender._give_up_producer()  # as after any error
    begin, followers = old._sender.begin, []

    def followed_first() -> None:
        old._parts.lock.release()
        followers.append(engine.open_writer())
        begin()  # which fences the new one

    monkeypatch.setattr(old._sender, "begin", followed_first)
    with pytest.raises(Fenced, match="took the log over"):
        old.sync()
    (new,) = followers
    new.append(transaction(64, 1))
    wait_for(lambda: synced(new), 60, what="the new writer to begin anew")
    assert [h.count for h in read_all(engine.open_reader())] == [2, 2, 2, 1]


def synced(writer: KafkaLogWriter) -> bool:
    """Whether it could commit now."""
    try:
        writer.sync()
    except LogUnreachable:
        return False
    return True


def test_an_idle_writer_that_was_followed_finds_out(engine):
    old = engine.open_writer()
    old._parts.lock.release()
    engine.open_writer()

    def is_fenced() -> bool:
        try:
            old.sync()
        except Fenced:
            return True
        return False

    wait_for(is_fenced, 60, what="the idle writer to be told")


@pytest.mark.parametrize(
    ("topic", "name", "value", "why"),
    [
        ("", "retention.ms", "604800000", "relay.retention_hours"),
        ("", "cleanup.policy", "compact", "compaction would drop changes"),
        (".large", "message.timestamp.type", "CreateTime", "a clock"),
        (".meta", "cleanup.policy", "delete", "layouts would be dropped"),
        ("", "min.insync.replicas", "2", "1 of its 1 brokers"),
        ("", "unclean.leader.election.enable", "true", "what was confirmed would be gone"),
    ],
)
def test_a_topic_with_other_settings_is_refused_with_the_command_that_mends_it(engine, topic, name, value, why):
    engine.open_writer().close()
    named = f"{engine.cluster.topic}{topic}"
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, named, incremental_configs=[entry])
    administer(engine, lambda client: client.incremental_alter_configs([resource]))
    mend = f"--entity-name {named} --add-config {name}="

    def is_refused() -> bool:
        try:
            engine.open_writer().close()
        except LogError as error:
            return mend in str(error) and why in str(error)
        return False

    wait_for(is_refused, 60, what="the setting to be seen")
    with pytest.raises(LogError, match=name):
        engine.open_reader()


def test_a_topic_of_several_partitions_is_refused(engine):
    administer(engine, lambda client: client.create_topics([NewTopic(engine.cluster.topic, 3, 1)]))
    with pytest.raises(LogError, match="3 partitions"):
        engine.open_writer()


def test_a_topic_that_was_deleted_is_not_taken_for_an_empty_log(engine):
    writer = engine.open_writer()
    fill(writer, 3)
    writer.close()
    administer(engine, lambda client: client.delete_topics([engine.cluster.topic]))

    def is_refused() -> bool:
        try:
            engine.open_writer().close()
        except LogError as error:
            return "was deleted and made again" in str(error)
        return False

    wait_for(is_refused, 60, what="the new topic to be known for another one")


def test_a_topic_that_was_made_again_meanwhile_is_noticed_by_who_writes_and_who_reads(engine):
    writer, reader = engine.open_writer(), engine.open_reader()
    fill(writer, 3)
    assert commits(read_all(reader)) == [16, 32, 48]
    topics = list(engine.cluster.topics)[:1]
    administer(engine, lambda client: client.delete_topics(topics))
    wait_for(lambda: administer(engine, lambda client: client.create_topics([NewTopic(topics[0], 1, 1)])) is None)
    for act in (writer.sync, reader.bounds):
        wait_for(lambda act=act: is_refused(act, "was deleted and made again"), 60, what="the other topic is noticed")
    with pytest.raises(LogError, match=r"cannot be written any more: topic .* was deleted"):
        writer.append(transaction(64))


def is_refused(act: Callable[[], object], why: str) -> bool:
    try:
        act()
    except LogError as error:
        return why in str(error)
    return False


def test_a_hole_in_the_log_is_refused(engine):
    engine.block_bytes = 1
    writer, reader = engine.open_writer(), engine.open_reader()
    fill(writer, 2)
    cursor = reader.cursor(ORIGIN)
    assert commits([read_header(record) for record in cursor.read(1 << 20)]) == [16, 32]
    sequence = writer._sequence
    lost = sequence.pack(transaction(48))
    sequence.appended(lost, sequence.here.offset + len(lost.records))
    sequence.note_whole()
    fill(writer, 1, first=4)
    with pytest.raises(DamagedRecord, match="between 1:0/20:2 and 1:0/30:1 is lost"):
        cursor.read(1 << 20)
    cursor.close()


def test_a_cluster_that_is_away_is_told(free_port, tmp_path):
    cluster = ClusterSettings(f"127.0.0.1:{free_port}", "walbus", answer_seconds=1.0)
    with pytest.raises(LogUnreachable, match=f"127.0.0.1:{free_port}"):
        open_kafka_writer(cluster, SOURCE, folder=tmp_path, retention_hours=1, retention_bytes=None)


def test_options_that_librdkafka_does_not_know_are_refused(tmp_path, kafka):
    engine = KafkaEngine(kafka, tmp_path)
    engine.cluster = ClusterSettings(kafka, "walbus", {"no.such.option": "1"})
    with pytest.raises(ConfigError, match=r"no\.such\.option"):
        engine.open_writer()


def held() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def lets_go(opening: Callable[[], object], kind: type[Exception]) -> None:
    """Sees that an opening fails, and that its clients are gone while the error is still looked at."""
    before = held()
    with pytest.raises(kind) as failed:
        opening()
    wait_for(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), 60, what="clients to end")
    assert failed.value.__traceback__ is not None  # which keeps whatever the opening's frames have


def test_an_opening_that_fails_half_way_closes_its_clients(engine, monkeypatch, free_port):
    engine.open_writer().close()
    lets_go(lambda: engine.open_writer(SourceIdentity("1", "another", "walbus")), SourceReplaced)

    def fails(*_: object) -> None:
        raise LogUnreachable("the cluster went away")

    for part in ("Trimming", "KafkaLogWriter", "_begin"):
        with monkeypatch.context() as patch:
            patch.setattr(f"walbus.relay.kafka.engine.{part}", fails)
            lets_go(engine.open_writer, LogUnreachable)
    for part in ("KafkaLogReader", "_check_topic"):
        with monkeypatch.context() as patch:
            patch.setattr(f"walbus.relay.kafka.engine.{part}", fails)
            lets_go(engine.open_reader, LogUnreachable)
    writer = engine.open_writer()  # nothing of those holds the log either
    lets_go(engine.open_writer, LogBusy)
    writer.close()
    engine.cluster = ClusterSettings(f"127.0.0.1:{free_port}", "walbus", answer_seconds=1.0)
    lets_go(engine.open_writer, LogUnreachable)
    lets_go(engine.open_reader, LogUnreachable)


def test_a_writer_and_a_reader_that_are_closed_leave_nothing_open(engine):
    engine.open_writer().close()
    before = held()
    writer, reader = engine.open_writer(), engine.open_reader()
    fill(writer, 3)
    assert commits(read_all(reader)) == [16, 32, 48]
    writer.close()
    reader.close()
    wait_for(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), 60, what="clients to end")


@pytest.mark.one_version
def test_capture_does_not_begin_where_a_table_has_the_topic_of_the_log(kafka: str, database: Database, tmp_path: Path):
    slot = f"s_{database.name}"
    database.execute(f"CREATE SCHEMA {slot}; CREATE TABLE {slot}.meta (id int PRIMARY KEY)")
    settings = Settings(
        data_dir=tmp_path,
        source=SourceConfig(dsn=database.dsn, slot=slot, tables=(f"{slot}.*",)),
        relay=RelayConfig(engine="kafka", kafka=KafkaConfig(bootstrap_servers=tuple(kafka.split(",")))),
    )
    with pytest.raises(ConfigError, match=rf"table {slot}\.meta would be walbus\.{slot}\.meta"):
        capture(settings, threading.Event())
    client = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    assert f"walbus.{slot}" not in client.list_topics(timeout=60).topics
