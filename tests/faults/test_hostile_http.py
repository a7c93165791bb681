"""Hostile HTTP: slow, huge, malformed, many. The server answers in its own words or hangs up, and serves the others."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import functools
import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from support.certificates import Authority
from support.guarded_relay import GuardedRelay, listened
from support.waiting import wait_for
from support.walbus_command import Running, write_config
from walbus.config import RelayConfig
from walbus.relay.audit import LINES_A_PERIOD, PERIOD_SECONDS
from walbus.relay.bounds import Bounds
from walbus.relay.gate import gate_of
from walbus.relay.listener import Listener

pytestmark = pytest.mark.one_version

HEAD = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n"
TOKENS = {"all": ["*.*"]}


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[GuardedRelay]:
    with GuardedRelay(tmp_path, TOKENS) as made:
        yield made


@pytest.fixture
def tight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedRelay]:
    """One that is as patient as for a second."""
    bounds = Bounds(header_seconds=1.0, handshake_seconds=1.0, stall_seconds=3.0)
    monkeypatch.setattr("walbus.relay.gate.Bounds", lambda **_: bounds)
    with GuardedRelay(tmp_path) as made:
        yield made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that keep silent clients until the test's end, however long it takes to connect them all."""
    bounds = functools.partial(Bounds, header_seconds=600.0, handshake_seconds=600.0)
    monkeypatch.setattr("walbus.relay.gate.Bounds", bounds)


def answer_of(heard: bytes) -> tuple[int, dict[str, str]]:
    """Status and JSON of an answer."""
    head, _, body = heard.partition(b"\r\n\r\n")
    assert b"application/json" in head, heard[:300]
    return int(head.split()[1]), json.loads(body)


# --- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"GET /v", b"GET /v1/info HTTP/1.1\r\n", HEAD + b"X-A: b"])
def test_slowloris_is_hung_up_on_at_the_headers_deadline(tight, first):
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", tight.port)) as slow:
        slow.settimeout(0.1)
        slow.sendall(first)

        def hung_up() -> bool:
            try:
                slow.sendall(b"X" if first else b"")
                return slow.recv(1000) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_for(hung_up, what="the server to hang up")
    assert 0.5 < time.monotonic() - started < Bounds().header_seconds
    wait_for(lambda: tight.get("/healthz")[0] == 200, what="others to be served")


def test_an_idle_connection_is_closed_and_a_used_one_is_not(tight):
    while (client := used_connection(tight.port)) is None:
        pass
    with client:
        started = time.monotonic()
        assert client.recv(1000) == b""
        assert time.monotonic() - started < Bounds().header_seconds


def used_connection(port: int) -> socket.socket | None:
    """One that had four answers; None where it was idle between two of them, since the machine stood still."""
    client, heard_at = socket.create_connection(("127.0.0.1", port), timeout=60), time.monotonic()
    for _ in range(4):
        heard = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            heard = client.recv(1000)
        if not heard and time.monotonic() - heard_at > 0.5:  # of the second that the server is patient
            client.close()
            return None
        assert b" 200 " in heard
        heard_at = time.monotonic()
    return client


def test_a_tls_handshake_that_never_comes_is_hung_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr("walbus.relay.gate.Bounds", lambda **_: Bounds(handshake_seconds=1.0))
    authority = Authority(tmp_path)
    with (
        GuardedRelay(tmp_path, tls=authority.believed(), **authority.server("localhost")) as relay,
        listened() as events,
        socket.create_connection(("127.0.0.1", relay.port), timeout=30) as silent,
    ):
        started = time.monotonic()
        assert silent.recv(100) == b""
        assert time.monotonic() - started < Bounds().handshake_seconds
        wait_for(lambda: [e for e in events if e.get("reason") == "no TLS handshake"], what="the audit line")
        wait_for(lambda: relay.get("/healthz")[0] == 200, what="others to be served")


