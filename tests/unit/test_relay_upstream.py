"""The stream of a relay that is copied, in a process that has more sockets than `select` can count."""

from __future__ import annotations

import fcntl
import resource
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from walbus.relay.upstream import UpstreamStream

_HIGH = 2_000  # FD_SETSIZE is 1,024


@pytest.fixture(params=["of few", "of many"])
def connected(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection; the first has a high number in one of two runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _HIGH + 10), hard))
    here, there = socket.socketpair()
    if request.param == "of many":
        low, here = here, socket.socket(fileno=fcntl.fcntl(here.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH))
        low.close()
        assert here.fileno() >= _HIGH
    yield here, there
    here.close()
    there.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_tells_whether_more_has_arrived(connected: tuple[socket.socket, socket.socket]) -> None:
    here, there = connected
    network = SimpleNamespace(get_extra_info=lambda _: here)
    stream = UpstreamStream(httpx.Response(200, content=b"", extensions={"network_stream": network}), "there")
    assert not stream.more_has_arrived()
    there.send(b"records")
    assert stream.more_has_arrived()
