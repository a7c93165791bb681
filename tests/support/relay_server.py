"""A relay's server in a thread with a log under it, and clients that follow it in threads of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any

from support.relay_log import FileEngine, table_schema, transaction
from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.log import Piece
from walbus.record_parser import RecordParser
from walbus.records import Op, RecordHeader, pack_change, read_header
from walbus.relay import serve_relay
from walbus.relay.writer import FileLogWriter
from walbus.schema import TableSchema
from walbus.values import row_encoder

BOOTSTRAP = "http://127.0.0.1:7071"


class Relay:
    """A server in a thread, and a log under it.

    Args:
        folder: for the log and the status files.
        log: folder of a log that is there already; None for one in `folder`.
        options: of `[relay]`.

    Attributes:
        closing: what is closed with it, followers above all: a failed test leaves no socket to the next one.
    """

    writer: FileLogWriter

    def __init__(self, folder: Path, log: Path | None = None, **options: Any) -> None:
        self.engine = FileEngine(log or folder / "log")
        self.config = RelayConfig(listen="127.0.0.1:0", **options)
        self.status_dir = folder / "status"
        self.status_dir.mkdir(parents=True)
        self.stop = threading.Event()
        self.closing = contextlib.ExitStack()
        self.port = 0
        self._ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        assert self._ready.wait(60)

    def _serve(self) -> None:
        serve_relay(
            self.engine.folder, self.config, bootstrap_url=BOOTSTRAP,
            status_dir=self.status_dir, stop=self.stop, on_listening=self._listening,
        )  # fmt: skip

    def _listening(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def json(self, path: str) -> tuple[int, dict]:
        status, body = self.get(path)
        return status, json.loads(body)

    def records(self, query: str) -> list[bytes]:
        status, body = self.get(f"/v1/stream?{query}")
        assert status == 200, body
        return [record for _, record in parsed(body)]

    def headers(self, query: str) -> list[RecordHeader]:
        return [read_header(record) for record in self.records(query)]

    def close(self) -> None:
        with self.closing:
            self.stop.set()
            self.thread.join(60)
            assert not self.thread.is_alive()
            self.engine.close()


def parsed(body: bytes) -> list[tuple[RecordHeader, bytes]]:
    parser = RecordParser()
    parser.feed(body)
    found = list(parser.records())
    assert parser.pending == 0
    return found


def fill(relay: Relay) -> Relay:
    """Gives a relay a log: orders (even transactions) and items (odd ones), 200 in all."""
    writer = relay.writer = relay.engine.open_writer()
    writer.schemas.register(table_schema("orders", 1))
    writer.schemas.register(table_schema("items", 2))
    for i in range(1, 201):
        table = 1 + i % 2
        writer.append(transaction(i * 16, 2, table=table, schema_id=table, size=300))
    writer.sync()
    wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server to find the log")
    return relay


class Follower:
    """A client that reads a stream in a thread; closed with its relay at the latest.

    Attributes:
        received: bytes so far.
        ended: how the stream ended; empty while it goes on.
    """

    def __init__(self, relay: Relay, query: str, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=60)
        relay.closing.callback(self.connection.close)
        self.connection.request("GET", f"/v1/stream?{query}", headers=headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.read()
        self._blocks: list[bytes] = []
        self.received = 0
        self.ended: str = ""
        self._reading = threading.Event()
        self._reading.set()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        relay.closing.callback(self.close)

    @property
    def body(self) -> bytes:
        """What was received."""
        count = len(self._blocks)
        self._blocks[:count] = [b"".join(self._blocks[:count])]  # more may have come behind them
        return self._blocks[0]

    def pause(self) -> None:
        """Reads nothing from now on but what it is waiting for."""
        self._reading.clear()

    def go_on(self) -> None:
        """Reads again."""
        self._reading.set()

    def _read(self) -> None:
        try:
            while self._reading.wait() and (block := self.response.read1(1 << 16)):
                self._blocks.append(block)
                self.received += len(block)
            self.ended = "whole"
        except (OSError, http.client.HTTPException) as error:
            self.ended = type(error).__name__

    def headers(self) -> list[RecordHeader]:
        parser = RecordParser()
        parser.feed(self.body)
        return [header for header, _ in parser.records()]

    def close(self) -> None:
        self._reading.set()
        with contextlib.suppress(OSError):  # the relay has hung up already
            self.connection.sock and self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(60)
        self.response.close()
        self.connection.close()


def rows_of(schema: TableSchema, lsn: int, numbers: range) -> Piece:
    """A transaction that inserts real rows."""
    encoder = row_encoder(schema)
    body = b"".join(
        pack_change(
            Op.INSERT, table=schema.oid, schema_id=schema.id, seq_delta=i, ordinal_delta=i,
            key=encoder.key([b"%d" % number]), after=encoder.encode([b"%d" % number]),
        )
        for i, number in enumerate(numbers)
    )  # fmt: skip
    made = transaction(lsn, len(numbers), table=schema.oid, schema_id=schema.id)
    return dataclasses.replace(made, body=body)
