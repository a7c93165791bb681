"""The relay's file forms, bytes only: what was packed is what is read, and a wrong byte is noticed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.relay_log import SOURCE, changes
from walbus.errors import DamagedRecord
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, pack_record
from walbus.relay.control import ControlState, Mark, _unpack_mark
from walbus.relay.index import INTERVAL, SegmentIndex, pack_index_header, parse_index
from walbus.relay.manifest import ActiveSegment, Manifest, SealedSegment, parse_manifest
from walbus.relay.retention import Retention, expired, unheld
from walbus.relay.scan import TailScanner, split_records
from walbus.relay.segment import SegmentHeader, parse_segment_header
from walbus.relay.tip import EMPTY_TIP, Tip

U32, U64, I64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
POSITIONS = st.builds(Position, U32, U64, U32)
TIPS = st.builds(Tip, POSITIONS, U64, U64, I64, U32)
MARKS = st.builds(Mark, U64, U64, TIPS, I64, U64, st.booleans())


@given(MARKS)
def test_a_durable_end_survives_packing(mark):
    assert _unpack_mark(mark.pack()) == mark


def test_a_durable_end_with_any_bit_flipped_is_no_end():
    data = Mark(1, 128, EMPTY_TIP, 0, 1).pack()
    for at, bit in itertools.product(range(len(data)), range(8)):
        assert _unpack_mark(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]) is None


def test_a_reader_trusts_the_successors_end_once_there_is_a_successor():
    own, final = Mark(1, 900, EMPTY_TIP, 0, 1), Mark(1, 500, EMPTY_TIP, 0, 1)
    assert ControlState(own, 0, None, 0).trusted == own
    assert ControlState(own, 2, None, 0).trusted is None
    assert ControlState(own, 2, final, 0).trusted == final


@given(U64, U64, POSITIONS, U64, I64)
def test_a_segments_header_survives_packing(number, epoch, base, seq, created):
    header = SegmentHeader(number, epoch, "0123456789abcdef" * 2, base, seq, created)
    assert parse_segment_header(header.pack() + b"records", "file") == header


def test_a_short_or_foreign_segment_header_is_refused():
    good = SegmentHeader(1, 1, "0" * 32, ORIGIN, 0, 0).pack()
    for wrong in (b"", good[:-1], bytes(128), b"X" + good[1:]):
        with pytest.raises(DamagedRecord, match="segment"):
            parse_segment_header(wrong, "file")


def manifest(count: int) -> Manifest:
    ends = [Position(1, 100 * i, 1) for i in range(count + 1)]
    sealed = tuple(SealedSegment(i + 1, ends[i], 1000, ends[i + 1], 10 * i, 1_000_000 * i, 0.0) for i in range(count))
    tip = Tip(ends[-1], 0, 0, 0, 0)
    return Manifest("0" * 32, SOURCE, 1, 10.0, "host:1", 1, ORIGIN, sealed, ActiveSegment(count + 1, tip))


def test_a_manifest_knows_where_each_segment_begins():
    made = manifest(3)
    assert made.numbers == [1, 2, 3, 4]
    assert made.bases == [Position(1, 100 * i, 1) for i in range(4)]
    assert made.sealed_bytes == 3000


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"version":1,"crc32c":0,"manifest":{}}', b"\xff" * 40])
def test_what_is_no_manifest_is_refused_with_its_file(data):
    with pytest.raises(DamagedRecord) as failure:
        parse_manifest(data, "the-file")
    assert failure.value.where == "the-file"


def index_of(offsets: list[int]) -> SegmentIndex:
    index = SegmentIndex()
    for offset in offsets:
        index.add(offset, Position(1, offset, 0), offset, offset)
    return index


@given(st.lists(st.integers(128, 2**40), unique=True).map(sorted))
def test_an_index_survives_packing(offsets):
    index = index_of(offsets)
    data = pack_index_header(7, 1, len(index)) + index.pack_entries(0)
    found = parse_index(data, 7, sealed=bool(offsets))
    assert found == index
    assert parse_index(data, 8, sealed=False) is None


def test_an_index_gives_the_last_place_before_what_is_sought():
    index = index_of([128, 1000, 2000])
    assert index.place_for_position(Position(1, 1500, 1)) == (1000, Position(1, 1000, 0))
    assert index.place_for_position(Position(1, 1000, 0)) == (128, Position(1, 128, 0))
    assert index.place_for_position(Position(1, 1, 0)) is None
    assert index.place_for_time(2001) == (2000, Position(1, 2000, 0))
    assert not index.wants(2000 + INTERVAL - 1)
    assert index.wants(2000 + INTERVAL)
    index.cut(1000)
    assert index.offsets == [128]


@pytest.mark.parametrize(
    ("now", "limit", "expected"),
    [(0.0, None, 0), (3601.5, None, 1), (1e9, None, 5), (0.0, 6000, 0), (0.0, 4500, 2), (0.0, 0, 5), (3601.5, 3500, 3)],
)
def test_retention_takes_whole_segments_from_the_old_end(now, limit, expected):
    sealed = manifest(5).sealed
    sealed = tuple(dataclasses.replace(s, max_time=1_000_000 * (i + 1)) for i, s in enumerate(sealed))
    assert expired(sealed, 6000, now, Retention(1.0, limit)) == expected


def test_a_hold_keeps_every_segment_that_it_has_not_passed():
    sealed = manifest(3).sealed
    assert unheld(sealed, None) == 3
    assert unheld(sealed, ORIGIN) == 0
    assert unheld(sealed, Position(1, 200, 0)) == 1
    assert unheld(sealed, Position(1, 200, 1)) == 2


def record(lsn: int, flags: int, first: int = 1, *, kind: int = Kind.TRANSACTION, seq: int = 0, xid: int = 0) -> bytes:
    return pack_record(
        kind, flags=flags, epoch=1, commit_lsn=lsn, first_ordinal=first, last_ordinal=first, first_seq=seq or lsn,
        last_seq=seq or lsn, xid=xid or lsn, commit_time=lsn, count=1, body=changes(first, 1),
    )  # fmt: skip


WHOLE = Flag.BEGIN | Flag.END
GOOD = [record(16, WHOLE), record(32, Flag.BEGIN), record(32, 0, 2), record(32, Flag.END, 3), record(48, WHOLE)]


@given(st.data())
def test_a_scan_finds_the_last_whole_transaction_however_the_bytes_arrive(data):
    whole = b"".join(GOOD)
    cut = data.draw(st.integers(0, len(whole)))
    cuts = sorted(data.draw(st.lists(st.integers(0, cut), max_size=6)))
    scanner = TailScanner(EMPTY_TIP, 128)
    seen = [at for a, b in itertools.pairwise([0, *cuts, cut]) for at in scanner.feed(whole[a:b])]
    ends = [0, len(GOOD[0]), sum(map(len, GOOD[:4])), len(whole)]
    assert scanner.good == 128 + max(end for end in ends if end <= cut)
    assert [offset for offset, _ in seen] == [
        128 + start for start, r in zip(itertools.accumulate(map(len, GOOD), initial=0), GOOD, strict=False)
        if start + len(r) <= cut
    ]  # fmt: skip
    assert scanner.problem is None


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([record(16, WHOLE), record(16, WHOLE, seq=99)], None),
        ([record(32, WHOLE), record(16, WHOLE)], "backward"),
        ([record(16, WHOLE), record(32, WHOLE, seq=1)], "backward"),
        ([record(16, 0)], "does not belong"),
        ([record(16, Flag.BEGIN), record(32, WHOLE)], "does not belong"),
        ([record(16, Flag.BEGIN), record(16, Flag.END, 2, xid=7)], "does not belong"),
        ([bytes(200)], "version"),
        ([GOOD[0][:-1] + b"?"], "checksum"),
    ],
)
def test_a_scan_ends_at_the_first_record_that_cannot_follow(records, problem):
    scanner = TailScanner(EMPTY_TIP, 0)
    list(scanner.feed(b"".join(records)))
    assert (problem is None) == (scanner.problem is None)
    assert problem is None or problem in scanner.problem
    before = scanner.good
    assert list(scanner.feed(GOOD[4])) == [] or problem is None
    assert problem is None or scanner.good == before


@given(st.data())
def test_splitting_gives_the_good_records_before_a_bad_one(data):
    at = data.draw(st.integers(0, sum(map(len, GOOD)) - 1))
    block = bytearray(b"".join(GOOD))
    block[at] ^= 1 << data.draw(st.integers(0, 7))
    starts = list(itertools.accumulate(map(len, GOOD), initial=0))
    bad = max(i for i, start in enumerate(starts) if start <= at)
    if bad == 0 and not 4 <= at < 8:
        with pytest.raises(DamagedRecord):
            split_records(bytes(block))
    elif bad:
        assert split_records(bytes(block)) == (GOOD[:bad], starts[bad])