def test_a_reader_that_takes_nothing_is_dropped_in_the_end(tight):
    tight.append(2000)
    with socket.create_connection(("127.0.0.1", tight.port)) as stopped:
        stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        stopped.sendall(b"GET /v1/stream?from=earliest&name=stopped HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: tight.json("/v1/info")[1]["streams"], what="its stream")

        def gone() -> bool:
            tight.append(500)
            return not tight.json("/v1/info")[1]["streams"]

        wait_for(gone, deadline=90, what="the kernel to drop it")


# --- huge -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (HEAD + b"X: " + b"a" * 20_000 + b"\r\n\r\n", {431, 400}),
        (HEAD + b"a" * 20_000 + b": b\r\n\r\n", {431, 400}),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {431, 400}),
        (b"GET /v1/stream?tables=" + b"a" * 7000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {401}),
        (HEAD + b"X: 1\r\n" * 500 + b"\r\n", {431, 400}),
        (HEAD + b"".join(b"X%d: %s\r\n" % (i, b"a" * 8000) for i in range(60)) + b"\r\n", {None}),
        (HEAD + b"Content-Length: 1000000000\r\n\r\n" + b"a" * 200_000, {401, None}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffffffffffffffffff\r\n", {400, 401}),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100_000, {200, None}),
    ],
    ids=["value", "name", "path", "query", "lines", "bomb", "body", "chunk", "pipelined"],
)
def test_what_is_too_large_is_refused_or_hung_up_on(relay, sent, statuses):
    heard = relay.raw(sent)
    status = int(heard.split()[1]) if heard else None
    assert status in statuses, heard[:200]
    if status not in (None, 200):
        assert json.loads(heard.partition(b"\r\n\r\n")[2])["error"]
    assert relay.get("/v1/info", relay.tokens["all"])[0] == 200


def test_what_a_client_can_make_the_server_hold_is_bounded(relay):
    """A hundred clients send 60 long lines each, and stop before the header's end."""
    before = _resident()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port)))
            with contextlib.suppress(OSError):  # hung up on
                client.sendall(HEAD + b"".join(b"X%d: %s\r\n" % (i, b"a" * 8000) for i in range(60)))
        assert relay.get("/healthz")[0] == 200
        assert _resident() - before < 40 << 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "deflate", "identity, gzip"])
def test_compressed_bodies_are_refused_unread(relay, coding):
    heard = relay.raw(
        HEAD + f"Connection: close\r\nContent-Encoding: {coding}\r\nContent-Length: 4\r\n\r\nabcd".encode()
    )
    status, document = answer_of(heard)
    assert status == 415
    assert "compressed" in document["error"]


# --- malformed --------------------------------------------------------------------------------------------------------


SECRET = b"wbt_" + b"canary-0123456789-abcdefghijklmnopqrstuvwxyz"[:43]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,  # a TLS handshake
        b"GET /v1/info HTTP/9.9\r\n\r\n",
        b"GET  /v1/info HTTP/1.1\r\n\r\n",
        HEAD + b"Authorization : Bearer " + SECRET + b"\r\n\r\n",
        HEAD + b"Authorization: Bearer " + SECRET + b"\x00\r\n\r\n",
        HEAD + b"\x00: " + SECRET + b"\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +1\r\n\r\n",
        b"GET http://[::1/" + SECRET + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + SECRET + b"\x7f\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=[
        "binary",
        "tls",
        "version",
        "spaces",
        "space-in-name",
        "nul-in-token",
        "nul-in-name",
        "two-framings",
        "two-lengths",
        "negative-length",
        "signed-length",
        "odd-url",
        "odd-path",
    ],
)
def test_what_is_no_http_is_answered_with_json_that_quotes_nothing(relay, capfd, sent):
    with listened() as events:
        heard = relay.raw(sent.replace(b"\r\nHost: localhost\r\n", b"\r\nHost: localhost\r\nConnection: close\r\n"))
    if heard:
        status, document = answer_of(heard)
        assert 400 <= status < 500
        assert set(document) >= {"error", "where", "mend"}
    out = capfd.readouterr()
    assert SECRET not in heard
    assert SECRET.decode() not in json.dumps(events) + out.out + out.err
    assert "Traceback" not in out.out + out.err
    assert relay.get("/healthz")[0] == 200


