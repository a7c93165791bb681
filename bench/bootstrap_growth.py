"""A store of distinct keys in random order, larger than any cache: rate, write amplification and memory as it grows.

The log's records are made in memory, a hundred rows each, and folded as the applier folds them, with a sync a second;
no PostgreSQL and no reading of a log takes part. Keys are 9 bytes, rows about 120. Write amplification is what the
process wrote to its files, by the kernel's count, over the bytes of keys and rows.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from measured import peak_memory
from report import Report
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.state import Applied, Cut, Part, PublishedTable
from walbus.bootstrap.store_folder import open_store
from walbus.bootstrap.unseen import UnseenCommits
from walbus.position import ORIGIN
from walbus.records import Flag, Kind, pack_record

_PORTIONS = 5
_PER_RECORD = 100
_PER_BATCH = 8 << 20
_FACTOR, _MODULUS = 11400714819, 1 << 40
_CHANGE = struct.Struct("<IBBHIIQIIIIII")


def run(keys: int) -> Report:
    """Measures one store; it is gone afterwards."""
    report = Report(
        "bootstrap-growth",
        "A store of distinct keys in random order",
        ("keys", "seconds", "keys/s", "write amplification", "store MB", "peak MiB"),
        notes=["Each line is of the keys since the line before; write amplification is of all so far."],
    )
    with tempfile.TemporaryDirectory(prefix="walbus-bench-") as folder:
        command = [sys.executable, __file__, str(keys), folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                if not line.startswith("{"):
                    continue  # what the ledger says
                told = json.loads(line)
                report.row(
                    f"{told['keys']:,}",
                    f"{told['seconds']:.1f}",
                    f"{told['rate']:,.0f}",
                    f"{told['amplification']:.1f}",
                    f"{told['store'] / 1e6:,.0f}",
                    f"{told['peak'] / (1 << 20):.0f}",
                )
                last = told
        if process.returncode:
            raise RuntimeError(f"it ended with code {process.returncode}")
    report.ratio("growth/first", last["rate"] / last["first"])
    report.ratio("growth/write-amplification", last["amplification"])
    return report


def _batches(keys: int) -> Iterator[tuple[list[bytes], int]]:
    """Records of one batch, and the bytes of keys and rows in it."""
    records: list[bytes] = []
    size = payload = 0
    note = bytes(range(48, 112)) + b"-" * 48
    for first in range(0, keys, _PER_RECORD):
        parts = []
        for delta in range(_PER_RECORD):
            key = b"\x01" + ((first + delta) * _FACTOR % _MODULUS + (1 << 63)).to_bytes(8, "big")
            row = key[1:] + note[delta % 8 :]
            length = 48 + len(key) + len(row)
            head = _CHANGE.pack(length, 1, 5, 0, 16384, 1, delta, delta, 0, len(key), 0, len(row), 0)
            parts.append(head + key + row)
            payload += len(key) + len(row)
        record = pack_record(
            Kind.TRANSACTION, flags=Flag.BEGIN | Flag.END, epoch=1, commit_lsn=first + 100, end_lsn=first + 101,
            first_ordinal=1, last_ordinal=_PER_RECORD, first_seq=first + 1, last_seq=first + _PER_RECORD, xid=1000,
            commit_time=first, count=_PER_RECORD, tables=1 << 16384 % 64, body=b"".join(parts),
        )  # fmt: skip
        records.append(record)
        size += len(record)
        if size >= _PER_BATCH:
            yield records, payload
            records, size, payload = [], 0, 0
    if records:
        yield records, payload


def _written() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def _grow(keys: int, folder: Path) -> None:
    """Runs in a process of its own."""
    store = open_store(folder / "store")
    ledger = Ledger(store)
    ledger.begin(Applied("bench", *ORIGIN, 0, 0), UnseenCommits())
    ledger.resume([])
    run = ledger.start_generation(PublishedTable(16384, "public", "t", "r", "d", (), None, 0), 1, "bench")
    ledger.plan(run, Cut((Part(16384, "public", "t", 1, 0),)), 0)
    ledger.finish(run)
    over = threading.Event()

    def sync() -> None:
        while not over.wait(1.0):
            store.sync()

    threading.Thread(target=sync, daemon=True).start()
    folder_of_events = EventFolder(ledger)
    done = payload = 0
    portion = 0.0
    first, began = 0.0, _written()
    before, at = 0, keys // _PORTIONS
    for records, size in _batches(keys):
        started = time.perf_counter()
        folder_of_events.fold(records)
        portion += time.perf_counter() - started
        done += len(records) * _PER_RECORD
        payload += size
        if done >= at:
            rate = (done - before) / portion
            first = first or rate
            told = {
                "keys": done,
                "seconds": portion,
                "rate": rate,
                "first": first,
                "amplification": (_written() - began) / payload,
                "store": store.figures().bytes,
                "peak": peak_memory(os.getpid()),
            }
            print(json.dumps(told), flush=True)
            before, portion, at = done, 0.0, at + keys // _PORTIONS
    over.set()
    store.close()


if __name__ == "__main__":
    _grow(int(sys.argv[1]), Path(sys.argv[2]))
