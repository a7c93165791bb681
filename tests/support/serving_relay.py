"""`serve_relay` in a thread of the test, over the log in a folder.

with ServingRelay(engine.folder) as relay:
    relay.url, relay.port
    relay.json("PUT", "/v1/consumers/cache", body)      # status and JSON of any request
    relay.get("/metrics")                               # the body of one that succeeds
    relay.desk()                                        # the server's own, to look at
"""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.relay.consumer_desk import ConsumerDesk
from walbus.relay.gate import gate_of
from walbus.relay.listener import run_server
from walbus.relay.server import RelayServer

T = TypeVar("T")


class ServingRelay:
    """A relay that serves while it is entered.

    Args:
        folder: of the log.
        port: where to listen; 0 for any.
        bootstrap_url: the bootstrap server that it names.
        config: further keys of `[relay]`.
    """

    def __init__(self, folder: Path, *, port: int = 0, bootstrap_url: str | None = None, **config: Any) -> None:
        self._config = RelayConfig(listen=f"127.0.0.1:{port}", **config)
        self._server = RelayServer(folder, self._config, bootstrap_url, folder / "no-status", {})
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        wait_for(lambda: self.json("GET", "/readyz")[0] == 200, what="the relay to find the log")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def json(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """Status and document of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def get(self, path: str) -> bytes:
        """The body of a GET that succeeds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            return response.read()
        finally:
            connection.close()

    def desk(self) -> ConsumerDesk:
        """The consumers that it knows."""
        return self._server._desk

    def server_waits(self) -> int:
        """How many wait for a consumer."""
        return len(self._server._desk.waits)

    def server_counts(self) -> bool:
        """Whether it has begun to count what comes into the log."""
        return self._server._tables._tally is not None

    def _serve(self) -> None:
        gate = gate_of(self._config, "relay")
        run_server(self._server.application(), gate, self._stop, on_listening=self._listening)

    def _listening(self, port: int) -> None:
        self.port = port
        self._ready.set()
