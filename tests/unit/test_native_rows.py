"""The reader of rows in C against its twin in Python: the same values of the same types, and the same refusals.

What is read: rows of every type with a native form (and some without) by canonical and odd texts, rows of many columns,
and the bytes of rows damaged.
"""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from support.value_texts import BYTES, ODD, TEXTS
from walbus.errors import DamagedRecord
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder
from walbus.values.avro_bytes import native_long, native_string
from walbus.values.types import NATIVE, NUMERIC

UNKNOWN_TYPE = 3802
OIDS = [*sorted(NATIVE), NUMERIC, UNKNOWN_TYPE]


def layout(*oids: int) -> TableSchema:
    columns = tuple(Column(f"c{i}", oid, str(oid), -1, in_key=False) for i, oid in enumerate(oids))
    return TableSchema(1, 1, "public", "t", ReplicaIdentity.DEFAULT, columns)


def shown(value: object) -> object:
    """A value with its type, so that equal means identical: 1 is not True, and NaN is NaN with its bits."""
    match value:
        case float():
            return "nan" if math.isnan(value) else struct.pack("<d", value)
        case list():
            return [shown(item) for item in value]
        case dict():
            return [(name, shown(item)) for name, item in value.items()]
    return type(value), repr(value)


def read(name: str, schema: TableSchema, payload: bytes) -> list[object]:
    """Both forms of a row, or what was said instead."""
    reader, found = implementation(name).new_row_reader(schema), []
    for form in (reader.raw, reader.python):
        try:
            found.append(shown(form(payload)))
        except DamagedRecord as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("oid", OIDS)
def test_every_type_is_read_as_in_python(oid):
    schema = layout(oid)
    encoder = row_encoder(schema)
    for text in [None, *(text.encode() for text in ODD), *BYTES]:
        payload = encoder.encode([text])
        assert read("native", schema, payload) == read("pure", schema, payload), text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OIDS), TEXTS | st.none()), min_size=1, max_size=12))
def test_rows_of_many_columns_are_read_as_in_python(columns):
    schema = layout(*(oid for oid, _ in columns))
    payload = row_encoder(schema).encode([text for _, text in columns])
    assert read("native", schema, payload) == read("pure", schema, payload)


def canonical(oid: int) -> bytes:
    texts = {
        16: b"t", 17: b"\\x00ff", 700: b"1.5", 701: b"0.1", 1082: b"2024-02-29", 1083: b"12:34:56.5",
        1114: b"2024-01-01 00:00:00.000001", 1184: b"1969-12-31 23:59:59+00", NUMERIC: b"1.50",
        2950: b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", 1007: b"{1,NULL,300}", 1009: b"{a,b}", 1185: b"{}",
    }  # fmt: skip
    return texts.get(oid, b"77")


DAMAGED = layout(20, 25, 16, 17, 700, 701, 1082, 1083, 1114, 1184, NUMERIC, 2950, 1007, 1009, 1185)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_rows_are_read_or_refused_as_in_python(data):
    payload = bytearray(row_encoder(DAMAGED).encode([canonical(c.type_oid) for c in DAMAGED.columns]))
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not payload:
            break
    assert read("native", DAMAGED, bytes(payload)) == read("pure", DAMAGED, bytes(payload))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_cut_short_or_with_bytes_behind_it_is_refused(name):
    payload = row_encoder(DAMAGED).encode([canonical(c.type_oid) for c in DAMAGED.columns])
    for damaged in [*(payload[:size] for size in range(len(payload))), payload + b"\0"]:
        assert all(str(said).endswith("(at public.t, schema 1)") for said in read(name, DAMAGED, damaged))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("oid", "payload"),
    [
        (1082, native_long(2932897)),
        (1082, native_long(-719163)),
        (1083, native_long(86_400_000_000)),
        (1114, native_long(253402300800000000)),
        (1184, native_long(-(1 << 63))),
        (25, native_string(b"\xff")),
        (25, b"\x02" + b"\x01"),
        (25, b"\x02" + b"\xfe\xff\xff\xff\x0f"),
        (16, b"\x08"),
    ],
)
def test_a_value_that_python_does_not_have_is_refused(name, oid, payload):
    reader = implementation(name).new_row_reader(layout(oid))
    with pytest.raises(DamagedRecord, match=r"public\.t, schema 1"):
        reader.python(payload)


def test_a_row_in_blocks_that_tell_their_size_is_read_as_any_other():
    payload = b"\x02\x03\x08\x02\x02\x02\x04\x00"  # a block of -2 items in 4 bytes
    for name in NAMES:
        assert implementation(name).new_row_reader(layout(1007)).python(payload) == {"c0": [1, 2]}


def test_every_day_that_python_has_is_the_same_day():
    reader = {name: implementation(name).new_row_reader(layout(1082)) for name in NAMES}
    for day in [*range(-719162, 2932897, 997), -719162, 2932896, -1, 0, 11016, 11017]:
        payload = native_long(day)
        assert reader["native"].python(payload) == reader["pure"].python(payload)
