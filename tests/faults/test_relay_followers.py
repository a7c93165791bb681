"""Followers that stop reading, hang up anywhere, and come back; what that costs the relay, and what they end with."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import commits, transaction
from support.relay_server import Follower, Relay, fill, rows_of
from support.waiting import wait_for
from walbus.relay.fs import Files

pytestmark = pytest.mark.one_version

MB = 1 << 20
SEED = int(os.environ.get("WALBUS_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
READER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(b"GET /v1/stream?from=latest&name=stopped HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    connection.recv(100)
    print("reading", flush=True)
    while connection.recv(1 << 16):
        pass
"""
SERVER = """
import sys, threading
from pathlib import Path
from walbus.config import RelayConfig
from walbus.relay import serve_relay
folder = Path(sys.argv[1])
serve_relay(folder / "log", RelayConfig(listen="127.0.0.1:0"), bootstrap_url=None, status_dir=folder,
            stop=threading.Event(), on_listening=lambda port: print(f"port {port}", flush=True))
"""


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    made = fill(Relay(tmp_path))
    yield made
    made.close()


def write(relay: Relay, megabytes: int, after: int) -> int:
    """Transactions of 64 KB, durable by the megabyte; the commit LSN of the last one."""
    lsn = after
    for i in range(megabytes * 16):
        lsn += 16
        relay.writer.append(transaction(lsn, 1, size=65_000))
        if i % 16 == 15:
            relay.writer.sync()
    return lsn


