"""A Redis for the demo, where this machine has a `redis-server` and the client is installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from walbus.demo.postgres import free_port
from walbus.errors import SinkUnavailable

_DEADLINE = 15.0


def redis_is_here() -> bool:
    """Whether Redis can take part."""
    return shutil.which("redis-server") is not None and importlib.util.find_spec("redis") is not None


class RedisServer:
    """One redis-server on a port of the loopback, without persistence; a context manager.

    Args:
        folder: its working folder; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How clients reach it."""
        return f"redis://127.0.0.1:{self._port}/0"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        command = ["redis-server", "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(  # noqa: S603  (the machine's own program, no shell)
            [*command, "--dir", str(self._folder), "--logfile", str(self._folder / "redis.log")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait_until_it_answers(self) -> None:
        import redis  # noqa: PLC0415  (an extra: the demo runs without it)

        end = time.monotonic() + _DEADLINE
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if time.monotonic() > end:
                        raise SinkUnavailable("redis-server does not answer", where=self.url) from None
                    time.sleep(0.02)
                else:
                    return
