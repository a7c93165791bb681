"""Windows to the records of table topics, read back with the catalog's schemas: keys, rows, deletes, ends."""

from __future__ import annotations

import io
import json
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.relay_log import BASE_TIME
from walbus.errors import UsageError
from walbus.events import Window, window_of
from walbus.keys import key_row
from walbus.records import ChangeFlag, Flag, Kind, Op, key_hash, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.topics import Catalog, LogIds, TableTopics, TopicNames, TopicRecord
from walbus.values import decode_row, row_encoder

NAMES = TopicNames("shop")
LOG = "f" * 32
TYPES = {"int4": 23, "int8": 20, "text": 25, "date": 1082, "timestamptz": 1184, "uuid": 2950, "numeric": 1700,
         "bool": 16, "bytea": 17, "float8": 701, "_int4": 1007, "mood": 16400}  # fmt: skip


def layout(number: int, table: str, *columns: str, key: int = 1, oid: int = 5) -> TableSchema:
    made = tuple(Column(f"c{i}", TYPES[one], one, -1, in_key=i < key) for i, one in enumerate(columns))
    return TableSchema(number, oid, "public", table, ReplicaIdentity.DEFAULT, made)


ORDERS = layout(1, "orders", "int4", "text", "text")
ITEMS = layout(2, "items", "text", "int4", oid=6)
KEYLESS = layout(3, "notes", "text", key=0, oid=7)
LAYOUTS = {one.id: one for one in (ORDERS, ITEMS, KEYLESS)}


def topics(layouts: dict[int, TableSchema] = LAYOUTS, live: Any = ()) -> tuple[TableTopics, Catalog]:
    catalog = Catalog(NAMES, layouts.values())
    return TableTopics(NAMES, LogIds(catalog), log_id=LOG, live_keys=lambda _: live), catalog


def change(schema: TableSchema, op: Op, ordinal: int, *texts: str | None, **more: Any) -> bytes:
    """A change as capture packs it; `old` has the texts of the old key."""
    encoder = row_encoder(schema)
    raw = [None if text is None else text.encode() for text in texts]
    padded = raw + [None] * (len(schema.columns) - len(raw))
    old = more.pop("old", None)
    return pack_change(
        op, table=schema.oid, schema_id=schema.id, seq_delta=ordinal, ordinal_delta=ordinal,
        key=encoder.key(padded) if raw else None,
        after=encoder.encode(padded) if op in (Op.INSERT, Op.UPDATE) else None,
        old_key=encoder.key([*(text.encode() for text in old), *[None] * (len(padded) - len(old))]) if old else None,
        **more,
    )  # fmt: skip


def window(
    *changes: bytes, lsn: int = 0x500, flags: int = Flag.BEGIN | Flag.END, first: int = 1, **more: Any
) -> Window:
    record = pack_record(
        Kind.TRANSACTION, flags=flags, epoch=1, commit_lsn=lsn, end_lsn=lsn + 8, first_ordinal=first,
        last_ordinal=first + max(len(changes), 1) - 1, first_seq=1000 + first, last_seq=1000 + first + len(changes) - 1,
        xid=lsn // 16, commit_time=BASE_TIME + lsn, count=len(changes), body=b"".join(changes),
    )  # fmt: skip
    layouts = more.get("layouts", LAYOUTS)
    return window_of(read_header(record), record, layouts.__getitem__)


def read(catalog: Catalog, data: bytes) -> Any:
    magic, number = struct.unpack(">bI", data[:5])
    found = catalog.by_id(number)
    assert magic == 0 and found is not None
    rest = io.BytesIO(data[5:])
    value = fastavro.schemaless_reader(rest, json.loads(found.text), None)
    assert rest.read() == b""
    return value


def rows(records: Iterator[TopicRecord]) -> list[TopicRecord]:
    return [one for one in records if one.topic != NAMES.transactions]


def test_a_row_is_the_value_under_its_key_with_its_place_in_the_headers():
    encode, catalog = topics()
    (record,) = rows(encode.take(window(change(ORDERS, Op.INSERT, 0, "7", "seven", None))))
    assert record.topic == "shop.public.orders"
    assert read(catalog, record.key) == {"c0": 7}
    assert record.value and read(catalog, record.value) == {"c0": 7, "c1": "seven", "c2": None}
    assert dict(record.headers) == {
        "walbus.position": b"1:0/500:1", "walbus.seq": b"1001", "walbus.xid": b"80", "walbus.op": b"insert",
        "walbus.log_id": LOG.encode(),
    }  # fmt: skip
    assert record.time == (BASE_TIME + 0x500) // 1000


