"""`walbus rebuild` of table topics on a real broker: topics of the next generation, and what says that they count."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from support.kafka_settings import give_settings, wait_until_told
from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, update
from support.rebuild_rig import (
    Load,
    Looks,
    config_for,
    differing,
    dropped,
    filled,
    looking_at,
    rebuilt,
    stopped_while_it_reads,
)
from support.running_consumer import RunningConsumer, consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import TopicReader, decoded, forget_copy, reader_of
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Point
from walbus.consumers.rebuilding import discard
from walbus.consumers.sinks import kafka as kafka_sink
from walbus.consumers.sinks import open_copies
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.kafka_copy import KafkaCopy
from walbus.consumers.topic_rows_peer import TopicRowsPeer
from walbus.errors import SinkError, SinkRefused, SinkUnavailable, UsageError
from walbus.kafka_address import KafkaAddress

pytestmark = pytest.mark.one_version


@pytest.fixture
def under_test(kafka: str, tmp_path: Path) -> SinkUnderTest:
    return kafka_under_test(tmp_path, kafka)


@pytest.fixture
def reader(under_test: SinkUnderTest) -> TopicReader:
    return reader_of(under_test)


def generations(reader: TopicReader) -> dict[str, list[str]]:
    """The topics of each generation that are there, without their prefix."""
    found: dict[str, list[str]] = {}
    for prefix in (reader.prefix, *(f"{reader.prefix}-{n}" for n in range(1, 9))):
        topics = replace(reader, prefix=prefix).topics()
        if topics:
            found[prefix.removeprefix(reader.prefix)] = [topic.removeprefix(f"{prefix}.") for topic in topics]
    return found


ALL = ["checkpoint", ITEMS, "transactions"]


def test_a_rebuild_under_load_swaps_with_no_moment_without_an_answer(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    seed = announced_seed("a rebuild of topics under load")
    filled(relay, under_test, source)
    with Load(source, seed), Looks(looking_at(under_test)) as looks, consumer(relay, under_test) as running:
        swapped = rebuilt(relay, under_test)
        behind = looks.seen
        wait_for(lambda: looks.seen > behind + 1, what="somebody looked behind the swap")
        wait_for(lambda: running.status().get("last_done") and source.end > swapped)
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="goes on"), insert(ITEMS, 300)])
        equal(under_test, relay)
    assert differing(relay, under_test) == [0]
    assert generations(reader) == {"": ALL, "-1": ALL}
    asked = len(relay.asked("/v1/snapshot"))
    assert dropped(under_test)
    assert not dropped(under_test)
    assert generations(reader) == {"": ["checkpoint"], "-1": [ITEMS, "transactions"]}
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, delete(ITEMS, 300))
    forget_copy(under_test)
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 2, name="by a copy that was read back"))
    assert len(relay.asked("/v1/snapshot")) == asked
    assert rebuilt(relay, under_test) == source.end
    assert under_test.rows() == source.rows(ITEMS)
    assert reader.turned().prefix == f"{reader.prefix}-2"


def test_each_transaction_behind_the_copys_snapshot_has_one_end_in_its_topics(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    with consumer(relay, under_test) as running:
        for n in range(5):
            followed(running, under_test, relay, insert(ITEMS, 500 + n), delete(ITEMS, 20 + n))
    now = reader.turned()
    ends = now.ends()
    assert len({end["transaction"] for end in ends}) == len(ends) == 5
    assert {one["topic"] for end in ends for one in end["topics"]} == {now.of_table(ITEMS)}
    assert sum(one["records"] for end in ends for one in end["topics"]) == 10


def test_a_rebuild_changes_partitions_and_format_and_the_consumer_of_before_is_refused(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    other: dict[str, Any] = {"partitions": 5, "format": "debezium", "database": "shop"}
    running = RunningConsumer(relay, "kafka", under_test.options, under_test.place.folder)
    followed(running, under_test, relay, update(ITEMS, 3, name="before"))
    rebuilt(relay, under_test, **other)
    source.commit([update(ITEMS, 3, name="too late for it")])
    error = running.ended()
    assert isinstance(error, SinkRefused)
    assert 'have format = "debezium"' in error.what
    now = replace(under_test, options=under_test.options | other)
    with consumer(relay, now) as running:
        followed(running, now, relay, update(ITEMS, 4, name="behind"))
    topic = reader.turned().of_table(ITEMS)
    assert {message.partition for message in reader.messages(topic)} == set(range(5))
    sources = [row["source"]["name"] for row in map(reader_value(reader), reader.live(topic).values())]
    assert set(sources) == {reader.prefix}, "what a source is called is no generation's"
    assert differing(relay, now) == [0]


def reader_value(reader: TopicReader) -> Callable[[Any], dict[str, Any]]:
    schemas = reader.schemas()
    return lambda message: decoded(message.value or b"", schemas)


def test_settings_that_somebody_gave_a_topic_are_the_copys_too(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    admin = AdminClient({"bootstrap.servers": reader.bootstrap, "log_level": 0})
    give_settings(admin, reader.of_table(ITEMS), {"delete.retention.ms": "7654321"})
    give_settings(admin, f"{reader.prefix}.transactions", {"retention.ms": "987654321"})
    rebuilt(relay, under_test)
    now = reader.turned()
    wait_until_told(admin, now.of_table(ITEMS), {"delete.retention.ms": "7654321", "cleanup.policy": "compact"})
    wait_until_told(admin, f"{now.prefix}.transactions", {"retention.ms": "987654321"})


@pytest.mark.parametrize("other", [{}, {"format": "debezium", "database": "shop"}])
def test_rows_of_a_table_that_the_bootstrap_has_no_more_are_carried_over(
    other: dict[str, str], under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    gone = source.add_layout(items_layout("gone", oid=16500)).table
    source.commit([insert(gone, n, f"n{n}", "body") for n in range(1, 5)])
    filled(relay, under_test, source)
    relay.unlisted.add(gone)
    before = source.rows(gone)
    under_test = replace(under_test, options=under_test.options | other)
    rebuilt(relay, under_test)
    assert under_test.rows(gone) == before
    assert dropped(under_test)
    with consumer(relay, under_test) as running:
        source.commit([update(gone, 1, name="anew"), delete(gone, 2), insert(gone, 5)])
        followed(running, under_test, relay, insert(ITEMS, 300))
        wait_for(lambda: under_test.rows(gone).keys() == {"1", "3", "4", "5"})
        assert under_test.rows(gone)["1"]["body"] == "body", "a value that was left out is that of the carried row"


def test_who_has_rows_from_the_topics_finds_those_that_were_swapped_in(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    assert dropped(under_test)
    with closing(TopicRowsPeer(KafkaAddress(reader.bootstrap, reader.prefix))) as peer:
        assert ITEMS in peer.tables().consistent


# A copy that comes to nothing


def test_a_stopped_rebuild_goes_on_and_a_discarded_one_is_begun_under_another_name(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    config, folder = config_for(under_test), under_test.place.folder
    assert not discard("test", config, folder)
    stopped_while_it_reads(relay, under_test)
    stopped_while_it_reads(relay, under_test)
    assert generations(reader)["-1"]
    assert generations(reader).keys() == {"", "-1"}
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 5, name="goes on"))
    assert discard("test", config, folder)
    assert not discard("test", config, folder)
    assert generations(reader) == {"": ALL}
    assert not list(folder.glob("kafka.rows.1*"))
    rebuilt(relay, under_test)
    assert generations(reader) == {"": ALL, "-2": ALL}
    with pytest.raises(UsageError, match="is there yet"):
        rebuilt(relay, under_test)
    assert under_test.rows() == source.rows(ITEMS)


def test_a_name_that_is_somebodys_is_left_alone(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    filled(relay, under_test, source)
    other = replace(
        under_test,
        options=under_test.options | {"prefix": f"{reader.prefix}-1"},
        place=replace(under_test.place, consumer="other", folder=tmp_path / "other"),
    )
    with closing(other.open()):
        pass
    rebuilt(relay, under_test)
    assert generations(reader) == {"": ALL, "-1": ["checkpoint", "transactions"], "-2": ALL}
    assert dropped(under_test)
    assert generations(reader) == {
        "": ["checkpoint"],
        "-1": ["checkpoint", "transactions"],
        "-2": [ITEMS, "transactions"],
    }


def test_a_prefix_without_room_for_a_number_is_refused(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    long = replace(under_test, options=under_test.options | {"prefix": under_test.options["prefix"].ljust(64, "x")})
    source.commit([insert(ITEMS, 1)])
    with closing(long.open()) as sink:
        fill(sink, source)
    with pytest.raises(SinkRefused, match="a prefix has at most 64 signs"):
        rebuilt(relay, long)


def test_a_copy_that_was_begun_in_another_format_is_refused_until_it_is_discarded(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    stopped_while_it_reads(relay, under_test)
    with pytest.raises(SinkRefused, match="`walbus rebuild test --discard` drops this copy") as raised:
        rebuilt(relay, under_test, format="debezium", database="shop")
    assert 'format = "rows"' in raised.value.what


# Who writes


@pytest.mark.parametrize("gone", [False, True])
def test_a_late_writer_of_what_was_replaced_commits_nothing_and_goes_on_with_the_copy(
    gone: bool, under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    with closing(under_test.open()) as sink:
        before = sink.checkpoint()
        assert isinstance(before, Following)
        end = source.end
        source.commit([update(ITEMS, 3, name="late"), delete(ITEMS, 4)])
        sink.write(windows(source, end), MARKS)
        rebuilt(relay, under_test)
        old = reader.messages(reader.of_table(ITEMS))
        if gone:
            assert dropped(under_test)
        with pytest.raises(SinkUnavailable if gone else SinkSwapped):  # the cluster may tell of the topic first
            sink.commit(following(source))
        sink.rollback()
        if not gone:
            assert reader.messages(reader.of_table(ITEMS)) == old, "what was replaced is as it was"
        now = sink.checkpoint()
        assert isinstance(now, Following)
        assert now.point.last_done == source.end
        source.commit([insert(ITEMS, 400)])
        sink.write(windows(source, now.point.last_done), now.marks)
        sink.commit(replace(now, point=Point(source.end, source.last_seq)))
        assert under_test.rows() == source.rows(ITEMS)
    assert not list(under_test.place.folder.glob("kafka.rows")), "the copy of the rows that were replaced"


def test_the_live_ones_writer_waits_while_it_is_held_and_goes_on_behind_it(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    with (
        closing(open_copies("kafka", under_test.options, under_test.place)) as copies,
        closing(copies.beside()) as copy,
        closing(under_test.open()) as sink,
    ):
        before = sink.checkpoint()
        assert isinstance(before, Following)
        assert copy.hold() == before
        source.commit([delete(ITEMS, 4)])
        after = replace(before, point=Point(source.end, source.last_seq))
        with pytest.raises(SinkUnavailable):
            sink.write(windows(source, before.point.last_done), before.marks)
            sink.commit(after)
        sink.rollback()
        over = threading.Event()

        def lets_go() -> None:
            over.set()
            copy.rollback()

        waiting = threading.Timer(1.0, lets_go)
        waiting.start()
        assert sink.checkpoint() == before
        assert over.is_set(), "it has waited"
        waiting.join()
        sink.write(windows(source, before.point.last_done), before.marks)
        sink.commit(after)
        assert under_test.rows() == source.rows(ITEMS)


def test_a_writer_that_has_waited_long_enough_goes_on_and_the_swap_does_not_come(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, under_test, source)
    monkeypatch.setattr(kafka_sink, "_HOLD_SECONDS", 0.5)
    with (
        closing(open_copies("kafka", under_test.options, under_test.place)) as copies,
        closing(copies.beside()) as copy,
    ):
        held = copy.hold()
        assert isinstance(held, Following)
        with closing(under_test.open()) as sink:
            assert sink.checkpoint() == held
            with pytest.raises(SinkUnavailable, match="the consumer went on"):
                copy.swap(held)
            copy.rollback()
            assert not copies.kept()
            source.commit([delete(ITEMS, 4)])
            sink.write(windows(source, held.point.last_done), held.marks)
            sink.commit(replace(held, point=Point(source.end, source.last_seq)))
    assert under_test.rows() == source.rows(ITEMS)
    rebuilt(relay, under_test)


@pytest.mark.parametrize("comes", ["another rebuild", "a discard"])
def test_who_takes_a_copy_from_a_rebuild_that_is_about_to_swap_has_it_swap_nothing(
    comes: str, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    filled(relay, under_test, source)
    other = replace(under_test.place, folder=tmp_path / "elsewhere")
    with (
        closing(open_copies("kafka", under_test.options, under_test.place)) as copies,
        closing(open_copies("kafka", under_test.options, other)) as others,
        closing(copies.beside()) as first,
    ):
        assert isinstance(first, KafkaCopy)
        first.write(windows(source), MARKS)
        assert first.hold() is not None
        point = first._point

        def is_late(*told: Any) -> None:
            if comes == "a discard":
                assert others.discard()
            else:
                others.beside().close()
            point(*told)

        first._point = is_late  # type: ignore[method-assign]
        with pytest.raises(SinkUnavailable, match="the consumer went on"):
            first.swap(following(source))
        first.rollback()
        assert not copies.kept()
        with pytest.raises(SinkRefused, match="dropped meanwhile" if comes == "a discard" else "has taken over"):
            first.checkpoint()
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 3, name="goes on"))
    rebuilt(relay, under_test)


def test_of_two_rebuilds_the_later_one_goes_on_with_the_copy_and_a_discarded_one_ends(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    filled(relay, under_test, source)
    elsewhere = replace(under_test.place, folder=tmp_path / "elsewhere")
    with (
        closing(open_copies("kafka", under_test.options, under_test.place)) as copies,
        closing(copies.beside()) as first,
    ):
        checkpoint = following(source)
        first.write(windows(source), MARKS)
        with (
            closing(open_copies("kafka", under_test.options, elsewhere)) as others,
            closing(others.beside()) as second,
        ):
            with pytest.raises(SinkError):
                first.commit(checkpoint)
            first.rollback()
            with pytest.raises(SinkRefused, match="another process of this consumer has taken over"):
                first.checkpoint()
            second.write(windows(source), MARKS)
            assert copies.discard()
            with pytest.raises(SinkUnavailable):
                second.commit(checkpoint)
            second.rollback()
            with pytest.raises(SinkRefused, match="this copy was dropped meanwhile"):
                second.checkpoint()
    assert isinstance(first, KafkaCopy)
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows(ITEMS)
