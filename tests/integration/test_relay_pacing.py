"""Streams to a peer on the relay's own machine: the kernel is not to hold back what such a peer could read."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_server import Relay, fill
from walbus.relay import outlet
from walbus.relay.outlet import Outlet, do_not_pace

pytestmark = pytest.mark.one_version


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    made = fill(Relay(tmp_path))
    yield made
    made.close()


@pytest.fixture
def chosen(monkeypatch) -> list[bytes]:
    """How the kernel finds the pace of each stream that was opened."""
    opened, found = Outlet.open, []

    async def looked_at(self, response):
        await opened(self, response)
        found.append(way(self._transport.get_extra_info("socket")))

    monkeypatch.setattr(Outlet, "open", looked_at)
    return found


def way(connection: socket.socket) -> bytes:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


class Recorded(socket.socket):
    """A connection with addresses that are told to it, and what was asked of the kernel."""

    def __init__(self, here: str, there: str | None) -> None:
        super().__init__()
        self._here, self._there = here, there
        self.asked: list[tuple[int, int, bytes]] = []

    def getsockname(self):
        return (self._here, 8484)

    def getpeername(self):
        return (self._there, 50_000) if self._there else super().getpeername()

    def setsockopt(self, *option):
        self.asked.append(option)
        super().setsockopt(*option)


def log_of(relay: Relay) -> bytes:
    (segment, *_) = relay.engine.segments()
    return segment.read_bytes()[128:]


@pytest.mark.parametrize("query", ["", "&partition=0/2"], ids=["unfiltered", "filtered"])
def test_a_stream_to_this_machine_is_not_paced(relay, chosen, query):
    status, _ = relay.get(f"/v1/stream?from=earliest&until=latest{query}")
    assert (status, chosen) == (200, [b"reno"])


def test_where_the_kernel_has_no_such_way_a_stream_is_served_as_before(relay, chosen, monkeypatch):
    monkeypatch.setattr(outlet, "_UNPACED", b"none_such")
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_bytes().strip()
    status, body = relay.get("/v1/stream?from=earliest&until=latest")
    assert (status, body.startswith(log_of(relay)), chosen) == (200, True, [default])


@pytest.mark.parametrize(
    ("here", "there"),
    [("127.0.0.1", "127.0.0.1"), ("192.0.2.7", "192.0.2.7"), ("192.0.2.7", "127.0.0.6"), ("::1", "::1"),
     ("::ffff:127.0.0.1", "::ffff:127.0.0.1")],
)  # fmt: skip
def test_a_peer_on_this_machine_is_known_by_its_address(here, there):
    with Recorded(here, there) as connection:
        do_not_pace(connection)
        assert connection.asked == [(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")]
        assert way(connection) == b"reno"


@pytest.mark.parametrize("there", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0", None])
def test_a_peer_elsewhere_or_one_that_left_has_what_the_system_chose(there):
    with Recorded("192.0.2.7", there) as connection:
        do_not_pace(connection)
        assert connection.asked == []
