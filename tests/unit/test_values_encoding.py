"""Text to Avro and back, with bytes alone: whatever text comes, it comes out again."""

from __future__ import annotations

import io
import math
import struct
from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID

import fastavro
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from walbus.errors import DamagedRecord, ProtocolError
from walbus.keys import decode_key
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import avro_schema, decode_row, from_text, row_encoder, row_texts, to_text
from walbus.values.types import NATIVE

BOOL, BYTEA, CHAR, INT8, INT4, TEXT, OID, FLOAT4, FLOAT8 = 16, 17, 18, 20, 23, 25, 26, 700, 701
DATE, TIME, TIMESTAMP, TIMESTAMPTZ, NUMERIC, UUID_OID, JSONB, MOOD = 1082, 1083, 1114, 1184, 1700, 2950, 3802, 16500
INT4S, TEXTS = 1007, 1009
FLOATS = {700, 701, 1021, 1022}

ANY_TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))
# What a careless parser takes, or takes for something else.
ODD_NUMBERS = ["", " 1", "1 ", "+1", "007", "-0", "1_0", "0x10", "2147483648", "9223372036854775808", "1" * 5000, "T"]
ODD_BYTES = ["\\x0", "\\x0G", "\\xAB", "\\X00", "abc", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]
ODD_DATES = ["2024-02-30", "20240101", "2024-W01-1", "infinity", "0044-03-15 BC", "10000-01-01", "0000-01-01"]
ODD_TIMES = [
    "24:00:00",
    "1:00:00",
    "00:00:60",
    "00:00:00.",
    "00:00:00.50",
    "00:00:00.1234567",
    "00:00:00.+5",
    "T00:00:00",
]
ODD_TIMESTAMPS = [f"2024-01-01 {clock}" for clock in ODD_TIMES] + ["2024-01-01T00:00:00", "2024-01-01 00:00:00+01"]
ODD_ARRAYS = [
    "{", "}", "{}", "{{1}}", "[0:0]={1}", "{1,}", "{,1}", "{ 1}", "{null}", "{NULL}", '{"1"}', '{"a"}', '{"NULL"}',
    '{"\\a"}', '{"a\\"}', '{"a" ,b}', '{"a""b"}', "{a b}", '{"a b"x}',
]  # fmt: skip
ODD_TEXT = ANY_TEXT | st.sampled_from(
    [*ODD_NUMBERS, *ODD_BYTES, *ODD_DATES, *ODD_TIMES, *ODD_TIMESTAMPS, *ODD_ARRAYS]
    + [f"{timestamp}+00" for timestamp in ODD_TIMESTAMPS]
)


def table(*oids: int) -> TableSchema:
    columns = tuple(Column(f"c{i}", oid, f"t{oid}", -1, in_key=i == 0) for i, oid in enumerate(oids))
    return TableSchema(1, 16400, "public", "t", ReplicaIdentity.DEFAULT, columns)


def through(oid: int, text: str) -> str | None:
    schema = table(oid)
    return row_texts(schema, row_encoder(schema).encode([text.encode()]))[0]


def python(oid: int, text: str) -> object:
    schema = table(oid)
    return decode_row(schema, row_encoder(schema).encode([text.encode()]))["c0"]


@given(st.sampled_from(sorted((NATIVE.keys() | {NUMERIC, JSONB, MOOD}) - FLOATS)), ODD_TEXT)
def test_no_text_is_lost_or_changed_whatever_the_type(oid: int, text: str) -> None:
    assert through(oid, text) == text


@given(st.sampled_from([FLOAT4, FLOAT8]), ANY_TEXT)
def test_a_text_that_is_no_float_is_kept(oid: int, text: str) -> None:
    try:
        float(text.encode())
    except ValueError:
        assert through(oid, text) == text


@pytest.mark.parametrize(
    ("oid", "text"), [(FLOAT4, "1e39"), (FLOAT4, "-1e400"), (FLOAT8, "1e400"), (FLOAT8, "inf"), (FLOAT4, "nan")]
)
def test_a_text_that_would_become_infinite_or_nan_unasked_is_kept(oid: int, text: str) -> None:
    assert through(oid, text) == text


