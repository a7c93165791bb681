"""Compressed bodies: the same changes in fewer bytes, and no frame makes a reader hold more than a body may have."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from support.relay_log import ORDERS, changes, run_of, table_schema, transaction
from walbus.compressed_records import compress_unsealed, plain
from walbus.compression import MAX_BODY_SIZE, MIN_BODY_SIZE, Compressor, decompress
from walbus.errors import DamagedRecord
from walbus.log import SchemaRegistry
from walbus.native import new_filter, seal
from walbus.records import Flag, Kind, RecordHeader, body_of, check_record, pack_record, read_header
from walbus.relay.projection import Projection
from walbus.relay.table_filter import TableFilter

BODY = changes(1, 50)


def record(body: bytes, flags: int = Flag.ZSTD, *, origin: bytes = b"") -> bytes:
    return pack_record(
        Kind.TRANSACTION, flags=flags | Flag.BEGIN | Flag.END, epoch=1, commit_lsn=16, end_lsn=24, first_ordinal=1,
        last_ordinal=50, first_seq=1, last_seq=50, xid=7, commit_time=5, count=50, origin=origin,
        tables=1 << ORDERS % 64, body=body,
    )  # fmt: skip


def frame_of(body: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(body)


@given(st.binary(min_size=1, max_size=50).map(lambda seed: seed * 100), st.integers(1, 5))
def test_a_body_survives_compression(body, level):
    frame = Compressor(level).compress(body)
    assert (frame is None) == (len(body) < MIN_BODY_SIZE)
    assert frame is None or (len(frame) < len(body) and decompress(frame) == body)


@pytest.mark.parametrize("size", [0, MIN_BODY_SIZE - 1, MAX_BODY_SIZE + 1])
def test_small_and_huge_bodies_are_left_as_they_are(size):
    assert Compressor(1).compress(bytes(size)) is None


def test_a_body_that_does_not_shrink_is_left_as_it_is():
    assert Compressor(1).compress(random.Random(1).randbytes(4000)) is None


def test_a_bomb_is_refused_by_what_its_frame_claims(monkeypatch):
    bomb = frame_of(bytes(MAX_BODY_SIZE + 1))
    assert len(bomb) < 10_000

    def allocate(*_: object, **__: object) -> None:
        raise AssertionError("room was made for it")

    monkeypatch.setattr(zstandard, "ZstdDecompressor", allocate)
    with pytest.raises(DamagedRecord, match="claims 16777217 bytes"):
        body_of(record(bomb), read_header(record(bomb)))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"no frame at all",
        frame_of(BODY)[:-1],
        frame_of(BODY) + b"x",
        frame_of(BODY) * 2,
        frame_of(b""),
        zstandard.ZstdCompressor(write_content_size=False).compress(BODY),
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip",
    ],
    ids=["nothing", "other-bytes", "cut", "more-behind", "two", "empty", "without-size", "skippable"],
)
def test_what_is_not_exactly_one_frame_is_damage(frame):
    with pytest.raises(DamagedRecord, match="compressed body"):
        decompress(frame)


def test_a_frame_with_any_byte_flipped_is_damage_or_as_large_as_it_says():
    frame = frame_of(BODY)
    for at, bit in itertools.product(range(len(frame)), (1, 0x80)):
        damaged = frame[:at] + bytes([frame[at] ^ bit]) + frame[at + 1 :]
        with contextlib.suppress(DamagedRecord):
            assert 0 < len(decompress(damaged)) <= MAX_BODY_SIZE


@pytest.mark.parametrize("origin", [b"", b"far"])
def test_a_compressed_record_has_a_plain_twin(origin):
    compressed, twin = record(frame_of(BODY), origin=origin), record(BODY, 0, origin=origin)
    assert plain(compressed) == twin
    assert plain(twin) == twin
    assert body_of(compressed, check_record(compressed)) == BODY


def test_records_of_a_run_are_compressed_where_it_is_worth_it():
    given = [transaction(16, 100), transaction(32, 1), transaction(48, 100)]
    run = run_of(given)
    sealed = seal(compress_unsealed(run.records, Compressor(3)), 1000)
    assert len(sealed) < len(run.records) / 2
    found, offset = [], 0
    while offset < len(sealed):
        header = read_header(sealed, offset)
        found.append(sealed[offset : offset + header.length])
        offset += header.length
    assert [bool(check_record(one).flags & Flag.ZSTD) for one in found] == [True, False, True]
    assert b"".join(map(plain, found)) == seal(run.records, 1000)


class TwoTables(SchemaRegistry):
    """`orders`, whose layout is 1, and `items`, whose layout is 2."""

    def all(self):
        return [self.get(1), self.get(2)]

    def get(self, schema_id):
        schema = table_schema() if schema_id == 1 else table_schema("items", ORDERS + 1)
        return dataclasses.replace(schema, id=schema_id)


def filtered(tables: str, header: RecordHeader, one: bytes) -> bytes:
    schemas = TwoTables()
    return new_filter(TableFilter([tables], schemas), Projection((), schemas)).filter(header, one)


def test_a_filter_looks_into_compressed_records_and_passes_them_as_they_are():
    one = record(frame_of(BODY))
    assert filtered("public.orders", read_header(one), one) == one


def test_a_filter_sends_what_passes_of_a_compressed_record_plain():
    one = record(frame_of(changes(1, 25) + changes(26, 25, table=ORDERS + 1, schema_id=2)))
    kept = filtered("public.orders", read_header(one), one)
    header = check_record(kept)
    assert (header.flags, header.count) == (Flag.BEGIN | Flag.END | Flag.FILTERED, 25)
    assert body_of(kept, header) == changes(1, 25)


def test_a_filter_does_not_decompress_what_the_header_rules_out(monkeypatch):
    one = record(frame_of(BODY))
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    assert filtered("public.items", read_header(one), one) == b""
