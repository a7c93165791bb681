"""A relay in a thread with tokens, TLS or tight bounds, over a log of the tables orders, items and secrets.

with GuardedRelay(tmp_path, tokens={"narrow": ["public.orders"]}) as relay:
    status, body = relay.json("/v1/stream?follow=false&format=json", token=relay.tokens["narrow"])
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from support.relay_log import FileEngine, table_schema, transaction
from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.diagnostics import Redactor
from walbus.relay import serve_relay
from walbus.relay.tokens import Role, Token, digest_of, section_of

TABLES = ("orders", "items", "secrets")


def new_token() -> str:
    return "wbt_" + secrets.token_urlsafe(32)


def token_section(
    name: str, secret: str, tables: Sequence[str], roles: Sequence[Role] = ("read",), expires: float | None = None
) -> str:
    return section_of(Token(name, digest_of(secret), tuple(tables), frozenset(roles), expires))


class GuardedRelay:
    """A server in a thread; `tokens` has the secret of each token by its name.

    Args:
        folder: for log, status files and tokens.
        tokens: names and their tables; None: access is not switched on. `metrics` and `admin` get those roles.
        tls: what clients of the test speak; the server's side is `tls_cert` and `tls_key`.
        keys: further keys of `[relay]`.

    Attributes:
        closing: what is closed with it, connections of clients above all.
    """

    def __init__(
        self,
        folder: Path,
        tokens: Mapping[str, Sequence[str]] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        **keys: Any,
    ) -> None:
        self.engine = FileEngine(folder / "log")
        self.status_dir = folder / "status"
        self.status_dir.mkdir()
        self.tokens = {name: new_token() for name in tokens or ()}
        self.token_file = folder / "tokens.toml"
        if tokens is not None:
            self.write_tokens(tokens)
            keys["tokens_file"] = self.token_file
        self._tls = tls
        self._config = RelayConfig(listen=keys.pop("listen", "127.0.0.1:0"), **keys)
        self._stop = threading.Event()
        self.closing = contextlib.ExitStack()
        self._ready = threading.Event()
        self.error: Exception | None = None
        self.port = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def write_tokens(self, tokens: Mapping[str, Sequence[str]], expires: float | None = None) -> None:
        """The file anew, with these tables for the tokens."""
        roles: dict[str, tuple[Role, ...]] = {"metrics": ("metrics",), "admin": ("admin",)}
        sections = [
            token_section(name, self.tokens.setdefault(name, new_token()), tables, roles.get(name, ("read",)), expires)
            for name, tables in tokens.items()
        ]
        beside = self.token_file.with_suffix(".new")
        beside.write_text("\n".join(sections))
        beside.replace(self.token_file)

    def __enter__(self) -> Self:
        self.writer = self.engine.open_writer()
        for number, name in enumerate(TABLES, 1):
            self.writer.schemas.register(table_schema(name, number))
        for i in range(1, 61):
            self.writer.append(transaction(i * 16, 2, table=1 + i % 3, schema_id=1 + i % 3))
        self.writer.sync()
        self._thread.start()
        assert self._ready.wait(60), self.error
        wait_for(lambda: self.get("/readyz")[0] == 200, what="the server to find the log")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.closing:
            self._stop.set()
            self._thread.join(60)
            assert not self._thread.is_alive()
            self.engine.close()

    def _serve(self) -> None:
        try:
            serve_relay(
                self.engine.folder, self._config, bootstrap_url=None, status_dir=self.status_dir, stop=self._stop,
                on_listening=self._listening,
            )  # fmt: skip
        except Exception as error:
            self.error = error

    def _listening(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def append(self, count: int = 1, table: int = 1) -> None:
        """More transactions."""
        end = self.writer.bounds().end.commit_lsn
        for i in range(1, count + 1):
            self.writer.append(transaction(end + i * 16, 2, table=table, schema_id=table))
        self.writer.sync()

    def connection(self, timeout: float = 60) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        return http.client.HTTPSConnection("localhost", self.port, timeout=timeout, context=self._tls)

    def get(self, path: str, token: str | None = None, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection = self.connection()
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def json(self, path: str, token: str | None = None, **headers: str) -> tuple[int, Any]:
        status, body = self.get(path, token, **headers)
        return status, json.loads(body)

    def raw(self, data: bytes, timeout: float = 60) -> bytes:
        """What the server says to bytes until it hangs up; empty if it only hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as client:
            heard = b""
            try:
                client.sendall(data)
                while block := client.recv(1 << 16):
                    heard += block
            except (ConnectionError, BrokenPipeError):
                pass
            return heard


@contextmanager
def listened() -> Iterator[list[dict[str, Any]]]:
    """The events that are logged meanwhile, starred as in production."""
    found: list[dict[str, Any]] = []
    before = structlog.get_config()

    def keep(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        found.append({**Redactor()(logger, method, dict(event)), "level": method})
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    try:
        yield found
    finally:
        structlog.configure(**before)
