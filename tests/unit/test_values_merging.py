"""Unchanged TOAST columns are filled in from the stored row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.errors import DamagedRecord
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import merge_unchanged, row_encoder, row_texts
from walbus.values.merge import split_row
from walbus.values.types import NATIVE

OIDS = [*NATIVE, 1700, 3802, 16500]
TEXTS_OF = {
    16: [b"t"], 17: [b"\\x00ff", b"\\x"], 20: [b"-9223372036854775808", b"7"], 700: [b"0.1"], 701: [b"1e+300"],
    1082: [b"2024-01-01", b"infinity"], 1007: [b"{}", b"{1,NULL,300}", b"{{1}}"], 1009: [b'{a,"b c",NULL}'],
    2951: [b"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"], 1021: [b"{0.5,NULL}"], 1000: [b"{t,f}"], 1022: [b"{1e+300}"],
    1184: [b"2024-01-01 00:00:00.5+00"], 1001: [b'{"\\\\x00",NULL}'],
}  # fmt: skip


def table(*columns: tuple[str, int] | tuple[str, int, int], number: int = 1) -> TableSchema:
    made = tuple(Column(c[0], c[1], f"t{c[1]}", c[2] if len(c) == 3 else -1, in_key=False) for c in columns)
    return TableSchema(number, 16400, "public", "t", ReplicaIdentity.DEFAULT, made)


ROWS = st.lists(
    st.sampled_from(OIDS).flatmap(
        lambda oid: st.tuples(
            st.just(oid), st.none() | st.sampled_from(TEXTS_OF.get(oid, [b"7"])), st.binary(max_size=300), st.booleans()
        )
    ),
    min_size=1,
    max_size=20,
)


@given(ROWS)
def test_a_merged_row_has_the_stored_values_where_nothing_was_sent(
    columns: list[tuple[int, bytes, bytes, bool]],
) -> None:
    schema = table(*((f"c{i}", c[0]) for i, c in enumerate(columns)))
    stored = [c[1] for c in columns]
    unsent = [c[3] for c in columns]
    bits = sum(1 << i for i, missing in enumerate(unsent) if missing)
    bitmap = bits.to_bytes((len(columns) + 7) // 8, "little")
    encode = row_encoder(schema).encode
    sent = encode([None if missing else text for text, missing in zip(stored, unsent, strict=True)])
    merged, missing = merge_unchanged(schema, sent, bitmap, schema, encode(stored))
    assert merged == encode(stored)
    assert missing == b""


def test_a_row_that_lacks_nothing_is_given_back() -> None:
    schema = table(("a", 25))
    assert merge_unchanged(schema, b"payload", b"\x00", schema, b"stored") == (b"payload", b"")


def test_columns_are_found_by_name_in_an_older_layout() -> None:
    old = table(("id", 23), ("gone", 23), ("body", 25))
    new = table(("id", 23), ("body", 1043, 104), ("added", 25), number=2)
    stored = row_encoder(old).encode([b"1", b"5", b"long text"])
    sent = row_encoder(new).encode([b"2", None, None])
    merged, missing = merge_unchanged(new, sent, b"\x06", old, stored)
    assert row_texts(new, merged) == ["2", "long text", None]
    assert missing == b"\x04"  # `added` is not in the stored row


@pytest.mark.parametrize("stored_type", [("body", 3802), ("body", 1042, 14)])
def test_a_column_of_another_type_stays_missing(stored_type: tuple[str, int]) -> None:
    old, new = table(stored_type), table(("body", 25), number=2)
    sent = row_encoder(new).encode([None])
    assert merge_unchanged(new, sent, b"\x01", old, row_encoder(old).encode([b"{}"])) == (sent, b"\x01")


def test_what_the_stored_row_lacks_itself_stays_missing() -> None:
    schema = table(("a", 25), ("b", 25))
    sent, stored = row_encoder(schema).encode([None, None]), row_encoder(schema).encode([None, b"x"])
    merged, missing = merge_unchanged(schema, sent, b"\x03", schema, stored, b"\x01")
    assert row_texts(schema, merged) == [None, "x"]
    assert missing == b"\x01"


@given(st.binary(max_size=30))
def test_a_stored_row_that_is_none_is_a_typed_error(stored: bytes) -> None:
    schema = table(("a", 25), ("b", 1007), ("c", 701))
    try:
        parts = split_row(schema, stored)
    except DamagedRecord:
        return
    assert b"".join(parts) == stored
