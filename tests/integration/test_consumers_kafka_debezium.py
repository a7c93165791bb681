"""The Kafka sink with Debezium's envelope, on a real broker."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.database import Database
from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.single_rooms import SingleRooms
from support.sink_writing import fill
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import TopicReader, decoded, forget_copy, read_by_confluent, reader_of
from support.whole_system import make_marker
from support.zoo import build_zoo
from support.zoo_herd import build_herd
from walbus.errors import ConfigError, SinkRefused

pytestmark = pytest.mark.one_version


@pytest.fixture
def source() -> ModelSource:
    return ModelSource()


@pytest.fixture
def enveloped(kafka: str, tmp_path: Path) -> SinkUnderTest:
    return kafka_under_test(tmp_path, kafka, format="debezium", database="shop")


def envelopes(reader: TopicReader) -> list[tuple[str | None, dict[str, Any] | None, dict[str, Any] | None]]:
    """Op, before and after of the records of ITEMS in the order of their seqs; no op without a value."""
    schemas, found = reader.schemas(), []
    for m in reader.messages(reader.of_table(ITEMS)):
        value = {"op": None, "before": None, "after": None} if m.value is None else decoded(m.value, schemas)
        told = (value["op"], value["before"], value["after"])
        found.append(((int(m.headers["walbus.seq"]), told[0] in ("c", "u"), m.partition, m.offset), told))
    return [told for _, told in sorted(found, key=lambda one: one[0])]


def test_envelopes_tell_the_rows_before_and_after_and_deletes_twice(
    enveloped: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted"), insert(ITEMS, 2, "b", "other")])
    source.commit([update(ITEMS, 1, name="x")])
    source.commit([update(ITEMS, 2, new_id=9, name="y")])
    source.commit([truncate(ITEMS)])
    with closing(enveloped.open()) as sink:
        fill(sink, source)
    reader = reader_of(enveloped)
    one, other = {"id": 1, "name": "a", "body": "toasted"}, {"id": 2, "name": "b", "body": "other"}
    changed, moved = one | {"name": "x"}, other | {"id": 9, "name": "y"}
    found = envelopes(reader)
    assert found[:6] == [
        ("c", None, one),
        ("c", None, other),
        ("u", one, changed),
        ("d", other, None),
        (None, None, None),
        ("c", None, moved),
    ]
    deleted = [before for op, before, _ in found[6:] if op == "d"]
    assert sorted(deleted, key=lambda row: row["id"]) == [changed, moved]  # type: ignore[index,arg-type,return-value]
    assert [op for op, *_ in found[6:]].count(None) == 2 and len(found) == 10
    assert [one["topics"][0]["records"] for one in reader.ends()] == [2, 1, 3, 4]


def test_a_prefix_has_one_format(enveloped: SinkUnderTest) -> None:
    enveloped.open().close()
    with pytest.raises(SinkRefused, match='have format = "debezium"') as caught:
        enveloped.open(format="rows", database="")
    assert caught.value.where == "key consumer.test.format"


@pytest.mark.parametrize("options", [{"format": "debezium"}, {"database": "shop"}])
def test_the_databases_name_is_asked_for_with_envelopes_alone(
    kafka: str, tmp_path: Path, options: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="name in envelopes"):
        kafka_under_test(tmp_path, kafka, **options).open()


def test_a_copy_that_is_gone_is_made_of_envelopes_too(enveloped: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, "a", f"toasted {n}") for n in range(20)])
    source.commit([update(ITEMS, 3, new_id=50, name="b", body="c"), delete(ITEMS, 4)])
    with closing(enveloped.open()) as sink:
        fill(sink, source)
    forget_copy(enveloped)
    done = source.end
    source.commit([update(ITEMS, 5, name="without its body"), delete(ITEMS, 50)])
    with closing(enveloped.open()) as sink:
        fill(sink, source, done)
        assert sink.incomplete() == ()
    assert enveloped.rows() == source.rows()


@pytest.mark.timeout(300)
def test_envelopes_of_every_type_are_read_by_confluents_deserializer(
    database: Database, open_folder: Path, kafka: str
) -> None:
    make_marker(database)
    zoo = build_zoo(database.connect())
    zoo.insert()
    herd = build_herd(zoo)
    prefix = f"zoo-{database.name}-debezium"
    section: dict[str, object] = {"sink": "kafka", "bootstrap_servers": kafka, "prefix": prefix, "partitions": 1}
    section |= {"max_message_bytes": 8 << 20, "format": "debezium", "database": "zoo", "on_error": "skip"}
    only = {"tables": ["herd.*", "public.marker"]}
    relay = {"topic_prefix": prefix}
    with SingleRooms(open_folder, database.dsn, {"topics": section}, source=only, relay=relay) as system:
        system.start()
        system.wait_until_at_rest(database)
        herd.update()  # so that the log has told every layout, and the relay its schemas
        system.wait_until_at_rest(database)
        read_by_confluent(system.relay_url, TopicReader(kafka, prefix))