@contextlib.contextmanager
def stopped_readers(port: int, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that follow, and then are stopped."""
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(port)], stdout=subprocess.PIPE) for _ in range(count)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            reader.send_signal(signal.SIGSTOP)
        yield readers
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def queued(port: int) -> list[int]:
    """Bytes that the kernel holds for each connection of a server."""
    local = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[4].split(":")[0], 16) for row in rows if row[1].endswith(local) and row[3] == "01"]


def test_a_stopped_reader_costs_a_megabyte_at_most_and_delays_nobody(relay, tmp_path):
    count = 10
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = next(int(line.split()[1]) for line in server.stdout if line.startswith(b"port "))
        relay.port, own = port, relay.port
        wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server to find the log")
        live = Follower(relay, "from=latest&name=live")
        with stopped_readers(port, count):
            write(relay, 4, 3200)  # what the live reader needs is warm
            wait_for(lambda: live.received > 4 * 16 * 65_000, what="the live reader to have the first ones")
            before = resident(server.pid)
            last = write(relay, 40, 3200 + 4 * 256)
            wait_for(lambda: live.received >= 44 * 16 * 65_100, deadline=90, what="the live reader to have nearly all")
            wait_for(lambda: commits(live.headers())[-1] == last, what="the live reader to have it all", every=0.2)
            held = sorted(queued(port))[-count:]
            assert held[-1] <= MB
            assert (resident(server.pid) - before) / count + held[-1] <= MB + MB // 4  # the process's own noise
        wait_for(lambda: len(relay.json("/v1/info")[1]["streams"]) == 1, what="the server to see that they are gone")
        live.close()
        relay.port = own
    finally:
        server.terminate()
        server.communicate()


def test_a_reader_that_goes_on_after_a_stop_has_missed_nothing(relay):
    member = Follower(relay, "from=latest&name=member")
    other = Follower(relay, "from=latest&name=other")
    wait_for(lambda: member.headers() and other.headers(), what="a heartbeat for each")
    member.pause()
    last = write(relay, 20, 3200)
    wait_for(lambda: commits_so_far(other)[-1:] == [last], deadline=60, what="the other one to have it all", every=0.05)
    assert stalled(relay, "member", last)
    member.go_on()
    wait_for(lambda: commits_so_far(member)[-1:] == [last], deadline=60, what="all that it missed")
    relay.writer.append(transaction(last + 16))
    relay.writer.sync()
    wait_for(lambda: commits_so_far(member)[-1:] == [last + 16], what="what came afterwards")
    assert commits(member.headers()) == list(range(3216, last + 17, 16))
    for one in (member, other):
        one.close()


def test_followers_outlast_a_time_without_descriptors(relay, monkeypatch):
    """At each new segment the server opens a file; who follows is not to pay for those who took all descriptors."""
    members = [Follower(relay, f"from=latest&name=m{i}") for i in range(3)]
    behind = Follower(relay, "from=earliest&tables=public.orders")
    wait_for(lambda: all(one.headers() for one in (*members, behind)), what="a heartbeat")
    opened, tries = Files.open_for_reading, itertools.count(1)

    def refusing(files: Files, path: Path) -> int:
        if path.suffix == ".seg" and next(tries) <= 30:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(files, path)

    monkeypatch.setattr(Files, "open_for_reading", refusing)
    last = write(relay, 1, 3200)
    wait_for(lambda: all(commits_so_far(one)[-1:] == [last] for one in members), deadline=60, what="all of it")
    assert next(tries) > 30
    for one in (*members, behind):
        assert not one.ended
        one.close()


def stalled(relay: Relay, name: str, last: int) -> bool:
    places = {stream["name"]: stream["scanned"] for stream in relay.json("/v1/info")[1]["streams"]}
    return places[name] != f"1:0/{last:X}:1"


def commits_so_far(follower: Follower) -> list[int]:
    return [header.commit_lsn for header in follower.headers() if header.kind == 1]


def test_a_browser_whose_connection_breaks_at_any_byte_ends_with_every_change_once(relay):
    dice = random.Random(SEED)
    print(f"WALBUS_TEST_SEED={SEED}")
    orders, items = relay.writer.schemas.all()[:2]
    expected: dict[str, list[str]] = {"public.*": [], "public.orders": []}
    for i in range(1, 121):
        schema = orders if i % 3 else items
        rows = dice.randrange(1, 6)
        relay.writer.append(rows_of(schema, 3200 + i * 16, range(rows)))
        for tables, positions in expected.items():
            if tables == "public.*" or schema is orders:
                positions += [f"1:0/{3200 + i * 16:X}:{n + 1}" for n in range(rows)]
    relay.writer.sync()
    for tables, positions in expected.items():
        page = Page(relay, tables)
        while len(page.committed) < len(positions):
            page.read_some(dice.randrange(1, 4000))
        assert page.committed == positions


class Page:
    """A browser's page: it applies whole windows, and comes back with the id of the last whole event."""

    def __init__(self, relay: Relay, tables: str) -> None:
        self.relay, self.tables = relay, tables
        self.last_id = ""
        self.window: list[str] = []
        self.committed: list[str] = []

    def read_some(self, size: int) -> None:
        query = f"after=1:0/C80:2&tables={self.tables}&follow=false"
        head = f"GET /v1/stream?{query} HTTP/1.1\r\nHost: localhost\r\n"
        accept = f"Accept: text/event-stream\r\n{f'Last-Event-ID: {self.last_id}' if self.last_id else 'X: 1'}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.relay.port), 20) as connection:
            connection.sendall((head + accept).encode())
            answer = connection.makefile("rb")
            while answer.readline().strip():
                pass
            text = b""
            while len(text) < size and (chunk := int(answer.readline(), 16)):
                text += answer.read(min(chunk, size - len(text)))
                if len(text) < size:
                    answer.readline()
        for event in text.decode().split("\n\n")[:-1]:
            self.take(dict(line.split(": ", 1) for line in event.split("\n") if not line.startswith(":")))

    def take(self, event: dict[str, str]) -> None:
        self.last_id = event.get("id", self.last_id)
        line = json.loads(event.get("data", '{"op":""}'))
        if line["op"] == "begin":
            held = self.window if line.get("continues") else []
            self.window = [p for p in held if ordinal(p) <= ordinal(line["position"])]
        elif line["op"] == "commit":
            self.committed += self.window
            self.window = []
        elif line["op"] == "insert":
            self.window.append(line["position"])


def ordinal(position: str) -> int:
    return int(position.rpartition(":")[2])


def test_followers_that_hang_up_leave_nothing_behind(relay):
    own = 3  # at most: one of the writer, two of what counts changes by table
    dice = random.Random(SEED)
    print(f"WALBUS_TEST_SEED={SEED}")
    for turn in range(60):
        client = socket.create_connection(("127.0.0.1", relay.port), 20)
        form = dice.choice(("from=latest", "from=earliest", "tables=public.orders", "format=sse&tables=public.none"))
        client.sendall(f"GET /v1/stream?{form} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        if dice.random() < 0.7:
            client.recv(dice.randrange(1, 3000))
        if turn % 5 == 0:
            relay.writer.append(transaction(3200 + 16 * (turn + 1)))
            relay.writer.sync()
        client.close()
    wait_for(lambda: relay.json("/v1/info")[1]["streams"] == [], what="the server to see that they hung up")
    wait_for(lambda: segments_open(relay) <= own, what="their files to be closed")


def segments_open(relay: Relay) -> int:
    """Descriptors of the log's segments in this process, in which the server and the writer run."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(link.readlink()))
    return sum(target.endswith(".seg") and target.startswith(str(relay.engine.folder)) for target in links)