def test_a_delete_is_a_key_without_a_value():
    encode, catalog = topics()
    (record,) = rows(encode.take(window(change(ORDERS, Op.DELETE, 0, "7"))))
    assert (read(catalog, record.key), record.value) == ({"c0": 7}, None)


def test_a_row_that_moves_to_another_key_is_deleted_first_where_it_was():
    encode, catalog = topics()
    old, new = rows(encode.take(window(change(ORDERS, Op.UPDATE, 0, "8", "x", None, old=["7"]))))
    assert (read(catalog, old.key), old.value) == ({"c0": 7}, None)
    assert read(catalog, new.key) == {"c0": 8} and new.value is not None
    assert old.headers == new.headers
    assert (old.hash, new.hash) == tuple(key_hash(row_encoder(ORDERS).key([k, None, None])) for k in (b"7", b"8"))


def test_a_truncate_deletes_every_key_that_is_live_under_the_layout_that_it_was_written_in():
    earlier = layout(1, "orders", "int4", "text")
    now = layout(4, "orders", "int8", "text")
    both = {1: earlier, 4: now}
    live = [(earlier, row_encoder(earlier).key([b"1", None])), (now, row_encoder(now).key([b"2", None]))]
    encode, catalog = topics(both, live)
    packed = pack_change(Op.TRUNCATE, table=5, schema_id=4, seq_delta=0, ordinal_delta=0)
    *deleted, end = encode.take(window(packed, layouts=both))
    assert [read(catalog, one.key) for one in deleted] == [{"c0": 1}, {"c0": 2}]
    assert {one.value for one in deleted} == {None}
    assert {dict(one.headers)["walbus.op"] for one in deleted} == {b"truncate"}
    assert deleted[0].key[:5] != deleted[1].key[:5]
    assert read(catalog, end.value)["topics"] == [{"topic": "shop.public.orders", "records": 2}]


def test_unchanged_values_are_taken_from_the_old_row_where_it_came():
    encode, catalog = topics()
    before = row_encoder(ORDERS).encode([b"7", b"long", b"old"])
    packed = change(ORDERS, Op.UPDATE, 0, "7", None, "new", unchanged=b"\x02", before=before)
    (record,) = rows(encode.take(window(packed)))
    assert read(catalog, record.value) == {"c0": 7, "c1": "long", "c2": "new"}


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (change(ORDERS, Op.UPDATE, 0, "7", None, "new", unchanged=b"\x02"), "REPLICA IDENTITY FULL"),
        (change(ORDERS, Op.UPDATE, 0, "7", None, "n", unchanged=b"\0\x02", flags=ChangeFlag.PROJECTED), "columns="),
        (change(KEYLESS, Op.INSERT, 0, "x"), "has no key"),
    ],
)
def test_what_no_topic_can_hold_is_refused_with_what_to_do(packed, said):
    encode, _ = topics()
    with pytest.raises(UsageError, match=said) as refused:
        list(encode.take(window(packed)))
    assert "1:0/500:1" in str(refused.value)


def test_a_column_more_leaves_the_bytes_of_every_key_alone():
    wider = layout(2, "orders", "int4", "text", "text", "int4")
    both = {1: ORDERS, 2: wider}
    encode, catalog = topics(both)
    first = window(change(ORDERS, Op.INSERT, 0, "7", "a", None), layouts=both)
    later = window(change(wider, Op.UPDATE, 0, "7", "a", None, "1"), layouts=both, lsn=0x600)
    (before,), (after,) = rows(encode.take(first)), rows(encode.take(later))
    assert before.key == after.key and before.hash == after.hash
    assert before.value[:5] != after.value[:5]
    assert read(catalog, after.value)["c3"] == 1


def test_a_partition_does_not_depend_on_the_type_of_the_keys_column():
    wide = layout(2, "orders", "int8", "text", "text")
    both = {1: ORDERS, 2: wide}
    encode, _ = topics(both)
    (a,) = rows(encode.take(window(change(ORDERS, Op.INSERT, 0, "7", None, None), layouts=both)))
    (b,) = rows(encode.take(window(change(wide, Op.INSERT, 0, "7", None, None), layouts=both, lsn=0x600)))
    assert a.key != b.key
    assert [a.partition(n) for n in (1, 3, 12)] == [b.partition(n) for n in (1, 3, 12)]


