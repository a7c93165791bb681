"""What a stream may be asked for: parts of changes, places to begin and to end, server-sent events, compression."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import zstandard

from support import plain_http
from support.relay_log import BASE_TIME, commits, piece, progress, schema_piece, table_schema, transaction
from support.relay_server import Follower, Relay, fill, parsed, rows_of
from support.waiting import wait_for
from walbus.record_parser import RecordParser
from walbus.records import Flag, Kind, Op, iter_changes, key_hash, pack_change, read_header
from walbus.relay.content_coding import Gzip
from walbus.relay.feed import INLINE_BYTES
from walbus.relay.reader import FileLogReader
from walbus.values import row_encoder

pytestmark = pytest.mark.one_version

SSE = "text/event-stream"
LAST = 3200  # commit LSN of the last transaction that `fill` writes
WIDE = table_schema("wide", 7, ("id", "total", "note"))


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    made = fill(Relay(tmp_path))
    yield made
    made.close()


def events(body: bytes) -> list[dict[str, str]]:
    """Server-sent events as their fields; comments are left out."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = [line.split(": ", 1) for line in block.split("\n") if not line.startswith(":")]
        if fields:
            found.append(dict(fields))
    return found


def mixed_transaction(relay: Relay, lsn: int) -> None:
    """Orders, items, orders, items in four pieces of two changes each."""
    orders, items = relay.writer.schemas.all()[:2]
    flags = (Flag.BEGIN, Flag(0), Flag(0), Flag.END)
    for i, (schema, flag) in enumerate(zip((orders, items, orders, items), flags, strict=True)):
        rows = rows_of(schema, lsn, range(i * 10, i * 10 + 2))
        made = piece(lsn, 1 + 2 * i, 2, flag, table=schema.oid, schema_id=schema.id)
        relay.writer.append(dataclasses.replace(made, body=rows.body))
    relay.writer.sync()


# --- places -------------------------------------------------------------------------------------------------------


def test_a_seq_names_a_place_to_begin_and_to_end(relay):
    all_of_it = {header.commit_lsn: header for header in relay.headers("follow=false")}
    tenth, twentieth = all_of_it[160], all_of_it[320]
    for first in (tenth.first_seq, tenth.last_seq):
        headers = relay.headers(f"from=seq:{first}&until=seq:{twentieth.first_seq}")
        assert commits(headers) == list(range(160, 321, 16))
    _, body = relay.get(f"/v1/stream?from=seq:{tenth.last_seq}&until=1:0/A0:2&format=json&tables=public.none")
    assert [json.loads(line)["op"] for line in body.splitlines()] == ["begin", "commit"]


def test_a_time_ends_a_stream_before_the_first_transaction_committed_then(relay):
    at = (BASE_TIME + 1600) / 1e6
    assert commits(relay.headers(f"until={at:.6f}")) == list(range(16, 1600, 16))
    assert commits(relay.headers(f"from={at:.6f}&until={at + 16e-6:.6f}")) == [1600]


def test_a_time_that_is_still_to_come_ends_a_following_stream_when_it_comes(relay):
    follower = Follower(relay, f"until={(BASE_TIME + 4000) / 1e6:.6f}&follow=true&from=latest")
    relay.writer.append(transaction(3984))
    relay.writer.sync()
    wait_for(lambda: commits(follower.headers()) == [3984], what="what was committed before")
    relay.writer.append(transaction(4000))
    relay.writer.sync()
    wait_for(lambda: follower.ended == "whole", what="the end")
    assert commits(follower.headers()) == [3984]
    follower.close()


def test_a_time_behind_all_that_is_held_begins_at_the_end(relay):
    follower = Follower(relay, f"from={(BASE_TIME + 4000) / 1e6:.6f}&follow=true")
    wait_for(follower.headers, what="a sign of life")
    relay.writer.append(transaction(3984))
    relay.writer.sync()
    wait_for(lambda: commits(follower.headers()) == [3984], what="what comes next")
    follower.close()


