"""Levels of compatibility: what Apache Avro for Java says of the same schemas, and what Confluent's client is told."""

from __future__ import annotations

import http.client
import itertools
import json
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from support.avro_judge import judged
from support.relay_log import schema_piece, table_schema, transaction
from support.relay_server import Relay
from support.seed import announced_seed
from support.services import missing
from support.waiting import wait_for
from walbus.errors import InvalidText, UsageError
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.topics.catalog import text_of
from walbus.topics.compatibility import MAX_LIST, differences
from walbus.topics.forms import key_form, row_form

pytestmark = pytest.mark.one_version

TYPES = {"int2": 21, "int4": 23, "int8": 20, "float4": 700, "float8": 701, "text": 25, "bytea": 17, "bool": 16,
         "date": 1082, "timestamptz": 1184, "uuid": 2950, "numeric": 1700, "_int4": 1007, "_text": 1009}  # fmt: skip


def layout(**columns: str) -> TableSchema:
    """A layout of table t whose key is its first column."""
    made = tuple(Column(name, TYPES[one], one, -1, in_key=not i) for i, (name, one) in enumerate(columns.items()))
    return TableSchema(1, 5, "public", "t", ReplicaIdentity.DEFAULT, made)


def verdicts(pairs: list[tuple[str, str]]) -> list[bool]:
    try:
        return judged(pairs)
    except UsageError as error:
        missing("Avro for Java", str(error))
        raise


BEFORE = layout(id="int4", total="int4", note="text")


@pytest.mark.parametrize(
    ("after", "backward", "forward"),
    [
        (layout(id="int4", total="int4"), True, True),  # a column dropped
        (layout(id="int4", total="int4", note="text", more="date"), True, True),  # added: null by default
        (layout(id="int4", note="text", total="int4"), True, True),  # another order
        (layout(id="int4", total="int8", note="text"), True, False),  # a wider type
        (layout(id="int4", total="int2", note="text"), True, True),  # both are int to Avro
        (layout(id="int4", total="text", note="text"), False, True),  # an int4 is an int or a text
        (layout(id="int4", total="bool", note="text"), False, False),
        (layout(id="int4", total="int4", note="bytea"), True, True),  # texts and bytes read each other
    ],
)
def test_what_happens_to_a_column_is_compatible_as_avro_for_java_says(after, backward, forward):
    old, new = text_of(row_form(BEFORE)), text_of(row_form(after))
    expected = dict(zip([(new, old), (old, new)], verdicts([(new, old), (old, new)]), strict=True))
    assert (not differences("BACKWARD", [old], new)) is expected[new, old]
    assert (not differences("FORWARD", [old], new)) is expected[old, new]
    assert (not differences("FULL", [old], new)) is all(expected.values())
    assert (expected[new, old], expected[old, new]) == (backward, forward)


def test_every_retyping_is_judged_as_by_avro_for_java():
    """Rows and keys, from each type to each."""
    texts = []
    for form in (row_form, key_form):
        made = [text_of(form(layout(id=one))) for one in TYPES]
        texts += itertools.product(made, made)
    wrong = [
        pair
        for pair, fits in zip(texts, verdicts(texts), strict=True)
        if bool(differences("FORWARD", *old_new(pair))) == fits
    ]
    assert wrong == []


def old_new(pair: tuple[str, str]) -> tuple[list[str], str]:
    return [pair[0]], pair[1]


NAMES = ("a", "b", "c")


def any_type(rng: random.Random, depth: int, named: Iterator[int]) -> Any:
    """A schema as somebody may send it."""
    simple = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(simple)
    kind = rng.choice(("array", "map", "union", "record", "enum", "fixed"))
    if kind in {"array", "map"}:
        return {"type": kind, "items" if kind == "array" else "values": any_type(rng, depth - 1, named)}
    if kind == "union":
        return rng.sample(simple, rng.randrange(1, 4))
    name = f"{rng.choice('RS')}{next(named)}"
    if kind == "enum":
        return {"type": "enum", "name": name, "symbols": rng.sample(("X", "Y", "Z"), rng.randrange(1, 4))}
    if kind == "fixed":
        return {"type": "fixed", "name": name, "size": rng.choice((4, 8))}
    fields = [any_field(rng, one, depth, named) for one in rng.sample(NAMES, rng.randrange(1, 4))]
    return {"type": "record", "name": name, "fields": fields}


def any_field(rng: random.Random, name: str, depth: int, named: Iterator[int]) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"name": name, "type": ["null", rng.choice(("int", "long", "string"))], "default": None}
    return {"name": name, "type": any_type(rng, depth - 1, named)}


def test_schemas_of_any_form_are_judged_as_by_avro_for_java():
    rng = random.Random(announced_seed("the schemas"))
    made = []
    for _ in range(120):
        fields = [any_field(rng, one, 2, itertools.count(1)) for one in rng.sample(NAMES, rng.randrange(1, 4))]
        numbered = json.loads(json.dumps({"type": "record", "name": "t", "fields": fields}))
        unique(numbered, itertools.count(1))
        made.append(json.dumps(numbered))
    pairs = list(itertools.product(made[:60], made[60:])) + [(one, one) for one in made]
    fits = verdicts(pairs)
    assert 0.02 < sum(fits) / len(fits) < 0.98
    wrong = [
        pair for pair, fit in zip(pairs, fits, strict=True) if (not differences("FORWARD", [pair[0]], pair[1])) != fit
    ]
    assert wrong == []


