"""Tokens on the relay's server: who is refused what, what a narrow token sees, what changes without a restart."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.guarded_relay import GuardedRelay, listened, new_token, token_section
from support.relay_log import piece, table_schema
from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.errors import ConfigError
from walbus.record_parser import RecordParser
from walbus.records import Flag, Kind, iter_changes
from walbus.relay import serve_relay, token_file
from walbus.relay.access import RULES, Need
from walbus.relay.gate import gate_of
from walbus.relay.tokens import Token, digest_of, section_of
from walbus.schema import Column

pytestmark = pytest.mark.one_version

TOKENS = {
    "narrow": ["public.orders"],
    "two": ["public.orders", "public.items"],
    "all": ["*.*"],
    "metrics": [],
    "admin": [],
}
#: tests/integration/test_bootstrap_access.py
BOOTSTRAPS = tuple(f"GET /v1/{name}" for name in ("tables", "snapshot", "delta", "row", "seeding"))
GUARDED = sorted(route for route, need in RULES.items() if need is not Need.NOTHING and route not in BOOTSTRAPS)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[GuardedRelay]:
    with GuardedRelay(tmp_path, TOKENS) as made:
        yield made


def path_of(route: str) -> str:
    path = re.sub(r"\{(name|member|subject|version)\}", "x", route.split()[1]).replace("{id}", "1")
    return path + ("?follow=false" if "stream" in route else "")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_without_a_token_nothing_is_told_but_life_and_readiness(relay, method):
    paths = {path_of(route) for route in RULES} | {"/", "/v1", "/v1/streams", "/docs", "/v1/schemas/999"}
    for path in paths - {"/healthz", "/readyz"}:
        status, body = relay.get(path, method=method)
        assert status == 401, (method, path, body)
    for path in ("/healthz", "/readyz"):
        assert relay.get(path)[0] == 200


def refusal(relay: GuardedRelay, path: str = "/v1/info", **headers: str) -> tuple[int, dict, http.client.HTTPMessage]:
    connection = relay.connection()
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    document = json.loads(response.read())
    connection.close()
    return response.status, document, response.headers


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "a token is needed"),
        ("", "no Bearer token"),
        ("Bearer", "no Bearer token"),
        ("Bearer ", "no Bearer token"),
        ("Basic dXNlcjpwYXNz", "no Bearer token"),
        ("Bearer wbt_" + "A" * 43, "not known"),
        ("Bearer " + "A" * 7000, "not known"),
        ("Bearer \xff\xfe", "not known"),
    ],
)
def test_a_401_says_what_is_wrong_and_what_to_do(relay, header, said):
    status, document, headers = refusal(relay, **({} if header is None else {"Authorization": header}))
    assert status == 401
    assert said in document["error"]
    assert document["mend"]
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert len(header or "") < 20 or header.split()[1] not in json.dumps(document)


def test_a_token_in_the_query_counts_for_nothing(relay):
    assert relay.get(f"/v1/info?token={relay.tokens['all']}")[0] == 401


def test_two_headers_are_not_one_token(relay):
    head = "".join(f"Authorization: Bearer {relay.tokens[name]}\r\n" for name in ("all", "admin"))
    answer = relay.raw(f"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n".encode())
    assert answer.split(b" ")[1] == b"401"


@pytest.mark.parametrize("route", GUARDED)
def test_each_route_asks_for_its_role(relay, route):
    need = RULES[route]
    for name in ("all", "metrics", "admin"):
        fits = name == "admin" or (need is not Need.ADMIN and (name == "metrics") == (need is Need.METRICS))
        status = relay.get(path_of(route), relay.tokens[name], method=route.split()[0])[0]
        assert (status == 403) != fits, (route, name, status)
        assert status != 401


def asked_by(relay: GuardedRelay, route: str, host: str) -> int:
    """The status of a request for a route, with this Host."""
    method, path = route.split(maxsplit=1)[0], path_of(route)
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return int(relay.raw(head.encode()).split(b" ")[1])


def test_without_tokens_no_route_answers_to_a_strangers_name(tmp_path):
    """A page whose name was rebound to the loopback sends its own name, and must not read a row."""
    with listened() as events, GuardedRelay(tmp_path, allowed_hosts=["cdc.internal"]) as relay:
        own = [route for route in RULES if route not in BOOTSTRAPS]
        for route in (*own, "GET /", "GET /v1/nothing", "OPTIONS /v1/stream", "POST /v1/info"):
            for stranger in ("evil.example", f"evil.example:{relay.port}", "localhost.evil.example", "10.0.0.1", ""):
                assert asked_by(relay, route, stranger) == 421, (route, stranger)
            for ours in ("localhost", f"127.0.0.1:{relay.port}", "[::1]:80", "cdc.internal"):
                assert asked_by(relay, route, ours) != 421, (route, ours)
        status, refused, _ = refusal(relay, "/v1/stream", Host="evil.example")
        assert (status, refused["where"]) == (421, "Host")
        assert "allowed_hosts" in refused["mend"]
        assert b'walbus_relay_refusals_total{reason="host not known"}' in relay.get("/metrics")[1]
        assert relay.raw(b"GET /readyz HTTP/1.0\r\n\r\n").split(b" ")[1] == b"200"
        twice = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert relay.raw(twice).split(b" ")[1] in (b"400", b"421")
    told = [event for event in events if event["event"] == "access_refused"]
    assert {(event["reason"], event["address"]) for event in told} >= {("host not known", "127.0.0.1")}
    assert "evil" not in json.dumps(told)


def test_under_tokens_a_name_does_not_matter(relay):
    assert relay.get("/v1/info", relay.tokens["all"], Host="evil.example")[0] == 200


def test_a_server_that_others_reach_is_asked_by_any_name_until_some_are_allowed():
    open_to_all = gate_of(RelayConfig(listen="0.0.0.0:7070", insecure=True), "relay")
    named = gate_of(RelayConfig(listen="0.0.0.0:7070", insecure=True, allowed_hosts=["walbus"]), "relay")
    by_url = gate_of(RelayConfig(listen="127.0.0.1:7070", url="http://cdc.example.com:80"), "relay")
    assert open_to_all.access.names is None
    for gate, host in ((named, "walbus:7070"), (named, "127.0.0.1"), (by_url, "cdc.example.com")):
        assert gate.access.names is not None
        assert gate.access.names.know([host])
        assert not gate.access.names.know(["evil.example"])


def test_a_stream_beyond_the_scope_is_refused_by_name_and_never_narrowed(relay):
    narrow = relay.tokens["narrow"]
    for asked in ("", "tables=public.items", "tables=public.*", "tables=*.orders", "tables=public.orders,public.items"):
        status, document = relay.json(f"/v1/stream?follow=false&{asked}", narrow)
        assert status == 403, asked
        assert "the token narrow does not reach" in document["error"]
        assert "public.orders" in document["mend"]
    status, body = relay.get("/v1/stream?follow=false&tables=public.orders", narrow)
    assert status == 200
    parser = RecordParser()
    parser.feed(body)
    tables = {c.table for h, r in parser.records() if h.kind == Kind.TRANSACTION for c in iter_changes(r[96:])}
    assert tables == {1}
    assert relay.get("/v1/stream?follow=false&tables=public.items,public.orders", relay.tokens["two"])[0] == 200
    assert relay.get("/v1/stream?follow=false", relay.tokens["all"])[0] == 200


def test_a_narrow_token_learns_no_name_beyond_its_scope(relay):
    (relay.status_dir / "bootstrap.json").write_text('{"walbus_bootstrap_rows": {"public.secrets": 3}}')
    (relay.status_dir / "consumer-secrets.json").write_text('{"state": "online"}')
    told = b""
    for path in ("/v1/info", "/v1/schemas", "/v1/schemas/1", "/v1/schemas/2", "/v1/schemas/3", "/readyz", "/metrics"):
        told += relay.get(path, relay.tokens["narrow"])[1]
    assert b"secrets" not in told
    assert b"items" not in told
    _, schemas = relay.json("/v1/schemas", relay.tokens["narrow"])
    assert [document["schema"]["name"] for document in schemas["schemas"]] == ["orders"]
    assert schemas["scope"] == ["public.orders"]
    assert relay.get("/v1/schemas/3", relay.tokens["narrow"])[0] == 403
    assert relay.get("/v1/consumers", relay.tokens["narrow"])[0] == 403
    assert relay.get("/v1/consumers", relay.tokens["all"])[0] == 200
    everything = relay.json("/v1/info", relay.tokens["all"])[1]
    assert "secrets" in everything["consumers"]


def test_a_narrow_token_is_told_no_tables_of_other_consumers_beyond_its_scope(relay):
    both, report = ["public.orders", "public.secrets"], {**json.loads(BODY), "log_id": relay.writer.bounds().log_id}
    search = {"tables": both, "unread": ["public.items", "public.orders"], "waiting_for": "the rows of public.secrets"}
    cache = {"tables": ["public.orders"], "waiting_for": "its sink"}
    for name, said in [("search", search), ("cache", cache)]:
        told = json.dumps(report | said)
        assert status_of(relay, "PUT", f"/v1/consumers/{name}", relay.tokens["all"], told)[0] == 200
    for path in ("search", "search/wait?position=1:0/10:1", "search/wait?position=1:0/30:1&timeout=0"):
        status, document = relay.json(f"/v1/consumers/{path}", relay.tokens["narrow"])
        assert status == (504 if "timeout" in path else 200)
        shown = document.get("consumer", document)
        assert (shown["tables"], shown["unread"]) == (["public.orders"], ["public.orders"]), path
        assert (shown["waiting_for"], shown["scope"]) == (None, ["public.orders"]), path
        assert "secrets" not in json.dumps(document), path
    own = relay.json("/v1/consumers/cache", relay.tokens["narrow"])[1]
    assert (own["tables"], own["waiting_for"]) == (["public.orders"], "its sink")
    everything = relay.json("/v1/consumers/search", relay.tokens["all"])[1]
    assert {name: everything[name] for name in search} == search
    assert "scope" not in everything


def test_a_socket_whose_stream_was_ended_while_it_was_sent_a_file_leaves_its_number_to_others(relay):
    for i in range(160):  # more than the sockets hold, in one segment
        flags = (Flag.BEGIN if i == 0 else 0) | (Flag.END if i == 159 else 0)
        relay.writer.append(piece(1600, 1 + i, 1, flags, table=1, size=100_000))
    relay.writer.sync()
    stalled = [stalled_reader(relay, relay.tokens["all"]) for _ in range(4)]
    streams = lambda: relay.json("/v1/info", relay.tokens["admin"])[1]["streams"]  # noqa: E731
    wait_for(lambda: len(streams()) == 4, what="the streams to begin")
    others = [socket.socket() for _ in range(8)]  # now, so that it is the server's sockets that get the numbers
    for other in others:
        other.settimeout(30)
    relay.write_tokens({name: tables for name, tables in TOKENS.items() if name != "all"})
    wait_for(lambda: not streams(), what="the streams to end")
    for other in others:
        other.connect(("127.0.0.1", relay.port))
    for other in others:
        other.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 200")
    for client in (*others, *stalled):
        client.close()


def stalled_reader(relay: GuardedRelay, token: str) -> socket.socket:
    """A client that reads the log from its beginning, and takes nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", relay.port))
    head = f"GET /v1/stream?from=earliest HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    client.sendall(head.encode())
    return client