def test_a_seq_that_is_trimmed_is_answered_with_the_way_out(relay):
    relay.engine.retention_bytes = 1
    first = relay.headers("follow=false")[0].first_seq
    for i in range(201, 2000):
        relay.writer.append(transaction(i * 16, 2, size=300))
    relay.writer.sync()
    relay.writer.trim(1e12)
    status, body = relay.json(f"/v1/stream?from=seq:{first}")
    assert (status, body["bootstrap"]) == (410, "http://127.0.0.1:7071")


def test_a_time_before_all_that_is_held_is_answered_with_the_way_out(relay):
    """As a position is: history that was asked for and is gone is told, and never left out silently."""
    relay.engine.retention_bytes = 1
    assert relay.get(f"/v1/stream?from={BASE_TIME / 1e6 - 3600:.6f}&follow=false")[0] == 200, "nothing was dropped yet"
    for i in range(201, 2000):
        relay.writer.append(transaction(i * 16, 2, size=300))
    relay.writer.sync()
    trimmed = relay.writer.trim(1e12)
    first, second = ((BASE_TIME + trimmed.commit_lsn + 16 * i) / 1e6 for i in (1, 2))
    for moment in (0.0, BASE_TIME / 1e6, first):  # what was dropped last may be as old as what is held first
        status, body = relay.json(f"/v1/stream?from={moment:.6f}&follow=false")
        assert (status, body["trimmed"], body["bootstrap"]) == (410, str(trimmed), "http://127.0.0.1:7071"), moment
    assert commits(relay.headers(f"from={second:.6f}&follow=false"))[0] == trimmed.commit_lsn + 32


def test_a_time_behind_the_last_that_was_dropped_is_held_where_nothing_is_left(relay):
    relay.engine.retention_bytes = 1
    relay.writer._roll()
    trimmed = relay.writer.trim(1e12)
    assert trimmed == relay.writer.bounds().end
    assert relay.get(f"/v1/stream?from={BASE_TIME / 1e6:.6f}&follow=false")[0] == 410
    assert relay.headers(f"from={time.time() + 60:.6f}&follow=false") == []


def test_the_earliest_place_is_where_retention_has_got_to_meanwhile(relay, monkeypatch):
    relay.engine.retention_bytes = 1
    for i in range(201, 2000):
        relay.writer.append(transaction(i * 16, 2, size=300))
    relay.writer.sync()
    stale, bounds = iter([relay.writer.bounds()]), FileLogReader.bounds
    relay.writer.trim(1e12)
    trimmed = relay.writer.bounds().trimmed
    monkeypatch.setattr(FileLogReader, "bounds", lambda reader: next(stale, None) or bounds(reader))
    status, body = relay.get("/v1/stream?from=earliest&follow=false")
    assert status == 200
    assert next(stale, None) is None
    assert commits([header for header, _ in parsed(body)])[0] == trimmed.commit_lsn + 16


# --- parts of changes ---------------------------------------------------------------------------------------------


def wide_rows(relay: Relay, lsn: int) -> None:
    """Insert, update and delete of a table with three columns."""
    schema, _ = relay.writer.schemas.register(WIDE)
    encoder = row_encoder(schema)
    row, key = encoder.encode([b"1", b"250", b"7"]), encoder.key([b"1"])
    ops = ((Op.INSERT, row), (Op.UPDATE, row), (Op.DELETE, None))
    body = b"".join(
        pack_change(op, table=7, schema_id=schema.id, seq_delta=i, ordinal_delta=i, key=key, after=after)
        for i, (op, after) in enumerate(ops)
    )
    relay.writer.append(schema_piece(lsn, 0, schema))
    made = piece(lsn, 1, 3, Flag.BEGIN | Flag.END, table=7, schema_id=schema.id)
    relay.writer.append(dataclasses.replace(made, body=body))
    relay.writer.sync()


