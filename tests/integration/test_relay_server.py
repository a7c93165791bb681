"""The relay's server over a real socket: what it streams, how it refuses, and what a bad client cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import BASE_TIME, FileEngine, commits, piece, progress, schema_piece, table_schema, transaction
from support.relay_server import BOOTSTRAP, Follower, Relay, fill, parsed, rows_of
from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.errors import ConfigError, DamagedRecord
from walbus.log import SourceIdentity
from walbus.position import Position, parse_position
from walbus.records import Flag, Kind, iter_changes, read_header
from walbus.relay import serve_relay
from walbus.relay.delivery import Delivery

pytestmark = pytest.mark.one_version


@pytest.fixture
def empty_relay(tmp_path: Path) -> Iterator[Relay]:
    made = Relay(tmp_path)
    yield made
    made.close()


@pytest.fixture
def relay(empty_relay: Relay) -> Relay:
    return fill(empty_relay)


def test_without_a_log_the_server_lives_and_is_not_ready(empty_relay):
    assert empty_relay.json("/healthz") == (200, {"alive": True})
    for path in ("/readyz", "/v1/stream", "/v1/info", "/v1/schemas"):
        status, body = empty_relay.json(path)
        assert status == 503
        assert "walbus capture" in body["mend"]
    writer = empty_relay.engine.open_writer()
    wait_for(lambda: empty_relay.get("/readyz")[0] == 200, what="the server to find the log")
    assert empty_relay.json("/v1/info")[1]["log_id"] == writer.bounds().log_id


def test_an_unfiltered_stream_is_the_logs_own_bytes(relay):
    (segment, *_) = relay.engine.segments()
    _, body = relay.get("/v1/stream?from=earliest&until=latest")
    assert body.startswith(segment.read_bytes()[128:])
    assert commits([header for header, _ in parsed(body)]) == [i * 16 for i in range(1, 201)]


def test_a_stream_whose_peer_takes_everything_leaves_the_loop_to_others_between_segments(empty_relay, monkeypatch):
    """Each step was made at once, and the whole log was sent before anybody else was heard."""
    stepped, steps, heard = Delivery.step, [], []

    def step(delivery):
        if not steps:
            asyncio.get_running_loop().call_soon(lambda: heard.append(len(steps)))
        steps.append(delivery)
        return stepped(delivery)

    empty_relay.engine.segment_bytes = 8 << 10
    relay = fill(empty_relay)
    monkeypatch.setattr(Delivery, "step", step)
    _, body = relay.get("/v1/stream?from=earliest&until=latest")
    assert len(parsed(body)) == 200
    assert len(steps) > 3
    assert heard == [1]


@pytest.mark.parametrize(
    ("query", "first", "last"),
    [
        ("after=1:0/100:2&until=latest", 0x110, 3200),
        ("from=1:0/100:1&until=latest", 0x100, 3200),
        ("from=1:0/100:2&until=1:0/200:1", 0x100, 0x200),
        ("after=1:0/100:0&until=1:0/200:2", 0x100, 0x200),
        ("follow=false", 16, 3200),
        ("after=1:0/C70:2&from=earliest&follow=false", 3200, 3200),
        (f"from={(BASE_TIME + 1600) / 1e6:.6f}&until=latest", 1600, 3200),
        ("until=1:0/FFFF:1&follow=false&from=earliest", 16, 3200),
    ],
)
def test_a_bounded_stream_begins_and_ends_where_it_was_asked_to(relay, query, first, last):
    assert commits(relay.headers(query)) == list(range(first, last + 1, 16))


def test_a_bounded_stream_with_nothing_in_it_ends_at_once(relay):
    assert relay.records("from=latest&until=latest") == []


def test_a_follower_gets_what_becomes_durable_and_a_sign_of_life_every_second(relay):
    follower = Follower(relay, "name=cache")
    wait_for(lambda: len(follower.headers()) >= 2, what="two heartbeats")
    assert {header.kind for header in follower.headers()} == {Kind.PROGRESS}
    assert follower.headers()[0].last == Position(1, 3200, 2)
    relay.writer.append(transaction(3216))
    relay.writer.sync()
    wait_for(lambda: 3216 in commits(follower.headers()), what="the transaction")
    assert relay.json("/v1/info")[1]["streams"] == [{"name": "cache", "scanned": "1:0/C90:1"}]
    follower.close()
    wait_for(lambda: relay.json("/v1/info")[1]["streams"] == [], what="the server to see that it hung up")


def test_a_filtered_stream_has_those_tables_whole_windows_and_the_same_positions(relay):
    unfiltered = {header.last: header for header in relay.headers("follow=false")}
    for pattern, parity in (("public.orders", 0), ("public.items", 1), ("*.items", 1)):
        headers = relay.headers(f"tables={pattern}&follow=false")
        wanted = [header for header in headers if header.kind == Kind.TRANSACTION]
        assert commits(headers) == [i * 16 for i in range(1, 201) if i % 2 == parity]
        assert all(unfiltered[header.last] == header for header in wanted)
        assert headers[-1].last == Position(1, 3200, 2)  # progress tells the end even if the last one is left out


def test_several_tables_may_be_named_in_one_parameter_or_in_many(relay):
    everything = commits(relay.headers("follow=false"))
    for query in ("tables=public.orders,public.items", "tables=public.orders&tables=public.items", "tables=public.*"):
        assert commits(relay.headers(f"{query}&follow=false")) == everything
    headers = relay.headers("tables=public.nothing&follow=false")
    assert [(header.kind, header.last) for header in headers] == [(Kind.PROGRESS, Position(1, 3200, 2))]


def test_a_reader_that_filters_everything_out_still_advances(relay):
    follower = Follower(relay, "tables=public.nothing&from=earliest")
    wait_for(lambda: follower.headers() and follower.headers()[-1].last == Position(1, 3200, 2), what="progress")
    relay.writer.append(transaction(3216))
    relay.writer.append(progress(9999))
    relay.writer.sync()
    wait_for(lambda: follower.headers()[-1].last == Position(1, 9999, 0), what="progress")
    assert {header.kind for header in follower.headers()} == {Kind.PROGRESS}
    follower.close()


def test_a_mixed_transaction_keeps_its_bounds_when_filtered(relay):
    writer = relay.writer
    writer.append(piece(3216, 1, 2, Flag.BEGIN, table=2, schema_id=2))
    writer.append(piece(3216, 3, 2, 0, table=1, schema_id=1))
    writer.append(piece(3216, 5, 2, 0, table=2, schema_id=2))
    writer.append(piece(3216, 7, 2, Flag.END, table=2, schema_id=2))
    writer.sync()
    records = relay.records("tables=public.orders&after=1:0/C80:2&follow=false")
    headers = [read_header(record) for record in records]
    assert commits(headers) == [3216]
    assert [(h.flags, h.count) for h in headers] == [(Flag.BEGIN | Flag.FILTERED, 2), (Flag.END | Flag.FILTERED, 0)]
    changes = list(iter_changes(records[0][96:]))
    assert [change.table for change in changes] == [1, 1]
    assert headers[0].first_seq + changes[0].seq_delta == headers[0].first_seq
    assert headers[1].end_lsn == 3224


def test_a_table_that_appears_later_passes_the_filter(relay):
    follower = Follower(relay, "tables=public.late")
    late, _ = relay.writer.schemas.register(table_schema("late", 3))
    relay.writer.append(schema_piece(3216, 0, late))
    relay.writer.append(transaction(3216, 1, table=3, schema_id=late.id))
    relay.writer.sync()
    wait_for(lambda: commits(follower.headers()) == [3216], what="the new table's change")
    assert Kind.SCHEMA in [header.kind for header in follower.headers()]
    follower.close()


@pytest.mark.parametrize("asked", [{"Accept": "application/x-ndjson"}, {}], ids=["by-header", "by-parameter"])
def test_json_lines_carry_every_change_once_and_in_order(relay, asked):
    orders, items = relay.writer.schemas.all()
    for i in range(1, 101):
        relay.writer.append(rows_of(orders if i % 2 else items, 3200 + i * 16, range(i * 10, i * 10 + 3)))
    relay.writer.sync()
    query = "after=1:0/C80:2&follow=false" + ("" if asked else "&format=json")
    status, body = relay.get(f"/v1/stream?{query}", **asked)
    assert status == 200
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["op"] for line in lines] == ["begin", "insert", "insert", "insert", "commit"] * 100
    rows = [line for line in lines if line["op"] == "insert"]
    assert [row["after"]["id"] for row in rows] == [i * 10 + j for i in range(1, 101) for j in range(3)]
    assert all(a["seq"] < b["seq"] for a, b in itertools.pairwise(rows))
    only = relay.get(f"/v1/stream?{query}&tables=public.items", **asked)[1]
    kept = [json.loads(line) for line in only.splitlines()]
    assert [line for line in kept if line["op"] == "insert"] == [r for r in rows if r["table"] == "public.items"]


def test_json_lines_of_nothing_still_say_how_far_they_looked(relay):
    _, body = relay.get("/v1/stream?tables=public.nothing&from=earliest&follow=false&format=json")
    assert [json.loads(line) for line in body.splitlines()] == [{"op": "heartbeat", "position": "1:0/C80:2"}]


def test_a_position_that_is_gone_is_answered_with_the_way_out(relay):
    relay.engine.retention_bytes = 1
    for i in range(201, 2000):
        relay.writer.append(transaction(i * 16, 2, size=300))
    relay.writer.sync()
    trimmed = relay.writer.trim(1e12)
    status, body = relay.json("/v1/stream?after=1:0/10:1")
    assert status == 410
    assert body["bootstrap"] == BOOTSTRAP
    assert body["log_id"] == relay.writer.bounds().log_id
    assert parse_position(body["trimmed"]) == trimmed
    assert body["error"]
    assert body["mend"]
    assert commits(relay.headers(f"after={trimmed}&until=latest"))[-1] == 1999 * 16
    assert commits(relay.headers("from=earliest&until=latest"))[-1] == 1999 * 16


def test_another_log_and_a_position_past_the_end_are_conflicts(relay):
    log_id = relay.writer.bounds().log_id
    for query in ("log_id=0123", "after=1:0/FFFF:1", f"after=1:0/FFFF:1&log_id={log_id}&follow=false"):
        status, body = relay.json(f"/v1/stream?{query}")
        assert status == 409, query
        assert body["log_id"] == log_id


def test_a_position_past_the_end_of_the_same_log_waits_for_it(relay):
    log_id = relay.writer.bounds().log_id
    answers = []
    query = f"after=1:0/C90:1&log_id={log_id}&until=1:0/CA0:1&follow=true"
    thread = threading.Thread(target=lambda: answers.append(relay.headers(query)))
    thread.start()
    for i in (201, 202):
        relay.writer.append(transaction(i * 16))
        relay.writer.sync()
    thread.join(60)
    assert [header.last for header in answers[0] if header.kind == Kind.TRANSACTION] == [Position(1, 202 * 16, 1)]
    assert {header.last for header in answers[0] if header.kind == Kind.PROGRESS} <= {Position(1, 0xC90, 1)}


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("binary", None),
        ("json", b'{"op":"heartbeat","position":"1:0/C90:1"}\n'),
        ("sse", b"event: heartbeat\ndata: "),
    ],
)
def test_who_is_ahead_of_the_log_is_answered_at_once_and_told_that_somebody_is_there(relay, form, told):
    log_id = relay.writer.bounds().log_id
    follower = Follower(relay, f"after=1:0/C90:1&log_id={log_id}&format={form}")
    assert follower.response.headers["Walbus-Position"] == "1:0/C90:1"
    if told is None:
        wait_for(lambda: len(follower.headers()) >= 2, what="two signs of life")
        assert {(h.kind, h.last, h.flags) for h in follower.headers()} == {(2, Position(1, 0xC90, 1), Flag.FILTERED)}
    else:
        wait_for(lambda: follower.body.count(told) and len(follower.body) > 2 * len(told), what="signs of life")
    orders = relay.writer.schemas.all()[0]
    for i in (201, 202):
        relay.writer.append(rows_of(orders, i * 16, range(1)))
        relay.writer.sync()
    wait_for(lambda: b"0/CA0" in follower.body or commits(follower.headers())[-1:] == [0xCA0], what="what is behind")
    assert not follower.ended


def test_who_stays_ahead_of_the_log_is_sent_away_with_a_broken_connection(relay, monkeypatch):
    monkeypatch.setattr("walbus.relay.ahead.WAIT_SECONDS", 0.3)
    follower = Follower(relay, f"after=1:0/C90:1&log_id={relay.writer.bounds().log_id}")
    wait_for(lambda: follower.ended, what="the relay to give up")
    assert follower.ended != "whole"
    status, _ = relay.json(f"/v1/stream?after=1:0/C90:1&log_id={relay.writer.bounds().log_id}&columns=public.orders(x)")
    assert status == 400, "what is asked for wrongly is told before the wait"


def test_a_place_that_cannot_be_read_from_when_it_is_reached_breaks_the_connection(relay, monkeypatch):
    async def reached(*_: object) -> bool:
        return True

    monkeypatch.setattr("walbus.relay.streams.log_reaches", reached)
    follower = Follower(relay, f"after=1:0/C90:1&log_id={relay.writer.bounds().log_id}")
    wait_for(lambda: follower.ended, what="the end")
    assert follower.ended != "whole"


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("after=x", "after"),
        ("until=1:2:3", "until"),
        ("from=yesterday", "from"),
        ("follow=maybe", "follow"),
        ("tables=orders", "tables"),
        ("tables=public.", "tables"),
        ("format=xml", "format"),
        ("name=..%2f..%2fetc", "name"),
        ("name=a%00b", "name"),
        ("unknown=1", "unknown"),
        ("after=1:0/0:0&after=1:0/0:0", "after"),
    ],
)
def test_a_bad_parameter_is_named(relay, query, where):
    status, body = relay.json(f"/v1/stream?{query}")
    assert (status, body["where"]) == (400, where)
    assert body["error"]


def test_refusals_are_json_whatever_was_asked(relay):
    for path in ("/", "/v1", "/v1/schemas/x", "/v1/schemas/0", "/v1/schemas/..%2f..%2fetc", "/v1/schemas/99999999999"):
        status, body = relay.json(path)
        assert status == 404
        assert body["error"]
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=10)
    connection.request("DELETE", "/v1/stream", body=b"x" * 1000)
    response = connection.getresponse()
    assert response.status == 405
    assert json.loads(response.read())["error"]
    connection.close()


def test_schemas_come_with_their_avro_form(relay):
    status, one = relay.json("/v1/schemas/2")
    assert status == 200
    assert one["schema"]["name"] == "items"
    assert one["avro"]["type"] == "record"
    assert relay.json("/v1/schemas")[1]["schemas"][1] == one


def test_info_and_metrics_show_the_log_and_the_rooms(relay):
    (relay.status_dir / "capture.json").write_text('{"walbus_capture_changes_total": 7, "state": "streaming"}')
    (relay.status_dir / "consumer-cache.json").write_text('{"walbus_consumer_lag_seconds": 0.5}')
    (relay.status_dir / "bootstrap.json").write_text('{"walbus_bootstrap_rows": {"public.orders": 3}}')
    info = relay.json("/v1/info")[1]
    bounds = relay.writer.bounds()
    assert SourceIdentity(**info["source"]) == relay.engine.open_reader().source
    assert (info["end"], info["last_seq"], info["bytes"]) == (str(bounds.end), bounds.last_seq, bounds.bytes)
    assert info["capture"]["state"] == "streaming"
    assert list(info["consumers"]) == ["cache"]
    text = relay.get("/metrics")[1].decode()
    for line in (
        f"walbus_log_bytes {float(bounds.bytes)}",
        "walbus_capture_changes_total 7.0",
        'walbus_consumer_lag_seconds{consumer="cache"} 0.5',
        'walbus_bootstrap_rows{table="public.orders"} 3.0',
        'walbus_relay_requests_total{route="/v1/info",status="200"} 1.0',
    ):
        assert line in text


def test_a_reader_that_stopped_reading_delays_nobody_and_holds_little(relay):
    stopped = socket.create_connection(("127.0.0.1", relay.port))
    stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stopped.sendall(b"GET /v1/stream?from=earliest&name=stopped HTTP/1.1\r\nHost: localhost\r\n\r\n")
    follower = Follower(relay, "name=live")
    lsn = 3216
    for _ in range(300):  # some 20 MB, which no socket's buffer holds
        relay.writer.append(transaction(lsn, 1, size=65_000))
        lsn += 16
        if lsn % 160 == 0:
            relay.writer.sync()
    relay.writer.sync()
    wait_for(lambda: follower.received > 300 * 65_000, deadline=60, what="the live follower to have it all")

    def scanned() -> dict[str, int]:
        streams = relay.json("/v1/info")[1]["streams"]
        return {stream["name"]: parse_position(stream["scanned"]).commit_lsn for stream in streams}

    wait_for(lambda: scanned()["live"] == lsn - 16, what="the server to count the last of it")  # once it was sent
    assert scanned()["stopped"] < lsn - 16
    follower.close()
    stopped.close()
    wait_for(lambda: relay.json("/v1/info")[1]["streams"] == [], what="the server to see that both hung up")


def test_a_header_that_trickles_in_is_cut_off(relay, monkeypatch):
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", relay.port)) as slow:
        slow.settimeout(0.2)
        slow.sendall(b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n")

        def closed() -> bool:
            try:
                slow.sendall(b"X-More: 1\r\n")
                return slow.recv(10) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_for(closed, deadline=60, what="the server to hang up")
    assert time.monotonic() - started < 15
    assert relay.get("/healthz")[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 500 + b"\r\n",
        b"GET /v1/info HTTP/9.9\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["huge-header", "huge-path", "many-headers", "odd-version", "binary", "smuggling"],
)
def test_hostile_heads_are_refused(relay, head):
    with socket.create_connection(("127.0.0.1", relay.port)) as client:
        client.settimeout(30)
        client.sendall(head)
        assert client.recv(100).split(b" ")[1].startswith(b"4")
    assert relay.get("/healthz")[0] == 200


def test_damage_in_the_log_breaks_the_stream_and_never_ends_it_cleanly(relay, capsys):
    path = relay.engine.segments()[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    follower = Follower(relay, "from=earliest&until=latest")
    wait_for(lambda: follower.ended, what="the stream to end")
    assert follower.ended != "whole"
    assert 0 < len(commits(follower.headers())) < 200
    assert str(path) in capsys.readouterr().out
    follower.close()


def test_a_stream_that_fails_in_its_middle_is_broken_off_and_gets_no_second_answer(relay, monkeypatch):
    step, calls = Delivery.step, itertools.count()

    def fail_later(delivery):
        if next(calls):
            raise OSError(errno.EIO, "Input/output error")
        return step(delivery)

    monkeypatch.setattr(Delivery, "step", fail_later)
    with socket.create_connection(("127.0.0.1", relay.port), 20) as client:
        client.sendall(b"GET /v1/stream?from=earliest&follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while block := client.recv(1 << 16):
                answer += block
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"\r\n0\r\n\r\n")


def test_stopping_breaks_bounded_streams_and_takes_little_time(tmp_path, monkeypatch):
    monkeypatch.setattr("walbus.relay.listener.GRACE_SECONDS", 600.0)  # which those that do not end are waited for
    relay = Relay(tmp_path)
    relay.engine.open_writer()
    wait_for(lambda: relay.get("/readyz")[0] == 200)
    followers = [Follower(relay, "follow=true") for _ in range(5)]
    started = time.monotonic()
    relay.close()
    assert time.monotonic() - started < 60
    for follower in followers:
        wait_for(lambda f=follower: f.ended, what="the stream to end")
        assert follower.ended != "whole"
        follower.close()


def test_a_log_that_cannot_be_read_ends_the_server_with_its_error(tmp_path):
    engine = FileEngine(tmp_path / "log")
    engine.open_writer().close()
    (path,) = engine.folder.glob("manifest-*.json")
    path.write_bytes(b"garbage")
    config = RelayConfig(listen="127.0.0.1:0")
    with pytest.raises(DamagedRecord, match="manifest"):
        serve_relay(engine.folder, config, bootstrap_url=None, status_dir=tmp_path, stop=threading.Event())


@pytest.mark.parametrize("listen", ["0.0.0.0:7070", "192.0.2.1:7070", "[::]:7070", "example.com:7070"])
def test_an_address_that_others_reach_is_refused_without_insecure(tmp_path, listen):
    with pytest.raises(ConfigError, match="insecure") as failure:
        serve_relay(
            tmp_path, RelayConfig(listen=listen), bootstrap_url=None, status_dir=tmp_path, stop=threading.Event()
        )
    assert "relay.listen" in failure.value.where


def test_a_port_in_use_is_one_clear_error(relay, tmp_path):
    listen = f"127.0.0.1:{relay.port}"
    with pytest.raises(ConfigError, match=listen) as failure:
        serve_relay(
            tmp_path, RelayConfig(listen=listen), bootstrap_url=None, status_dir=tmp_path, stop=threading.Event()
        )
    assert "relay.listen" in failure.value.where
    assert "another port" in failure.value.mend
