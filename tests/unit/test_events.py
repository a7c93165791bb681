"""Records as windows of changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from walbus.events import window_of
from walbus.keys import encode_key
from walbus.position import ORIGIN, Position
from walbus.records import ChangeFlag, Flag, Kind, Op, check_record, pack_change, pack_record
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

ORDERS = TableSchema(
    3,
    16400,
    "public",
    "orders",
    ReplicaIdentity.DEFAULT,
    (Column("id", 23, "int4", -1, in_key=True), Column("a b", 25, "text", -1, in_key=False),
     Column("sum", 1700, "numeric", -1, in_key=False)),
)  # fmt: skip
SCHEMAS: Mapping[int, TableSchema] = {3: ORDERS}


def row(*texts: bytes | None) -> bytes:
    return row_encoder(ORDERS).encode(texts)


def key(number: int) -> bytes:
    return encode_key([b"%d" % number], [23])


def insert(number: int, delta: int, *, seq: int | None = None) -> bytes:
    return pack_change(
        Op.INSERT,
        table=16400,
        schema_id=3,
        seq_delta=delta if seq is None else seq,
        ordinal_delta=delta,
        key=key(number),
        after=row(b"%d" % number, b"x", None),
    )


def record(*changes: bytes, kind: Kind = Kind.TRANSACTION, flags: int = 3, first: int = 1, **fields: int) -> bytes:
    values = {"epoch": 1, "commit_lsn": 0x500, "last_ordinal": first + max(0, len(changes) - 1), "first_seq": 100}
    values |= {"last_seq": 100 + len(changes) - 1, "xid": 742, "commit_time": 1_700_000_000_500_000} | fields
    return pack_record(
        kind, flags=flags, first_ordinal=first, count=len(changes), origin=b"far", body=b"".join(changes), **values
    )


def window(data: bytes, after: Position = ORIGIN):
    return window_of(check_record(data), data, SCHEMAS.__getitem__, after=after)


def test_a_transaction_is_a_window_of_its_changes() -> None:
    seen = window(record(insert(1, 0), insert(2, 1), end_lsn=0x530))
    assert (seen.kind, seen.xid, seen.commit_lsn, seen.origin) == (Kind.TRANSACTION, 742, 0x500, "far")
    assert seen.commit_time == datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)
    assert (seen.begins, seen.ends, seen.last, seen.last_seq) == (True, True, Position(1, 0x500, 2), 101)
    assert [(change.position.ordinal, change.seq) for change in seen] == [(1, 100), (2, 101)]
    assert [change.after for change in seen] == [{"id": n, "a b": "x", "sum": None} for n in (1, 2)]
    assert [change.key for change in seen] == [{"id": 1}, {"id": 2}]
    assert len(seen) == 2
    assert {change.table for change in seen} == {"public.orders"}


def test_a_piece_says_whether_it_begins_or_ends_its_transaction() -> None:
    assert [(w.begins, w.ends) for w in (window(record(flags=f)) for f in (Flag.BEGIN, Flag(0), Flag.END))] == [
        (True, False),
        (False, False),
        (False, True),
    ]


def test_changes_that_were_done_are_left_out() -> None:
    data = record(insert(1, 0), insert(2, 1), insert(3, 2))
    assert [c.seq for c in window(data, Position(1, 0x500, 2))] == [102]
    assert [c.seq for c in window(data, Position(1, 0x500, 3))] == []
    assert [c.seq for c in window(data, Position(1, 0x4FF, 9))] == [100, 101, 102]
    assert window(data, Position(1, 0x500, 3)).last == Position(1, 0x500, 3)


def test_an_update_gives_both_keys_and_leaves_out_what_was_not_sent() -> None:
    change = pack_change(
        Op.UPDATE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, key=key(2), old_key=key(1),
        unchanged=b"\x02", after=row(b"2", None, b"1.50"), before=row(b"1", b"x", b"1"),
    )  # fmt: skip
    (seen,) = window(record(change))
    assert (seen.op, seen.key, seen.old_key, seen.unchanged) == (Op.UPDATE, {"id": 2}, {"id": 1}, {"a b"})
    assert set(seen.after) == {"id", "sum"}
    assert seen.after_texts() == {"id": "2", "sum": "1.50"}
    assert seen.before["a b"] == "x"


def test_columns_that_a_stream_left_out_are_told_apart_from_values_that_did_not_change() -> None:
    change = pack_change(
        Op.UPDATE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, key=key(2), flags=ChangeFlag.PROJECTED,
        unchanged=b"\x06\x04", after=row(b"2", None, None), before=row(b"2", b"x", None),
    )  # fmt: skip
    (seen,) = window(record(change))
    assert (seen.unchanged, seen.left_out) == ({"a b"}, {"sum"})
    assert (seen.after, seen.before, seen.after_texts()) == ({"id": 2}, {"id": 2, "a b": "x"}, {"id": "2"})


def test_a_delete_has_a_key_and_no_row() -> None:
    (seen,) = window(record(pack_change(Op.DELETE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, key=key(1))))
    assert (seen.key, seen.old_key, seen.after, seen.before, seen.after_texts()) == ({"id": 1}, None, None, None, None)
    assert seen.unchanged == frozenset()


def test_a_truncate_tells_its_options() -> None:
    flags = ChangeFlag.CASCADE | ChangeFlag.RESTART_IDENTITY
    change = pack_change(Op.TRUNCATE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, flags=flags)
    (seen,) = window(record(change))
    assert (seen.cascade, seen.restart_identity, seen.key) == (True, True, None)


def test_a_message_has_prefix_and_content_and_no_table() -> None:
    change = pack_change(Op.MESSAGE, seq_delta=0, ordinal_delta=0, key="préfix".encode(), after=b"\x00\xff")
    (seen,) = window(record(change))
    assert (seen.message, seen.table, seen.key, seen.after, seen.detail) == (
        ("préfix", b"\x00\xff"),
        "",
        None,
        None,
        None,
    )


def test_a_schema_event_is_given_again_at_the_position_where_one_resumes() -> None:
    change = pack_change(Op.SCHEMA, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, after=b'{"id":3}')
    data = record(change, kind=Kind.SCHEMA, flags=0, first=7)
    assert [c.detail for c in window(data, Position(1, 0x500, 7))] == [{"id": 3}]
    assert list(window(data, Position(1, 0x500, 8))) == []
    (seen,) = window(data)
    assert seen.message is None


def test_an_event_that_is_no_row_has_a_detail_and_no_row() -> None:
    change = pack_change(Op.SCHEMA, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, after=b'{"id":3}')
    (seen,) = window(record(change, kind=Kind.SCHEMA, flags=0, first=7))
    assert (seen.op, seen.table, seen.detail) == (Op.SCHEMA, "public.orders", {"id": 3})
    assert (seen.key, seen.old_key, seen.after, seen.before, seen.after_texts()) == (None, None, None, None, None)


def test_rows_of_a_snapshot_stand_at_its_position_with_their_own_seqs() -> None:
    data = record(insert(1, 0, seq=40), insert(2, 0, seq=7), kind=Kind.SNAPSHOT, first=9, first_seq=0, last_ordinal=9)
    seen = window(data, Position(1, 0x500, 9))
    assert [(c.position, c.seq) for c in seen] == [(Position(1, 0x500, 9), 40), (Position(1, 0x500, 9), 7)]


def test_progress_is_an_empty_window_up_to_its_position() -> None:
    data = record(kind=Kind.PROGRESS, flags=0, first=0, last_ordinal=0, last_seq=100)
    seen = window(data)
    assert (list(seen), seen.last, seen.kind) == ([], Position(1, 0x500, 0), Kind.PROGRESS)


def test_an_unknown_layout_is_the_callers_to_fetch() -> None:
    data = record(insert(1, 0))
    with pytest.raises(KeyError):
        window_of(check_record(data), data, {}.__getitem__)
