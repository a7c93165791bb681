"""Memcomparable keys."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.errors import DamagedRecord, ProtocolError
from walbus.keys import decode_key, encode_key, key_json, key_texts
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

INT8, TEXT = 20, 25
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]))  # with NUL, which PostgreSQL has not, for the codec's sake
VALUES = st.tuples(INTEGERS, TEXTS, INTEGERS, TEXTS)
OIDS = (INT8, TEXT, INT8, TEXT)


def key_of(values: tuple[int | str, ...], oids: tuple[int, ...] = OIDS) -> bytes:
    return encode_key([str(value).encode() for value in values], oids)


def table(*oids: int) -> TableSchema:
    columns = tuple(Column(f"c{i}", oid, f"t{oid}", -1, in_key=True) for i, oid in enumerate(oids))
    extra = Column("other", TEXT, "text", -1, in_key=False)
    return TableSchema(1, 16400, "public", "t", ReplicaIdentity.DEFAULT, (*columns, extra))


def by_value(values: tuple[int | str, ...]) -> tuple[int | bytes, ...]:
    return tuple(value.encode() if isinstance(value, str) else value for value in values)


@given(VALUES, VALUES)
def test_keys_compare_bytewise_as_their_values_do(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert (key_of(one) < key_of(other)) == (by_value(one) < by_value(other))
    assert (key_of(one) == key_of(other)) == (one == other)


@given(st.lists(TEXTS, min_size=2, max_size=5))
def test_texts_that_begin_alike_sort_by_their_bytes(texts: list[str]) -> None:
    prefixes = [text[:length] for text in texts for length in range(len(text) + 1)]
    ordered = sorted(prefixes, key=lambda text: key_of((text,), (TEXT,)))
    assert ordered == sorted(prefixes, key=str.encode)


@given(st.data())
def test_moments_uuids_and_bytes_sort_by_value(data: st.DataObject) -> None:
    """From the year 1 to 9999, and infinity at both ends; docs/bootstrap.md says so to readers of snapshots."""
    kind = data.draw(st.sampled_from(["date", "timestamp", "timestamptz", "time", "uuid", "bytea"]))
    values = {
        "date": (1082, st.dates(), str),
        "timestamp": (1114, st.datetimes(), _moment),
        "timestamptz": (1184, st.datetimes(), lambda value: _moment(value) + "+00"),
        "time": (1083, st.times(), lambda value: _moment(datetime.combine(date(2000, 1, 1), value)).split()[1]),
        "uuid": (2950, st.uuids(), str),
        "bytea": (17, st.binary(max_size=9), lambda value: "\\x" + value.hex()),
    }
    oid, strategy, text = values[kind]
    one, other = data.draw(strategy), data.draw(strategy)
    first, second = (key_of((text(value),), (oid,)) for value in (one, other))
    assert (first < second) == (one < other)
    if kind in ("date", "timestamp", "timestamptz"):
        assert key_of(("-infinity",), (oid,)) < first < key_of(("infinity",), (oid,))


def _moment(value: datetime) -> str:
    """As PostgreSQL prints it: no zeros at the end of the fraction."""
    text = f"{value.year:04d}-{value:%m-%d %H:%M:%S}"
    return text if not value.microsecond else f"{text}.{value.microsecond:06d}".rstrip("0")


@given(VALUES, VALUES)
def test_no_key_is_the_beginning_of_another(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert one == other or not key_of(one).startswith(key_of(other))


@given(VALUES)
def test_a_key_gives_its_values_back(values: tuple[int | str, ...]) -> None:
    assert decode_key(table(*OIDS), key_of(values)) == values
    assert key_texts(key_of(values)) == tuple(map(str, values))


def test_integers_of_every_width_have_one_form() -> None:
    for oid in (21, 23, 20, 26):
        assert encode_key([b"7"], [oid]) == b"\x01\x80\0\0\0\0\0\0\x07"


@pytest.mark.parametrize("text", [b"seven", b"+7", b"007", b"9223372036854775808", b"1" * 5000, b""])
def test_a_text_that_is_no_integer_is_kept_in_an_integer_column(text: bytes) -> None:
    key = encode_key([text], [INT8])
    assert key_texts(key) == (text.decode(),)
    assert decode_key(table(INT8), key) == (text.decode(),)


def test_other_types_are_python_values_and_json() -> None:
    schema = table(1184, 1700, 1082, 16, 26)
    texts = [b"2024-01-01 00:00:00.5+00", b"1.50", b"infinity", b"t", b"4294967295", b"no key"]
    key = row_encoder(schema).key(texts)
    assert key is not None
    moment = datetime(2024, 1, 1, microsecond=500_000, tzinfo=UTC)
    assert decode_key(schema, key) == (moment, Decimal("1.50"), "infinity", True, 4294967295)
    assert msgspec.json.decode(msgspec.json.encode(key_json(schema, key))) == {
        "c0": "2024-01-01T00:00:00.5Z",
        "c1": "1.50",
        "c2": "infinity",
        "c3": True,
        "c4": 4294967295,
    }


def test_a_time_of_24_00_in_a_key_is_text_whatever_python_thinks_of_it() -> None:
    schema = table(1083)
    assert decode_key(schema, encode_key([b"24:00:00"], [1083])) == ("24:00:00",)


def test_the_row_encoder_makes_the_same_key_from_a_whole_row() -> None:
    schema = table(INT8, TEXT)
    assert row_encoder(schema).key([b"5", b"a", b"other"]) == encode_key([b"5", b"a"], [INT8, TEXT])
    assert row_encoder(table()).key([b"other"]) is None


def test_a_key_column_without_a_value_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"public\.t, column 2"):
        row_encoder(table(INT8, TEXT)).key([b"5", None, b"other"])


@given(VALUES, st.integers(0), st.integers(1, 255))
def test_a_damaged_key_is_a_typed_error_or_another_key(values: tuple[int | str, ...], place: int, change: int) -> None:
    key = bytearray(key_of(values))
    key[place % len(key)] ^= change
    try:
        again = decode_key(table(*OIDS), bytes(key))
    except DamagedRecord:
        return
    assert again != values


@given(VALUES)
def test_a_cut_key_is_found(values: tuple[int | str, ...]) -> None:
    key = key_of(values)
    for length in range(len(key)):
        with pytest.raises(DamagedRecord):
            decode_key(table(*OIDS), key[:length])
