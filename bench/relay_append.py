"""Append to the relay log alone, without PostgreSQL, against what the walsender delivers (`pg_recvlogical -f FILE`).

Two backlogs, as for capture: many rows in one transaction, and many transactions of one row. Capture reads each once
into a log; what it handed to that log (runs of small transactions, pieces of a large one) is then held in memory and
appended to empty logs, in rounds. The log is synced as capture syncs it: in groups that find their size by themselves
(`walbus.capture.grouping`), every group with its mark and its wake-up. The time counts from the first append until the
last transaction is durable. In between, `pg_recvlogical` reads the same backlog in the same rounds. A third line is the
bare disk: the same bytes in writes of a megabyte to one file, with one fdatasync at the end.

Each log is read back: it must hold every row exactly once.
"""

from __future__ import annotations

import os
import shutil
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from capture_backlog import KEPT, Backlog, prepare, rows_in_log, run_reference, start_capture, until_free
from report import Report
from source import Source, open_server
from walbus.capture.grouping import Grouping
from walbus.log import Piece, Run, SourceIdentity, append_to
from walbus.native.interface import RUN_BYTES
from walbus.position import ORIGIN
from walbus.records import Flag, Kind, RecordHeader, body_of, origin_of, read_header
from walbus.relay import open_reader, open_writer

_DEADLINE = 600.0
_WHOLE = int(Flag.BEGIN | Flag.END)
_SEQS, _SEQS_AT = struct.Struct("<QQ"), 40
_SEGMENT_BYTES = 64 << 20
_BLOCK = 1 << 20

Given = Piece | Run


def run(rows: int, transactions: int, rounds: int) -> Report:
    """Measures both backlogs."""
    report = Report(
        "relay-append",
        "Append to the log",
        ("backlog", "what", "seconds", "changes/s", "MB/s"),
        notes=["Medians over the rounds. Nothing but the log runs while it is appended to."],
    )
    backlogs = (
        Backlog("one-transaction", rows, lambda source: source.one_transaction(rows)),
        Backlog("single-rows", transactions, lambda source: source.single_rows(transactions)),
    )
    with open_server() as (server, folder):
        for number, backlog in enumerate(backlogs):
            _measure(Source(server, f"append_{number}"), backlog, rounds, folder / backlog.name, report)
    return report


def _measure(source: Source, backlog: Backlog, rounds: int, folder: Path, report: Report) -> None:
    folder.mkdir()
    pristine = prepare(source, folder)
    target = backlog.make(source)
    given = _captured(source, pristine, target)
    size = sum(len(one.records if isinstance(one, Run) else one.body) for one in given)
    taken: dict[str, list[float]] = {"append": [], "pg_recvlogical": [], "bare disk": []}
    for number in range(rounds):
        place = folder / f"round-{number}"
        place.mkdir()
        taken["append"].append(_append(given, place / "log"))
        if (held := rows_in_log(place, "log")) != backlog.rows:
            raise RuntimeError(f"the log holds {held} of {backlog.rows} rows")
        taken["bare disk"].append(_write(given, place / "file"))
        taken["pg_recvlogical"].append(run_reference(source, backlog.rows, target, place / "reference").seconds)
        shutil.rmtree(place)
    source.drop_slot("walbus")
    source.drop_slot(KEPT)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    for name, took in seconds.items():
        rate = f"{size / took / 1e6:,.0f}" if name != "pg_recvlogical" else ""
        report.row(f"{backlog.rows:,} rows, {backlog.name}", name, f"{took:.3f}", f"{backlog.rows / took:,.0f}", rate)
    report.ratio(f"append/walsender {backlog.name}", seconds["pg_recvlogical"] / seconds["append"])
    report.ratio(f"append/bare-disk {backlog.name}", seconds["bare disk"] / seconds["append"])


def _captured(source: Source, pristine: Path, target: int) -> list[Given]:
    """What capture hands to its log for the backlog."""
    place = pristine.with_name("captured")
    shutil.copytree(pristine, place)
    source.copy_slot(KEPT, "walbus")
    capture = start_capture(source, place)
    capture.until(lambda: source.streams("walbus"), _DEADLINE)
    with closing(open_reader(place / "relay")) as reader:
        capture.until(lambda: reader.bounds().end_lsn >= target, _DEADLINE)
    capture.stop()
    until_free(source)
    given = list(_handed(place / "relay"))
    shutil.rmtree(place)
    return given


def _handed(log: Path) -> Iterator[Given]:
    """The records of a log in the form in which a writer takes them."""
    run: list[tuple[RecordHeader, bytes]] = []
    size = 0
    with closing(open_reader(log)) as reader, closing(reader.cursor(ORIGIN)) as cursor:
        while records := cursor.read(_BLOCK):
            for record in records:
                header = read_header(record)
                small = header.kind == Kind.TRANSACTION and header.flags == _WHOLE and header.length < RUN_BYTES
                if run and (not small or size + header.length > RUN_BYTES):
                    yield _run_of(run)
                    run, size = [], 0
                if small:
                    run.append((header, record))
                    size += header.length
                else:
                    yield _piece_of(header, record)
    if run:
        yield _run_of(run)


def _run_of(records: list[tuple[RecordHeader, bytes]]) -> Run:
    first, last = records[0][0], records[-1][0]
    buffer = bytearray()
    for header, record in records:
        at = len(buffer)
        buffer += bytes(4) + record[4:]
        _SEQS.pack_into(buffer, at + _SEQS_AT, header.first_seq - first.first_seq, header.last_seq - first.first_seq)
    return Run(
        bytes(buffer),
        first.first,
        last.last,
        last.last_seq - first.first_seq + 1,
        last.end_lsn,
        last.commit_time,
        max(header.commit_time for header, _ in records),
    )


def _piece_of(header: RecordHeader, record: bytes) -> Piece:
    return Piece(
        kind=header.kind,
        flags=header.flags,
        epoch=header.epoch,
        commit_lsn=header.commit_lsn,
        end_lsn=header.end_lsn,
        first_ordinal=header.first_ordinal,
        last_ordinal=header.last_ordinal,
        count=header.count,
        xid=header.xid,
        commit_time=header.commit_time,
        origin=origin_of(record, header),
        tables=header.tables,
        body=body_of(record, header),
    )


def _append(given: list[Given], folder: Path) -> float:
    """Seconds until a new log holds all of it durably."""
    writer = open_writer(
        folder,
        SourceIdentity("1", "bench", "bench"),
        segment_bytes=_SEGMENT_BYTES,
        retention_hours=1,
        retention_bytes=None,
    )
    try:
        grouping, transactions = Grouping(), 0
        begin = time.perf_counter()
        for one in given:
            append_to(writer, one)
            if isinstance(one, Piece) and not one.flags & Flag.END:
                continue
            transactions += one.changes if isinstance(one, Run) else 1
            now = time.perf_counter()
            grouping.gather(now)
            due = grouping.due_in(now)
            if due is not None and due <= 0:
                writer.sync()
                grouping.made_durable(transactions)
        writer.sync()
        return time.perf_counter() - begin
    finally:
        writer.close()


def _write(given: list[Given], path: Path) -> float:
    """Seconds for the same bytes in a plain file."""
    data = b"".join(one.records if isinstance(one, Run) else one.body for one in given)
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as out:
        for at in range(0, len(data), _BLOCK):
            out.write(memoryview(data)[at : at + _BLOCK])
        os.fdatasync(out.fileno())
    return time.perf_counter() - begin
