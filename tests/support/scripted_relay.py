"""A relay and a bootstrap server in one, in this process, that tell a `ModelSource` and can be told to misbehave.

with ScriptedRelay(source) as relay:
    relay.url                        serves /v1/info, /v1/schemas/N, /v1/stream, /v1/tables, /v1/snapshot and /v1/delta
    relay.away = True                every request is answered with 503
    relay.break_after = 2            the next streams break after so many records
    relay.requests                   paths asked for, with their parameters
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from support.model_source import ModelSource
from walbus.consumers.tables import matching
from walbus.position import Position, parse_position
from walbus.records import Flag, Kind, RecordHeader, body_of, iter_changes, pack_record


class ScriptedRelay:
    """Serves while it is entered."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.away = False
        self.seeding = False
        self.break_after: int | None = None
        self.applied = -1  # index into the source's history that snapshots are taken at
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.unlisted: set[str] = set()  # tables that the bootstrap does not know
        self.refused: set[str] = set()  # tables without a key, as the bootstrap sees it
        self.knows_layouts = True  # or it is a copy of the log that has still to get them
        self.idle_progress = True
        self.names_bootstrap = True
        self.has_deltas = True  # or it is a bootstrap of before
        self.sending = 0  # how many tables' rows or deltas are on their way
        self.stopping = threading.Event()
        self.counting = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, path: str) -> list[dict[str, str]]:
        """The parameters of all requests for a path."""
        return [parameters for asked, parameters in list(self.requests) if asked == path]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        class Handler(_Handler):
            relay = self

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100  # a connection that is not taken for a moment is not made anew after a second


class _Handler(BaseHTTPRequestHandler):
    relay: ClassVar[ScriptedRelay]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        relay = self.relay
        url = urlsplit(self.path)
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        relay.requests.append((url.path, parameters))
        try:
            if relay.away:
                self._answer(503, {"error": "away"})
            elif url.path.startswith("/v1/schemas/"):
                self._schema(int(url.path.rpartition("/")[2]))
            else:
                {
                    "/v1/info": self._info,
                    "/v1/stream": self._stream,
                    "/v1/schemas": self._schemas,
                    "/v1/tables": self._tables,
                    "/v1/snapshot": self._snapshot,
                    "/v1/delta": self._delta,
                }[url.path](parameters)
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _info(self, parameters: dict[str, str]) -> None:
        source = self.relay.source
        end, last_seq = source.told()
        behind = max(0, last_seq - int(parameters.get("seq", last_seq)))
        self._answer(
            200,
            {
                "behind": {"changes": behind, "bytes": 100 * behind},
                "log_id": source.log_id,
                "trimmed": str(source.trimmed),
                "end": str(end),
                "last_seq": last_seq,
                "bootstrap": self.relay.url if self.relay.names_bootstrap else None,
            },
        )

    def _schema(self, number: int) -> None:
        if not self.relay.knows_layouts:
            self._answer(404, {"error": f"there is no schema {number}"})
            return
        self._answer(200, {"schema": self.relay.source.layouts[number].to_dict()})

    def _schemas(self, _: dict[str, str]) -> None:
        layouts = [{"schema": layout.to_dict()} for layout in list(self.relay.source.layouts.values())]
        self._answer(200, {"schemas": layouts})

    def _tables(self, _: dict[str, str]) -> None:
        source, unlisted = self.relay.source, self.relay.unlisted
        tables = [
            {
                "table": name,
                "oid": layout.oid,
                "schema_id": layout.id,
                "state": self._state(name),
                "rows": len(source.rows(name)),
            }
            for name, layout in source.current.items()
            if name not in unlisted
        ]
        self._answer(200, {"log_id": source.log_id, "applied": str(source.end), "tables": tables})

    def _state(self, table: str) -> str:
        return "refused" if table in self.relay.refused else "consistent"

    def _snapshot(self, parameters: dict[str, str]) -> None:
        if self.relay.seeding:
            self._answer(503, {"error": "the table is being seeded"})
            return
        key = parameters.get("after_key")
        after_key = None if key is None else bytes.fromhex(key)
        self._send_all(self.relay.source.snapshot(parameters["table"], after_key, self.relay.applied))

    def _delta(self, parameters: dict[str, str]) -> None:
        source = self.relay.source
        if not self.relay.has_deltas:
            self._answer(404, {"error": "Not Found"})
        elif self.relay.seeding:
            self._answer(503, {"error": "the table is being seeded"})
        elif parse_position(parameters["after"]) <= source.horizon:
            self._answer(410, {"error": "not complete since then"})
        else:
            records = source.delta(parameters["table"], int(parameters["seq"]), self.relay.applied)
            if parameters.get("count") == "true":
                count = sum(header.count for header, _ in records)
                self._answer(200, {"changes_at_most": count, "more": False})
            else:
                self._send_all(records)

    def _send_all(self, records: list[tuple[RecordHeader, bytes]]) -> None:
        with self.relay.counting:
            self.relay.sending += 1
        try:
            self._begin()
            if all(self._send(record) for _, record in records):
                self._chunk(b"")
        finally:
            with self.relay.counting:
                self.relay.sending -= 1

    def _stream(self, parameters: dict[str, str]) -> None:
        source = self.relay.source
        if parameters.get("log_id", source.log_id) != source.log_id:
            self._answer(409, {"error": "another log", "log_id": source.log_id})
            return
        after = parse_position(parameters["after"])
        if after < source.trimmed:
            self._answer(410, {"error": "trimmed", "log_id": source.log_id, "trimmed": str(source.trimmed)})
            return
        self._begin()
        patterns = parameters.get("tables", "*.*").split(",")

        def wanted() -> set[int]:
            current = source.current
            return {current[name].oid for name in matching(current, patterns)}

        self._follow(source, after, wanted)

    def _follow(self, source: ModelSource, after: Position, wanted: Callable[[], set[int]]) -> None:
        ticks = 0
        told: list[bytes] = []  # a SCHEMA record stands where the change before it does
        seq = 0  # the last one up to `after`
        while not self.relay.stopping.is_set() and not self.relay.away and self.relay.source is source:
            for header, record in source.after(after, but=told):
                after, seq = header.last, header.last_seq
                told.append(record)
                of = {change.table for change in iter_changes(body_of(record, header))}
                if (not any(of) or of & wanted()) and not self._send(record):
                    return
            ticks += 1
            if ticks % 20 == 0 and self.relay.idle_progress:
                self._chunk(_progress(after, seq))
            self.relay.stopping.wait(0.005)
        self.close_connection = True

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.walbus.stream")
        self.send_header("Walbus-Log-Id", self.relay.source.log_id)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send(self, record: bytes) -> bool:
        """Whether the stream goes on behind this record."""
        if self.relay.break_after is not None:
            if self.relay.break_after == 0:
                self.relay.break_after = None
                self._chunk(record[: len(record) // 2])
                self.close_connection = True
                return False
            self.relay.break_after -= 1
        self._chunk(record)
        return True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _progress(position: Position, seq: int) -> bytes:
    return pack_record(
        Kind.PROGRESS, flags=Flag(0), epoch=position.epoch, commit_lsn=position.commit_lsn,
        first_ordinal=position.ordinal, last_ordinal=position.ordinal, first_seq=seq, last_seq=seq, commit_time=0,
    )  # fmt: skip