@given(st.integers(-(2**63), 2**63 - 1))
@example(8191)
@example(8192)
@example(-8193)
@example(2**27)
@example(2**41)
def test_integers_are_what_any_avro_reader_reads(value: int) -> None:
    payload = row_encoder(table(INT8)).encode([b"%d" % value])
    assert fastavro.schemaless_reader(io.BytesIO(payload), avro_schema(table(INT8)), None) == {"c0": value}


@given(st.floats(width=64))
def test_a_double_keeps_its_bits(value: float) -> None:
    again = python(FLOAT8, repr(value).replace("nan", "NaN").replace("inf", "Infinity"))
    assert isinstance(again, float)
    assert struct.pack("<d", again) == struct.pack("<d", value) or (math.isnan(value) and math.isnan(again))
    assert math.isnan(value) or float(str(through(FLOAT8, repr(value).replace("inf", "Infinity")))) == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_single_precision_number_is_printed_so_that_it_reads_back(value: float) -> None:
    text = through(FLOAT4, repr(value))
    assert text is not None
    assert struct.pack("<f", float(text)) == struct.pack("<f", value)


def test_a_decimal_near_the_middle_of_two_floats_is_rounded_once() -> None:
    # The double nearest to this is exactly midway between two floats; the text is above it.
    text = "1.00000005960464477540"
    assert python(FLOAT4, text) == 1.0 + 2.0**-23
    assert python(FLOAT4, "16777217") == 16777216.0  # exactly midway: to even


@pytest.mark.parametrize(
    ("number", "text"),
    [("1e23", "9.999999999999999e+22"), ("1e15", "1e+15"), ("123456789012345", "123456789012345"), ("-0.0", "-0"),
     ("0.0001", "0.0001"), ("0.00001", "1e-05"), ("5e-324", "5e-324"), ("1e14", "100000000000000"), ("NaN", "NaN")],
)  # fmt: skip
def test_doubles_are_printed_as_postgresql_prints_them(number: str, text: str) -> None:
    assert through(FLOAT8, number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [("1e6", "1e+06"), ("999999", "999999"), ("1e-45", "1e-45"), ("0.1", "0.1"), ("3.4028235e38", "3.4028235e+38"),
     ("-Infinity", "-Infinity"), ("1.17549435e-38", "1.1754944e-38"), ("8388608.5", "8.388608e+06")],
)  # fmt: skip
def test_floats_are_printed_as_postgresql_prints_them(number: str, text: str) -> None:
    assert through(FLOAT4, number) == text


@given(st.datetimes())
def test_every_timestamp_that_python_has_is_native(moment: datetime) -> None:
    text = moment.isoformat(" ")
    text = text.rstrip("0") if moment.microsecond else text
    assert python(TIMESTAMP, text) == moment
    assert python(TIMESTAMPTZ, text + "+00") == moment.replace(tzinfo=UTC)
    assert through(TIMESTAMPTZ, text + "+00") == text + "+00"


@given(st.dates(), st.times())
def test_every_date_and_time_that_python_has_is_native(day: date, clock: time) -> None:
    text = clock.isoformat().rstrip("0") if clock.microsecond else clock.isoformat()
    assert python(DATE, day.isoformat()) == day
    assert python(TIME, text) == clock


@given(st.uuids(), st.decimals(allow_nan=False), st.binary())
def test_uuids_decimals_and_bytes_are_python_values(some: UUID, number: Decimal, data: bytes) -> None:
    assert python(UUID_OID, str(some)) == some
    assert str(python(NUMERIC, str(number))) == str(number)
    assert python(BYTEA, "\\x" + data.hex()) == data


def test_numeric_nan_and_infinity_are_decimals_too() -> None:
    assert isinstance(python(NUMERIC, "NaN"), Decimal)
    assert python(NUMERIC, "-Infinity") == Decimal("-Infinity")


