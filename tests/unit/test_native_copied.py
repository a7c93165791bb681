"""Rows of COPY to sorted entries, in C and in Python: the same entries, as of streamed rows, and the same refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from support.value_texts import TEXTS
from walbus.errors import ProtocolError
from walbus.native.copy_text import parse_line
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder
from walbus.values.types import NATIVE

SPACE, PREFIX = b"space", b"prefix"
OIDS = [*sorted(NATIVE), 3802]


def layout(*oids: int, key: tuple[int, ...] = (0,)) -> TableSchema:
    columns = tuple(Column(f"c{i}", oid, str(oid), -1, in_key=i in key) for i, oid in enumerate(oids))
    return TableSchema(1, 1, "public", "t", ReplicaIdentity.DEFAULT, columns)


def frames(*lines: bytes) -> Callable[[int], tuple[int, memoryview]]:
    """libpq's answers: the lines, and the end."""
    left = list(lines)

    def next_frame(_: int) -> tuple[int, memoryview]:
        line = left.pop(0) if left else b""
        return (len(line), memoryview(line)) if line else (-1, memoryview(b""))

    return next_frame


def taken(name: str, schema: TableSchema, *lines: bytes) -> object:
    """What comes of the lines: pairs of key and entry, or the words of the refusal."""
    rows = implementation(name).new_copied_rows(schema)
    try:
        assert rows.drain(frames(*lines), 1 << 30) == (-1, sum(map(len, lines)))
    except ProtocolError as error:
        return str(error)
    assert len(rows) == len(lines)
    return list(zip(*rows.take(SPACE, PREFIX), strict=True))


def copied(texts: list[bytes | None]) -> bytes:
    """What COPY TO STDOUT writes for a row."""
    escapes = {8: b"\\b", 9: b"\\t", 10: b"\\n", 11: b"\\v", 12: b"\\f", 13: b"\\r", 92: b"\\\\"}
    parts = [b"\\N" if t is None else b"".join(escapes.get(byte, bytes([byte])) for byte in t) for t in texts]
    return b"\t".join(parts) + b"\n"


texts = st.lists(st.one_of(st.none(), st.binary(max_size=20), st.sampled_from([b"", b"\\N", b"\\", b"\t"])), min_size=1)


@given(texts)
def test_a_line_of_copy_gives_the_texts_that_made_it(row: list[bytes | None]) -> None:
    assert parse_line(copied(row), len(row)) == row


@pytest.mark.parametrize(("line", "columns"), [(b"1\t2\n", 1), (b"1\n", 2), (b"1", 1), (b"\\x\n", 1)])
def test_a_line_that_copy_never_writes_is_refused(line: bytes, columns: int) -> None:
    with pytest.raises(ProtocolError):
        parse_line(line, columns)


@pytest.mark.parametrize("name", NAMES)
def test_entries_come_in_the_order_of_their_keys_each_behind_its_prefix(name: str) -> None:
    schema = layout(23, 25)
    rows = implementation(name).new_copied_rows(schema)
    lines = [copied([b"%d" % number, b"row %d" % number]) for number in (7, -3, 100, 0, 7)]
    rows.drain(frames(*lines), 1 << 30)
    assert len(rows) == 5 and rows.size > 5 * 9
    keys, entries = rows.take(SPACE, PREFIX)
    encoder = row_encoder(schema)
    expected = [[b"%d" % number, b"row %d" % number] for number in (-3, 0, 7, 100)]
    assert keys == [SPACE + (encoder.key(row) or b"") for row in expected] == sorted(keys)
    assert entries == [PREFIX + encoder.encode(row) for row in expected]
    assert (len(rows), rows.size, rows.take(SPACE, PREFIX)) == (0, 0, ([], []))


@pytest.mark.parametrize("name", NAMES)
def test_it_stops_at_its_limit_and_where_nothing_has_arrived(name: str) -> None:
    rows = implementation(name).new_copied_rows(layout(23))
    source = frames(*(b"%d\n" % number for number in range(10)))
    assert rows.drain(source, 3) == (2, 4) and len(rows) == 2
    assert rows.drain(lambda _: (0, memoryview(b"")), 100) == (0, 0)
    assert rows.drain(source, 100) == (-1, 16) and len(rows) == 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("line", [b"1\n", b"1\t2\t3\n", b"1\t2", b"\n", b"1\t\\x\n", b"1\t\\\n", b"\\N\t2\n"])
def test_a_line_that_is_no_row_is_refused_and_rows_before_it_are_kept(name: str, line: bytes) -> None:
    rows = implementation(name).new_copied_rows(layout(23, 25))
    with pytest.raises(ProtocolError):
        rows.drain(frames(b"5\tx\n", line), 1 << 30)
    assert len(rows) == 1 and len(rows.take(SPACE, PREFIX)[0]) == 1


COLUMNS = st.lists(st.sampled_from(OIDS), min_size=1, max_size=5)
VALUES = TEXTS | st.none() | st.sampled_from([b"", b"\\N", b"\\", b"\t", b"\xff"])


@given(st.data())
def test_both_give_the_same_entries_and_the_same_refusals(data: st.DataObject) -> None:
    oids = data.draw(COLUMNS)
    key = tuple(sorted(data.draw(st.sets(st.integers(0, len(oids) - 1), min_size=1))))
    schema = layout(*oids, key=key)
    rows = data.draw(st.lists(st.lists(VALUES, min_size=len(oids), max_size=len(oids)), max_size=6))
    lines = [copied(row) for row in rows]
    native, pure = (taken(name, schema, *lines) for name in NAMES)
    assert native == pure


@given(st.lists(st.binary(max_size=30), max_size=4))
def test_bytes_that_are_no_copy_are_the_same_to_both(lines: list[bytes]) -> None:
    native, pure = (taken(name, layout(23, 25, 17), *filter(None, lines)) for name in NAMES)
    assert native == pure