def test_a_large_file_of_tokens_is_read_while_others_are_served(relay, monkeypatch):
    parse, reading, go_on = token_file.parse_tokens, threading.Event(), threading.Event()

    def slowly(text: str, where: str) -> tuple[Token, ...]:
        reading.set()
        assert go_on.wait(60)
        return parse(text, where)

    monkeypatch.setattr(token_file, "parse_tokens", slowly)
    relay.write_tokens({"later": ["*.*"], **TOKENS})
    try:
        assert reading.wait(30)
        follower = Follower(relay, relay.tokens["all"], "follow=true")
        wait_for(lambda: follower.heard, what="a sign of life")
        assert relay.get("/v1/info", relay.tokens["later"])[0] == 401
    finally:
        go_on.set()
    wait_for(lambda: relay.get("/v1/info", relay.tokens["later"])[0] == 200, what="the file to be read")
    assert not follower.ended.is_set()


def test_an_expired_token_is_told_so_and_a_longer_one_lets_in_again(relay):
    relay.write_tokens(TOKENS, expires=time.time() - 1)
    wait_for(lambda: relay.get("/v1/info", relay.tokens["all"])[0] == 401, what="the file to be read")
    status, document = relay.json("/v1/info", relay.tokens["all"])
    assert (status, document["error"]) == (401, "the token all has expired")
    relay.write_tokens(TOKENS, expires=time.time() + 3600)
    wait_for(lambda: relay.get("/v1/info", relay.tokens["all"])[0] == 200, what="the file to be read")


