"""Table layouts: equality, numbers, the JSON form."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from walbus.schema import Column, ReplicaIdentity, TableSchema

COLUMNS = st.builds(
    Column, st.text(min_size=1), st.integers(0, 2**32 - 1), st.text(), st.integers(-1, 2**31 - 1), st.booleans()
)
SCHEMAS = st.builds(
    TableSchema,
    st.integers(0, 2**31),
    st.integers(0, 2**32 - 1),
    st.text(min_size=1),
    st.text(min_size=1),
    st.sampled_from(ReplicaIdentity),
    st.lists(COLUMNS, max_size=5).map(tuple),
)


@given(SCHEMAS)
def test_a_layout_reads_back_from_json(schema: TableSchema) -> None:
    assert TableSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@given(SCHEMAS)
def test_keys_that_a_newer_walbus_added_are_ignored(schema: TableSchema) -> None:
    assert TableSchema.from_dict({**schema.to_dict(), "new": 1}) == schema


@given(SCHEMAS, st.integers(1, 99))
def test_a_layout_is_the_same_whatever_its_number(schema: TableSchema, number: int) -> None:
    other = replace(schema, id=number)
    assert schema.same_layout(other)
    assert schema.fingerprint == other.fingerprint


@given(SCHEMAS)
def test_any_difference_is_another_layout(schema: TableSchema) -> None:
    added = replace(schema, columns=(*schema.columns, Column("x", 23, "int4", -1, in_key=False)))
    for other in (added, replace(schema, name=schema.name + "x"), replace(schema, oid=schema.oid ^ 1)):
        assert not schema.same_layout(other)
        assert schema.fingerprint != other.fingerprint


def test_key_columns_stand_in_column_order() -> None:
    columns = tuple(Column(name, 23, "int4", -1, in_key=name in "bd") for name in "abcd")
    schema = TableSchema(1, 16400, "public", "t", ReplicaIdentity.DEFAULT, columns)
    assert schema.key_indexes == (1, 3)
    assert schema.table == "public.t"
