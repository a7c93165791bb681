"""Changes counted by table, by both cores: the same figures, and the same refusal of what is damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from walbus.compression import Compressor
from walbus.errors import DamagedRecord
from walbus.records import Flag, Kind, Op, pack_change, pack_record

WHOLE = Flag.BEGIN | Flag.END

CHANGES = st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=60)), min_size=1, max_size=30)


@pytest.fixture(params=NAMES)
def tally(request):
    return implementation(request.param).tally_changes


def body_of(changes: list[tuple[int, bytes]]) -> bytes:
    return b"".join(
        pack_change(Op.INSERT, table=table, seq_delta=i, ordinal_delta=i, after=row)
        for i, (table, row) in enumerate(changes)
    )


def record(body: bytes, kind: int = Kind.TRANSACTION, flags: int = WHOLE, origin: bytes = b"") -> bytes:
    return pack_record(
        kind, flags=flags, epoch=1, commit_lsn=16, first_ordinal=1, last_ordinal=1, first_seq=1, last_seq=1,
        commit_time=0, origin=origin, body=body,
    )  # fmt: skip


@given(st.lists(CHANGES, max_size=5), st.booleans())
def test_both_cores_count_every_change_of_every_transaction(transactions, compressed):
    expected: dict[int, tuple[int, int]] = {}
    for changes in transactions:
        for table, row in changes:
            count, size = expected.get(table, (0, 0))
            expected[table] = (count + 1, size + 48 + len(row))
    data = record(b"", Kind.PROGRESS, 0)
    for changes in transactions:
        frame = Compressor(3).compress(body_of(changes)) if compressed else None
        data += record(body_of(changes), origin=b"o") if frame is None else record(frame, flags=WHOLE | Flag.ZSTD)
    data += record(body_of([(7, b"{}")]), Kind.SCHEMA, 0)  # says a layout, and changes no row
    for name in NAMES:
        counts: dict[int, tuple[int, int]] = {}
        implementation(name).tally_changes(data, counts)
        assert counts == expected


def test_counts_go_on(tally):
    counts = {5: (10, 1000)}
    tally(record(body_of([(5, b""), (6, b"x")])), counts)
    assert counts == {5: (11, 1048), 6: (1, 49)}
    tally(b"", counts)
    assert counts == {5: (11, 1048), 6: (1, 49)}


def test_lengths_that_do_not_add_up_are_refused_and_nothing_else_is_read(tally):
    good = record(body_of([(5, b"abc"), (6, b"")]))
    for i in range(1, len(good)):
        with pytest.raises(DamagedRecord):
            tally(good[:i], {})
    for at, value in ((4, 0), (4, 97), (96, 0), (96, 200), (76, 0xFFFF)):
        bad = bytearray(good)
        bad[at : at + 2] = value.to_bytes(2, "little")
        with pytest.raises(DamagedRecord):
            tally(bytes(bad), {})
