"""Peak memory of capture alone: a transaction of millions of rows, sent while it runs and sent whole, and many tables.

The transaction is larger than anything that may be in memory: streamed, it lies in capture's spool until its commit;
with streaming off, the server spools it and capture passes it on in pieces. The tables each have rows in one
transaction, and again in transactions of their own, so that every layout is known. Each log is read back.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from capture_backlog import prepare, rows_in_log, start_capture, until_free
from measured import Usage
from report import Report
from source import Source, open_server
from walbus.lsn import Lsn
from walbus.relay import open_reader

BOUND = 150 << 20  # bytes
_DEADLINE = 1800.0
_ROWS_A_TABLE = 5
_KEPT = "kept"
_MAKE_TABLES = """
DO $$ BEGIN
    FOR i IN 1..{tables} LOOP
        EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, kind text, at timestamptz, n numeric, note text)', i);
        IF mod(i, 100) = 0 THEN COMMIT; END IF;
    END LOOP;
END $$
"""
_FILL_TABLES = """
DO $$ BEGIN
    FOR i IN 1..{tables} LOOP
        EXECUTE format('INSERT INTO t%s SELECT {base} + k, ''x'', now(), k, NULL FROM generate_series(1, {rows}) k', i);
        {commit}
    END LOOP;
END $$
"""


def run(rows: int, tables: int) -> Report:
    """Measures a transaction of `rows` rows, and `tables` tables."""
    report = Report(
        "capture-memory",
        "Memory of capture",
        ("backlog", "changes", "seconds", "changes/s", "peak MiB"),
        notes=["Peak resident memory of the capture process; the bound of the ratios is 150 MiB."],
    )
    with open_server() as (server, folder):
        source = Source(server, "one_transaction")
        pristine = prepare(source, folder)
        target = source.one_transaction(rows)
        for name, streaming in (("streamed", "true"), ("whole", "false")):
            usage = _captured(source, pristine, folder / name, target, rows, STREAMING=streaming)
            _tell(report, f"one transaction, {name}", rows, usage)
        source.drop_slot(_KEPT)
        many = Source(server, "many_tables")
        many.execute(_MAKE_TABLES.format(tables=tables))
        (folder / "tables").mkdir()
        pristine = prepare(many, folder / "tables")
        target = _fill(many, tables)
        changes = tables * _ROWS_A_TABLE * 2
        _tell(report, f"{tables:,} tables", changes, _captured(many, pristine, folder / "many", target, changes))
    return report


def _fill(source: Source, tables: int) -> Lsn:
    for base, commit in ((0, ""), (1000, "COMMIT;")):
        source.execute(_FILL_TABLES.format(tables=tables, rows=_ROWS_A_TABLE, base=base, commit=commit))
    return source.insert_lsn()


def _captured(source: Source, pristine: Path, place: Path, target: Lsn, rows: int, **options: str) -> Usage:
    shutil.copytree(pristine, place)
    source.copy_slot(_KEPT, "walbus")
    capture = start_capture(source, place, CATCH_UP="false", **options)
    with closing(open_reader(place / "relay")) as reader:  # opened once: looking must not cost what is measured
        seconds = capture.until(lambda: reader.bounds().end_lsn >= target, _DEADLINE)
    usage = capture.stop(seconds)
    until_free(source)
    source.drop_slot("walbus")
    if (held := rows_in_log(place)) != rows:
        raise RuntimeError(f"the log holds {held} of {rows} rows")
    shutil.rmtree(place)
    return usage


def _tell(report: Report, name: str, changes: int, usage: Usage) -> None:
    rate = changes / usage.seconds
    report.row(name, f"{changes:,}", f"{usage.seconds:.1f}", f"{rate:,.0f}", f"{usage.peak / (1 << 20):.0f}")
    report.ratio(f"memory/150MiB {name}", usage.peak / BOUND)
