"""The relay as a schema registry, asked by Confluent's own client and by hand."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from support.chained_relay import ChainedRelay
from support.guarded_relay import GuardedRelay
from support.relay_log import schema_piece, table_schema, transaction
from support.relay_server import Relay
from support.waiting import wait_for
from walbus.relay.writer import FileLogWriter

pytestmark = pytest.mark.one_version

ORDERS, ITEMS = "walbus.public.orders", "walbus.public.items"
ENDS = ["walbus.transactions-key", "walbus.transactions-value"]


def announce(writer: FileLogWriter, lsn: int, table: str, *columns: str, oid: int = 1) -> int:
    """A layout and its SCHEMA record, durable; its number."""
    schema, _ = writer.schemas.register(table_schema(table, oid, ("id", *columns)))
    writer.append(schema_piece(lsn, 0, schema))
    writer.append(transaction(lsn + 1, table=oid, schema_id=schema.id))
    writer.sync()
    return schema.id


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    made = Relay(tmp_path_factory.mktemp("relay"))
    made.writer = made.engine.open_writer()
    announce(made.writer, 0x100, "orders")
    announce(made.writer, 0x200, "items", oid=2)
    announce(made.writer, 0x300, "orders", "total")
    wait_for(lambda: made.get("/readyz")[0] == 200, what="the server to find the log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(relay: Relay) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{relay.port}", "max.retries": 0}) as made:
        yield made


def test_confluents_client_finds_every_subject_version_and_id(client):
    assert client.get_subjects() == [f"{ITEMS}-key", f"{ITEMS}-value", f"{ORDERS}-key", f"{ORDERS}-value", *ENDS]
    assert client.get_versions(f"{ORDERS}-value") == [1, 2]
    assert client.get_versions(f"{ORDERS}-key") == [1]
    latest = client.get_latest_version(f"{ORDERS}-value")
    assert (latest.version, latest.schema_id, latest.subject) == (2, 24, f"{ORDERS}-value")
    assert client.get_version(f"{ORDERS}-value", 1).schema_id == 8
    assert [field["name"] for field in json.loads(client.get_schema(24).schema_str)["fields"]] == ["id", "total"]
    assert [(one.subject, one.version) for one in client.get_schema_versions(24)] == [(f"{ORDERS}-value", 2)]
    assert client.get_subjects_by_schema_id(17) == [f"{ITEMS}-key"]
    assert client.get_schema_types() == ["AVRO"]
    assert client.get_compatibility() == client.get_compatibility(f"{ITEMS}-key") == "NONE"
    assert client.get_global_mode() == client.get_mode(f"{ITEMS}-key") == "READONLY"


def test_a_schema_that_is_there_is_found_by_its_text_and_is_registered_already(client):
    text = client.get_schema(24).schema_str
    laid_out = Schema(json.dumps(json.loads(text), indent=2), "AVRO")
    assert client.lookup_schema(f"{ORDERS}-value", laid_out).version == 2
    assert client.register_schema(f"{ORDERS}-value", laid_out) == 24


def test_confluents_serializer_writes_rows_by_the_relays_schema(client):
    """A program in front of the same topics gets the id that Walbus has, without a registration."""
    text = client.get_schema(8).schema_str
    written = AvroSerializer(client, text)({"id": 7}, SerializationContext(ORDERS, MessageField.VALUE))
    assert written[:5] == b"\0\0\0\0\x08"
    assert fastavro.schemaless_reader(io.BytesIO(written[5:]), json.loads(text)) == {"id": 7}


@pytest.mark.parametrize(
    ("ask", "status", "code", "said"),
    [
        (lambda c: c.get_versions("nothing-value"), 404, 40401, "/subjects"),
        (lambda c: c.get_latest_version("nothing-value"), 404, 40401, "nothing-value"),
        (lambda c: c.get_version(f"{ORDERS}-value", 3), 404, 40402, "the last one is 2"),
        (lambda c: c.get_version(f"{ORDERS}-value", "x"), 422, 42202, "latest"),
        (lambda c: c.get_version(f"{ORDERS}-value", 0), 422, 42202, "latest"),
        (lambda c: c.get_schema(33), 404, 40403, "the relay of the log"),
        (lambda c: c.get_schema(1 << 40), 404, 40403, "not found"),
        (lambda c: c.lookup_schema("nothing-value", Schema('"int"', "AVRO")), 404, 40401, "not found"),
        (lambda c: c.lookup_schema(f"{ORDERS}-value", Schema('"int"', "AVRO")), 404, 40403, "no such version"),
        (lambda c: c.lookup_schema(f"{ORDERS}-value", Schema("{", "AVRO")), 422, 42201, "Invalid schema"),
        (lambda c: c.lookup_schema(f"{ORDERS}-value", Schema("{}", "JSON")), 422, 42201, "only Avro"),
        (lambda c: c.register_schema(f"{ORDERS}-value", Schema('"int"', "AVRO")), 422, 42205, "tables of the database"),
        (lambda c: c.register_schema("mine-value", Schema('"int"', "AVRO")), 422, 42205, "read-only"),
        (lambda c: c.get_compatibility("nothing-value"), 404, 40401, "not found"),
    ],
)
def test_a_refusal_has_confluents_code_and_says_what_to_do(client, ask, status, code, said):
    with pytest.raises(SchemaRegistryError) as refused:
        ask(client)
    assert (refused.value.http_status_code, refused.value.error_code) == (status, code)
    assert said in refused.value.error_message


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"schema": 7}', b'{"schema": "\xff"}', b"{" * 10_000])
def test_a_body_that_is_no_schema_is_refused_and_not_failed_on(relay, body):
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=60)
    connection.request("POST", f"/subjects/{ORDERS}-value", body)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error_code"]) == (422, 42201)
    connection.close()


def test_a_layout_is_told_as_soon_as_it_has_a_number(tmp_path):
    """Rows of a snapshot are of layouts that no record of the log tells until their tables change."""
    relay = Relay(tmp_path)
    relay.writer = relay.engine.open_writer()
    wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server to find the log")
    assert relay.json("/subjects") == (200, ENDS)
    for number, name in enumerate(("later", "latest"), 1):
        schema, _ = relay.writer.schemas.register(table_schema(name, number))
        assert relay.json(f"/schemas/ids/{8 * schema.id}")[0] == 200
        assert relay.json(f"/subjects?subjectPrefix=walbus.public.{name}-")[1] == [
            f"walbus.public.{name}-key", f"walbus.public.{name}-value",
        ]  # fmt: skip
    assert relay.json("/schemas/ids/24")[0] == 404
    relay.close()


def test_a_copy_that_lost_a_layout_tells_what_took_its_place(tmp_path):
    """As a copy does whose upstream is of before numbers were given once."""
    relay = Relay(tmp_path)
    relay.writer = relay.engine.open_writer()
    wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server to find the log")
    for name in ("lost", "found"):
        relay.writer.adopt(replace(table_schema(name, 8), id=1))
        assert relay.json("/subjects")[1] == [f"walbus.public.{name}-key", f"walbus.public.{name}-value", *ENDS]
    relay.close()


def everything(port: int) -> dict[str, object]:
    """All that a registry tells."""
    told = {}
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{port}"}) as client:
        for subject in client.get_subjects():
            for version in client.get_versions(subject):
                one = client.get_version(subject, version)
                told[subject, version] = one.schema_id, client.get_schema(one.schema_id).schema_str
    return told


def test_after_a_restart_every_id_is_what_it_was(relay, tmp_path):
    before = everything(relay.port)
    assert len(before) == 7
    again = Relay(tmp_path / "again", log=relay.engine.folder)
    relay.closing.callback(again.close)
    wait_for(lambda: again.get("/readyz")[0] == 200, what="the second server to find the log")
    assert everything(again.port) == before


def test_another_prefix_gives_other_subjects_and_the_same_ids(relay, tmp_path):
    other = Relay(tmp_path / "other", log=relay.engine.folder, topic_prefix="shop-1")
    relay.closing.callback(other.close)
    wait_for(lambda: other.get("/readyz")[0] == 200, what="the second server to find the log")
    assert other.json("/subjects/shop-1.public.orders-value/versions/2")[1]["id"] == 24
    assert other.json("/schemas/ids/24") == relay.json("/schemas/ids/24")


def test_a_relay_that_copies_the_log_has_the_same_ids(relay, tmp_path):
    copy = ChainedRelay(tmp_path / "copy", [relay.port], name="copy")
    relay.closing.callback(copy.stop)
    copy.has(relay.writer.bounds().end)
    wait_for(lambda: len(everything(copy.port)) == 7, what="the copy to know what is announced")
    assert everything(copy.port) == everything(relay.port)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedRelay]:
    with GuardedRelay(tmp_path, {"narrow": ["public.orders"], "all": ["*.*"]}) as made:
        writer = made.writer
        last = writer.bounds().end.commit_lsn
        for number, schema in enumerate(writer.schemas.all()):
            writer.append(schema_piece(last + 0x100 * (number + 1), 0, schema))
            writer.append(transaction(last + 0x100 * (number + 1) + 1, table=schema.oid, schema_id=schema.id))
        writer.sync()
        yield made


def token_client(relay: GuardedRelay, name: str) -> SchemaRegistryClient:
    keys = {
        "bearer.auth.credentials.source": "STATIC_TOKEN",
        "bearer.auth.token": relay.tokens[name],
        "bearer.auth.logical.cluster": "walbus",
    }
    return SchemaRegistryClient({"url": f"http://127.0.0.1:{relay.port}", "max.retries": 0, **keys})


def test_a_narrow_token_sees_its_own_subjects_and_is_refused_the_others_by_name(guarded):
    with token_client(guarded, "all") as client:
        items = client.get_latest_version(f"{ITEMS}-value").schema_id
        assert len(client.get_subjects()) == 8
    with token_client(guarded, "narrow") as client:
        assert client.get_subjects() == [f"{ORDERS}-key", f"{ORDERS}-value", *ENDS]
        assert client.get_schema(client.get_latest_version(f"{ORDERS}-value").schema_id)
        for ask in (lambda: client.get_schema(items), lambda: client.get_versions(f"{ITEMS}-key")):
            with pytest.raises(SchemaRegistryError, match="narrow does not reach") as refused:
                ask()
            assert (refused.value.http_status_code, refused.value.error_code) == (403, 40301)


def test_without_a_token_nothing_is_told(guarded):
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{guarded.port}", "max.retries": 0}) as client:
        with pytest.raises(SchemaRegistryError) as refused:
            client.get_subjects()
        assert refused.value.http_status_code == 401
