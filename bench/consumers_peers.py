"""Walbus's callbacks beside the loop that one would write oneself: rows of the same eight columns, in a second.

The loop (`psycopg2_loop.py`) reads its rows from a slot, through pgoutput; the walsender decodes the WAL meanwhile on
the other core. Walbus's consumer reads them from a relay, which serves a log that capture has written before; the relay
has the other core. So what is compared is the process that the rows arrive in, which is what each further consumer
costs. Both look at every row. psycopg2 comes from PyPI into a folder that is gone afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from consumers_callbacks import COLUMNS, median, read, write_log
from relay_streams import running_relay
from report import Report
from source import Source, open_server

VERSION = "2.9.13"
_PIECE = 1_000
_LOOP = Path(__file__).with_name("psycopg2_loop.py")
_ROW = """i, mod(i, 977), 'a note of some words, number ' || i, mod(i, 10000) + 0.25,
    timestamptz '2026-11-29 03:00:00.5+00' + mod(i, 3600) * interval '1 s', true, mod(i, 100) + 0.5,
    ('6f1e1a56-25f8-4f5b-8f0e-' || lpad(to_hex(i), 12, '0'))::uuid"""


def run(rows: int, transactions: int, rounds: int) -> Report:
    """Measures one transaction of `rows` rows, and `transactions` of one row."""
    report = Report(
        "consumers-peers",
        "A consumer in Python beside a loop over psycopg2",
        ("rows come in", "what", "rows", "seconds", "rows/s", "rows/s of a core"),
        notes=["Medians over the rounds, in turns, each in a process of its own; the sender has the other core."],
    )
    with open_server() as (server, folder), TemporaryDirectory(prefix="walbus-bench-") as place:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, f"--target={place}", f"psycopg2-binary=={VERSION}"], check=True)
        for what, count, piece in (("one transaction", rows, _PIECE), ("transactions of one row", transactions, 1)):
            source = Source(server, f"peer_{piece}")
            _backlog(source, count, count if piece > 1 else 1)
            log = folder / f"log-{piece}"
            write_log(log / "relay", count, piece)
            with running_relay(log) as (port, _):
                theirs, ours = [], []
                for _ in range(rounds):
                    theirs.append(_loop(source, place, count))
                    ours.append(read(port, "callbacks", count))
            (their_seconds, their_cpu), (our_seconds, our_cpu) = median(theirs), median(ours)
            report.row(what, "psycopg2, pgoutput decoded", f"{count:,}", *_rates(count, their_seconds, their_cpu))
            report.row(what, "callbacks of Walbus", f"{count:,}", *_rates(count, our_seconds, our_cpu))
            report.ratio(f"callbacks/psycopg2 {what}", their_seconds / our_seconds)
    return report


def _rates(rows: int, seconds: float, cpu: float) -> tuple[str, str, str]:
    return f"{seconds:.2f}", f"{rows / seconds:,.0f}", f"{rows / cpu:,.0f}"


def _backlog(source: Source, rows: int, per_transaction: int) -> None:
    columns = ", ".join(f"{name} {kind}" for name, (_, kind) in COLUMNS.items())
    source.execute(f"CREATE TABLE t ({columns}, PRIMARY KEY (id))")
    source.execute("CREATE PUBLICATION walbus FOR TABLE t")
    source.execute(f"SELECT pg_create_logical_replication_slot('{source.database}_kept', 'pgoutput')")
    source.fill("t", _ROW, rows, per_transaction)


def _loop(source: Source, place: str, rows: int) -> tuple[float, float]:
    """Seconds, and processor seconds, of a loop that reads the whole backlog."""
    source.copy_slot(f"{source.database}_kept", "peer")
    try:
        command = [sys.executable, str(_LOOP), source.dsn, "peer", str(rows)]
        environment = {**os.environ, "PYTHONPATH": place}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    finally:
        source.drop_slot("peer")
    told = json.loads(out)
    if told["rows"] != rows:
        raise RuntimeError(f"psycopg2: {told['rows']} of {rows} rows came")
    return told["seconds"], told["cpu"]
