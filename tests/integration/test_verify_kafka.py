"""`walbus verify --sink` of table topics on a real broker: what somebody else produced into them, and its repair."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.rebuild_rig import verified
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.sink_writing import fill
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import Message, TopicReader, forget_copy, reader_of
from walbus.consumers.sinks.base import OutrankingSink, ReadableSink
from walbus.consumers.topic_rows_peer import TopicRowsPeer
from walbus.errors import RelayUnavailable, SinkRefused
from walbus.kafka_address import KafkaAddress
from walbus.keys import key_texts
from walbus.records import Flag

pytestmark = pytest.mark.one_version

ROWS = 30


@pytest.fixture(params=["rows", "debezium"])
def under_test(request: pytest.FixtureRequest, kafka: str, tmp_path: Path) -> SinkUnderTest:
    named = {"format": "debezium", "database": "shop"} if request.param == "debezium" else {}
    return kafka_under_test(tmp_path, kafka, **named)


@pytest.fixture
def reader(under_test: SinkUnderTest) -> TopicReader:
    return reader_of(under_test)


def filled(relay: ScriptedRelay, under_test: SinkUnderTest) -> None:
    source = relay.source
    source.commit([insert(ITEMS, n, f"n{n}", "toasted") for n in range(ROWS)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        changed = [update(ITEMS, 3, name="changed"), delete(ITEMS, 4), update(ITEMS, 5, new_id=500, name="moved")]
        followed(running, under_test, relay, *changed)


class PlainHand:
    """A producer without transactions, of anybody who may write the topic."""

    def __init__(self, reader: TopicReader) -> None:
        self._topic = reader.of_table(ITEMS)
        written = [message for message in reader.messages(self._topic) if message.value is not None]
        self._records = {key_texts(message.headers["walbus.key"]): message for message in written}
        self._producer = Producer({"bootstrap.servers": reader.bootstrap, "log_level": 0})

    def record(self, id_: int) -> Message:
        """The last record with a value that a row had."""
        return self._records[str(id_),]

    def put(self, like: Message, **other: Any) -> None:
        """A record like another one, but for some of it."""
        given = {"key": like.key, "value": like.value, "partition": like.partition, "headers": [], **other}
        self._producer.produce(self._topic, **given)
        assert self._producer.flush(30) == 0


def tampered(hand: PlainHand) -> list[tuple[str, list[str]]]:
    """Everything that a plain producer does; what is told of it."""
    row, other, third, fourth, gone = (hand.record(id_) for id_ in (1, 2, 6, 7, 4))
    hand.put(row, value=other.value)  # another row's, without headers
    hand.put(other, value=row.value, headers=list(other.headers.items()))
    hand.put(third, value=None)
    elsewhere = (fourth.partition + 1) % 3
    hand.put(fourth, partition=elsewhere)
    hand.put(gone, headers=list(gone.headers.items()))  # a row that was deleted
    hand.put(row, key=b"what ever", partition=2)
    return [
        ("different", ["1"]), ("different", ["2"]), ("missing", ["6"]),
        ("ghost", [fourth.key.hex(), f"partition {elsewhere}"]), ("ghost", ["4", f"partition {gone.partition}"]),
        ("ghost", [b"what ever".hex(), "partition 2"]),
    ]  # fmt: skip


def test_what_a_plain_producer_wrote_is_named_and_mended(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test)
    assert (verified(relay, under_test).rows, verified(relay, under_test).differing) == (ROWS - 1, 0)
    expected = tampered(PlainHand(reader))
    found = verified(relay, under_test)
    assert sorted(found.keys) == sorted(expected)
    assert found.mended == 0
    mended = verified(relay, under_test, repair=True)
    assert (mended.differing, mended.mended) == (len(expected), len(expected))
    live = reader.live(reader.of_table(ITEMS))
    assert len(live) == ROWS - 1
    assert all("walbus.key" in message.headers for message in live.values())
    assert under_test.rows() == source.rows()
    assert verified(relay, under_test).differing == 0
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="goes on"), delete(ITEMS, 2), insert(ITEMS, 4))


def test_a_lost_copy_is_made_again_of_topics_that_somebody_wrote_into_and_that_were_mended(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test)
    tampered(PlainHand(reader))
    verified(relay, under_test, repair=True)
    forget_copy(under_test)
    asked = len(relay.asked("/v1/snapshot"))
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="goes on"), update(ITEMS, 7, name="too"))
    assert len(relay.asked("/v1/snapshot")) == asked
    assert verified(relay, under_test).differing == 0


def test_a_lost_copy_of_topics_that_somebody_wrote_into_has_their_table_read_again(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test)
    hand = PlainHand(reader)
    row, other = hand.record(1), hand.record(2)
    hand.put(row, value=other.value)
    hand.put(other, value=None)
    hand.put(other, partition=(other.partition + 1) % 3)
    hand.put(row, key=b"what ever")
    forget_copy(under_test)
    with closing(under_test.open()):
        pass  # it has read the topics, and committed nothing
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 3, name="goes on"))
    assert verified(relay, under_test).differing == 0


def test_a_repair_that_broke_off_is_gone_on_with_by_the_consumer(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test)
    hand = PlainHand(reader)
    hand.put(hand.record(1), key=b"what ever")
    with closing(under_test.open()) as sink:
        assert isinstance(sink, ReadableSink) and isinstance(sink, OutrankingSink)
        assert sum(1 for _ in sink.held(ITEMS)) == ROWS
        sink.outrank(ITEMS)
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 3, name="goes on"))
    assert verified(relay, under_test).differing == 0


def test_a_seq_that_nobody_gave_is_outranked(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test)
    hand = PlainHand(reader)
    row, other = hand.record(1), hand.record(2)
    hand.put(row, value=other.value, headers=list({**row.headers, "walbus.seq": b"%d" % 2**50}.items()))
    forget_copy(under_test)
    mended = verified(relay, under_test, repair=True)
    assert (mended.keys, mended.mended) == ([("different", ["1"])], 1)
    assert under_test.rows() == source.rows()


def test_rows_of_older_layouts_equal_those_of_today(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test)
    layout = (column("id", 23, "int4", in_key=True), column("name"), column("text"), column("more"))
    source.add_layout(items_layout("items", *layout))
    with consumer(relay, under_test) as running:
        source.commit([update(ITEMS, 1, name="x", text="t", more="m")])
        followed(running, under_test, relay, update(ITEMS, 1, name="y"))
    assert verified(relay, under_test).differing == 0


def test_a_consumer_that_runs_is_not_disturbed(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test)
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="runs"))
        with pytest.raises(SinkRefused, match="stop the other process of this consumer first"):
            verified(relay, under_test)
        followed(running, under_test, relay, update(ITEMS, 1, name="runs on"))


def test_rows_that_were_held_back_are_missed_whoever_lost_their_copy(
    under_test: SinkUnderTest, source: ModelSource
) -> None:
    """A process that reads the topics back, and ends before it commits, leaves that to be known."""
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)  # the insert never came
        assert sink.incomplete() == (ITEMS,)
    forget_copy(under_test)
    for _ in range(2):
        with closing(under_test.open()) as sink:
            assert sink.incomplete() == (ITEMS,)


def test_topics_that_somebody_wrote_into_give_no_rows_to_others_until_they_are_mended(
    under_test: SinkUnderTest, reader: TopicReader, relay: ScriptedRelay
) -> None:
    filled(relay, under_test)
    hand, read = PlainHand(reader), read_by(reader)
    assert read() == ROWS - 1
    hand.put(hand.record(1), value=hand.record(2).value)
    with pytest.raises(RelayUnavailable, match="verify --sink"):
        read()
    verified(relay, under_test, repair=True)
    assert read() == ROWS - 1


def read_by(reader: TopicReader) -> Callable[[], int]:
    """Counts the rows that a consumer with `rows_from = "topics"` is given."""

    def read() -> int:
        with (
            closing(TopicRowsPeer(KafkaAddress(reader.bootstrap, reader.prefix))) as peer,
            closing(peer.snapshot(ITEMS, None)) as stream,
        ):
            headers = [header for header, _ in stream.records(60)]
            while not headers[-1].flags & Flag.END:
                headers += [header for header, _ in stream.records(60)]
            return sum(header.count for header in headers)

    return read
