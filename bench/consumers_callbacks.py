"""What the client library costs: a consumer in Python, from the relay's socket to its code, in rows a second.

A log of rows of eight columns, once in transactions of one row and once in pieces of one large transaction, is served
by `walbus relay`. A process of its own reads all of it, ends where the log ends, and looks at every row
(`change.after`): by callbacks of threads and of asyncio, by callbacks that get a dataclass (`into=`), and by a loop
over windows. What callbacks cost without a look at rows stands beside it, and `walbus consume` into SQLite. Each must
have seen every row. The reference is the aim of 250,000 rows a second; rows a second of processor time are told too,
for the relay runs beside it.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import walbus
from relay_load import SOURCE
from relay_streams import running_relay
from report import Report
from walbus.config import ConsumerConfig
from walbus.consumers import Delivered, MemoryCheckpointStore, run_consumer
from walbus.events import Change
from walbus.keys import encode_key
from walbus.log import Piece
from walbus.records import Flag, Kind, Op, pack_change
from walbus.relay import open_writer
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

_AIM = 250_000
_PIECE = 1_000  # rows
COLUMNS = {
    "id": (20, "int8"), "customer": (23, "int4"), "note": (25, "text"), "total": (1700, "numeric"),
    "placed": (1184, "timestamptz"), "paid": (16, "bool"), "weight": (701, "float8"), "token": (2950, "uuid"),
}  # fmt: skip


def run(rows: int, transactions: int, rounds: int) -> Report:
    """Measures a log of one transaction of `rows` rows, and one of `transactions` transactions of one row."""
    report = Report(
        "consumers-callbacks",
        "A consumer in Python",
        ("log", "what", "rows", "seconds", "rows/s", "rows/s of a core"),
        notes=["Medians over the rounds, each in a process of its own; the relay takes the other core."],
    )
    for log, count, piece in (("one transaction", rows, _PIECE), ("transactions of one row", transactions, 1)):
        with tempfile.TemporaryDirectory(prefix="walbus-bench-") as name:
            folder = Path(name)
            write_log(folder / "relay", count, piece)
            with running_relay(folder) as (port, _):
                for what in _WAYS:
                    seconds, cpu = median([read(port, what, count) for _ in range(rounds)])
                    rates = f"{count / seconds:,.0f}", f"{count / cpu:,.0f}"
                    report.row(log, what, f"{count:,}", f"{seconds:.2f}", *rates)
                    if what == "callbacks":
                        report.ratio(f"callbacks/250k {log}", count / seconds / _AIM)
    return report


def write_log(folder: Path, rows: int, piece: int) -> None:
    """A log whose rows are real; pieces of more than one row are those of one transaction."""
    columns = tuple(Column(name, oid, kind, -1, name == "id") for name, (oid, kind) in COLUMNS.items())
    writer = open_writer(folder, SOURCE, segment_bytes=1 << 40, retention_hours=1, retention_bytes=None)
    with closing(writer):
        schema, _ = writer.schemas.register(TableSchema(0, 16_400, "public", "t", ReplicaIdentity.DEFAULT, columns))
        encode = row_encoder(schema).encode
        now = int(time.time() * 1e6)
        for first in range(1, rows + 1, piece):
            count = min(piece, rows - first + 1)
            body = b"".join(_row(schema, encode, first + i, i) for i in range(count))
            one = piece == 1
            begins, ends = one or first == 1, one or first + count > rows
            lsn = first * 512 if one else 512
            writer.append(
                Piece(
                    kind=Kind.TRANSACTION, flags=(Flag.BEGIN if begins else 0) | (Flag.END if ends else 0), epoch=1,
                    commit_lsn=lsn, end_lsn=lsn + 8 if ends else 0, first_ordinal=1 if one else first,
                    last_ordinal=1 if one else first + count - 1, count=count, xid=700 + (first if one else 0),
                    commit_time=now, tables=1 << schema.oid % 64, body=body,
                )
            )  # fmt: skip
            if first % 10_000 < piece:
                writer.sync()
        writer.sync()


def _row(schema: TableSchema, encode: Callable[[list[bytes | None]], bytes], number: int, delta: int) -> bytes:
    key = b"%d" % number
    values: list[bytes | None] = [
        key, b"%d" % (number % 977), b"a note of some words, number %d" % number, b"%d.25" % (number % 10_000),
        b"2026-11-29 03:%02d:%02d.5+00" % (number // 60 % 60, number % 60), b"t", b"%d.5" % (number % 100),
        b"6f1e1a56-25f8-4f5b-8f0e-%012x" % number,
    ]  # fmt: skip
    return pack_change(
        Op.INSERT, table=schema.oid, schema_id=schema.id, seq_delta=delta, ordinal_delta=delta,
        key=encode_key([key], [20]), after=encode(values),
    )  # fmt: skip


def read(port: int, what: str, rows: int) -> tuple[float, float]:
    """Seconds, and processor seconds, of a process that reads the whole log."""
    command = [sys.executable, __file__, f"http://127.0.0.1:{port}", what, str(rows)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    told = json.loads(out.splitlines()[-1])  # behind what the client logs
    if told["rows"] != rows:
        raise RuntimeError(f"{what}: {told['rows']} of {rows} rows came")
    return told["seconds"], told["cpu"]


def median(taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the seconds and of the processor seconds of some reads."""
    return statistics.median(seconds for seconds, _ in taken), statistics.median(cpu for _, cpu in taken)


