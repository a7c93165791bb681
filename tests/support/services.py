"""Real servers for tests: an address in the environment, a program on this machine, Docker, in that order.

A service that cannot be had skips the test and says why; with WALBUS_REQUIRE_SERVICES=1 it fails.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.server_folder import server_folder
from support.waiting import wait_for
from walbus.demo.postgres import free_port


@dataclass(frozen=True)
class RedisServer:
    """A Redis for tests: `redis://` URL; `pid` where we started it ourselves (None otherwise)."""

    url: str
    pid: int | None = None


def missing(service: str, why: str) -> None:
    """Ends the test: skipped with the reason, or failed where services are required."""
    reason = f"no {service}: {why}"
    if os.environ.get("WALBUS_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason} (WALBUS_REQUIRE_SERVICES=1)")
    pytest.skip(reason)


def docker_answers() -> bool:
    """Whether a Docker engine can be used."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0


_BUS = 10_000  # the nodes of a cluster talk to each other on a port so much higher


@contextmanager
def local_redis(*options: str) -> Iterator[RedisServer]:
    """A redis-server of this machine, without persistence, in a temporary folder; with options of its command line."""
    port = _free_port_of_a_node() if "--cluster-enabled" in options else free_port()
    with server_folder("redis") as folder, redis_in(folder, port, *options) as server:
        yield server


def _free_port_of_a_node() -> int:
    """One whose port for the other nodes is free too, and kept so (`free_port`)."""
    while True:
        port = free_port() - _BUS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def redis_in(folder: Path, port: int, *options: str) -> Iterator[RedisServer]:
    """As `local_redis`, where one may have been before: it has none of its keys."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command += ["--dir", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    server = RedisServer(f"redis://127.0.0.1:{port}/0", process.pid)
    try:
        wait_for(lambda: redis_answers(server.url), 60, what="redis-server answers")
        yield server
    finally:
        process.kill()
        process.wait()


def redis_answers(url: str) -> bool:
    """Whether a Redis answers at the URL."""
    import redis

    with redis.Redis.from_url(url, socket_timeout=2) as client:
        return bool(client.ping())
