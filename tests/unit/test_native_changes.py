"""A record's changes in C as in the twin in Python: the same objects, layouts asked for, and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from walbus.errors import DamagedRecord
from walbus.events import Change, window_of
from walbus.position import ORIGIN, Position
from walbus.records import HEADER_SIZE, Flag, Kind, Op, RawChange, RecordHeader, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema

LAYOUTS = {
    number: TableSchema(
        number, 16_400 + number, "public", "t", ReplicaIdentity.DEFAULT, (Column("a", 20, "int8", -1, in_key=True),)
    )
    for number in range(1, 4)
}
PARTS = st.none() | st.binary(max_size=12)
KINDS = [kind for kind in Kind if kind is not Kind.PROGRESS]


@st.composite
def changes(draw: st.DrawFn) -> bytes:
    """A body of some changes, with ordinals that rise."""
    body, ordinal = b"", 0
    for _ in range(draw(st.integers(0, 6))):
        body += pack_change(
            draw(st.sampled_from(Op)),
            table=draw(st.sampled_from([0, 16_400, (1 << 32) - 1])),
            schema_id=draw(st.integers(0, 3)),
            seq_delta=draw(st.integers(0, 1 << 40)),
            ordinal_delta=ordinal,
            flags=draw(st.sampled_from([0, 16, 128])),
            key=draw(PARTS),
            old_key=draw(PARTS),
            unchanged=draw(st.binary(max_size=3)),
            after=draw(PARTS),
            before=draw(PARTS),
        )
        ordinal += draw(st.integers(1, 300))
    return body


def record_of(kind: Kind, body: bytes, *, origin: bytes = b"", flags: int = 0) -> bytes:
    return pack_record(
        kind, flags=flags, epoch=2, commit_lsn=5_000_000_000, first_ordinal=7, last_ordinal=2_000, first_seq=1 << 52,
        last_seq=(1 << 52) + 9, commit_time=0, origin=origin, body=body,
    )  # fmt: skip


def read(name: str, header: RecordHeader, record: bytes, after: Position = ORIGIN, make: Any = Change) -> object:
    """What is read, and which layouts are asked for; or what was said instead."""
    asked: list[int] = []

    def layout_of(number: int) -> TableSchema:
        asked.append(number)
        return LAYOUTS[number]

    try:
        return implementation(name).read_changes(make, header, record, layout_of, after), asked
    except (DamagedRecord, KeyError) as error:
        return repr(error), asked


AFTER = st.sampled_from(
    [ORIGIN, Position(2, 5_000_000_000, 0), Position(1, 6_000_000_000, 9), Position(2, 5_000_000_001, 0)]
) | st.integers(6, 600).map(lambda ordinal: Position(2, 5_000_000_000, ordinal))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), changes(), st.sampled_from([b"", b"an origin"]), AFTER)
def test_changes_are_those_of_python(kind, body, origin, after):
    record = record_of(kind, body, origin=origin)
    header = read_header(record)
    found, expected = (read(name, header, record, after) for name in NAMES)
    assert found == expected
    for change in found[0]:
        assert type(change) is Change
        assert type(change.raw) is RawChange
        assert type(change.position) is Position
        assert hash((change.position, change.raw)) == hash((Position(*change.position), RawChange(*change.raw)))


@settings(max_examples=300, deadline=None)
@given(changes(), st.data())
def test_damaged_bodies_are_read_or_refused_as_in_python(body, data):
    record = bytearray(record_of(Kind.TRANSACTION, body))
    header = read_header(bytes(record))
    if len(record) > HEADER_SIZE:
        at = data.draw(st.integers(HEADER_SIZE, len(record) - 1))
        record[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    assert read("native", header, bytes(record)) == read("pure", header, bytes(record))


@pytest.mark.parametrize("name", NAMES)
def test_progress_has_no_changes_and_a_compressed_body_is_unpacked(name):
    import zstandard

    body = pack_change(Op.INSERT, table=1, schema_id=1, seq_delta=0, ordinal_delta=0, key=b"k", after=b"row")
    plain = record_of(Kind.TRANSACTION, body)
    packed = record_of(Kind.TRANSACTION, zstandard.compress(body), flags=Flag.ZSTD)
    assert read(name, read_header(plain), plain) == read(name, read_header(packed), packed)
    progress = record_of(Kind.PROGRESS, b"")
    assert read(name, read_header(progress), progress) == ([], [])


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_layout_is_told_by_who_was_asked(name):
    record = record_of(Kind.TRANSACTION, pack_change(Op.INSERT, schema_id=9, seq_delta=0, ordinal_delta=0))
    assert read(name, read_header(record), record) == ("KeyError(9)", [9])


def test_a_change_decodes_once_and_stays_frozen():
    body = pack_change(Op.MESSAGE, seq_delta=0, ordinal_delta=0, key=b"prefix", after=b"content")
    record = record_of(Kind.TRANSACTION, body)
    (change,) = window_of(read_header(record), record, LAYOUTS.__getitem__)
    assert change.unchanged is change.unchanged
    assert change.message == ("prefix", b"content")
    with pytest.raises(AttributeError):
        change.seq = 1


@dataclass(frozen=True, init=False)
class _Other:
    raw: RawChange
    schema: TableSchema | None
    position: Position
    seq: int

    def __init__(self, raw: RawChange, schema: TableSchema | None, position: Position, seq: int) -> None:
        for name, value in {"raw": raw, "schema": schema, "position": position, "seq": seq}.items():
            object.__setattr__(self, name, value)


@pytest.mark.parametrize("name", NAMES)
def test_changes_are_of_the_class_that_was_given(name):
    record = record_of(Kind.SNAPSHOT, pack_change(Op.INSERT, schema_id=1, seq_delta=4, ordinal_delta=0, key=b"k"))
    header = read_header(record)
    made, asked = read(name, header, record, make=_Other)
    assert [(type(one), one.position, one.seq) for one in made] == [(_Other, header.last, (1 << 52) + 4)]
    assert asked == [1]