class Follower:
    """A stream under way, and whether it has ended."""

    def __init__(self, relay: GuardedRelay, token: str, query: str = "tables=public.orders") -> None:
        self._connection = relay.connection()
        relay.closing.callback(self._connection.close)
        self._connection.request("GET", f"/v1/stream?{query}", headers={"Authorization": f"Bearer {token}"})
        response = self._connection.getresponse()
        assert response.status == 200, response.read()
        self._response = response
        self.heard = 0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        relay.closing.callback(self.close)

    def _read(self) -> None:
        try:
            while block := self._response.read1(1 << 16):
                self.heard += len(block)
        except (OSError, http.client.HTTPException):
            pass
        self.ended.set()

    def close(self) -> None:
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):  # the server has hung up already
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._response.close()
        self._connection.close()


@pytest.mark.parametrize("change", ["taken out", "narrowed", "replaced", "expired"])
def test_a_stream_under_way_ends_when_its_token_counts_no_more(relay, change):
    mine, others = Follower(relay, relay.tokens["two"]), Follower(relay, relay.tokens["narrow"])
    tokens = {**TOKENS}
    if change == "taken out":
        del tokens["two"]
    elif change == "narrowed":
        tokens["two"] = ["public.items"]
    elif change == "replaced":
        relay.tokens["two"] = new_token()
    relay.write_tokens(tokens)
    if change == "expired":
        end = token_section("two", relay.tokens["two"], TOKENS["two"], expires=time.time() + 1.5)
        del tokens["two"]
        relay.write_tokens(tokens)
        with relay.token_file.open("a") as stream:
            stream.write("\n" + end)
    with listened() as events:
        wait_for(mine.ended.is_set, what="the stream to end")
        assert not others.ended.is_set()
        relay.append()
        heard = others.heard
        wait_for(lambda: others.heard > heard, what="the other stream to go on")
        assert [e["token_name"] for e in events if e["event"] == "access_ended"] in (["two"], [])
    others.close()
    mine.close()


