"""Table layouts as Avro schemas."""

from __future__ import annotations

import io
import json
import re

import fastavro
from hypothesis import given
from hypothesis import strategies as st

from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import avro_schema, decode_row, row_encoder
from walbus.values.types import NATIVE


def table(*columns: Column, name: str = "orders", namespace: str = "public") -> TableSchema:
    return TableSchema(7, 16400, namespace, name, ReplicaIdentity.DEFAULT, columns)


def test_a_layout_names_its_types_both_in_avro_and_in_postgresql() -> None:
    schema = table(
        Column("id", 23, "int4", -1, in_key=True),
        Column("at", 1184, "timestamptz", -1, in_key=False),
        Column("sum", 1700, "numeric", 655366, in_key=False),
        Column("tags", 1009, "_text", -1, in_key=False),
        Column("mood", 16500, "shop.mood", -1, in_key=False),
        Column("u", 2950, "uuid", -1, in_key=False),
    )
    assert avro_schema(schema) == {
        "type": "record",
        "name": "orders",
        "namespace": "walbus.public",
        "pgTable": "public.orders",
        "pgOid": 16400,
        "walbusSchemaId": 7,
        "fields": [
            {"name": "id", "type": ["null", "int", "string"], "default": None, "pgType": "int4", "pgKey": True},
            {
                "name": "at",
                "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}, "string"],
                "default": None,
                "pgType": "timestamptz",
            },
            {
                "name": "sum",
                "type": ["null", {"type": "string", "pgType": "numeric", "logicalType": "pg-numeric"}],
                "default": None,
                "pgType": "numeric",
                "pgTypmod": 655366,
            },
            {
                "name": "tags",
                "type": ["null", {"type": "array", "items": ["null", "string"]}, "string"],
                "default": None,
                "pgType": "_text",
            },
            {
                "name": "mood",
                "type": ["null", {"type": "string", "pgType": "shop.mood"}],
                "default": None,
                "pgType": "shop.mood",
            },
            {
                "name": "u",
                "type": ["null", {"type": "string", "logicalType": "uuid"}],
                "default": None,
                "pgType": "uuid",
            },
        ],
    }


NAMES = st.lists(st.text(min_size=1) | st.sampled_from(["a b", "a_x20_b", "a_x20_b_2", "1", "_1"]), unique=True)


@given(NAMES.filter(len), st.text(min_size=1), st.text(min_size=1))
def test_any_names_give_a_valid_avro_schema_that_keeps_them(names: list[str], namespace: str, name: str) -> None:
    schema = table(*(Column(n, 23, "int4", -1, in_key=False) for n in names), name=name, namespace=namespace)
    document = avro_schema(schema)
    fastavro.parse_schema(json.loads(json.dumps(document)))
    fields = document["fields"]
    assert [field.get("pgName", field["name"]) for field in fields] == names
    assert len({field["name"] for field in fields}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", field["name"], re.ASCII) for field in fields)
    values = [b"%d" % i for i in range(len(names))]
    payload = row_encoder(schema).encode(values)
    assert decode_row(schema, payload) == {name: i for i, name in enumerate(names)}


def test_every_native_type_reads_in_its_published_schema() -> None:
    columns = (Column(f"c{oid}", oid, native.name, -1, in_key=False) for oid, native in NATIVE.items())
    schema = table(*columns)
    payload = row_encoder(schema).encode([None] * len(NATIVE))
    row = fastavro.schemaless_reader(io.BytesIO(payload), avro_schema(schema), None)
    assert row == {f"c{oid}": None for oid in NATIVE}


def test_the_document_is_the_callers_own() -> None:
    schema = table(Column("id", 23, "int4", -1, in_key=True))
    avro_schema(schema)["fields"].clear()
    assert len(avro_schema(schema)["fields"]) == 1


def test_an_encoder_is_made_once_for_a_layout() -> None:
    first = table(Column("id", 23, "int4", -1, in_key=True))
    again = table(Column("id", 23, "int4", -1, in_key=True))
    other = table(Column("id", 20, "int8", -1, in_key=True))  # same number, in another log
    assert row_encoder(first) is row_encoder(again)
    assert row_encoder(first) is not row_encoder(other)