def test_operations_may_be_chosen(relay):
    wide_rows(relay, 3216)
    for ops, expected in (("insert", [Op.INSERT]), ("update,delete", [Op.UPDATE, Op.DELETE]), ("truncate", [])):
        records = relay.records(f"ops={ops}&after=1:0/C80:2&follow=false")
        rows = [r for r in records if read_header(r).kind == Kind.TRANSACTION]
        assert [change.op for record in rows for change in iter_changes(record[96:])] == expected
        assert Kind.SCHEMA in [read_header(record).kind for record in records]
    _, body = relay.get("/v1/stream?ops=delete&after=1:0/C80:2&follow=false&format=json")
    assert [json.loads(line)["op"] for line in body.splitlines()] == ["schema", "begin", "delete", "commit"]


def test_columns_may_be_chosen(relay):
    wide_rows(relay, 3216)
    query = "columns=public.wide(total)&after=1:0/C80:2&follow=false"
    _, body = relay.get(f"/v1/stream?{query}&format=json")
    rows = [line for line in map(json.loads, body.splitlines()) if line["op"] in ("insert", "update", "delete")]
    assert [row.get("after") for row in rows] == [{"id": 1, "total": 250}, {"id": 1, "total": 250}, None]
    assert all(row["key"] == {"id": 1} for row in rows)
    record = next(r for r in relay.records(query) if read_header(r).kind == Kind.TRANSACTION)
    insert, update, delete = iter_changes(record[96:])
    expected = row_encoder(WIDE).encode([b"1", b"250", None])
    assert (insert.after, update.after, delete.after) == (expected, expected, None)
    assert (insert.unchanged, delete.unchanged) == (bytes([0b100, 0b100]), b"")
    assert read_header(record).flags & Flag.FILTERED


def test_a_filtered_stream_that_starts_inside_a_transaction_still_ends_its_window(relay):
    mixed_transaction(relay, 3216)
    for tables in ("public.orders", "public.items", "public.none"):
        for ordinal in range(2, 8):
            query = f"tables={tables}&after=1:0/C90:{ordinal}&follow=false"
            headers = [h for h in relay.headers(query) if h.kind == Kind.TRANSACTION]
            assert headers[-1].flags & Flag.END, query
            _, body = relay.get(f"/v1/stream?{query}&format=json")
            lines = [json.loads(line) for line in body.splitlines()]
            assert lines[0] | {"continues": True, "position": f"1:0/C90:{ordinal}"} == lines[0], query
            assert lines[-1] == {"op": "commit", "position": "1:0/C90:8"}
            assert all(int(line["position"].split(":")[2]) > ordinal for line in lines[1:])


# --- server-sent events -------------------------------------------------------------------------------------------


def test_events_carry_what_the_json_lines_carry(relay):
    mixed_transaction(relay, 3216)
    query = "/v1/stream?after=1:0/C80:2&follow=false"
    lines = [json.loads(line) for line in relay.get(f"{query}&format=json")[1].splitlines()]
    log_id = relay.writer.bounds().log_id
    for body in (relay.get(f"{query}&format=sse")[1], relay.get(query, Accept=SSE)[1]):
        assert body.startswith(b"retry: ")
        sent = events(body)[1:]
        assert [json.loads(event["data"]) for event in sent] == lines
        named = {"begin", "commit"}
        assert [event.get("event") for event in sent] == [x["op"] if x["op"] in named else None for x in lines]
        ids = [event.get("id") for event in sent]
        unsaid = [x["op"] == "insert" and x["position"].endswith(":8") for x in lines]
        positions = [f"{line['position']}@{log_id}" for line in lines]
        assert ids == [None if skip else position for skip, position in zip(unsaid, positions, strict=True)]


def test_a_browser_that_connects_again_after_any_event_misses_nothing(relay):
    mixed_transaction(relay, 3216)
    relay.writer.append(rows_of(relay.writer.schemas.get(1), 3232, range(3)))
    relay.writer.sync()
    for tables in ("*.*", "public.orders", "public.none"):
        query = f"/v1/stream?after=1:0/C80:2&follow=false&tables={tables}"
        whole = events(relay.get(query, Accept=SSE)[1])[1:]
        for cut in range(len(whole) + 1):
            last_id = next((event["id"] for event in reversed(whole[:cut]) if "id" in event), None)
            again = relay.get(query, Accept=SSE, **({"Last-Event-ID": last_id} if last_id else {}))[1]
            assert replayed(whole[:cut] + events(again)[1:]) == replayed(whole), (tables, cut)