def test_a_broken_file_keeps_everybody_where_they_are(relay):
    follower = Follower(relay, relay.tokens["narrow"])
    broken = relay.token_file.with_suffix(".new")
    broken.write_text("[broken")
    with listened() as events:  # from before the change, which is told once
        broken.replace(relay.token_file)
        wait_for(lambda: [e for e in events if e["event"] == "tokens_kept"], what="the server to say so")
    assert relay.get("/v1/info", relay.tokens["all"])[0] == 200
    assert relay.get("/v1/info", new_token())[0] == 401
    assert not follower.ended.is_set()
    follower.close()


def test_each_refusal_has_an_audit_line_without_the_token(relay):
    secret = new_token()
    with listened() as events:
        relay.get("/v1/info", secret)
        relay.get("/v1/stream?tables=public.items", relay.tokens["narrow"])
        relay.get("/metrics", relay.tokens["narrow"])
        relay.get("/etc/passwd")
    lines = [(e["reason"], e["route"], e["token_name"], e["address"]) for e in events if e["event"] == "access_refused"]
    assert lines == [
        ("token unknown", "GET /v1/info", None, "127.0.0.1"),
        ("beyond the scope", "GET /v1/stream", "narrow", "127.0.0.1"),
        ("role missing", "GET /metrics", "narrow", "127.0.0.1"),
        ("token missing", "unknown", None, "127.0.0.1"),
    ]
    assert secret not in json.dumps(events)
    figures = relay.get("/metrics", relay.tokens["metrics"])[1].decode()
    assert 'walbus_relay_refusals_total{reason="beyond the scope"} 1.0' in figures


def test_a_route_that_has_no_rule_is_refused_to_admins_too(relay, monkeypatch):
    monkeypatch.delitem(RULES, "GET /v1/schemas")
    with listened() as events:
        assert relay.get("/v1/schemas", relay.tokens["admin"])[0] == 403
    assert "route_without_rule" in [event["event"] for event in events]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, "without tokens and TLS"),
        ({"tokens_file": "t"}, "without TLS"),
        ({"tls_cert": "c", "tls_key": "k"}, "without tokens"),
    ],
)
@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7070", "example.com:7070"])
def test_an_address_that_others_reach_needs_tokens_and_tls(tmp_path, listen, keys, named):
    config = RelayConfig(listen=listen, **keys)
    with pytest.raises(ConfigError, match=named) as failure:
        serve_relay(tmp_path, config, bootstrap_url=None, status_dir=tmp_path, stop=threading.Event())
    assert "relay.listen" in failure.value.where
    assert "insecure" in failure.value.mend


