"""Something between a sink and its search server: answers in its own way, or stops passing them on, as a kill would.

with between_search(url) as between:
    between.url                                    where the sink is sent to
    between.answers["/_bulk"] = 302, b""           requests with this in their path are answered so
    between.kill(3, since="hold", arrives=False)  the third request from one on that has this in its path is the last
    between.killed.wait(60)                        ... and nothing gets through, until `between.revive()`
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


class Between(ThreadingHTTPServer):
    """Passes requests on to a server, but for those that `answers` has an answer for, by a part of their path."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.http = httpx.Client(base_url=target, timeout=30)
        self.killed = threading.Event()
        self.last = ""  #: the request that was the last one
        self._lock = threading.Lock()
        self._left: int | None = None
        self._since, self._counting, self._arrives = "", False, False

    def kill(self, at: int, *, since: str, arrives: bool) -> None:
        """Passes nothing on from a request on.

        Args:
            at: which one it is, from 1, of those behind the first with `since` in its path, and that one.
            since: a part of a path.
            arrives: whether that last request gets to the server, and only its answer is lost.
        """
        with self._lock:
            self.killed.clear()
            self._left, self._since, self._counting, self._arrives = at, since, False, arrives

    def revive(self) -> None:
        """Passes all on."""
        with self._lock:
            self.killed.clear()
            self._left = None

    def verdict(self, request: str) -> tuple[bool, bool]:
        """Whether a request is passed on, and whether it is answered."""
        with self._lock:
            if self.killed.is_set():
                return False, False
            if self._left is None:
                return True, True
            self._counting = self._counting or self._since in request
            self._left -= self._counting
            if self._left > 0:
                return True, True
            self.last = request
            self.killed.set()
            return self._arrives, False


class _Forwarding(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Between

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = next((answer for part, answer in self.server.answers.items() if part in self.path), None)
        passed_on, answered = self.server.verdict(f"{self.command} {self.path}")
        if told is None and passed_on:
            headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            passed = self.server.http.request(self.command, self.path, content=body, headers=headers)
            told = passed.status_code, passed.content
        if told is None or not answered:
            self.close_connection = True
            return
        self.send_response(told[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told[1])))
        self.end_headers()
        self.wfile.write(told[1])

    do_GET = do_POST = do_PUT = do_DELETE = _forward  # noqa: N815 - the names that the class looks for

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def between_search(url: str) -> Iterator[Between]:
    """One that runs while the context is entered."""
    with Between(url) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()
            server.http.close()
