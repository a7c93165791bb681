"""Records as JSON lines."""

from __future__ import annotations

import json

import pytest

from walbus.jsonlines import LineRenderer
from walbus.keys import encode_key
from walbus.position import ORIGIN, Position
from walbus.records import ChangeFlag, Flag, Kind, Op, check_record, pack_change, pack_record
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

DOCS = TableSchema(
    3,
    16400,
    "public",
    "docs",
    ReplicaIdentity.DEFAULT,
    (Column("id", 20, "int8", -1, in_key=True), Column("body", 3802, "jsonb", -1, in_key=False),
     Column("at", 1184, "timestamptz", -1, in_key=False)),
)  # fmt: skip
HEAD = {"xid": 742, "commit_time": "2023-11-14T22:13:20.500000Z"}


def key(number: int) -> bytes:
    return encode_key([b"%d" % number], [20])


def insert(number: int, delta: int, table: int = 16400) -> bytes:
    after = row_encoder(DOCS).encode([b"%d" % number, b'{"n": 1e400}', b"2024-01-01 00:00:00+00"])
    return pack_change(
        Op.INSERT, table=table, schema_id=3, seq_delta=delta, ordinal_delta=delta, key=key(number), after=after
    )


def record(*changes: bytes, kind: Kind = Kind.TRANSACTION, flags: int = 3, first: int = 1, **fields: int) -> bytes:
    values = {
        "epoch": 1,
        "commit_lsn": 0x500,
        "last_ordinal": first + max(0, len(changes) - 1),
        "first_seq": 99 + first,
    }
    values |= {"last_seq": 99 + first + max(0, len(changes) - 1), "xid": 742, "commit_time": 1_700_000_000_500_000}
    body = b"".join(changes)
    return pack_record(kind, flags=flags, first_ordinal=first, count=len(changes), body=body, **{**values, **fields})


def renderer(after: Position = ORIGIN) -> LineRenderer:
    return LineRenderer({3: DOCS}.__getitem__, after=after)


def lines(*records: bytes, **options: object) -> list[dict[str, object]]:
    render = renderer(**options)
    text = b"".join(render.render(check_record(data), data) for data in records)
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def test_a_transaction_is_a_begin_its_changes_and_a_commit() -> None:
    render = renderer()
    data = record(insert(1, 0), insert(2, 1))
    row = b'"key":{"id":%d},"after":{"id":%d,"body":{"n": 1e400},"at":"2024-01-01T00:00:00Z"}}'
    head = b'{"op":"insert","position":"1:0/500:%d","seq":%d,"xid":742,"commit_time":"2023-11-14T22:13:20.500000Z",'
    head += b'"table":"public.docs","schema_id":3,'
    assert render.render(check_record(data), data).split(b"\n") == [
        b'{"op":"begin","xid":742,"position":"1:0/500:0","commit_time":"2023-11-14T22:13:20.500000Z"}',
        head % (1, 100) + row % (1, 1),
        head % (2, 101) + row % (2, 2),
        b'{"op":"commit","position":"1:0/500:2"}',
        b"",
    ]


def test_a_transaction_in_pieces_has_one_begin_and_one_commit() -> None:
    pieces = [
        record(insert(1, 0), flags=Flag.BEGIN),
        record(insert(2, 0), flags=0, first=2),
        record(insert(3, 0), flags=Flag.END, first=3),
    ]
    assert [line["op"] for line in lines(*pieces)] == ["begin", "insert", "insert", "insert", "commit"]


def test_a_transaction_without_a_change_leaves_no_line() -> None:
    assert lines(record()) == []


def test_a_transaction_begins_with_the_first_piece_that_has_a_change() -> None:
    pieces = [record(flags=Flag.BEGIN), record(insert(2, 0), flags=Flag.END, first=2)]
    seen = lines(*pieces)
    assert [(line["op"], line["position"]) for line in seen] == [
        ("begin", "1:0/500:0"),
        ("insert", "1:0/500:2"),
        ("commit", "1:0/500:2"),
    ]


def test_a_stream_resumed_in_the_middle_repeats_nothing() -> None:
    data = record(insert(1, 0), insert(2, 1))
    assert [line.get("seq") for line in lines(data, after=Position(1, 0x500, 1))] == [None, 101, None]
    assert lines(data, after=Position(1, 0x500, 2)) == []