def replayed(sent: list[dict[str, str]]) -> list[list[str]]:
    """The windows that a page makes of events, by the rule that docs/relay.md gives it."""
    windows, window = [], []
    for event in sent:
        line = json.loads(event["data"])
        if line["op"] == "begin":
            held = window if line.get("continues") else []
            window = [p for p in held if ordinal(p) <= ordinal(line["position"])]
        elif line["op"] == "commit":
            windows.append(window)
            window = []
        elif line["op"] == "insert":
            window.append(line["position"])
    assert not window
    return windows


def ordinal(position: str) -> int:
    return int(position.rpartition(":")[2])


def test_a_quiet_page_is_told_how_far_the_log_is_and_otherwise_kept_alive(relay):
    follower = Follower(relay, "tables=public.none&from=latest", Accept=SSE)
    wait_for(lambda: b"\n: alive\n\n" in follower.body, what="a comment")
    relay.writer.append(transaction(3216))
    relay.writer.sync()
    wait_for(lambda: follower.body.count(b"event: heartbeat") == 2, what="a heartbeat")
    told = [event["id"] for event in events(follower.body) if event.get("event") == "heartbeat"]
    log_id = relay.writer.bounds().log_id
    assert told == [f"1:0/C80:2@{log_id}", f"1:0/C90:1@{log_id}"]
    follower.close()


@pytest.mark.parametrize(
    ("last_id", "status"), [("x", 400), ("1:0/C90:1@0123", 409), ("1:0/10:1", 200), ("", 200), ("1:0/FFFFF:1", 409)]
)
def test_a_last_event_id_is_judged_as_a_position_is(relay, last_id, status):
    answer, body = relay.get("/v1/stream?follow=false&tables=public.none", Accept=SSE, **{"Last-Event-ID": last_id})
    assert answer == status
    assert status == 200 or json.loads(body)["error"]


# --- compression --------------------------------------------------------------------------------------------------


def coded(relay: Relay, query: str, accept: str) -> tuple[str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)
    connection.request("GET", f"/v1/stream?{query}", headers={"Accept-Encoding": accept})
    response = connection.getresponse()
    assert response.status == 200
    found = response.headers["Content-Encoding"], response.read()
    connection.close()
    return found


def plain(coding: str | None, body: bytes) -> bytes:
    if coding == "gzip":
        return zlib.decompress(body, wbits=31)
    if coding is None:
        return body
    assert coding == "zstd"
    return zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read()


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", None),
        ("identity", None),
        ("gzip, deflate, br, zstd", "gzip"),
        ("zstd", "zstd"),
        ("gzip;q=0.5, zstd", "zstd"),
        ("gzip", "gzip"),
        ("zstd;q=0.5, gzip", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0, zstd;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("br", None),
        ("gzip;q=x", None),
    ],
)
def test_compression_is_what_the_client_wants(relay, accept, coding):
    whole = relay.get("/v1/stream?follow=false")[1]
    found, body = coded(relay, "follow=false", accept)
    assert found == coding
    assert plain(found, body) == whole
    assert len(body) <= len(whole)


def test_browsers_get_gzip(relay):
    found, body = coded(relay, "follow=false&format=sse&tables=public.none", "gzip, deflate, br, zstd")
    assert found == "gzip"
    assert b"event: heartbeat" in plain(found, body)


def test_a_client_that_offers_zstd_among_others_reads_every_block_of_a_stream(relay):
    """httpx offers zstd beside gzip, and fails at a second frame."""
    blocks = 0
    url = f"http://127.0.0.1:{relay.port}/v1/stream?from=latest&format=json"
    with plain_http.stream("GET", url) as response:
        assert "zstd" in response.request.headers["Accept-Encoding"]
        for text in response.iter_text():
            blocks += "heartbeat" in text
            if blocks == 3:
                break


