"""Debezium's envelope: its Avro, its types, and the row of the log that is had back from it."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.position import Position
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.topics import Catalog, Cause, TopicNames
from walbus.topics.catalog import text_of
from walbus.topics.debezium_rows import NoFormError, debezium_key, debezium_row, is_exact, log_row
from walbus.topics.envelope import envelope_form, envelope_key_form
from walbus.topics.envelope_records import EnvelopeMaker
from walbus.topics.records import Row
from walbus.values import row_encoder
from walbus.values.key_codec import encode_key

NAMES = TopicNames("shop-1.eu")
TOPIC = "shop-1.eu.public.orders"
TYPES = {
    "id": (20, "int8"), "small": (21, "int2"), "ok": (16, "bool"), "day": (1082, "date"), "clock": (1083, "time"),
    "at": (1114, "timestamp"), "zoned": (1184, "timestamptz"), "price": (1700, "numeric"), "who": (2950, "uuid"),
    "doc": (3802, "jsonb"), "days": (1182, "_date"), "moments": (1185, "_timestamptz"), "raw": (17, "bytea"),
}  # fmt: skip
LAYOUT = TableSchema(
    3, 500, "public", "orders", ReplicaIdentity.DEFAULT,
    tuple(Column(name, *told, -1, in_key=name == "id") for name, told in TYPES.items()),
)  # fmt: skip
TEXTS = {
    "id": "7", "small": "-3", "ok": "t", "day": "2024-02-29", "clock": "12:34:56.5", "at": "2024-02-29 12:34:56.789",
    "zoned": "2024-02-29 12:34:56.789012+00", "price": "12.50", "who": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "doc": '{"a": 1}', "days": "{2024-02-29,NULL}", "moments": '{"2024-02-29 00:00:00+00",NULL}', "raw": "\\x00ff",
}  # fmt: skip


class Ids:
    ends = 1, 2

    def rows(self, layout: TableSchema) -> int:
        return 8 * layout.id + 2

    def keys(self, layout: TableSchema) -> int:
        return 8 * layout.id + 3


MAKER = EnvelopeMaker(NAMES, Ids(), "log-a", "shopdb", "walbus-1")
CAUSE = Cause(Position(1, 0x1100, 2), 9, 700, "update", 1_700_000_000_123)


def row(**texts: str | None) -> bytes:
    given = TEXTS | texts
    return row_encoder(LAYOUT).encode([None if (text := given[n]) is None else text.encode() for n in TYPES])


def read(form: dict[str, Any], avro: bytes) -> dict[str, Any]:
    stream = io.BytesIO(avro)
    found = fastavro.schemaless_reader(stream, fastavro.parse_schema(form))
    assert not stream.read()
    return found  # type: ignore[return-value]


def envelope_of(value: bytes | None) -> dict[str, Any]:
    assert value is not None and int.from_bytes(value[:5], "big") == 26
    return read(envelope_form(LAYOUT, NAMES.prefix), value[5:])


def after(**texts: str | None) -> dict[str, Any]:
    key = encode_key([b"7"], [20])
    record = MAKER.written(TOPIC, key, Row(LAYOUT, row(**texts)), None, CAUSE, ())
    return envelope_of(record.value)["after"]  # type: ignore[no-any-return]


def test_an_update_has_the_rows_the_source_and_the_op():
    key = encode_key([b"7"], [20])
    record = MAKER.written(TOPIC, key, Row(LAYOUT, row(price="13")), Row(LAYOUT, row()), CAUSE, ())
    found = envelope_of(record.value)
    assert (found["op"], found["before"]["price"], found["after"]["price"]) == ("u", "12.50", "13")
    assert (found["ts_ms"], found["ts_us"], found["transaction"]) == (1_700_000_000_123, 1_700_000_000_123_000, None)
    source = found["source"]
    assert (source["connector"], source["name"], source["db"]) == ("postgresql", "shop-1.eu", "shopdb")
    assert (source["schema"], source["table"], source["txId"], source["lsn"]) == ("public", "orders", 700, 0x1100)
    assert (source["snapshot"], source["version"], source["ts_ms"]) == ("false", "walbus-1", 1_700_000_000_123)
    assert read(envelope_key_form(LAYOUT, NAMES.prefix), record.key[5:]) == {"id": 7}


def test_a_delete_is_the_old_row_and_then_the_key_without_a_value():
    framed_key = MAKER.key(LAYOUT, encode_key([b"7"], [20]))
    told, tombstone = MAKER.deleted(TOPIC, b"key", framed_key, Row(LAYOUT, row()), CAUSE, ())
    found = envelope_of(told.value)
    assert (found["op"], found["after"], found["before"]["id"]) == ("d", None, 7)
    assert (tombstone.key, tombstone.value) == (told.key, None)
    assert len(MAKER.deleted(TOPIC, b"key", framed_key, None, CAUSE, ())) == 1


def test_a_row_that_was_read_is_of_a_snapshot():
    key = encode_key([b"7"], [20])
    record = MAKER.written(TOPIC, key, Row(LAYOUT, row()), None, CAUSE._replace(op="read", xid=0), ())
    found = envelope_of(record.value)
    assert (found["op"], found["source"]["snapshot"], found["source"]["txId"]) == ("r", "true", None)


def test_values_have_debeziums_types():
    found = after()
    day = datetime(2024, 2, 29, tzinfo=UTC)
    assert found["day"] == day.timestamp() // 86_400
    assert found["clock"] == (12 * 3600 + 34 * 60 + 56) * 1_000_000 + 500_000
    assert found["at"] == int(day.timestamp()) * 1_000_000 + found["clock"] + 289_000
    assert (found["zoned"], found["price"]) == ("2024-02-29T12:34:56.789012Z", "12.50")
    assert (found["small"], found["ok"], found["raw"], found["doc"]) == (-3, True, b"\x00\xff", '{"a": 1}')
    assert found["moments"] == ["2024-02-29T00:00:00Z", None]
    assert found["days"] == [found["day"], None]


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        ({"day": "infinity"}, (1 << 31) - 1),
        ({"day": "-infinity"}, -(1 << 31)),
        ({"day": "0001-01-01 BC"}, -719_528),
        ({"day": "12024-02-29"}, 19_782 + 25 * 146_097),
        ({"clock": "24:00:00"}, 86_400_000_000),
        ({"at": "infinity"}, 9223372036825200000),
        ({"at": "0001-12-31 23:59:59 BC"}, -719_163 * 86_400_000_000 + 86_399_000_000),
        ({"zoned": "infinity"}, "infinity"),
    ],
)
def test_days_and_times_outside_of_avros_range_are_values_too(texts, value):
    (name,) = texts
    assert after(**texts)[name] == value


@pytest.mark.parametrize("texts", [{"days": "{infinity}"}, {"moments": "{{NULL},{NULL}}"}])
def test_an_array_that_has_no_form_is_refused_by_its_column(texts):
    with pytest.raises(NoFormError, match=next(iter(texts))):
        debezium_row(LAYOUT, row(**texts))


@given(st.datetimes(min_value=datetime(1000, 1, 1)), st.lists(st.datetimes(min_value=datetime(1000, 1, 1)), max_size=3))
def test_a_row_is_had_back(at, moments):
    text = f"{at.replace(microsecond=0)}+00"
    items = ",".join(f'"{one.replace(microsecond=0)}+00"' for one in moments)
    given_row = row(zoned=text, moments=f"{{{items}}}", price=None)
    assert is_exact(LAYOUT, given_row)
    assert log_row(LAYOUT, debezium_row(LAYOUT, given_row)) == given_row


@pytest.mark.parametrize("texts", [{}, {"day": "infinity", "at": None}, {"zoned": None, "days": None}])
def test_the_maker_gives_the_row_back(texts):
    given_row = row(**texts)
    record = MAKER.written(TOPIC, encode_key([b"7"], [20]), Row(LAYOUT, given_row), None, CAUSE, ())
    assert MAKER.row_of(LAYOUT, record.value or b"", dict(record.headers)) == given_row


def test_the_registry_knows_envelopes_by_their_ids():
    catalog = Catalog(NAMES, [LAYOUT])
    found, keys = catalog.by_id(26), catalog.by_id(27)
    assert found is not None and keys is not None
    assert (found.subject, found.version, keys.subject) == (f"{TOPIC}-value", 1, f"{TOPIC}-key")
    assert '"connect.name":"shop_1.eu.public.orders.Envelope"' in found.text
    assert [one.id for one in catalog.subjects[f"{TOPIC}-value"]] == [24]
    assert catalog.like(found.subject, envelope_form(LAYOUT, NAMES.prefix)) is found


def test_a_key_has_debeziums_types_and_always_the_same_bytes():
    columns = (Column("at", 1184, "timestamptz", -1, in_key=True), Column("day", 1082, "date", -1, in_key=True))
    layout = TableSchema(4, 501, "public", "t", ReplicaIdentity.DEFAULT, columns)
    key = encode_key([b"2024-02-29 00:00:00+00", b"infinity"], [1184, 1082])
    found = read(envelope_key_form(layout, "p"), debezium_key(layout, key))
    assert found == {"at": "2024-02-29T00:00:00Z", "day": (1 << 31) - 1}


def test_the_schema_of_an_envelope_stays_what_it_was():
    """A reader keeps a schema under its id for good."""
    columns = (Column("id", 23, "int4", -1, in_key=True), Column("at", 1114, "timestamp", -1, in_key=False))
    layout = TableSchema(4, 501, "public", "t", ReplicaIdentity.DEFAULT, columns)
    assert text_of(envelope_key_form(layout, "p")) == (
        '{"type":"record","name":"Key","namespace":"p.public.t","fields":[{"name":"id","type":"int"}],'
        '"connect.name":"p.public.t.Key"}'
    )
    text = text_of(envelope_form(layout, "p"))
    row_form = (
        '{"type":"record","name":"Value","fields":[{"name":"id","type":["null","int"],"default":null},'
        '{"name":"at","type":["null",{"type":"long","connect.version":1,'
        '"connect.name":"io.debezium.time.MicroTimestamp"}],"default":null}],"connect.name":"p.public.t.Value"}'
    )
    assert text.startswith(
        '{"type":"record","name":"Envelope","namespace":"p.public.t","fields":[{"name":"before","type":["null",'
        f'{row_form}],"default":null}},{{"name":"after","type":["null","Value"],"default":null}},'
        '{"name":"source","type":{"type":"record","name":"Source","namespace":"io.debezium.connector.postgresql",'
    )
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "bf5c8c58ffce00e3780b41923b4a945fd27bd611990fce77a53e2f3da8523e00"
    )
