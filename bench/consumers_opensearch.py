"""The OpenSearch sink against opensearch-py's `helpers.parallel_bulk`, with the same documents on the same server.

The sink gets windows as the relay sends them, transactions of a hundred inserts of 200-byte rows: it decodes them,
versions each document, keeps its checkpoint and refuses what is late. The helper gets the rows as Python dicts that lie
in memory already, and writes them without versions, with its threads and chunks as they come. Both write into an empty
index with the same mapping and settings, of which a first transaction has made sure; the time is from the next row to
the last answer. The order changes each round, and medians are reported. Processor time is that of this process: the
server's is the same machine's, and not in it.

Maven fetches the server's jars (70 MB, kept in `.services`); it takes a JDK of 11 or later.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
from opensearchpy import OpenSearch, helpers

from report import Report
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.consumers.sinks.opensearch_documents import properties_of
from walbus.events import Window, window_of
from walbus.keys import encode_key
from walbus.records import Flag, Kind, Op, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder, row_json

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from support.opensearch_server import emptied, local_opensearch
from support.server_folder import disk_folder

_JAVA = ("java", "-Xms1g", "-Xmx1g")
_PER_TRANSACTION = 100
_MARKS = Marks(1, 1)
_TABLE, _COPY = "public.events", "reference"
_LAYOUT = TableSchema(
    1,
    16400,
    "public",
    "events",
    ReplicaIdentity.DEFAULT,
    (
        Column("id", 20, "int8", -1, in_key=True),
        Column("account", 23, "int4", -1, in_key=False),
        Column("kind", 25, "text", -1, in_key=False),
        Column("amount", 1700, "numeric", -1, in_key=False),
        Column("at", 1184, "timestamptz", -1, in_key=False),
        Column("note", 25, "text", -1, in_key=False),
    ),
)

_Taken = tuple[float, float]  # seconds, processor seconds


def run(documents: int, rounds: int) -> Report:
    """Measures one table."""
    report = Report(
        "opensearch",
        "OpenSearch",
        ("documents", "what", "seconds", "documents/s", "processor seconds"),
        notes=["Medians over the rounds; the first one warms the server, and is not counted."],
    )
    windows = list(_windows(documents))
    rows = [row_json(_LAYOUT, change.raw.after or b"") for window in windows for change in window.changes]
    with local_opensearch(_JAVA, place=disk_folder) as server:
        ways: dict[str, Callable[[], _Taken]] = {
            "walbus": lambda: _sink(server.url, windows, documents),
            "parallel_bulk": lambda: _helper(server.url, rows),
        }
        taken: dict[str, list[_Taken]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
                taken[name].append(ways[name]())
    medians = {
        name: [statistics.median(part) for part in zip(*times[1:], strict=True)] for name, times in taken.items()
    }
    for name, (seconds, cpu) in medians.items():
        report.row(f"{documents:,}", name, f"{seconds:.2f}", f"{documents / seconds:,.0f}", f"{cpu:.2f}")
    report.ratio("opensearch/parallel_bulk", medians["parallel_bulk"][0] / medians["walbus"][0])
    return report


def _windows(documents: int) -> Iterator[Window]:
    encoder = row_encoder(_LAYOUT)
    for first in range(1, documents + 1, _PER_TRANSACTION):
        ids = range(first, min(first + _PER_TRANSACTION, documents + 1))
        bodies = [
            pack_change(
                Op.INSERT,
                table=_LAYOUT.oid,
                schema_id=1,
                seq_delta=ordinal,
                ordinal_delta=ordinal,
                key=encode_key([str(id_).encode()], [20]),
                after=encoder.encode(_row(id_)),
            )
            for ordinal, id_ in enumerate(ids)
        ]
        record = pack_record(
            Kind.TRANSACTION,
            flags=Flag.BEGIN | Flag.END,
            epoch=1,
            commit_lsn=first << 8,
            end_lsn=(first << 8) + 8,
            first_ordinal=1,
            last_ordinal=len(ids),
            first_seq=first,
            last_seq=ids[-1],
            xid=first,
            commit_time=1_700_000_000_000_000,
            count=len(ids),
            tables=(1 << 64) - 1,
            body=b"".join(bodies),
        )
        yield window_of(read_header(record), record, lambda _: _LAYOUT)


def _row(id_: int) -> list[bytes | None]:
    at = b"2024-01-31 12:%02d:%02d.5+00" % (id_ // 60 % 60, id_ % 60)
    note = b"the order %d of somebody, with some words about it that are never quite the same " % id_ * 2
    return [b"%d" % id_, b"%d" % (id_ % 1000), b"kind-%d" % (id_ % 7), b"%d.25" % (id_ % 500), at, note]


def _sink(url: str, windows: list[Window], documents: int) -> _Taken:
    emptied(url)
    with tempfile.TemporaryDirectory() as folder:
        with closing(open_sink("opensearch", {"url": url}, SinkPlace("bench", Path(folder), ("*.*",)))) as sink:
            first, *others = windows
            sink.write([first], _MARKS)
            sink.commit(Following("log", _MARKS, Point(first.last, first.last_seq)))  # the index is there
            begin, cpu = time.perf_counter(), time.process_time()
            gathered: list[Window] = []
            for window in others:
                gathered.append(window)
                if len(gathered) * _PER_TRANSACTION >= sink.batching.max_changes:
                    sink.write(gathered, _MARKS)
                    gathered = []
            if gathered:
                sink.write(gathered, _MARKS)
            sink.commit(Following("log", _MARKS, Point(windows[-1].last, windows[-1].last_seq)))
            taken = time.perf_counter() - begin, time.process_time() - cpu
        _check(url, _TABLE, documents)
    return taken


def _helper(url: str, rows: list[dict[str, Any]]) -> _Taken:
    emptied(url)
    body = {"mappings": {"dynamic": False, "properties": properties_of(_LAYOUT, {})}}
    httpx.put(f"{url}/{_COPY}", json=body, timeout=30).raise_for_status()
    client = OpenSearch(url)
    actions = [{"_index": _COPY, "_id": row["id"], "_source": row} for row in rows]
    deque(helpers.parallel_bulk(client, actions[:_PER_TRANSACTION]), maxlen=0)
    begin, cpu = time.perf_counter(), time.process_time()
    deque(helpers.parallel_bulk(client, actions[_PER_TRANSACTION:]), maxlen=0)
    taken = time.perf_counter() - begin, time.process_time() - cpu
    _check(url, _COPY, len(rows))
    client.close()
    return taken


def _check(url: str, index: str, documents: int) -> None:
    httpx.post(f"{url}/{index}/_refresh", timeout=60)
    held = httpx.get(f"{url}/{index}/_count", timeout=60).json()["count"]
    if held != documents:
        raise RuntimeError(f"{index} holds {held} of {documents} documents")