@pytest.mark.parametrize("accept", ["gzip", "zstd"])
def test_a_compressed_follower_gets_each_change_at_once(relay, accept):
    follower = Follower(relay, "from=latest&format=json", **{"Accept-Encoding": accept})

    def text() -> bytes:
        if accept == "zstd":
            return zstandard.ZstdDecompressor().stream_reader(follower.body, read_across_frames=True).read()
        return zlib.decompressobj(wbits=31).decompress(follower.body)

    wait_for(lambda: text().count(b"heartbeat") >= 2, what="heartbeats")
    for i in range(1, 6):
        relay.writer.append(rows_of(relay.writer.schemas.get(1), LAST + i * 16, range(3)))
        relay.writer.sync()
        wait_for(lambda i=i: text().count(b'"commit"') == i, what="the transaction")
    follower.close()


# --- feeds --------------------------------------------------------------------------------------------------------


def test_followers_of_every_form_get_the_same_from_their_feeds_as_by_themselves(relay):
    forms = ("", "tables=public.orders", "format=json", "format=json&tables=public.items", "ops=insert", "format=sse")
    pairs = [
        (
            form,
            Follower(relay, f"from=latest&{form}"),
            Follower(relay, f"from=latest&{form}&until=1:0/FFFF:1&follow=true"),
        )
        for form in forms
    ]
    for i in range(1, 101):
        relay.writer.append(rows_of(relay.writer.schemas.get(1 + i % 2), LAST + i * 16, range(i, i + 2)))
        if i % 7 == 0:
            relay.writer.sync()
    mixed_transaction(relay, 0xFFF0)
    relay.writer.append(progress(0x10000))
    relay.writer.append(rows_of(relay.writer.schemas.get(1), 0x10010, range(2)))
    relay.writer.sync()
    for form, member, alone in pairs:
        wait_for(lambda alone=alone: alone.ended == "whole", what=f"the end of the bounded stream of {form!r}")
        expected = meaning(form, alone.body)
        assert expected
        wait_for(lambda f=form, m=member, e=expected: meaning(f, m.body)[: len(e)] == e, what=f"the same in {form!r}")
        member.close()
        alone.close()


def meaning(form: str, body: bytes) -> list[object]:
    """What a body says of transactions: heartbeats are left out, as they come when they come."""
    if "json" in form:
        return [line for line in body.split(b"\n")[:-1] if b'"op":"heartbeat"' not in line]
    if "sse" in form:
        return [event for event in body.split(b"\n\n")[:-1] if b"heartbeat" not in event and b": alive" not in event]
    return [bytes(record) for header, record in parsed_so_far(body) if header.kind == Kind.TRANSACTION]


def parsed_so_far(body: bytes) -> list:
    parser = RecordParser()
    parser.feed(body)
    return list(parser.records())


def test_many_followers_share_one_reading_of_the_log(relay):
    followers = [Follower(relay, f"from=latest&name=f{i}") for i in range(20)]
    wait_for(lambda: all(f.headers() for f in followers), what="a heartbeat for each")
    wait_for(lambda: 1 <= readings(relay) <= 3, what="all to be members")
    for i in range(1, 51):
        relay.writer.append(transaction(LAST + i * 16))
        relay.writer.sync()
    expected = [LAST + i * 16 for i in range(1, 51)]
    for follower in followers:
        wait_for(lambda f=follower: commits(f.headers()) == expected, what="every transaction")
        follower.close()


def readings(relay: Relay) -> int:
    """Segments that the server has open."""
    segments = [target for target in open_files() if target.endswith(".seg")]
    return sum(target.startswith(str(relay.engine.folder)) for target in segments) - 1  # the writer's


