"""The Kafka sink beside a schema registry that is not the relay: a real broker, and Apicurio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from structlog.testing import capture_logs

from support import plain_http
from support.apicurio_server import ApicurioServer
from support.database import Database
from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.rebuild_rig import rebuilt
from support.running_consumer import RunningConsumer, consumer, equal, stored
from support.scripted_relay import ScriptedRelay
from support.single_rooms import SingleRooms
from support.sink_writing import fill
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.tcp_proxy import TcpProxy
from support.topic_rows import TopicReader, forget_copy, read_by_confluent, reader_of
from support.waiting import wait_for
from support.whole_system import make_marker
from walbus.demo.postgres import free_port
from walbus.errors import SinkRefused, SinkUnavailable

pytestmark = pytest.mark.one_version

KEY = column("id", 23, "int4", in_key=True)
WIDER = items_layout("items", KEY, column("name"), column("body"), column("more"))
RETYPED = items_layout("items", KEY, column("name", 23, "int4"), column("body"))


@pytest.fixture
def source() -> ModelSource:
    return ModelSource()


@pytest.fixture
def relay(source: ModelSource) -> Iterator[ScriptedRelay]:
    with ScriptedRelay(source) as serving:
        yield serving


@pytest.fixture
def under_test(kafka: str, apicurio: ApicurioServer, tmp_path: Path) -> SinkUnderTest:
    return kafka_under_test(tmp_path, kafka, schema_registry={"url": apicurio.url})


@pytest.fixture
def client(apicurio: ApicurioServer) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": apicurio.url}) as made:
        yield made


@pytest.fixture
def proxy(apicurio: ApicurioServer) -> Iterator[TcpProxy]:
    with TcpProxy(urlsplit(apicurio.url).port or 0) as made:
        yield made


def value_subject(under_test: SinkUnderTest) -> str:
    return f"{under_test.options['prefix']}.public.items-value"


def fixed(size: int) -> Schema:
    """A schema of its own for each size."""
    return Schema(json.dumps({"type": "fixed", "name": "blob", "size": size}))


def ids(reader: TopicReader) -> list[tuple[int, int]]:
    """Ids of the schemas of key and value of the records with a value, in the order of their seqs."""
    messages = sorted(reader.messages(reader.of_table(ITEMS)), key=lambda m: int(m.headers["walbus.seq"]))
    return [(int.from_bytes(m.key[1:5], "big"), int.from_bytes(m.value[1:5], "big")) for m in messages if m.value]


def test_records_name_schemas_by_the_ids_of_the_registry(
    under_test: SinkUnderTest, source: ModelSource, client: SchemaRegistryClient
) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2, "b")])
    reader, subject = reader_of(under_test), value_subject(under_test)
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.add_layout(WIDER)
        source.commit([update(ITEMS, 1, name="x", body="y", more="z"), delete(ITEMS, 2)])
        fill(sink, source, done)
    assert under_test.rows() == source.rows()
    keys, values = zip(*ids(reader), strict=True)
    assert client.get_versions(subject) == [1, 2]
    assert [client.get_version(subject, version).schema_id for version in (1, 2)] == [values[0], values[-1]]
    assert set(keys) == {client.get_latest_version(subject.replace("-value", "-key")).schema_id}
    assert [end["topics"][0]["records"] for end in reader.ends()] == [2, 2]


@pytest.mark.parametrize("copy", ["kept", "lost"])
def test_the_next_process_goes_on_with_the_same_ids(
    under_test: SinkUnderTest, source: ModelSource, client: SchemaRegistryClient, copy: str
) -> None:
    source.commit([insert(ITEMS, n, "a", "toasted") for n in range(5)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    if copy == "lost":
        forget_copy(under_test)
    done = source.end
    source.commit([update(ITEMS, 1, name="b"), delete(ITEMS, 2)])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
    assert under_test.rows() == source.rows()
    assert len(set(ids(reader_of(under_test)))) == 1
    assert client.get_versions(value_subject(under_test)) == [1]


def test_envelopes_are_registered_as_what_they_are(
    kafka: str, apicurio: ApicurioServer, tmp_path: Path, source: ModelSource, client: SchemaRegistryClient
) -> None:
    debezium = {"format": "debezium", "database": "shop", "schema_registry": {"url": apicurio.url}}
    under_test = kafka_under_test(tmp_path, kafka, **debezium)
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    source.commit([update(ITEMS, 1, name="x"), delete(ITEMS, 2)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    assert under_test.rows() == source.rows()
    found = json.loads(client.get_latest_version(value_subject(under_test)).schema.schema_str or "")
    assert found["name"] == "Envelope"


# The registry away


def test_a_registry_that_is_away_is_waited_for_and_nothing_is_half_written(
    kafka: str, proxy: TcpProxy, apicurio: ApicurioServer, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    there = {"url": f"http://127.0.0.1:{proxy.port}{urlsplit(apicurio.url).path}"}
    under_test = kafka_under_test(tmp_path, kafka, schema_registry=there)
    reader = reader_of(under_test)
    source.commit([insert(ITEMS, n) for n in range(3)])
    with capture_logs() as said, consumer(relay, under_test, start="earliest") as running:
        equal(under_test, relay)
        stored(running, source)
        written = len(reader.messages(reader.of_table(ITEMS)))
        target, proxy.target = proxy.target, free_port()
        proxy.reset()
        source.commit([update(ITEMS, 1, name="of a layout that is known")])
        stored(running, source)  # what needs no schema goes on
        written += 1
        source.add_layout(WIDER)
        source.commit([update(ITEMS, 2, name="x", body="y", more="z"), insert(ITEMS, 7)])
        wait_for(
            lambda: "schema registry cannot be asked" in (running.status().get("waiting_for") or ""),
            what="the consumer says what it waits for",
        )
        assert len(reader.messages(reader.of_table(ITEMS))) == written
        assert len(reader.messages(f"{reader.prefix}.transactions")) == 2
        proxy.target = target
        equal(under_test, relay)
        stored(running, source)
    assert under_test.rows() == source.rows()
    assert [len(end["topics"]) for end in reader.ends()] == [1, 1, 1]
    assert "schema_registry_is_away" in {line["event"] for line in said}


# What the registry does not take


def test_a_schema_that_the_registry_refuses_ends_the_consumer_and_leaves_no_record(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, client: SchemaRegistryClient
) -> None:
    reader, subject = reader_of(under_test), value_subject(under_test)
    source.commit([insert(ITEMS, n) for n in range(3)])
    with consumer(relay, under_test, start="earliest") as running:
        equal(under_test, relay)
        stored(running, source)
    client.set_compatibility(subject, "FULL")
    before = (len(reader.messages(reader.of_table(ITEMS))), reader.ends())
    source.add_layout(RETYPED)
    source.commit([update(ITEMS, 1, name="7", body="y"), insert(ITEMS, 5, "8")])
    refused = RunningConsumer(relay, "kafka", {**under_test.options, "start": "earliest"}, under_test.place.folder)
    error = refused.ended()
    assert isinstance(error, SinkRefused)
    assert f"table {ITEMS}, layout 2" in error.what
    assert "version 1 of its subject under compatibility FULL" in error.what
    assert subject in (error.where or "")
    assert f"PUT /config/{subject}" in (error.mend or "") and "another prefix" in (error.mend or "")
    assert (len(reader.messages(reader.of_table(ITEMS))), reader.ends()) == before
    assert client.get_versions(subject) == [1]
    client.set_compatibility(subject, "NONE")
    with consumer(relay, under_test, start="earliest") as running:
        equal(under_test, relay)
        stored(running, source)
    assert client.get_versions(subject) == [1, 2]


def test_a_registry_that_gives_other_ids_than_records_name_is_refused(
    under_test: SinkUnderTest, source: ModelSource, apicurio: ApicurioServer
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    ((_, value),) = ids(reader_of(under_test))
    apicurio.stop()
    apicurio.start()  # what was registered is gone, and numbers begin anew
    with SchemaRegistryClient({"url": apicurio.url}) as client:
        sizes = count(1)
        while client.register_schema("other", fixed(next(sizes))) < value:
            pass
    done = source.end
    source.commit([update(ITEMS, 1, name="x")])
    with closing(under_test.open()) as sink:
        with pytest.raises(SinkRefused, match=f"and records in the topic name {value}") as caught:
            fill(sink, source, done)
        assert value_subject(under_test) in (caught.value.where or "")
        sink.rollback()
    assert len(ids(reader_of(under_test))) == 1


def test_topics_go_on_with_the_ids_that_they_were_begun_with(
    under_test: SinkUnderTest, kafka: str, tmp_path: Path
) -> None:
    under_test.open().close()
    with pytest.raises(SinkRefused, match="ids of a schema registry that is configured") as caught:
        under_test.open(schema_registry=None)
    assert "prefix" in (caught.value.mend or "")
    relays = kafka_under_test(tmp_path / "other", kafka)
    relays.open().close()
    with pytest.raises(SinkRefused, match="by the ids of the relay"):
        relays.open(schema_registry=under_test.options["schema_registry"])


def test_a_server_that_is_no_registry_is_told_as_that(kafka: str, tmp_path: Path, source: ModelSource) -> None:
    with ScriptedRelay(source) as other:
        under_test = kafka_under_test(tmp_path, kafka, schema_registry={"url": other.url})
        source.commit([insert(ITEMS, 1)])
        with closing(under_test.open()) as sink, pytest.raises((SinkRefused, SinkUnavailable)) as caught:
            fill(sink, source)
        assert other.url in (caught.value.where or "")


# The whole


@pytest.mark.timeout(300)
def test_a_plain_consumer_reads_all_topics_with_the_configured_registry(
    database: Database, open_folder: Path, kafka: str, apicurio: ApicurioServer
) -> None:
    make_marker(database)
    database.execute("CREATE TABLE still (id int PRIMARY KEY, n text)")
    database.execute("INSERT INTO still SELECT n, 'row ' || n FROM generate_series(1, 150) n")
    prefix = f"registered-{database.name}"
    section: dict[str, object] = {"sink": "kafka", "bootstrap_servers": kafka, "prefix": prefix, "partitions": 2}
    more: dict[str, dict[str, object]] = {
        "relay": {"topic_prefix": prefix}, "relay.schema_registry": {"url": apicurio.url},
    }  # fmt: skip
    with SingleRooms(open_folder, database.dsn, {"topics": section}, **more) as system:
        system.start()
        system.wait_until_at_rest(database)
        read_by_confluent(apicurio.url, TopicReader(kafka, prefix))
        database.execute("ALTER TABLE still ADD COLUMN more int")
        database.execute("UPDATE still SET more = id WHERE id < 10")
        system.wait_until_at_rest(database)
        read_by_confluent(apicurio.url, TopicReader(kafka, prefix))
        registered = plain_http.get(f"{apicurio.url}/subjects/{prefix}.public.still-value/versions")
        assert registered.json() == [1, 2]


def test_a_rebuild_brings_topics_with_the_relays_ids_to_a_registry(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: SchemaRegistryClient
) -> None:
    with_relay = {name: value for name, value in under_test.options.items() if name != "schema_registry"}
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(20)])
    with closing(replace(under_test, options=with_relay).open()) as sink:
        fill(sink, source)
    with pytest.raises(SinkRefused, match="by the ids of the relay"):
        under_test.open()
    rebuilt(relay, under_test)
    subject = value_subject(under_test).replace(".public", "-1.public")
    assert client.get_versions(subject) == [1]
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 3, name="goes on", body="b")])
        equal(under_test, relay)
    assert {value for _, value in ids(reader_of(under_test).turned())} == {client.get_latest_version(subject).schema_id}
