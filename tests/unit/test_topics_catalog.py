"""Names of topics, and the schemas, versions and ids that follow from a log's layouts."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.odd_names import SCHEMAS, TABLES
from support.relay_log import table_schema
from walbus.errors import ConfigError
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.topics import Catalog, TopicNames
from walbus.topics.names import MAX_PREFIX, MAX_TOPIC, key_subject, value_subject

NAMES = TopicNames("walbus")
VALUES, KEYS = "walbus.public.orders-value", "walbus.public.orders-key"
name = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=63)


def layout(number: int, *columns: str, table: str = "orders", **more: object) -> TableSchema:
    return dataclasses.replace(table_schema(table, columns=("id", *columns)), id=number, **more)  # type: ignore[arg-type]


def test_a_plain_tables_topic_is_called_as_it_is():
    assert NAMES.of_table("public", "order_items") == "walbus.public.order_items"
    assert NAMES.of_table("odd schema", "do.t-é") == "walbus.odd-20-schema.do-2E-t-2D--E9-"
    assert (key_subject("t"), value_subject("t")) == ("t-key", "t-value")


@given(st.lists(st.tuples(name, name), min_size=2, max_size=20, unique=True))
@example([("a", "b.c"), ("a.b", "c"), ("a", "b-2E-c"), ("a", "b")])
@example([("s", "ü" * 63), ("s", "ü" * 62 + "é"), ("s", "ü" * 62)])
@example([(schema, table) for schema in SCHEMAS for table in TABLES])
def test_every_table_has_a_topic_of_its_own_that_kafka_takes(tables):
    topics = [TopicNames("p" * MAX_PREFIX).of_table(*table) for table in tables]
    assert len(set(topics)) == len(tables)
    for topic in topics:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", topic, re.ASCII) and len(topic) <= MAX_TOPIC
        assert topic.count(".") == 2


@pytest.mark.parametrize("prefix", ["", ".a", "a b", "é", "a" * (MAX_PREFIX + 1), "a\n"])
def test_a_prefix_that_no_topic_can_have_is_refused_by_name(prefix):
    with pytest.raises(ConfigError, match="topic_prefix"):
        TopicNames(prefix)


def test_a_topic_that_the_log_has_is_refused_to_a_table():
    names = TopicNames("walbus", frozenset({"walbus.shop", "walbus.shop.large"}))
    assert names.of_table("shop", "orders") == "walbus.shop.orders"
    with pytest.raises(ConfigError, match=r"table shop\.large would be walbus\.shop\.large.*relay\.kafka\.topic"):
        names.of_table("shop", "large")
    with pytest.raises(ConfigError, match="transactions' ends"):
        TopicNames("walbus", frozenset({"walbus.transactions"}))


def test_ids_are_told_by_the_layouts_numbers():
    catalog = Catalog(NAMES, [layout(3), layout(7, "total"), layout(9, table="items")])
    assert [(one.version, one.id) for one in catalog.subjects[VALUES]] == [(1, 24), (2, 56)]
    assert (catalog.rows_of(7).id, catalog.rows_of(9).id, catalog.keys_of(9).id) == (56, 72, 73)
    assert catalog.by_id(56) is catalog.rows_of(7)
    assert catalog.by_id(60) is None and catalog.by_id(80) is None


def test_a_later_layouts_number_gives_the_schema_that_it_shares():
    """Whoever has not read the log from its beginning knows no other."""
    catalog = Catalog(NAMES, [layout(3), layout(7, "total"), layout(9, "total")])
    assert catalog.by_id(57) is catalog.keys_of(3)
    assert catalog.by_id(72) is catalog.rows_of(7) and catalog.by_id(72).id == 56


def test_a_new_column_leaves_the_keys_of_a_topic_as_they_are():
    catalog = Catalog(NAMES, [layout(1), layout(2, "total"), layout(5, "total", "note")])
    assert [one.id for one in catalog.subjects[KEYS]] == [9]
    assert {catalog.keys_of(number).id for number in (1, 2, 5)} == {9}
    assert [one.version for one in catalog.subjects[VALUES]] == [1, 2, 3]


def test_a_layout_whose_rows_are_alike_is_the_same_schema():
    full = layout(2, identity=ReplicaIdentity.FULL)
    catalog = Catalog(NAMES, [layout(1), full, layout(3, oid=99)])
    assert [one.id for one in catalog.subjects[VALUES]] == [8]
    assert {catalog.rows_of(number).id for number in (1, 2, 3)} == {8}


def test_another_type_of_the_key_is_another_schema():
    wide = dataclasses.replace(layout(2), columns=(Column("id", 20, "int8", -1, in_key=True),))
    catalog = Catalog(NAMES, [layout(1), wide])
    assert [one.id for one in catalog.subjects[KEYS]] == [9, 17]


def test_a_table_without_a_key_has_no_subject_for_one():
    keyless = dataclasses.replace(layout(1), columns=(Column("id", 23, "int4", -1, in_key=False),))
    catalog = Catalog(NAMES, [keyless])
    assert list(catalog.subjects) == [f"{NAMES.transactions}-key", f"{NAMES.transactions}-value", VALUES]
    with pytest.raises(KeyError):
        catalog.keys_of(1)


def test_the_ids_do_not_depend_on_how_often_the_catalog_is_made():
    layouts = [layout(1), layout(2, "total"), layout(4, table="items"), layout(6, "note")]
    whole = Catalog(NAMES, layouts)
    for cut in range(len(layouts)):
        grown = Catalog(NAMES, layouts[:cut])
        for one in layouts[cut:]:
            grown.add(one)
        assert grown.subjects == whole.subjects
    with pytest.raises(ValueError, match="comes behind"):
        whole.add(layout(3))


def test_the_schema_of_a_topic_stays_what_it_was():
    """A reader keeps a schema under its id for good: what a layout has today, it has in every later version."""
    columns = (
        Column("id", 23, "int4", -1, in_key=True),
        Column("due", 1082, "date", -1, in_key=True),
        Column("unit price", 1700, "numeric", 655366, in_key=False),
        Column("tags", 1009, "_text", -1, in_key=False),
        Column("mood", 16400, "zoo.mood", -1, in_key=False),
    )
    catalog = Catalog(NAMES, [TableSchema(1, 5, "public", "orders", ReplicaIdentity.DEFAULT, columns)])
    date, text = '{"type":"int","logicalType":"date"}', '{"type":"string","pgType":"zoo.mood"}'
    numeric = '{"type":"string","pgType":"numeric","logicalType":"pg-numeric"}'
    assert catalog.rows_of(1).text == (
        '{"type":"record","name":"orders","namespace":"walbus.public","pgTable":"public.orders","fields":['
        '{"name":"id","type":["null","int"' + ',"string"],"default":null,"pgType":"int4","pgKey":true},'
        '{"name":"due","type":["null",' + date + ',"string"],"default":null,"pgType":"date","pgKey":true},'
        '{"name":"unit_x20_price","type":["null",' + numeric + '],"default":null,"pgType":"numeric",'
        '"pgTypmod":655366,"pgName":"unit price"},'
        '{"name":"tags","type":["null",{"type":"array","items":["null","string"]},"string"],"default":null,'
        '"pgType":"_text"},'
        '{"name":"mood","type":["null",' + text + '],"default":null,"pgType":"zoo.mood"}]}'
    )
    assert catalog.keys_of(1).text == (
        '{"type":"record","name":"Key","namespace":"walbus.public.orders","pgTable":"public.orders","fields":['
        '{"name":"id","type":"int","pgType":"int4"},{"name":"due","type":[' + date + ',"string"],"pgType":"date"}]}'
    )
