"""Records framed and checked where they lie, by both cores: every good one, and none behind what is not."""

from __future__ import annotations

import random

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from walbus.records import HEADER_SIZE, Flag, Kind, pack_record

WHOLE = Flag.BEGIN | Flag.END


def record(body: bytes) -> bytes:
    return pack_record(
        Kind.TRANSACTION, flags=WHOLE, epoch=1, commit_lsn=16, end_lsn=24, first_ordinal=1, last_ordinal=1,
        first_seq=1, last_seq=1, commit_time=0, body=body,
    )  # fmt: skip


@pytest.fixture(params=NAMES)
def scan(request):
    return implementation(request.param).good_records


BODIES = st.lists(st.binary(max_size=200), max_size=14)


@given(BODIES, st.integers(0, 300))
def test_both_cores_take_the_whole_records_and_leave_the_rest(bodies, more):
    records = [record(body) for body in bodies]
    rest = record(bytes(300))[:more]
    whole = sum(map(len, records))
    for name in NAMES:
        scan = implementation(name).good_records
        for data in (b"".join(records) + rest, bytearray(b"".join(records) + rest)):
            assert scan(data) == (whole, whole - len(records[-1]) if records else 0)


def test_no_damage_at_any_byte_is_taken_for_a_good_record(scan):
    records = [record(bytes([size]) * size) for size in (10, 7, 0, 23, 4, 12)]
    data = b"".join(records)
    ends = [sum(map(len, records[:count])) for count in range(len(records) + 1)]
    for at in range(len(data)):
        for bit in (1, 128):
            damaged = bytearray(data)
            damaged[at] ^= bit
            hit = next(i for i in range(len(records)) if at < ends[i + 1])
            assert scan(damaged)[0] == ends[hit]


@pytest.mark.parametrize("length", [0, 1, 95, 1 << 31, (1 << 32) - 1])
def test_a_length_that_cannot_be_is_never_followed(scan, length):
    data = bytearray(record(b"x" * 100))
    data[4:8] = length.to_bytes(4, "little")
    data[:4] = int(google_crc32c.value(bytes(data[4:]))).to_bytes(4, "little")
    assert scan(data) == (0, 0)


def test_what_is_shorter_than_a_header_is_no_record(scan):
    data = record(b"")
    assert [scan(data[:size]) for size in range(HEADER_SIZE)] == [(0, 0)] * HEADER_SIZE


def test_the_checksum_is_the_same_with_and_without_the_processors_instruction():
    core = pytest.importorskip("walbus.native._core", reason="the native core was not built")
    dice = random.Random(7)
    for size in [*range(70), 1000, 4099]:
        data = dice.randbytes(size)
        expected = google_crc32c.value(data)
        assert core.crc32c_both_ways(data) == (expected, expected)
