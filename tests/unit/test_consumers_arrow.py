"""Windows as Arrow record batches: the values that a change gives, as columns, and what is told beside them."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest

from support.cores import NAMES, implementation
from walbus.consumers import arrow
from walbus.events import Window, window_of
from walbus.records import ChangeFlag, Kind, Op, check_record, pack_change, pack_record
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

pa = pytest.importorskip("pyarrow")

COLUMNS = {
    "id": (20, -1), "ok": (16, -1), "small": (21, -1), "n": (23, -1), "oid": (26, -1), "f4": (700, -1), "f8": (701, -1),
    "total": (1700, (10 << 16 | 2) + 4), "any": (1700, -1), "note": (25, -1), "data": (17, -1), "day": (1082, -1),
    "clock": (1083, -1), "local": (1114, -1), "at": (1184, -1), "who": (2950, -1), "tags": (1009, -1),
    "numbers": (1007, -1), "doc": (3802, -1),
}  # fmt: skip
TABLE = TableSchema(
    3, 16400, "public", "t", ReplicaIdentity.DEFAULT,
    tuple(Column(name, oid, str(oid), typmod, name == "id") for name, (oid, typmod) in COLUMNS.items()),
)  # fmt: skip
OTHER = TableSchema(4, 16401, "public", "u", ReplicaIdentity.DEFAULT, (Column("k", 25, "text", -1, in_key=True),))
LAYOUTS = {3: TABLE, 4: OTHER}
TEXTS = {
    "ok": "t", "small": "-3", "n": "70000", "oid": "4294967295", "f4": "0.1", "f8": "NaN", "total": "-12.50",
    "any": "1e5", "note": "ä", "data": "\\x00ff", "day": "2024-02-29", "clock": "12:34:56.5",
    "local": "1969-12-31 23:59:59.999999", "at": "2026-01-02 03:04:05+00",
    "who": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "tags": '{a,NULL,"b c"}', "numbers": "{}", "doc": "[1]",
}  # fmt: skip


@pytest.fixture(params=NAMES, autouse=True)
def _core(request, monkeypatch):
    monkeypatch.setattr(arrow, "new_row_columns", implementation(request.param).new_row_columns)


def row(number: int, **texts: str) -> bytes:
    given = {"id": str(number), **texts}
    return row_encoder(TABLE).encode([given[name].encode() if name in given else None for name in COLUMNS])


def key(number: int) -> bytes:
    return row_encoder(TABLE).key([b"%d" % number, *[None] * (len(COLUMNS) - 1)]) or b""


def window(*changes: dict) -> Window:
    body = b"".join(
        pack_change(**{"table": 16400, "schema_id": 3} | change, seq_delta=i, ordinal_delta=i)
        for i, change in enumerate(changes)
    )
    record = pack_record(
        Kind.TRANSACTION, flags=3, epoch=2, commit_lsn=0x500, end_lsn=0x508, first_ordinal=1, last_ordinal=len(changes),
        first_seq=100, last_seq=99 + len(changes), xid=7, commit_time=1_700_000_000_123_456, count=len(changes),
        body=body,
    )  # fmt: skip
    return window_of(check_record(record), record, LAYOUTS.__getitem__)


def test_values_of_every_native_type_are_columns_of_arrows_types():
    (batch,) = arrow.record_batches([window({"op": Op.INSERT, "key": key(1), "after": row(1, **TEXTS)})])
    batch.validate(full=True)
    (seen,) = batch.to_pylist()
    assert math.isnan(seen.pop("f8"))
    assert seen.pop("f4") == pytest.approx(0.1)
    assert {name: seen[name] for name in COLUMNS if name in seen} == {
        "id": 1, "ok": True, "small": -3, "n": 70_000, "oid": 4_294_967_295, "total": Decimal("-12.50"), "any": "1e5",
        "note": "ä", "data": b"\0\xff", "day": date(2024, 2, 29), "clock": time(12, 34, 56, 500_000),
        "local": datetime(1969, 12, 31, 23, 59, 59, 999_999), "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "who": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "tags": ["a", None, "b c"], "numbers": [], "doc": "[1]",
    }  # fmt: skip
    types = {str(field.type) for field in batch.schema}
    assert {"int16", "int32", "int64", "float", "double", "decimal128(10, 2)", "large_binary", "date32[day]"} <= types
    assert {"time64[us]", "timestamp[us]", "timestamp[us, tz=UTC]", "large_list<item: int32>"} <= types
    assert batch.schema.metadata == {b"walbus.table": b"public.t", b"walbus.schema_id": b"3"}


def test_what_a_change_says_stands_beside_its_row():
    (batch,) = arrow.record_batches([window({"op": Op.INSERT, "key": key(1), "after": row(1)}, {"op": Op.TRUNCATE})])
    first, second = batch.select([name for name in batch.schema.names if name.startswith("_walbus")]).to_pylist()
    assert first == {
        "_walbus_op": "insert", "_walbus_seq": 100, "_walbus_epoch": 2, "_walbus_commit_lsn": 0x500,
        "_walbus_ordinal": 1,
        "_walbus_commit_time": datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=UTC), "_walbus_unsent": [],
        "_walbus_texts": [],
    }  # fmt: skip
    assert (second["_walbus_op"], second["_walbus_seq"], batch.column("id").to_pylist()) == ("truncate", 101, [1, None])


def test_values_that_a_type_does_not_have_are_told_as_text_and_those_not_sent_by_name():
    update = {"op": Op.UPDATE, "key": key(1), "after": row(1, day="infinity", total="NaN"), "unchanged": b"\0\x02\0"}
    (batch,) = arrow.record_batches([window(update)])
    (seen,) = batch.to_pylist()
    assert (seen["day"], seen["total"], seen["note"]) == (None, None, None)
    assert dict(seen["_walbus_texts"]) == {"total": "NaN", "day": "infinity"}
    assert seen["_walbus_unsent"] == ["note"]


def test_a_delete_has_its_key_or_the_old_row_and_an_update_of_the_key_is_one_too():
    changes = (
        {"op": Op.DELETE, "key": key(1)},
        {"op": Op.DELETE, "key": key(2), "before": row(2, note="old")},
        {"op": Op.UPDATE, "key": key(4), "old_key": key(3), "after": row(4, note="new")},
        {"op": Op.DELETE, "key": key(5), "before": row(5), "flags": ChangeFlag.PROJECTED, "unchanged": b"\0\2\0" * 2},
    )
    (batch,) = arrow.record_batches([window(*changes)])
    rows = [
        (r["_walbus_op"], r["id"], r["note"], "note" in r["_walbus_unsent"], r["_walbus_seq"])
        for r in batch.to_pylist()
    ]
    assert rows == [
        ("delete", 1, None, True, 100),
        ("delete", 2, "old", False, 101),
        ("delete", 3, None, True, 102),
        ("update", 4, "new", False, 102),
        ("delete", 5, None, True, 103),
    ]


def test_each_layout_has_a_batch_and_what_is_no_row_has_none():
    other = {"table": 16401, "schema_id": 4}
    message = {"op": Op.MESSAGE, "table": 0, "schema_id": 0, "key": b"prefix", "after": b"content"}
    insert = {"op": Op.INSERT, "key": key(1), "after": row(1)}
    made = window(insert, message, {**other, "op": Op.INSERT, "key": b"\2k\0\1", "after": b"\2\2k"}, insert)
    batches = arrow.record_batches([made, made])
    assert [b.schema.metadata[b"walbus.table"] for b in batches] == [b"public.t", b"public.u"]
    assert [b.column("_walbus_seq").to_pylist() for b in batches] == [[100, 103, 100, 103], [102, 102]]
    assert arrow.record_batches([window(message)]) == []
