"""The binary form of the log."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.errors import DamagedRecord
from walbus.position import Position
from walbus.record_parser import RecordParser
from walbus.records import (
    CHANGE_HEADER_SIZE,
    HEADER_SIZE,
    Flag,
    Kind,
    Op,
    RawChange,
    body_of,
    check_record,
    iter_changes,
    key_hash,
    origin_of,
    pack_change,
    pack_record,
    read_header,
)

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
PART = st.none() | st.binary(max_size=20)
CHANGES = st.fixed_dictionaries(
    {
        "op": st.sampled_from([op.value for op in Op]),
        "table": U32,
        "schema_id": U32,
        "seq_delta": U64,
        "ordinal_delta": U32,
        "key": PART,
        "old_key": PART,
        "unchanged": st.binary(max_size=4),
        "after": PART,
        "before": PART,
    }
)
RECORDS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([kind.value for kind in Kind]),
        "flags": st.integers(0, 7),
        "epoch": U32,
        "commit_lsn": U64,
        "end_lsn": U64,
        "first_ordinal": U32,
        "last_ordinal": U32,
        "first_seq": U64,
        "last_seq": U64,
        "xid": U64,
        "commit_time": st.integers(-(2**63), 2**63 - 1),
        "count": U32,
        "origin": st.binary(max_size=10),
        "tables": U64,
        "body": st.binary(max_size=40),
    }
)


def packed_change(change: dict[str, object]) -> bytes:
    return pack_change(change["op"], **{k: v for k, v in change.items() if k != "op"})


def packed(record: dict[str, object]) -> bytes:
    return pack_record(record["kind"], **{k: v for k, v in record.items() if k != "kind"})


def example_record() -> bytes:
    body = pack_change(Op.UPDATE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, key=b"k", after=b"row") * 2
    return pack_record(
        Kind.TRANSACTION,
        flags=Flag.BEGIN | Flag.END,
        epoch=1,
        commit_lsn=0x16B374D848,
        end_lsn=0x16B374D878,
        first_ordinal=1,
        last_ordinal=2,
        first_seq=100,
        last_seq=101,
        xid=742,
        commit_time=1_700_000_000_000_000,
        count=2,
        origin=b"far",
        tables=1 << 16400 % 64,
        body=body,
    )


@given(RECORDS)
def test_a_record_says_what_was_packed(record: dict[str, object]) -> None:
    data = packed(record)
    header = check_record(data)
    assert header.length == len(data)
    assert origin_of(data, header) == record["origin"]
    assert body_of(data, header) == record["body"]
    fields = {name: getattr(header, name) for name in record if name not in ("origin", "body")}
    assert fields == {name: record[name] for name in fields}
    assert header.first == Position(record["epoch"], record["commit_lsn"], record["first_ordinal"])
    assert header.last == Position(record["epoch"], record["commit_lsn"], record["last_ordinal"])


@given(st.lists(CHANGES, max_size=5))
def test_changes_say_what_was_packed(changes: list[dict[str, object]]) -> None:
    body = b"".join(packed_change(change) for change in changes)
    unpacked = list(iter_changes(body))
    assert len(unpacked) == len(changes)
    for raw, change in zip(unpacked, changes, strict=True):
        assert {name: getattr(raw, name) for name in change} == change
        assert raw.key_hash == (key_hash(change["key"]) if change["key"] else 0)


def test_an_absent_part_and_an_empty_one_are_told_apart() -> None:
    (raw,) = iter_changes(pack_change(Op.INSERT, seq_delta=0, ordinal_delta=0, key=b"", after=b""))
    assert (raw.key, raw.old_key, raw.after, raw.before) == (b"", None, b"", None)


def test_every_flipped_bit_of_a_record_is_found() -> None:
    record = example_record()
    for index, bit in itertools.product(range(len(record)), range(8)):
        damaged = bytearray(record)
        damaged[index] ^= 1 << bit
        with pytest.raises(DamagedRecord):
            check_record(bytes(damaged))


def test_every_cut_of_a_record_is_found() -> None:
    record = example_record()
    for length in range(len(record)):
        with pytest.raises(DamagedRecord):
            check_record(record[:length])
    with pytest.raises(DamagedRecord):
        check_record(record + b"\0")


def test_a_parser_never_gives_a_damaged_record_and_gives_the_good_ones_before_it() -> None:
    record = example_record()
    for index in range(len(record)):
        damaged = bytearray(record)
        damaged[index] ^= 0x40
        parser = RecordParser(max_size=1 << 16)
        parser.feed(record + damaged)
        got = []
        try:
            got.extend(data for _, data in parser.records())
        except DamagedRecord:
            pass
        else:
            assert parser.pending, "a length that grew waits for bytes that never come"
        assert got in ([], [record])


@given(st.lists(RECORDS, max_size=6), st.data())
def test_any_chunking_of_a_stream_gives_the_same_records(records: list[dict[str, object]], data: st.DataObject) -> None:
    stream = b"".join(map(packed, records))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    parser, got = RecordParser(), []
    for start, stop in itertools.pairwise([0, *cuts, len(stream)]):
        parser.feed(stream[start:stop])
        got.extend(record for _, record in parser.records())
    assert got == list(map(packed, records))
    assert parser.pending == 0


def test_a_stream_fed_byte_by_byte_gives_each_record_when_its_last_byte_is_there() -> None:
    record, parser, got = example_record(), RecordParser(), []
    for i in range(2 * len(record)):
        parser.feed((record * 2)[i : i + 1])
        got.extend((i, data) for _, data in parser.records())
    assert got == [(len(record) - 1, record), (2 * len(record) - 1, record)]


def test_a_record_beyond_the_bound_is_refused_before_it_is_held() -> None:
    parser = RecordParser(max_size=200)
    parser.feed(example_record()[:HEADER_SIZE])
    with pytest.raises(DamagedRecord, match="exceeds the bound"):
        list(parser.records())


def test_a_record_of_another_format_version_names_the_mend() -> None:
    record = bytearray(example_record())
    record[8] = 2
    with pytest.raises(DamagedRecord, match=r"format version 2 is not 1 .*; read it with the Walbus that wrote it"):
        read_header(bytes(record))


def test_lengths_inside_a_body_never_point_outside_it() -> None:
    body = pack_change(Op.INSERT, seq_delta=0, ordinal_delta=0, key=b"key", after=b"after")
    for index, value in itertools.product(range(len(body)), (0, 1, 0x7F, 0xFF)):
        damaged = bytearray(body)
        damaged[index] = value
        try:
            (change,) = iter_changes(bytes(damaged))
        except DamagedRecord:
            continue
        assert isinstance(change, RawChange)
    for length in range(1, len(body)):
        with pytest.raises(DamagedRecord, match="body offset 0"):
            list(iter_changes(body[:length]))


#: `example_record()` as the first release wrote it; a change of a single byte here needs a new format version.
GOLDEN = bytes.fromhex(
    """
    4d54fc60cb000000010103000100000048d874b31600000078d874b316000000
    010000000200000064000000000000006500000000000000e602000000000000
    00401e18240a0600020000000300000000000100000000000000000000000000
    6661723400000002050000104000000300000000000000000000000000000008
    6b32aa010000000000000003000000000000006b726f77340000000205000010
    40000003000000000000000000000000000000086b32aa010000000000000003
    000000000000006b726f77
    """
)


def test_the_bytes_of_format_version_1_never_change() -> None:
    assert (HEADER_SIZE, CHANGE_HEADER_SIZE) == (96, 48)
    assert example_record() == GOLDEN