# --- the process that is measured -----------------------------------------------------------------------------------


@dataclass
class Row:
    """The table's rows."""

    id: int
    customer: int
    note: str
    total: Decimal
    placed: datetime
    paid: bool
    weight: float
    token: UUID


class _Looks(walbus.Callbacks):
    rows = 0

    def on_change(self, change: Change, window: Delivered) -> None:
        if change.after:
            self.rows += 1


class _Counts(walbus.Callbacks):
    rows = 0

    def on_change(self, change: Change, window: Delivered) -> None:
        self.rows += change.raw.op == Op.INSERT


class _Typed(walbus.Callbacks):
    rows = 0

    def on_change(self, change: Change, window: Delivered) -> None:
        if change.row:
            self.rows += 1


class _Awaited(walbus.AsyncCallbacks):
    rows = 0

    async def on_change(self, change: Change, window: Delivered) -> None:
        if change.after:
            self.rows += 1


def _called(url: str, callbacks: _Looks | _Counts | _Typed, into: type | None = None) -> int:
    with walbus.connect(url) as bus:
        store = MemoryCheckpointStore()
        bus.subscribe(name="bench", start="earliest", until="latest", checkpoints=store, into=into).run(callbacks)
    return callbacks.rows


def _awaited(url: str) -> int:
    async def read() -> int:
        callbacks = _Awaited()
        async with walbus.aconnect(url) as bus:
            store = MemoryCheckpointStore()
            await bus.subscribe(name="bench", start="earliest", until="latest", checkpoints=store).run(callbacks)
        return callbacks.rows

    return asyncio.run(read())


def _looped(url: str) -> int:
    rows = 0
    with walbus.connect(url) as bus:
        for window in bus.subscribe(
            name="bench", start="earliest", until="latest", checkpoints=MemoryCheckpointStore()
        ):
            for change in window:
                if change.after:
                    rows += 1
            window.commit()
    return rows


def _consumed(url: str, rows: int) -> int:
    with tempfile.TemporaryDirectory(prefix="walbus-bench-") as name:
        replica, stop = Path(name) / "replica.sqlite", threading.Event()
        config = ConsumerConfig(sink="sqlite", path=str(replica), start="earliest")
        options = {"relay_url": url, "folder": Path(name) / "bench", "status_path": None, "stop": stop}
        consumer = threading.Thread(target=run_consumer, args=("bench", config), kwargs=options)
        consumer.start()
        while consumer.is_alive() and _newest(replica) < rows:
            time.sleep(0.02)
        stop.set()
        consumer.join()
        return _newest(replica)


def _newest(replica: Path) -> int:
    """The last row in a replica; they come in order."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{replica}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT max(id) FROM t").fetchone()[0] or 0)
    return 0


_WAYS: dict[str, Callable[[str, int], int]] = {
    "callbacks": lambda url, _: _called(url, _Looks()),
    "callbacks, rows not looked at": lambda url, _: _called(url, _Counts()),
    "callbacks, into a dataclass": lambda url, _: _called(url, _Typed(), Row),
    "callbacks, asyncio": lambda url, _: _awaited(url),
    "loop over windows": lambda url, _: _looped(url),
    "the SQLite sink": _consumed,
}


def _measure(url: str, what: str, expected: int) -> None:
    before, start = time.process_time(), time.perf_counter()
    rows = _WAYS[what](url, expected)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - start, "cpu": time.process_time() - before}))


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
