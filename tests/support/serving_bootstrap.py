"""The bootstrap's server in a thread of the test, over a store in memory that follows a `ModelSource`.

with ServingBootstrap(source) as bootstrap:
    source.commit([...]); bootstrap.follow()
    bootstrap.json("/v1/tables")                      # status and document of any request
    bootstrap.records("/v1/delta?table=…&after=…")    # decoded changes of a response, which must be whole

Its tables were empty when they were seeded, at the log's beginning.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from types import TracebackType
from typing import Any, Self, cast

import msgspec
from structlog.testing import capture_logs

from support.memory_store import MemoryStore
from support.model_source import ModelSource
from support.waiting import wait_for
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.report import Report
from walbus.bootstrap.server import BootstrapServer
from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import Applied, Cut, PublishedTable
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import Snapshot
from walbus.config import BootstrapConfig
from walbus.consumers.decoding import Layouts, decode_record
from walbus.events import Change
from walbus.log import Bounds, LogReader
from walbus.position import ORIGIN, Position
from walbus.record_parser import RecordParser
from walbus.records import RecordHeader
from walbus.relay.gate import gate_of
from walbus.schema import TableSchema

#: A snapshot that sees every transaction.
SEES_ALL = Snapshot(1 << 40, 1 << 40, frozenset())


class SourceLayouts:
    """The layouts of a model source as a log's."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        raise AssertionError("the bootstrap reads layouts")

    def get(self, schema_id: int) -> TableSchema:
        return self._source.layouts[schema_id]

    def all(self) -> list[TableSchema]:
        return list(self._source.layouts.values())


class _Reader:
    """As much of a log's reader as the server asks for."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    def bounds(self) -> Bounds:
        source = self._source
        return Bounds(source.log_id, source.trimmed, source.end, source.end.commit_lsn, source.last_seq, 0, 0)

    def cursor(self, after: Position) -> _Cursor:
        return _Cursor([record for _, record in self._source.after(after)])

    def close(self) -> None:
        """Nothing is open."""


class _Cursor:
    def __init__(self, records: list[bytes]) -> None:
        self._records = records

    def read(self, max_bytes: int) -> list[bytes]:
        return self._records[:1]

    def close(self) -> None:
        """Nothing is open."""


def published(layout: TableSchema, refusal: str = "") -> PublishedTable:
    columns = tuple((c.name, c.type_oid, c.typmod, c.in_key) for c in layout.columns)
    return PublishedTable(layout.oid, layout.namespace, layout.name, "r", "d", columns, None, 0, refusal)


class ServingBootstrap:
    """Serves while it is entered.

    Args:
        source: what is folded; its first layouts are the published tables.
        config: further keys of `[bootstrap]`.
    """

    def __init__(self, source: ModelSource, **config: Any) -> None:
        self.source = source
        self._config = BootstrapConfig(listen="127.0.0.1:0", **config)
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._folded = 0
        self.port = 0
        with capture_logs():
            self.ledger = Ledger(MemoryStore(), complete=self._config.complete)
            self.ledger.schemas = SourceLayouts(source)
            self.ledger.begin(Applied(source.log_id, *ORIGIN, source.last_seq, 0), UnseenCommits())
            self.ledger.resume([])
            for layout in source.layouts.values():
                self.seed(layout)
        self.ledger.tell_listed(self.ledger.newest_schema())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def seed(self, layout: TableSchema) -> None:
        """A generation of an empty table, from here on."""
        self.ledger.observe(SEES_ALL)
        run = self.ledger.start_generation(published(layout), layout.id, "test")
        assert self.ledger.plan(run, Cut(()), 0)
        assert self.ledger.finish(run)

    def relayout(self, layout: TableSchema) -> None:
        """The table's generation goes on in another layout."""
        ledger = self.ledger
        run, stage = ledger.tables[layout.oid], Stage(ledger.store)
        ledger.save_state(stage, run, msgspec.structs.replace(run.state, schema_id=layout.id))
        stage.commit()

    def refuse(self, layout: TableSchema, why: str) -> None:
        with capture_logs():
            self.ledger.refuse(published(layout, why))

    def follow(self) -> None:
        """Folds what the source has committed since."""
        records = [record for _, record in self.source.records[self._folded :]]
        self._folded = len(self.source.records)
        if records:
            EventFolder(self.ledger).fold(records)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        wait_for(lambda: self.json("/healthz")[0] == 200, what="the server")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def json(self, path: str) -> tuple[int, dict[str, Any]]:
        status, _, body = self.get(path)
        return status, json.loads(body)

    def lines(self, path: str) -> list[dict[str, Any]]:
        """The JSON lines of a response that succeeds."""
        status, _, body = self.get(path, Accept="application/x-ndjson")
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]

    def records(self, path: str) -> list[tuple[RecordHeader, list[Change]]]:
        """The records of a response that succeeds."""
        status, _, body = self.get(path)
        assert status == 200, body
        parser = RecordParser()
        parser.feed(body)
        layouts = Layouts(self.source.layouts.__getitem__)
        return [(header, decode_record(header, record, layouts)) for header, record in parser.records()]

    def _serve(self) -> None:
        gate = gate_of(self._config, "bootstrap")
        report = Report(self.ledger, time.monotonic, gate.audit.counts)
        BootstrapServer(self.ledger, report, lambda: cast(LogReader, _Reader(self.source))).serve(
            gate, self._stop, self._listening
        )

    def _listening(self, port: int) -> None:
        self.port = port
        self._ready.set()
