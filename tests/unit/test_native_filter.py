"""The filter of records in C against its twin in Python, and what both promise to a stream's client.

What is filtered: transactions small and large, whole and in pieces, plain and compressed, with every kind of change, of
tables with and without a key; and the same bytes damaged.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from walbus.compression import Compressor
from walbus.errors import DamagedRecord
from walbus.native.reading import ALL_TABLES, WHOLE, Partition, RecordFilter
from walbus.records import (
    ChangeFlag,
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
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder, row_texts

TYPES = {"id": 20, "note": 25, "sum": 1700, "at": 1184, "tags": 1007, "ok": 16, "size": 701, "data": 17, "who": 2951}
LAYOUTS = {
    number: TableSchema(
        number, 100 + number, "public", f"t{number}", ReplicaIdentity.FULL,
        tuple(Column(name, oid, name, -1, name == "id" and number != 3) for name, oid in TYPES.items()),
    )
    for number in (1, 2, 3)
}  # fmt: skip
ROW_OPS = (Op.INSERT, Op.UPDATE, Op.DELETE)
COMPRESS = Compressor(1).compress


class Chosen:
    """Tables by the number of their layout, and operations."""

    def __init__(self, tables: Sequence[int] = (1, 2, 3), ops: Sequence[Op] = tuple(Op)) -> None:
        self.tables, self.ops = frozenset(tables), frozenset(ops) | {Op.SCHEMA, Op.EPOCH}
        self.bits = ALL_TABLES if len(self.tables) == 3 else sum(1 << (100 + t) % 64 for t in self.tables)
        self.learned = 0

    def learn(self) -> None:
        self.learned += 1

    def wants_change(self, op: int, table: int, schema_id: int) -> bool:
        if schema_id > 3:
            raise DamagedRecord("no such layout")
        return op in self.ops and (schema_id in self.tables if schema_id else not table or table - 100 in self.tables)


class LeftOut:
    """Columns by name, which are left out of every table."""

    def __init__(self, *names: str) -> None:
        self.everything = not names
        self.mask = sum(1 << i for i, name in enumerate(TYPES) if name in names)

    def left_out(self, schema_id: int) -> tuple[TableSchema, int]:
        return LAYOUTS[schema_id], self.mask if schema_id != 2 else 0


EVERYTHING, EVERY_COLUMN = Chosen(), LeftOut()


def row_of(number: int, seed: int) -> bytes:
    texts = [
        b"%d" % seed, b"note %d" % seed, b"1.50", b"2024-01-01 00:00:00+00", b"{1,NULL,3}", b"t", b"0.5",
        b"\\x00ff", b"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
    ]  # fmt: skip
    if seed % 5 == 4:
        texts[3], texts[4], texts[1] = b"infinity", b"[0:1]={1,2}", b"x" * 300
    return row_encoder(LAYOUTS[number]).encode([None if seed % 7 == i else t for i, t in enumerate(texts)])


def key_of(number: int, seed: int) -> bytes | None:
    return None if number == 3 else row_encoder(LAYOUTS[number]).key([b"%d" % seed] + [None] * 8)


@st.composite
def changes(draw, ops=tuple(Op)[:5]) -> dict[str, object]:
    op, number, seed = draw(st.sampled_from(ops)), draw(st.integers(1, 3)), draw(st.integers(0, 20))
    made: dict[str, object] = {"op": op, "table": 100 + number, "schema_id": number}
    if op == Op.MESSAGE:
        return {"op": op, "key": b"prefix %d" % seed, "after": b"content"}
    if op == Op.TRUNCATE:
        return made | {
            "flags": draw(st.sampled_from([0, ChangeFlag.CASCADE])),
            "schema_id": draw(st.sampled_from([0, number])),
        }
    made["key"] = key_of(number, seed)
    if op == Op.UPDATE and number != 3:
        moved = draw(st.integers(0, 20))
        made["old_key"] = key_of(number, moved) if moved != seed else None
    if op != Op.DELETE:
        made["after"] = row_of(number, seed)
        made["unchanged"] = draw(st.sampled_from([b"", b"", b"\x02\x00", b"\x02", b"\xff\xff\xff"]))
    if op != Op.INSERT and draw(st.booleans()):
        made["before"] = row_of(number, draw(st.integers(0, 20)))
    return made


PIECES = st.lists(st.lists(changes(), max_size=5), min_size=1, max_size=3)
TRANSACTIONS = st.lists(PIECES, max_size=4)
CHOICES = st.builds(Chosen, st.sets(st.integers(1, 3)), st.just(tuple(Op)) | st.sets(st.sampled_from(tuple(Op)[:5])))
COLUMNS = st.sets(st.sampled_from(tuple(TYPES)[1:]), max_size=4).map(lambda names: LeftOut(*names))
PARTITIONS = st.integers(1, 4).flatmap(lambda n: st.integers(0, n - 1).map(lambda i: Partition(i, n)))


def packed(made: Sequence[dict], lsn: int, first: int, flags: int, compress=lambda _: None) -> bytes:
    """A piece of a transaction."""
    body = b"".join(pack_change(**change, seq_delta=i, ordinal_delta=i) for i, change in enumerate(made))
    bits = sum({1 << change["table"] % 64 for change in made if "table" in change})
    frame = compress(body)
    return pack_record(
        Kind.TRANSACTION, flags=flags | (Flag.ZSTD if frame else 0), epoch=1, commit_lsn=lsn,
        end_lsn=lsn + 8 if flags & Flag.END else 0, first_ordinal=first, last_ordinal=first + len(made) - 1,
        first_seq=1000 * lsn + first, last_seq=1000 * lsn + first + len(made) - 1, xid=lsn, commit_time=1,
        count=len(made), tables=bits, body=frame or body, origin=b"elsewhere" if lsn % 3 == 0 else b"",
    )  # fmt: skip


def records_of(transactions, compress=lambda _: None) -> Iterator[bytes]:
    for number, pieces in enumerate(transactions, 1):
        first = 1
        for i, made in enumerate(pieces):
            flags = (Flag.BEGIN if i == 0 else 0) | (Flag.END if i == len(pieces) - 1 else 0)
            yield packed(made, 16 * number, first, flags, compress)
            first += len(made)


def outcome(a_filter: RecordFilter, record: bytes) -> bytes | str:
    try:
        return a_filter.scan([record])[0]
    except DamagedRecord as error:
        return str(error)


def both(choice=EVERYTHING, columns=EVERY_COLUMN, partition=WHOLE) -> list[RecordFilter]:
    return [implementation(name).new_filter(choice, columns, partition) for name in NAMES]


@settings(max_examples=150, deadline=None)
@given(TRANSACTIONS, CHOICES, COLUMNS, PARTITIONS, st.booleans())
def test_both_filters_send_the_same_bytes(transactions, choice, columns, partition, compressed):
    native, pure = both(choice, columns, partition)
    for record in records_of(transactions, COMPRESS if compressed else lambda _: None):
        assert native.filter(read_header(record), record) == pure.filter(read_header(record), record)
        assert native.in_window == pure.in_window


@settings(max_examples=150, deadline=None)
@given(PIECES, COLUMNS, PARTITIONS, st.data())
def test_both_filters_refuse_damaged_bytes_in_the_same_words(pieces, columns, partition, data):
    for record in records_of([pieces]):
        damaged = bytearray(record)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(damaged) - 1))
            damaged[at : at + 1] = data.draw(st.binary(max_size=2) | st.just(b"\xff") | st.just(b"\0"))
            if not damaged:
                break
        native, pure = both(Chosen((1, 2)), columns, partition)
        assert outcome(native, bytes(damaged)) == outcome(pure, bytes(damaged))


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_and_every_length_that_lies_is_refused(name):
    record = packed(
        [{"op": Op.UPDATE, "table": 101, "schema_id": 1, "key": b"k", "old_key": b"o", "after": row_of(1, 1)}], 16, 1, 3
    )
    for size in range(len(record)):
        with pytest.raises(DamagedRecord):
            implementation(name).new_filter(Chosen((1,)), LeftOut("note"), Partition(0, 2)).scan([record[:size]])
    for at in (96, 102, 128, 132, 136, 140):
        for lie in (0, 1, 47, 0x7FFFFFFF, 0xFFFFFFFF):
            garbled = bytearray(record)
            struct.pack_into("<H" if at == 102 else "<I", garbled, at, lie & (0xFFFF if at == 102 else lie))
            if garbled != record:
                with pytest.raises(DamagedRecord):
                    implementation(name).new_filter(EVERYTHING, LeftOut("note")).scan([bytes(garbled)])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_makes_no_sense_is_refused_where_columns_are_left_out_of_it(name):
    row = row_of(1, 1)
    for size in range(len(row)):
        cut = packed([{"op": Op.INSERT, "table": 101, "schema_id": 1, "key": b"k", "after": row[:size]}], 16, 1, 3)
        with pytest.raises(DamagedRecord, match=r"public\.t1, schema 1"):
            implementation(name).new_filter(EVERYTHING, LeftOut("note")).scan([cut])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "row",
    [
        b"\x02\x02\x02\x01" + bytes(7),
        b"\x02" + b"\xff" * 10 + b"\x01" + bytes(8),
        b"\x06\x02" + bytes(8),
        b"\x02\x02\x04\x00" + bytes(7),
    ],
)
def test_a_length_below_zero_or_a_branch_that_is_not_there_is_refused(name, row):
    record = packed([{"op": Op.INSERT, "table": 101, "schema_id": 1, "key": b"k", "after": row}], 16, 1, 3)
    with pytest.raises(DamagedRecord):
        implementation(name).new_filter(EVERYTHING, LeftOut("data")).scan([record])


@pytest.mark.parametrize("name", NAMES)
def test_a_record_of_which_everything_passes_is_passed_on_as_it_is(name):
    a_filter = implementation(name).new_filter(EVERYTHING, EVERY_COLUMN)
    made = [{"op": Op.INSERT, "table": 101, "schema_id": 1, "key": b"k" * 2000, "after": row_of(1, 1)}]
    for compress in (COMPRESS, lambda _: None):
        record = packed(made, 16, 1, 3, compress)
        assert a_filter.scan([record])[0] is record


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Kind.SCHEMA, Kind.EPOCH, Kind.PROGRESS])
def test_records_without_rows_concern_every_partition(name, kind):
    op = Op.SCHEMA if kind == Kind.SCHEMA else Op.EPOCH
    body = (
        b""
        if kind == Kind.PROGRESS
        else pack_change(op, table=101, schema_id=1, seq_delta=0, ordinal_delta=0, after=b"{}")
    )
    record = pack_record(
        kind, flags=3, epoch=1, commit_lsn=16, first_ordinal=0, last_ordinal=0, first_seq=1, last_seq=1, commit_time=1,
        count=1 if body else 0, tables=1 << 37, body=body,
    )  # fmt: skip
    choice = Chosen((1,), (Op.INSERT,))
    for index in range(3):
        assert implementation(name).new_filter(choice, EVERY_COLUMN, Partition(index, 3)).scan([record]) == [record]
    assert choice.learned == (3 if kind == Kind.SCHEMA else 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_transaction_of_messages_alone_has_no_table_that_could_rule_it_out(name):
    record = packed([{"op": Op.MESSAGE, "key": b"p", "after": b"c"}], 16, 1, 3)
    assert implementation(name).new_filter(Chosen(ops=(Op.MESSAGE,)), EVERY_COLUMN).scan([record]) == [record]
    sent = [
        implementation(name).new_filter(Chosen(), EVERY_COLUMN, Partition(i, 3)).scan([record])[0] for i in range(3)
    ]
    assert sorted(sent) == [b"", b"", record]


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_goes_on_in_the_window_of_the_filter_that_it_was_made_of(name):
    first, second = (
        packed([{"op": Op.INSERT, "table": 101, "schema_id": 1, "key": b"k"}], 16, i, flags)
        for i, flags in ((1, 1), (2, 2))
    )
    a_filter = implementation(name).new_filter(Chosen((1,)), EVERY_COLUMN)
    a_filter.scan([first])
    twin = copy.copy(a_filter)
    assert (a_filter.scan([second]), twin.in_window) == ([second], True)
    assert twin.scan([second]) == [second]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("partition", [(0, 0), (1, 1), (-1, 2), (0, 1 << 32)])
def test_a_partition_that_does_not_exist_is_refused(name, partition):
    with pytest.raises(ValueError, match="there is no partition"):
        implementation(name).new_filter(EVERYTHING, EVERY_COLUMN, Partition(*partition))


def folded(changes_: Iterator[RawChange], rows: dict[bytes, bytes]) -> None:
    """What a reader makes of changes."""
    for change in changes_:
        if change.op == Op.TRUNCATE:
            rows.clear()
        elif change.op in ROW_OPS:
            if change.old_key is not None:
                rows.pop(change.old_key, None)
            if change.op == Op.DELETE:
                rows.pop(change.key, None)
            else:
                rows[change.key] = change.after


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.lists(
                changes((Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE)).filter(lambda c: c["table"] == 101), max_size=5
            ),
            min_size=1,
            max_size=3,
        ),
        max_size=5,
    ),
    st.integers(1, 5),
)
def test_the_readers_of_all_partitions_end_with_the_rows_that_one_reader_ends_with(transactions, count):
    whole: dict[bytes, bytes] = {}
    parts: list[dict[bytes, bytes]] = [{} for _ in range(count)]
    filters = [implementation("native").new_filter(EVERYTHING, EVERY_COLUMN, Partition(i, count)) for i in range(count)]
    for record in records_of(transactions):
        folded(iter_changes(body_of(record, read_header(record))), whole)
        for a_filter, rows in zip(filters, parts, strict=True):
            sent = a_filter.scan([record])[0]
            if sent:
                folded(iter_changes(body_of(sent, check_record(sent))), rows)
    assert {key: row for rows in parts for key, row in rows.items()} == whole
    assert all(key_hash(key) % count == i for i, rows in enumerate(parts) for key in rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_leaves_a_partition_is_deleted_there_at_the_same_place(name):
    here, there = next(
        (a, b)
        for a in range(9)
        for b in range(9)
        if key_hash(key_of(1, a)) % 2 == 0 and key_hash(key_of(1, b)) % 2 == 1
    )
    moves = {"op": Op.UPDATE, "table": 101, "schema_id": 1, "key": key_of(1, there), "old_key": key_of(1, here),
             "after": row_of(1, there), "before": row_of(1, here), "unchanged": b"\x02\x00"}  # fmt: skip
    record = packed([{"op": Op.TRUNCATE, "table": 101, "schema_id": 1}, moves], 48, 1, 3)
    leaving, coming = (implementation(name).new_filter(EVERYTHING, EVERY_COLUMN, Partition(i, 2)) for i in (0, 1))
    assert coming.scan([record]) == [record]
    sent = leaving.scan([record])[0]
    header = check_record(sent)
    assert header.flags == Flag.BEGIN | Flag.END | Flag.FILTERED
    assert origin_of(sent, header) == b"elsewhere"
    truncate, delete = iter_changes(body_of(sent, header))
    assert truncate.op == Op.TRUNCATE
    assert delete == RawChange(
        Op.DELETE, ChangeFlag.KEY | ChangeFlag.BEFORE, 101, 1, 1, 1, key_hash(key_of(1, here)), key_of(1, here), None,
        b"", None, row_of(1, here),
    )  # fmt: skip
    only_updates = implementation(name).new_filter(Chosen(ops=(Op.UPDATE,)), EVERY_COLUMN, Partition(0, 2))
    assert only_updates.scan([record]) == [b""]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(st.lists(changes(), min_size=1, max_size=6), COLUMNS)
def test_left_out_columns_are_told_and_all_else_is_as_it_was(name, made, columns):
    record = packed(made, 16, 1, 3)
    sent = implementation(name).new_filter(EVERYTHING, columns).scan([record])[0]
    names = list(TYPES)
    for was, now in zip(
        iter_changes(body_of(record, read_header(record))), iter_changes(body_of(sent, check_record(sent))), strict=True
    ):
        mask = columns.mask if was.schema_id in (1, 3) and was.op in ROW_OPS and (was.after or was.before) else 0
        assert bool(now.flags & ChangeFlag.PROJECTED) == bool(mask)
        assert now._replace(flags=0, unchanged=b"", after=b"", before=b"") == was._replace(
            flags=0, unchanged=b"", after=b"", before=b""
        )
        if not mask:
            assert now == was
            continue
        half = len(now.unchanged) // 2
        unsent, left_out = (int.from_bytes(part, "little") for part in (now.unchanged[:half], now.unchanged[half:]))
        known = int.from_bytes(was.unchanged, "little") if was.after is not None else 0
        assert (left_out, unsent) == (mask, mask | (known & 0x1FF))
        for row, before in ((now.after, was.after), (now.before, was.before)):
            assert (row is None) == (before is None)
            if row is not None:
                texts, whole = row_texts(LAYOUTS[now.schema_id], row), row_texts(LAYOUTS[now.schema_id], before)
                assert texts == [None if mask >> i & 1 else whole[i] for i in range(len(names))]


def test_a_copy_learns_of_new_tables_by_itself():
    """A feed's filter and that of a stream that left it read the same layouts, each on a thread of its own."""
    for one in both(learning := Learning()):
        twin = copy.copy(one)
        record = pack_record(
            Kind.SCHEMA, flags=0, epoch=1, commit_lsn=16, first_ordinal=0, last_ordinal=0, first_seq=1, last_seq=1,
            commit_time=1, count=0,
        )  # fmt: skip
        twin.filter(read_header(record), record)
        assert learning.learned == 0
        one.filter(read_header(record), record)
        assert learning.learned == 1
        learning.learned = 0


class Learning:
    """A choice of everything that counts how often it learns."""

    bits = 1

    def __init__(self) -> None:
        self.learned = 0

    def learn(self) -> None:
        self.learned += 1

    def wants_change(self, op: int, table: int, schema_id: int) -> bool:
        return True


@pytest.mark.parametrize("columns", [LeftOut("note"), LeftOut("ok"), LeftOut("note", "ok")])
def test_every_byte_that_a_boolean_may_hold_is_judged_alike(columns):
    """A filter moves columns as the bytes they are; what no boolean is, whoever reads the row refuses."""
    row = row_of(1, 1)
    at = row.index(b"\x02\x01", row.index(b"1.50"))
    passed = []
    for byte in range(256):
        garbled = row[: at + 1] + bytes([byte]) + row[at + 2 :]
        record = packed([{"op": Op.INSERT, "table": 101, "schema_id": 1, "key": b"k", "after": garbled}], 16, 1, 3)
        native, pure = (outcome(a_filter, record) for a_filter in both(columns=columns))
        assert native == pure, byte
        passed.append(isinstance(native, bytes))
    assert all(passed)