TRAVERSALS = [
    "..%2f..%2f..%2fetc%2fpasswd",
    "..%5c..%5cetc",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "%00",
    "1%00.json",
    "%c0%ae%c0%ae%c0%afetc",  # overlong UTF-8 of ../
    "%e0%80%ae",
    "%ff%fe",
    "%ed%a0%80",  # a lone surrogate
    "%252e%252e%252f",
    "%0d%0aX-Injected:%201",
    "1;id",
    "%F0%9F%92%A9",
    "-1",
    "9" * 400,
    "٣",
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_name_in_a_path_or_parameter_leads_anywhere(relay, name):
    token = relay.tokens["all"].encode()
    parameters = ("tables", "name", "after", "from", "until", "log_id", "format", "ops", "columns", "x")
    paths = [f"/v1/schemas/{name}", f"/v1/{name}", f"/{name}", f"/v1/schemas/{name}/../1", f"/v1/stream?follow={name}"]
    for path in paths + [f"/v1/stream?follow=false&{parameter}={name}" for parameter in parameters]:
        sent = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer ".encode() + token
        heard = relay.raw(sent + b"\r\n\r\n")
        head, _, body = heard.partition(b"\r\n\r\n")
        assert b"X-Injected" not in head
        assert b"root:" not in body
        if b" 200 " not in head.splitlines()[0]:  # the name of a table that does not exist, or of a consumer
            status, document = answer_of(heard)
            assert status in (400, 404, 409), (path, heard)
            assert document["error"]
        else:
            assert path.startswith(("/v1/stream?follow=false&tables=", "/v1/stream?follow=false&name=")), path


# --- many -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_connections_beyond_the_bound_are_turned_away_and_streams_go_on(tmp_path):
    with GuardedRelay(tmp_path, max_connections=50, max_connections_per_address=50) as relay:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=60))
            stream.sendall(b"GET /v1/stream?name=first HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in stream.recv(4096)
            turned_away, begun = 0, time.monotonic()
            with listened() as events:
                for _ in range(2000):
                    client = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=60))
                    client.setblocking(False)
                    if len(stack._exit_callbacks) % 200 == 0:  # type: ignore[attr-defined]
                        relay.append()
                wait_for(
                    lambda: sum(e.get("count", 1) for e in events if "access" in e["event"]) >= 20,
                    what="the audit to tell",
                )
                lines = len(events)
            periods = (time.monotonic() - begun) // PERIOD_SECONDS
            assert lines < 60 + 2 * LINES_A_PERIOD * periods  # bounded, whatever comes
            status, document = answer_of(relay.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") or ANSWER_LOST)
            turned_away += status == 503
            assert document["error"] == "too many connections"
            relay.append()
            stream.settimeout(60)
            assert stream.recv(4096)
        wait_for(lambda: relay.get("/healthz")[0] == 200, what="room again")


#: A reset may overtake the answer; what counts is that nobody is served beyond the bound.
ANSWER_LOST = b'HTTP/1.1 503 x\r\nContent-Type: application/json\r\n\r\n{"error": "too many connections"}'


def test_accepting_a_flood_leaves_the_loop_to_others_and_takes_few_of_their_turns():
    """One for each turn of theirs would keep a thousand waiting for as long as those that read make turns long."""

    async def turns_while_accepting(count: int) -> list[int]:
        turns, at = 0, []

        class Counting(Listener):
            def _admit(self, connection: socket.socket, address: str) -> None:
                connection.close()
                at.append(turns)

        listening = socket.create_server(("127.0.0.1", 0), backlog=count)
        listening.setblocking(False)
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(listening.getsockname()))
            accepting = Counting(web.AppRunner(web.Application()), gate_of(RelayConfig(listen="127.0.0.1:0"), "relay"))
            accepting.listen([listening])
            while len(at) < count:
                turns += 1
                await asyncio.sleep(0)
            await accepting.close()
        return at

    at = asyncio.run(turns_while_accepting(100))
    assert max(collections.Counter(at).values()) <= 32
    assert at[-1] - at[0] <= 4