def test_insecure_is_said_loudly(tmp_path):
    stop = threading.Event()
    with listened() as events:
        serve_relay(
            tmp_path, RelayConfig(listen="0.0.0.0:0", insecure=True), bootstrap_url=None, status_dir=tmp_path,
            stop=stop, on_listening=lambda _: stop.set(),
        )  # fmt: skip
    (line,) = [event for event in events if "INSECURE" in event["event"]]
    assert (line["level"], line["without"]) == ("warning", "tokens and TLS")


BODY = json.dumps(
    {
        "session": "1", "begins": True, "log_id": "", "phase": "online", "last_done": "1:0/10:1", "seq": 0,
        "generation": 0, "whole": True,
    }
)  # fmt: skip


def status_of(relay: GuardedRelay, method: str, path: str, token: str, body: str | None = None) -> tuple[int, dict]:
    connection = relay.connection()
    connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    said = json.loads(response.read()) if response.status != 200 or method == "PUT" else {}
    connection.close()
    return response.status, said


def test_a_token_reports_and_streams_under_the_names_of_its_consumers_alone(tmp_path):
    secret, any_name = new_token(), new_token()
    relay = GuardedRelay(tmp_path, {})
    bound = Token("bound", digest_of(secret), ("public.orders",), frozenset(("read",)), None, ("orders-*",))
    relay.token_file.write_text(section_of(bound) + token_section("free", any_name, ["public.orders"]))
    with relay:
        for name, expected in [("orders-cache", 200), ("search", 403)]:
            for method, path, body in [
                ("PUT", f"/v1/consumers/{name}", BODY),
                ("GET", f"/v1/stream?tables=public.orders&follow=false&name={name}", None),
                ("PUT", f"/v1/groups/{name}/members/a", b'{"parts": 2, "lease_seconds": 5}'),
            ]:
                status, said = status_of(relay, method, path, secret, body)
                assert status == expected, (path, said)
                if expected == 403:
                    assert (said["where"], "orders-*" in said["mend"]) == ("name", True)
                assert status_of(relay, method, path.replace("members/a", "members/b"), any_name, body)[0] == 200
        assert status_of(relay, "GET", "/v1/stream?tables=public.orders&follow=false", secret)[0] == 200
        assert status_of(relay, "GET", "/v1/consumers/search", secret)[0] == 200  # how far another one is may be asked


def test_a_member_of_a_group_is_spoken_for_by_the_token_alone_that_it_joined_with(tmp_path):
    with GuardedRelay(tmp_path, {"cache": ["*.*"], "reports": ["*.*"], "admin": []}) as relay:
        path, body = "/v1/groups/orders/members/a", '{"parts": 2, "lease_seconds": 5}'
        status, held = status_of(relay, "PUT", path, relay.tokens["cache"], body)
        assert (status, len(held["holds"])) == (200, 2)
        for asked in (body, '{"parts": 2, "lease_seconds": 5, "leaves": true}'):
            status, said = status_of(relay, "PUT", path, relay.tokens["reports"], asked)
            assert (status, said["where"]) == (403, "member")
        assert status_of(relay, "PUT", path, relay.tokens["cache"], body) == (200, held)
        assert status_of(relay, "DELETE", path, relay.tokens["reports"])[0] == 403
        assert status_of(relay, "DELETE", path, relay.tokens["admin"])[0] == 200


def test_a_choice_of_columns_tells_nothing_of_tables_beyond_the_scope(tmp_path):
    """Whether any other table has a column could be told from what is refused."""
    with GuardedRelay(tmp_path, {"narrow": ["public.orders"], "all": ["*.*"]}) as relay:
        hidden = dataclasses.replace(
            table_schema("hidden", 9), columns=(*table_schema("h", 9).columns, Column("salary", 23, "int4", -1, False))
        )
        relay.writer.schemas.register(hidden)
        asked = "/v1/stream?follow=false&tables=public.orders&columns=*.*"
        answers = [
            relay.json(f"{asked}(id,{column})", token=relay.tokens["narrow"]) for column in ("salary", "nothing")
        ]
        assert [status for status, _ in answers] == [400, 400]
        assert answers[0][1]["error"].replace("salary", "nothing") == answers[1][1]["error"]
        assert relay.get("/v1/stream?follow=false&columns=*.*(id,salary)", token=relay.tokens["all"])[0] == 200
        beyond = "/v1/stream?follow=false&tables=public.orders&columns=public.hidden"
        for column in ("salary", "nothing"):
            assert relay.get(f"{beyond}({column})", token=relay.tokens["narrow"])[0] == 200