def open_files() -> list[str]:
    """What this process, in which the server runs, has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found


def test_an_old_client_that_knows_no_chunks_can_follow(relay):
    with socket.create_connection(("127.0.0.1", relay.port), 20) as client:
        client.sendall(b"GET /v1/stream?from=1:0/C80:1&until=1:0/C90:1&follow=true HTTP/1.0\r\n\r\n")
        relay.writer.append(transaction(3216))
        relay.writer.sync()
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert commits([header for header, _ in parsed(body)]) == [3200, 3216]


# --- partitions ---------------------------------------------------------------------------------------------------


def moving_rows(relay: Relay, lsn: int) -> None:
    """Two rows inserted, one of which gets a key of the other partition of two."""
    schema, _ = relay.writer.schemas.register(WIDE)
    encoder = row_encoder(schema)
    keys = [encoder.key([b"%d" % number]) for number in range(20)]
    even, odd = (next(n for n in range(20) if key_hash(keys[n]) % 2 == half) for half in (0, 1))
    new = next(n for n in range(20) if key_hash(keys[n]) % 2 == 1 and n != odd)

    def change(op: Op, i: int, number: int, old: bytes | None = None) -> bytes:
        row = encoder.encode([b"%d" % number, b"250", b"7"])
        return pack_change(
            op, table=7, schema_id=schema.id, seq_delta=i, ordinal_delta=i, key=keys[number], old_key=old, after=row
        )  # fmt: skip

    body = change(Op.INSERT, 0, even) + change(Op.INSERT, 1, odd) + change(Op.UPDATE, 2, new, keys[even])
    relay.writer.append(schema_piece(lsn, 0, schema))
    made = piece(lsn, 1, 3, Flag.BEGIN | Flag.END, table=7, schema_id=schema.id)
    relay.writer.append(dataclasses.replace(made, body=body))
    relay.writer.sync()


def test_a_row_whose_key_moves_to_another_partition_is_deleted_in_the_one_that_it_leaves(relay):
    moving_rows(relay, 3216)
    query = "after=1:0/C80:2&follow=false&partition={}/2"
    seen = []
    for part in (0, 1):
        records = relay.records(query.format(part))
        (rows,) = (record for record in records if read_header(record).kind == Kind.TRANSACTION)
        assert Kind.SCHEMA in [read_header(record).kind for record in records]
        seen.append([Op(change.op).name for change in iter_changes(rows[96:])])
        _, body = relay.get(f"/v1/stream?{query.format(part)}&format=json")
        lines = [json.loads(line)["op"] for line in body.splitlines()]
        assert lines == ["schema", "begin", *(name.lower() for name in seen[-1]), "commit"]
        _, body = relay.get(f"/v1/stream?{query.format(part)}&format=sse")
        assert body.count(b"data: ") == len(lines)
    assert seen == [["INSERT", "DELETE"], ["INSERT", "UPDATE"]]


@pytest.mark.parametrize("text", ["", "1", "1/0", "2/2", "-1/2", "1/2/3", "a/b", "0/100000", "\u0660/\u0662"])
def test_a_partition_that_does_not_exist_is_refused_by_its_parameter(relay, text):
    status, body = relay.get(f"/v1/stream?partition={quote(text)}&follow=false")
    assert (status, json.loads(body)["where"]) == (400, "partition")


def test_a_large_block_is_compressed_beside_the_loop(relay, monkeypatch):
    """Milliseconds for each block of each client would be milliseconds in which nobody is served."""
    made: dict[bool, set[str]] = {True: set(), False: set()}
    block = Gzip.block

    def watched(coding: Gzip, data: bytes) -> bytes:
        made[len(data) > INLINE_BYTES].add(threading.current_thread().name)
        return block(coding, data)

    monkeypatch.setattr(Gzip, "block", watched)
    status, body = relay.get("/v1/stream?follow=false&ops=insert", **{"Accept-Encoding": "gzip"})
    assert status == 200
    found = parsed(zlib.decompress(body, wbits=31))
    assert len(commits([header for header, _ in found])) == 200
    assert made[True]
    assert all(name.startswith("walbus-read") for name in made[True])