def test_a_socket_that_cannot_be_accepted_from_leaves_the_loop_to_others():
    class Refusing(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, object]:
            self.tries += 1
            if self.tries > 1000:
                raise asyncio.CancelledError
            raise OSError(errno.EPERM, "Operation not permitted")

    async def turns_of_others() -> int:
        turns = 0
        with Refusing() as listening:
            listening.setblocking(False)
            accepting = Listener(web.AppRunner(web.Application()), gate_of(RelayConfig(listen="127.0.0.1:0"), "relay"))
            accepting.listen([listening])
            while listening.tries <= 1000:
                turns += 1
                await asyncio.sleep(0)
            await accepting.close()
        return turns

    assert asyncio.run(turns_of_others()) >= 1000


@pytest.mark.usefixtures("patient")
def test_one_address_cannot_take_all_connections(tmp_path):
    with (
        GuardedRelay(tmp_path, max_connections=50, max_connections_per_address=10) as relay,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=60))

        def refused() -> bool:
            heard = relay.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return not heard or b"of one address" in heard

        wait_for(refused, what="the bound to be reached")
        with socket.create_connection(("127.0.0.1", relay.port), timeout=60, source_address=("127.0.0.2", 0)) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in other.recv(1000)


@pytest.mark.usefixtures("patient")
def test_connections_that_never_speak_tls_count_too(tmp_path):
    authority = Authority(tmp_path)
    keys = {**authority.server("localhost"), "max_connections": 20, "max_connections_per_address": 20}
    with GuardedRelay(tmp_path, tls=authority.believed(), **keys) as relay, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), 60)) for _ in range(30)]
        with contextlib.suppress(ConnectionError):
            assert silent[-1].recv(100) == b""
        silent[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[0].recv(100)


def test_without_descriptors_the_server_sheds_load_and_serves_on(tmp_path):
    """A relay process that may have 64 files open; a hundred clients come and stay."""
    with GuardedRelay(tmp_path) as beside:  # has made the log; its own server is not asked
        port_file = tmp_path / "relay.log"
        config = write_config(
            tmp_path / "walbus.toml",
            {
                "source": {"dsn": "postgresql://nobody@127.0.0.1:1/none"},
                "relay": {"dir": str(beside.engine.folder), "listen": "127.0.0.1:0", "max_connections": 4096},
                "log": {"format": "json"},
            },
            tmp_path / "data",
        )
        running = Running("relay", "-c", str(config), log=port_file)
        try:
            wait_for(lambda: "relay_serves_log" in running.log(), deadline=60, what="the relay to serve")
            port = int(re.search(r'"port": (\d+)', running.log())[1])
            opened = len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))
            stream = socket.create_connection(("127.0.0.1", port), timeout=60)
            stream.sendall(b"GET /v1/stream?from=earliest HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in stream.recv(4096)
            limit = (opened + 12, opened + 12)
            resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, limit)
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(100)]
                clients[-1].settimeout(60)
                with contextlib.suppress(ConnectionError):
                    heard = clients[-1].recv(1000)
                    assert heard == b"" or b" 503 " in heard
                for _ in range(3):  # a stream that is open goes on
                    beside.append()
                    assert stream.recv(1 << 16)
                assert "no descriptors left" in running.log()

            def serves() -> bool:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as client:
                    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    return b" 200 " in client.recv(1000)
                return False

            wait_for(serves, deadline=60, what="the relay to serve again")
            stream.close()
            assert "Traceback" not in running.log()
            assert len(running.log().splitlines()) < 100
        finally:
            assert running.stop() == 0
