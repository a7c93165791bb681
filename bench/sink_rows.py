"""Rows of benchmarks of sinks: as the log has them, in transactions of a hundred, and as Python has them.

Two workloads, each of as many rows: inserts of distinct keys into an empty place (version 0), and updates of the rows
that are then there (version 1). A sink gets the log's records in memory, decodes them, and writes and commits ten
thousand changes at a time, as the runner does that is behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeAlias

from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink
from walbus.events import window_of
from walbus.records import Flag, Kind, Op, RecordHeader, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

BATCH, _PER_TRANSACTION = 10_000, 100
_MARKS = Marks(1, 1)
NAMES = ("id", "account", "kind", "amount", "at", "note")
TYPES = ("int8", "int4", "text", "numeric", "timestamptz", "text")
_OIDS = (20, 23, 25, 1700, 1184, 25)
LAYOUT = TableSchema(
    1,
    16_400,
    "bench",
    "events",
    ReplicaIdentity.DEFAULT,
    tuple(
        Column(name, oid, kind, -1, in_key=name == "id") for name, oid, kind in zip(NAMES, _OIDS, TYPES, strict=True)
    ),
)

Row: TypeAlias = tuple[int, int, str, Decimal, datetime, str]
Record: TypeAlias = tuple[RecordHeader, bytes]


def into_sink(sink: Sink, records: Sequence[Record]) -> float:
    """The seconds that a sink takes for records, the last commit's included."""
    sink.checkpoint()
    begin = time.perf_counter()
    for batch in _batched(records):
        windows = [window_of(header, record, {1: LAYOUT}.__getitem__) for header, record in batch]
        sink.write(windows, _MARKS)
        sink.commit(Following("bench", _MARKS, Point(windows[-1].last, windows[-1].last_seq)))
    return time.perf_counter() - begin


def _batched(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    size = BATCH // _PER_TRANSACTION
    for start in range(0, len(records), size):
        yield records[start : start + size]


def row_of(key: int, version: int) -> Row:
    """One row."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return key, key % 1000, f"kind-{key % 7}", Decimal(key + version).scaleb(-2), at, f"{key:032x}{version:032x}"


def records_of(rows: int, version: int) -> Iterator[Record]:
    """All rows of a version, as the log has them."""
    encoder = row_encoder(LAYOUT)
    op = Op.UPDATE if version else Op.INSERT
    for start in range(0, rows, _PER_TRANSACTION):
        keys = range(start, min(rows, start + _PER_TRANSACTION))
        body = bytearray()
        for delta, key in enumerate(keys):
            row = row_of(key, version)
            texts = [str(value).encode() for value in row[:4]] + [b"2026-01-01 00:00:00+00", row[5].encode()]
            parts = {"table": LAYOUT.oid, "schema_id": 1, "seq_delta": delta, "ordinal_delta": delta}
            body += pack_change(op, key=encoder.key(texts), after=encoder.encode(texts), **parts)
        first_seq = 1 + version * rows + start
        record = pack_record(
            Kind.TRANSACTION,
            flags=Flag.BEGIN | Flag.END,
            epoch=1,
            commit_lsn=first_seq * 16,
            end_lsn=first_seq * 16 + 8,
            first_ordinal=1,
            last_ordinal=len(keys),
            first_seq=first_seq,
            last_seq=first_seq + len(keys) - 1,
            xid=1,
            commit_time=0,
            count=len(keys),
            tables=1,
            body=bytes(body),
        )
        yield read_header(record), record