def unique(form: Any, numbers: Iterator[int]) -> None:
    """Names occur once in a schema; those of two schemas are alike where they stand at the same place."""
    if isinstance(form, dict):
        if str(form.get("type")) in {"record", "enum", "fixed"} and form["name"] != "t":
            form["name"] = f"N{next(numbers)}"
        for one in form.values():
            unique(one, numbers)
    elif isinstance(form, list):
        for one in form:
            unique(one, numbers)


def test_a_transitive_level_looks_at_every_version():
    first, second, third = (text_of(row_form(layout(id="int4", total=one))) for one in ("int8", "bool", "int4"))
    versions = [text_of(row_form(layout(id="int4"))), first]
    assert differences("FORWARD", versions, third) == []
    assert differences("FORWARD_TRANSITIVE", [*versions[:1], second, first], third) != []
    assert differences("FORWARD", [second, first], third) == []
    assert differences("NONE", [second], third) == []
    assert differences("FULL", [], third) == []
    (told,) = differences("BACKWARD", [*versions, second], third)
    assert "version 3" in told and "/fields/1" in told


@pytest.mark.parametrize(
    "text",
    ["{", '"no_type"', "7", '{"type": "record"}', '{"type": "record", "name": "r", "fields": 7}', "[" * 5000,
     json.dumps({"type": "enum", "name": "e", "symbols": [f"s{i}" for i in range(MAX_LIST + 1)]})],
)  # fmt: skip
def test_what_is_no_schema_is_refused(text):
    with pytest.raises(InvalidText, match="no Avro schema"):
        differences("FULL", [text_of(row_form(BEFORE))], text)


# --- as Confluent's client asks -------------------------------------------------------------------------------------

ORDERS = "walbus.public.orders-value"


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    made = Relay(tmp_path_factory.mktemp("relay"), schema_compatibility="BACKWARD")
    made.writer = made.engine.open_writer()
    for lsn, columns in ((0x100, ("id",)), (0x200, ("id", "total"))):
        schema, _ = made.writer.schemas.register(table_schema("orders", 1, columns))
        made.writer.append(schema_piece(lsn, 0, schema))
        made.writer.append(transaction(lsn + 1, table=1, schema_id=schema.id))
        made.writer.sync()
    wait_for(lambda: made.get("/readyz")[0] == 200, what="the server to find the log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(relay: Relay) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{relay.port}", "max.retries": 0}) as made:
        yield made


def record(*fields: tuple[str, object]) -> Schema:
    made = [{"name": name, "type": kind} for name, kind in fields]
    return Schema(
        json.dumps({"type": "record", "name": "orders", "namespace": "walbus.public", "fields": made}), "AVRO"
    )


def test_confluents_client_is_told_what_could_come_next(client):
    assert client.get_compatibility() == client.get_compatibility(ORDERS) == "BACKWARD"
    wider = record(("id", ["null", "long", "string"]), ("total", ["null", "long", "string"]))
    assert client.test_compatibility(ORDERS, wider)
    assert client.test_compatibility_all_versions(ORDERS, record(("id", ["null", "int", "string"])))
    assert not client.test_compatibility(ORDERS, record(("id", ["null", "boolean"])))
    assert client.test_compatibility(ORDERS, client.get_latest_version(ORDERS).schema, 1)
    added = record(("id", ["null", "int", "string"]), ("total", ["null", "int", "string"]))  # without a default
    assert client.test_compatibility(ORDERS, added)
    assert not client.test_compatibility(ORDERS, added, 1)


def posted(relay: Relay, path: str, body: bytes) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", relay.port, timeout=60)) as connection:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_a_level_can_be_named_and_reasons_be_had(relay, client):
    narrower = record(("id", ["null", "int", "string"]), ("total", ["null", "string"]))
    body = json.dumps({"schema": narrower.schema_str}).encode()
    path = f"/compatibility/subjects/{ORDERS}/versions/latest"
    assert posted(relay, f"{path}?level=forward", body) == (200, {"is_compatible": True})
    status, told = posted(relay, f"{path}?verbose=true", body)
    assert (status, told["is_compatible"]) == (200, False)
    assert "missing union branch" in told["messages"][0]
    assert posted(relay, f"{path}?level=none", body)[1] == {"is_compatible": True}
    status, told = posted(relay, f"{path}?level=some", body)
    assert (status, told["error_code"]) == (422, 42203)


@pytest.mark.parametrize(
    ("ask", "status", "code", "said"),
    [
        (lambda c: c.set_compatibility(ORDERS, "FULL"), 422, 42205, "relay.schema_compatibility"),
        (lambda c: c.set_compatibility(level="FULL"), 422, 42205, "relay.schema_compatibility"),
        (lambda c: c.delete_subject(ORDERS), 422, 42205, "read-only"),
        (lambda c: c.delete_version(ORDERS, 1), 422, 42205, "read-only"),
        (lambda c: c.delete_subject("nothing-value"), 404, 40401, "not found"),
        (lambda c: c.test_compatibility("nothing-value", record(("id", "int"))), 404, 40401, "not found"),
        (lambda c: c.test_compatibility(ORDERS, record(("id", "int")), 3), 404, 40402, "the last one is 2"),
        (lambda c: c.test_compatibility(ORDERS, Schema('"no_type"', "AVRO")), 422, 42201, "Avro 1.12"),
    ],
)
def test_what_cannot_be_is_refused_with_confluents_code(client, ask, status, code, said):
    with pytest.raises(SchemaRegistryError) as refused:
        ask(client)
    assert (refused.value.http_status_code, refused.value.error_code) == (status, code)
    assert said in refused.value.error_message
