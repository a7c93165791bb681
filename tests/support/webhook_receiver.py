"""Someone who takes webhooks: verifies signatures and remembers ids as one is told to.

receiver.requests     (id, body) of those whose signature holds; each again that came again
receiver.changes()    the changes of all of them, each id counted once
receiver.rows(table)  what who keeps rows has by then
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = os.urandom(32)
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"

Row = dict[str, str | None]


class Receiver:
    """A receiver in this process.

    Attributes:
        requests: (id, body) of those whose signature holds, in order; each again that came again.
        answer: gives the status of the answer to a request, by its number, and headers; None: no answer at all.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.forged = 0
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[int], tuple[int, dict[str, str]] | None] = lambda _: (204, {})
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.take({name.lower(): value for name, value in self.headers.items()}, body)
                answer = receiver.answer(len(receiver.requests))
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                for name, value in answer[1].items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def take(self, headers: dict[str, str], body: bytes) -> None:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        wanted = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        if wanted in headers["webhook-signature"].split(" "):
            self.requests.append((headers["webhook-id"], body))
            self.headers.append(headers)
        else:
            self.forged += 1

    def changes(self) -> list[dict[str, Any]]:
        """The changes of all requests, each id counted once."""
        bodies = dict(self.requests)
        return [change for body in bodies.values() for change in json.loads(body)["changes"]]

    def rows(self, table: str) -> dict[str, Row]:
        """The rows of a table by id, as texts: what who compares seqs, and heeds sweeps, has in the end."""
        held: dict[str, tuple[int, Row | None]] = {}  # None: deleted

        def put(id: str, seq: int, row: Row | None, *, even: bool = False) -> None:
            if id not in held or seq > held[id][0] or (even and seq == held[id][0]):
                held[id] = seq, row

        brought: set[str] = set()
        for change in self.changes():
            if change["op"] == "schema":
                continue
            op, seq = change["op"], change["seq"]
            if op == "sweep":
                gone = [id for id, (at, row) in held.items() if row is not None and at <= seq and id not in brought]
                held |= dict.fromkeys(gone, (seq, None))
                brought = set()
            elif op == "truncate":
                held |= {id: (seq, None) for id, (at, _) in held.items() if at < seq}
            elif change["table"] == table:
                id = str(change["key"]["id"])
                old = str(change.get("old_key", change["key"])["id"])
                if op == "delete":
                    put(id, seq, None)
                    continue
                _, before = held.get(old, (0, None))
                row = {name: None if value is None else str(value) for name, value in change["after"].items()}
                put(id, seq, {**(before or {}), **row} if change.get("unchanged") else row, even="snapshot" in change)
                if "snapshot" in change:
                    brought.add(id)
                elif old != id:
                    put(old, seq, None)
        return {id: row for id, (_, row) in held.items() if row is not None}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