def test_an_end_counts_the_records_of_all_pieces():
    encode, catalog = topics()
    pieces = [
        window(change(ORDERS, Op.INSERT, 0, "1", "a", None), change(ITEMS, Op.DELETE, 1, "x"), flags=Flag.BEGIN),
        window(change(ORDERS, Op.UPDATE, 0, "2", "a", None, old=["1"]), flags=Flag.END, first=3),
    ]
    records = [record for piece in pieces for record in encode.take(piece)]
    end = records[-1]
    assert (end.topic, end.headers) == ("shop.transactions", ())
    assert read(catalog, end.key) == {"log_id": LOG, "transaction": "1:0/500"}
    told = read(catalog, end.value)
    assert told["topics"] == [
        {"topic": "shop.public.items", "records": 1}, {"topic": "shop.public.orders", "records": 3},
    ]  # fmt: skip
    assert (told["position"], told["xid"], told["last_seq"], told["net"]) == ("1:0/500:3", 80, 1003, False)


def test_of_a_transaction_that_broke_off_nothing_is_counted():
    encode, catalog = topics()
    list(encode.take(window(change(ORDERS, Op.INSERT, 0, "1", "a", None), flags=Flag.BEGIN)))
    *_, end = encode.take(window(change(ORDERS, Op.INSERT, 0, "1", "a", None), lsn=0x600))
    assert read(catalog, end.value)["topics"] == [{"topic": "shop.public.orders", "records": 1}]


def test_a_transaction_without_rows_has_no_end():
    encode, _ = topics()
    assert list(encode.take(window())) == []


# --- every value ------------------------------------------------------------------------------------------------------

VALUES = {
    "int4": st.integers(-(1 << 31), (1 << 31) - 1).map(str),
    "int8": st.integers(-(1 << 63), (1 << 63) - 1).map(str),
    "text": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    "date": st.one_of(st.dates().map(str), st.sampled_from(["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"])),
    "timestamptz": st.sampled_from(["2024-01-31 12:00:00.5+00", "infinity", "0001-12-31 23:59:59+00 BC"]),
    "uuid": st.uuids().map(str),
    "numeric": st.decimals().map(str),
    "bool": st.sampled_from(["t", "f"]),
    "bytea": st.binary().map(lambda value: "\\x" + value.hex()),
    "float8": st.sampled_from(["NaN", "-Infinity", "-0", "0.1", "5e-324"]),
    "_int4": st.sampled_from(["{}", "{1,NULL,-3}", "{{1},{2}}", "[0:1]={1,2}"]),
    "mood": st.sampled_from(["happy", "", "'ünï'"]),
}


@given(st.data(), st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=6))
def test_every_key_and_row_is_read_back_as_the_log_has_it(data, types):
    key = data.draw(st.integers(1, len(types)))
    schema = layout(1, "orders", *types, key=key)
    texts = [data.draw(VALUES[one] if i < key else st.one_of(st.none(), VALUES[one])) for i, one in enumerate(types)]
    encode, catalog = topics({1: schema})
    seen = window(change(schema, Op.INSERT, 0, *texts), layouts={1: schema})
    (record,) = rows(encode.take(seen))
    raw = seen.changes[0].raw
    assert comparable(read(catalog, record.value)) == comparable(decode_row(schema, raw.after))
    assert comparable(read(catalog, record.key)) == comparable(key_row(schema, raw.key))


def comparable(row: Any) -> dict[str, str]:
    """Values by what they print: NaN is not itself, and a numeric is a text in Avro."""
    return {name: repr(value) if isinstance(value, float) else str(value) for name, value in row.items()}


# --- windows ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=8), max_size=8), st.randoms())
def test_a_reader_of_partitions_in_any_order_restores_every_window(transactions, random):
    encode, catalog = topics()
    wanted, partitions = {}, defaultdict(list)
    for number, changes in enumerate(transactions):
        lsn = 0x500 + 0x10 * number
        packed = [
            change((ORDERS, ITEMS)[items], Op.INSERT, i, str(key), *(("1",) if items else ("a", None)))
            for i, (items, key) in enumerate(changes)
        ]
        for record in encode.take(window(*packed, lsn=lsn)):
            partitions[record.topic, record.partition(3)].append(record)
        if changes:
            wanted[f"1:0/{lsn:X}"] = [f"1:0/{lsn:X}:{i + 1}" for i in range(len(changes))]
    restored, met, ends = {}, defaultdict(list), {}
    while live := [place for place, left in partitions.items() if left]:
        record = partitions[random.choice(live)].pop(0)
        if record.topic == NAMES.transactions:
            ends[read(catalog, record.key)["transaction"]] = read(catalog, record.value)["topics"]
        else:
            position = dict(record.headers)["walbus.position"].decode()
            met[position.rpartition(":")[0]].append((record.topic, position))
        for transaction in list(ends):
            here = Counter(topic for topic, _ in met[transaction])
            if here == {one["topic"]: one["records"] for one in ends[transaction]}:
                del ends[transaction]
                found = sorted((position for _, position in met[transaction]), key=lambda text: int(text.split(":")[2]))
                restored[transaction] = found
    assert restored == wanted and not ends