ELEMENTS = st.lists(
    st.none() | ANY_TEXT | st.sampled_from(["", "NULL", "null", "a b", '"', "\\", ",", "{", "\t", "\u2003"])
)


def array_out(elements: list[str | None]) -> str:
    """PostgreSQL's `array_out`, from its documentation."""

    def quoted(element: str) -> str:
        if element and element.upper() != "NULL" and not set(element) & set(' \t\n\r\v\f"\\{},'):
            return element
        return '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return "{" + ",".join("NULL" if e is None else quoted(e) for e in elements) + "}"


@given(ELEMENTS)
def test_arrays_of_texts_are_lists(elements: list[str | None]) -> None:
    assert python(TEXTS, array_out(elements)) == elements
    assert through(TEXTS, array_out(elements)) == array_out(elements)


@pytest.mark.parametrize("text", ["{{1,2},{3,4}}", "[2:3]={1,2}", "{1,x}", "{2147483648}"])
def test_an_array_that_avro_cannot_hold_is_its_text(text: str) -> None:
    assert python(INT4S, text) == text


def test_one_value_outside_its_range_leaves_the_other_columns_native() -> None:
    schema = table(DATE, INT4, TEXT, BOOL)
    payload = row_encoder(schema).encode([b"infinity", b"7", None, b"t"])
    assert decode_row(schema, payload) == {"c0": "infinity", "c1": 7, "c2": None, "c3": True}


@given(st.binary(max_size=40))
def test_a_payload_that_is_no_row_is_a_typed_error_without_values(payload: bytes) -> None:
    schema = table(INT4, TEXT, TIMESTAMP, TEXTS, FLOAT8)
    try:
        decode_row(schema, payload)
    except DamagedRecord as error:
        assert "public.t, schema 1" in str(error)
        assert error.__cause__ is None


def test_a_row_with_too_few_columns_is_refused() -> None:
    with pytest.raises(ProtocolError, match="2 columns"):
        row_encoder(table(INT4)).encode([b"1", b"2"])


def test_the_day_cache_starts_anew_instead_of_growing_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_text._Days, "_LIMIT", 10)
    for day in range(1, 29):
        assert through(DATE, f"1999-02-{day:02}") == f"1999-02-{day:02}"
    assert len(from_text._DAYS) <= 10


def bytes_through(oid: int, text: bytes) -> str | None:
    schema = table(oid)
    return row_texts(schema, row_encoder(schema).encode([text]))[0]


@pytest.mark.parametrize(
    ("oid", "text", "kept"),
    [
        (CHAR, b"\xc3", "\\303"),  # as PostgreSQL 15 prints it
        (CHAR, b"a", "a"),
        (TEXT, "ä".encode() + b"\xff\x80", "ä\\377\\200"),
        (TEXTS, b"{a,\xe2\x82}", "{a,\\342\\202}"),
        (MOOD, b"(\xed\xa0\x80)", "(\\355\\240\\200)"),  # a surrogate is no character
    ],
)
def test_a_text_that_is_not_utf8_leaves_its_row_readable(oid: int, text: bytes, kept: str) -> None:
    assert bytes_through(oid, text) == kept


@given(st.sampled_from([CHAR, TEXT, TEXTS, MOOD, INT4, BYTEA]), st.binary(max_size=12))
def test_whatever_bytes_come_the_row_and_its_key_are_readable(oid: int, text: bytes) -> None:
    schema = table(oid)
    encoder = row_encoder(schema)
    read = row_texts(schema, encoder.encode([text]))[0]
    assert read is not None
    assert decode_key(schema, encoder.key([text]) or b"") == (decode_row(schema, encoder.encode([text]))["c0"],)
    if text.isascii():
        assert read == text.decode()


@given(st.floats(width=32, allow_nan=False))
def test_a_key_of_single_precision_is_the_number_that_the_row_has(number: float) -> None:
    schema = table(FLOAT4)
    text = to_text.float4_text(number).encode()
    encoder = row_encoder(schema)
    assert decode_key(schema, encoder.key([text]) or b"") == (decode_row(schema, encoder.encode([text]))["c0"],)
