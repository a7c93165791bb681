"""Rows as columns: the collector in C against its twin in Python, byte for byte, and damaged rows refused by both."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from support.value_texts import BYTES, ODD, TEXTS
from walbus.errors import DamagedRecord
from walbus.native.reading import Outside, TakenRows
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder
from walbus.values.types import NATIVE, NUMERIC

OIDS = [*sorted(NATIVE), NUMERIC, 3802]
TYPMODS = [-1, (10 << 16 | 2) + 4, (38 << 16) + 4, (3 << 16 | 3) + 4, (39 << 16 | 1) + 4, (5 << 16 | 0x7FE) + 4]
COLUMNS = st.sampled_from(OIDS).flatmap(
    lambda oid: st.tuples(st.just(oid), st.sampled_from(TYPMODS) if oid == NUMERIC else st.just(-1))
)
NUMBERS = (
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda n: f"{n:f}".encode()).filter(lambda t: len(t) < 60)
)
NUMERIC_TEXTS = ["0", "0.00", "1.5", "-1.50", "12345678.90", "12345678.901", "123456789", "NaN", "Infinity", "-0.01",
                 "9" * 38, "9" * 39, ".5", "5.", "-", "", "1e5", "00000000001.00",
                 "0.123", "0.999", "1.000"]  # fmt: skip


def layout(columns: list[tuple[int, int]]) -> TableSchema:
    made = tuple(Column(f"c{i}", oid, str(oid), typmod, in_key=False) for i, (oid, typmod) in enumerate(columns))
    return TableSchema(1, 1, "public", "t", ReplicaIdentity.DEFAULT, made)


def collected(name: str, schema: TableSchema, rows: list[bytes | None]) -> TakenRows | None:
    """The columns; None where a row was refused."""
    columns = implementation(name).new_row_columns(schema)
    try:
        columns.add(rows)
        return columns.take()
    except DamagedRecord:
        return None


@pytest.mark.parametrize("oid", OIDS)
def test_every_type_is_collected_as_in_python(oid):
    for typmod in TYPMODS if oid == NUMERIC else [-1]:
        schema = layout([(oid, typmod)])
        texts = [None, *(text.encode() for text in [*ODD, *NUMERIC_TEXTS]), *BYTES]
        rows = [*(row_encoder(schema).encode([text]) for text in texts), None]
        rows = [row for row in rows if oid != 21 or collected("pure", schema, [row])]  # an int2 beyond its range
        native = collected("native", schema, rows)
        assert native == collected("pure", schema, rows)
        assert native is not None and native.length == len(rows)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(COLUMNS, min_size=1, max_size=6))
def test_many_rows_of_many_columns_are_collected_as_in_python(data, columns):
    schema = layout(columns)
    values = st.tuples(*(TEXTS | NUMBERS | st.none() for _ in columns))
    rows = [row and row_encoder(schema).encode(row) for row in data.draw(st.lists(values | st.none(), max_size=20))]
    assert collected("native", schema, rows) == collected("pure", schema, rows)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(COLUMNS, min_size=1, max_size=4))
def test_damaged_rows_are_collected_or_refused_as_in_python(data, columns):
    schema = layout(columns)
    row = bytearray(row_encoder(schema).encode([data.draw(TEXTS) for _ in columns]))
    at = data.draw(st.integers(0, len(row) - 1))
    row[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    assert collected("native", schema, [bytes(row)]) == collected("pure", schema, [bytes(row)])


@pytest.mark.parametrize("name", NAMES)
def test_what_a_column_does_not_have_is_null_and_told_as_text(name):
    schema = layout([(1082, -1), (NUMERIC, (4 << 16 | 2) + 4)])
    encoder = row_encoder(schema)
    rows = [encoder.encode([b"infinity", b"12.34"]), encoder.encode([b"1970-01-02", b"NaN"])]
    taken = collected(name, schema, rows)
    assert taken is not None
    assert taken.outside == [Outside(0, 0, "infinity"), Outside(1, 1, "NaN")]
    assert taken.columns[0].buffers == (b"\x02", bytes(4) + (1).to_bytes(4, "little"))
    assert taken.columns[1].buffers == (b"\x01", (1234).to_bytes(16, "little") + bytes(16))


@pytest.mark.parametrize("name", NAMES)
def test_a_collector_begins_anew_behind_what_was_taken(name):
    schema = layout([(1007, -1), (16, -1)])
    columns = implementation(name).new_row_columns(schema)
    row = row_encoder(schema).encode([b"{1,NULL}", b"t"])
    columns.add([row])
    first = columns.take()
    columns.add([row])
    assert columns.take() == first
    assert columns.take().length == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_larger_than_its_type_is_refused(name):
    row = row_encoder(layout([(23, -1)])).encode([b"32768"])
    assert collected(name, layout([(21, -1)]), [row]) is None