def test_an_update_shows_both_keys_and_names_what_was_not_sent() -> None:
    encode = row_encoder(DOCS).encode
    change = pack_change(
        Op.UPDATE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, key=key(2), old_key=key(1),
        unchanged=b"\x02", after=encode([b"2", None, None]), before=encode([b"1", b"null", None]),
    )  # fmt: skip
    _, line, _ = lines(record(change))
    assert line == {
        **HEAD,
        "op": "update",
        "position": "1:0/500:1",
        "seq": 100,
        "table": "public.docs",
        "schema_id": 3,
        "key": {"id": 2},
        "old_key": {"id": 1},
        "after": {"id": 2, "at": None},
        "before": {"id": 1, "body": None, "at": None},
        "unchanged": ["body"],
    }


def test_a_delete_has_a_key_and_no_row() -> None:
    change = pack_change(Op.DELETE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, key=key(1))
    _, line, _ = lines(record(change))
    assert (line["op"], line["key"], "after" in line, "before" in line) == ("delete", {"id": 1}, False, False)


def test_a_truncate_names_its_table_and_options() -> None:
    change = pack_change(Op.TRUNCATE, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, flags=ChangeFlag.CASCADE)
    _, line, _ = lines(record(change))
    assert (line["table"], line["cascade"], line["restart_identity"]) == ("public.docs", True, False)


@pytest.mark.parametrize(
    ("content", "shown"),
    [("grüße\n".encode(), {"content": "grüße\n"}), (b"\x00\xff", {"content_hex": "\\x00ff"})],
)
def test_a_message_shows_its_content_as_text_or_hex(content: bytes, shown: dict[str, str]) -> None:
    change = pack_change(
        Op.MESSAGE, seq_delta=0, ordinal_delta=0, flags=ChangeFlag.TRANSACTIONAL, key=b"outbox", after=content
    )
    _, line, _ = lines(record(change))
    assert line == {**HEAD, "op": "message", "position": "1:0/500:1", "seq": 100, "transactional": True,
                    "prefix": "outbox", **shown}  # fmt: skip


def test_a_schema_event_carries_its_document() -> None:
    change = pack_change(Op.SCHEMA, table=16400, schema_id=3, seq_delta=0, ordinal_delta=0, after=b'{"id":\n3}')
    assert lines(record(change, kind=Kind.SCHEMA, flags=0, first=7)) == [
        {"op": "schema", "position": "1:0/500:7", "table": "public.docs", "schema_id": 3, "detail": {"id": 3}}
    ]


def test_an_epoch_event_has_no_table() -> None:
    change = pack_change(Op.EPOCH, seq_delta=0, ordinal_delta=0, after=b'{"timeline":2}')
    assert lines(record(change, kind=Kind.EPOCH, flags=0, first=7)) == [
        {"op": "epoch", "position": "1:0/500:7", "detail": {"timeline": 2}}
    ]


def test_progress_is_a_heartbeat() -> None:
    data = record(kind=Kind.PROGRESS, flags=0, first=0, last_ordinal=0)
    assert lines(data) == [{"op": "heartbeat", "position": "1:0/500:0"}]


def test_changes_of_a_delta_carry_its_position_and_the_end_is_told() -> None:
    delete = pack_change(Op.DELETE, table=16400, schema_id=3, seq_delta=41, ordinal_delta=0, key=key(2))
    place = {"first": 9, "last_ordinal": 9, "first_seq": 0, "last_seq": 77}
    data = record(insert(1, 40), delete, kind=Kind.DELTA, flags=Flag.END, **place)
    row, gone, end = lines(data)
    assert (row["op"], row["delta"], row["position"], row["seq"]) == ("insert", True, "1:0/500:9", 40)
    assert (gone["op"], gone["seq"], gone["key"]) == ("delete", 41, {"id": 2})
    assert end == {"op": "delta_end", "position": "1:0/500:9", "seq": 77}


def test_rows_of_a_snapshot_carry_its_position_and_the_end_is_told() -> None:
    data = record(insert(1, 40), kind=Kind.SNAPSHOT, flags=Flag.END, first=9, first_seq=0, last_seq=77)
    row, end = lines(data)
    assert (row["op"], row["snapshot"], row["position"], row["seq"]) == ("insert", True, "1:0/500:9", 40)
    assert end == {"op": "snapshot_end", "position": "1:0/500:9", "seq": 77}
    assert "xid" not in row
