"""Rows as sinks want their values: in C as in the twin in Python, whatever row and functions are given."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from support.value_texts import BYTES, ODD, TEXTS
from walbus.errors import DamagedRecord
from walbus.events import Change
from walbus.position import Position
from walbus.records import Op, RawChange
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder, to_text
from walbus.values.avro_bytes import native_long
from walbus.values.types import NATIVE, NUMERIC, finite

UNKNOWN_TYPE = 3802
OIDS = [*sorted(NATIVE), NUMERIC, UNKNOWN_TYPE]
CHOICES = ("none", "text", "json")


def layout(*oids: int) -> TableSchema:
    columns = tuple(Column(f"c{i}", oid, str(oid), -1, in_key=i == 0) for i, oid in enumerate(oids))
    return TableSchema(1, 1, "public", "t", ReplicaIdentity.DEFAULT, columns)


def function_of(oid: int, choice: str):
    native = NATIVE.get(oid)
    if choice == "none":
        return None
    if native is None:
        return str.upper
    return native.text if choice == "text" else native.json


def shown(value: object) -> object:
    """A value with its type, so that equal means identical."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return [shown(one) for one in value] if isinstance(value, list | tuple) else (type(value), repr(value))


def read(name: str, schema: TableSchema, choices: list[str], payload: bytes) -> object:
    functions = [function_of(c.type_oid, choice) for c, choice in zip(schema.columns, choices, strict=True)]
    reader = implementation(name).new_converted_rows(schema, functions)
    try:
        return shown(reader.values(payload))
    except (DamagedRecord, ValueError, OverflowError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("oid", OIDS)
def test_every_type_is_as_in_python(oid, choice):
    schema = layout(oid)
    for text in [None, *(text.encode() for text in ODD), *BYTES]:
        payload = row_encoder(schema).encode([text])
        assert read("native", schema, [choice], payload) == read("pure", schema, [choice], payload), text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OIDS), st.sampled_from(CHOICES), TEXTS | st.none()), min_size=1, max_size=12))
def test_rows_of_many_columns_are_as_in_python(columns):
    schema = layout(*(oid for oid, _, _ in columns))
    choices = [choice for _, choice, _ in columns]
    payload = row_encoder(schema).encode([text for _, _, text in columns])
    assert read("native", schema, choices, payload) == read("pure", schema, choices, payload)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([20, 1082, 1083, 1114, 1184]), st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from(CHOICES))
def test_numbers_beyond_every_date_are_refused_as_in_python(oid, number, choice):
    schema, payload = layout(oid), native_long(number)
    assert read("native", schema, [choice], payload) == read("pure", schema, [choice], payload)


@settings(max_examples=300, deadline=None)
@given(st.integers(-62135596800000000, 253402300799999999))
def test_times_are_printed_as_in_python(micros):
    functions = [to_text.timestamp_text, to_text.timestamptz_text, to_text.timestamptz_iso, to_text.date_text]
    schema = layout(1114, 1184, 1184, 1082)
    payload = b"".join(map(native_long, (micros, micros, micros, micros // 86_400_000_000)))
    expected = [f(n) for f, n in zip(functions, (micros, micros, micros, micros // 86_400_000_000), strict=True)]
    assert implementation("native").new_converted_rows(schema, functions).values(payload) == expected


DAMAGED = layout(20, 25, 16, 701, 1082, 1083, 1114, 1184, NUMERIC, 1007)
GOOD = [b"7", b"text", b"t", b"0.5", b"2024-02-29", b"12:34:56.5", b"2024-01-01 00:00:00.1", b"1969-12-31 23:59:59+00",
        b"1.50", b"{1,2}"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_rows_are_read_or_refused_as_in_python(data):
    payload = bytearray(row_encoder(DAMAGED).encode(GOOD))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    choices = [data.draw(st.sampled_from(CHOICES)) for _ in DAMAGED.columns]
    assert read("native", DAMAGED, choices, bytes(payload)) == read("pure", DAMAGED, choices, bytes(payload))


def change(layout: TableSchema, seq: int, **parts: object) -> Change:
    row = row_encoder(layout).encode([b"%d" % seq, b"0.5"])
    raw = RawChange(Op.UPDATE, 0, 1, 1, 0, 0, 0, b"k", None, b"", row, None)._replace(**parts)
    return Change(raw, layout, Position(1, 1, seq), seq)


@pytest.mark.parametrize("name", NAMES)
def test_whole_puts_end_at_the_first_change_that_is_none(name):
    schema, other = layout(20, 701), layout(20, 701)
    rows = implementation(name).new_converted_rows(schema, [None, finite])
    others = [
        change(schema, 3, op=Op.DELETE), change(schema, 3, key=None), change(schema, 3, old_key=b"o"),
        change(schema, 3, unchanged=b"\x01"), change(schema, 3, after=None), change(other, 3),
    ]  # fmt: skip
    for last in others:
        some = [change(schema, 1), change(schema, 2, op=Op.INSERT), last, change(schema, 4)]
        assert rows.whole_puts(some, 0, 9) == [(1, 0.5, 1, 9), (2, 0.5, 2, 9)]
        assert rows.whole_puts(some, 1, 9) == [(2, 0.5, 2, 9)]
        assert rows.whole_puts(some, 3, 9) == [(4, 0.5, 4, 9)]
    assert rows.whole_puts(others, 0, 9) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_none_is_told_among_whole_puts(name):
    schema = layout(20, 701)
    rows = implementation(name).new_converted_rows(schema, [None, finite])
    with pytest.raises(DamagedRecord, match="does not decode"):
        rows.whole_puts([change(schema, 1), change(schema, 2, after=b"\x02")], 0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_function_for_each_column(name):
    with pytest.raises(ValueError, match=r"functions|zip"):
        implementation(name).new_converted_rows(layout(20, 25), [None])
