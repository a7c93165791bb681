"""Logs of the file engine for tests: transactions to append, and a writer that dies.

engine = FileEngine(tmp_path)
writer = engine.open_writer()
writer.append(transaction(lsn=0x100, changes=3)); writer.sync()
engine.kill(writer)                      # as SIGKILL: nothing is flushed, nothing is marked
records = read_all(engine.open_reader())
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from walbus.log import LogReader, LogWriter, Piece, Run, SourceIdentity
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, Op, RecordHeader, pack_change, pack_unsealed, read_header
from walbus.relay.cursor import FileCursor
from walbus.relay.engine import open_reader, open_writer
from walbus.relay.fs import Files
from walbus.relay.lease import Clock
from walbus.relay.reader import FileLogReader
from walbus.relay.writer import FileLogWriter
from walbus.schema import Column, ReplicaIdentity, TableSchema

SOURCE = SourceIdentity("7301", "shop", "walbus")
WHOLE = Flag.BEGIN | Flag.END
BASE_TIME = 1_700_000_000_000_000  #: Unix microseconds; a transaction's commit time is this plus its LSN
ORDERS = 16385  #: relation OID that changes have unless told otherwise


def table_schema(name: str = "orders", oid: int = ORDERS, columns: tuple[str, ...] = ("id",)) -> TableSchema:
    made = tuple(Column(column, 23, "int4", -1, in_key=column == "id") for column in columns)
    return TableSchema(0, oid, "public", name, ReplicaIdentity.DEFAULT, made)


def changes(first: int, count: int, *, table: int = ORDERS, schema_id: int = 1, size: int = 20) -> bytes:
    """A body whose changes say which ordinal they have."""
    return b"".join(
        pack_change(
            Op.INSERT, table=table, schema_id=schema_id, seq_delta=i, ordinal_delta=i, key=b"%08d" % (first + i),
            after=b"x" * size,
        )
        for i in range(count)
    )  # fmt: skip


def piece(
    lsn: int,
    first: int,
    count: int,
    flags: int,
    *,
    table: int = ORDERS,
    schema_id: int = 1,
    size: int = 20,
    epoch: int = 1,
    time: int | None = None,
) -> Piece:
    """A piece of the transaction that commits at `lsn`."""
    return Piece(
        kind=Kind.TRANSACTION,
        flags=flags,
        epoch=epoch,
        commit_lsn=lsn,
        end_lsn=lsn + 8 if flags & Flag.END else 0,
        first_ordinal=first,
        last_ordinal=first + count - 1,
        count=count,
        xid=lsn // 16,
        commit_time=BASE_TIME + lsn if time is None else time,
        tables=1 << table % 64,
        body=changes(first, count, table=table, schema_id=schema_id, size=size),
    )


def transaction(lsn: int, changes: int = 1, **more: int) -> Piece:
    """A whole transaction in one piece."""
    return piece(lsn, 1, changes, WHOLE, **more)


def run_of(pieces: list[Piece]) -> Run:
    """Whole transactions as a run."""
    records, changes = b"", 0
    for one in pieces:
        assert one.flags == WHOLE
        records += pack_unsealed(
            epoch=one.epoch, commit_lsn=one.commit_lsn, end_lsn=one.end_lsn, xid=one.xid, commit_time=one.commit_time,
            count=one.count, first_seq=changes, origin=one.origin, tables=one.tables, body=one.body,
        )  # fmt: skip
        changes += one.count
    first, last = pieces[0], pieces[-1]
    return Run(
        records,
        Position(first.epoch, first.commit_lsn, 1),
        Position(last.epoch, last.commit_lsn, last.last_ordinal),
        changes,
        last.end_lsn,
        last.commit_time,
        max(one.commit_time for one in pieces),
    )


def progress(lsn: int, epoch: int = 1) -> Piece:
    return Piece(
        kind=Kind.PROGRESS, flags=0, epoch=epoch, commit_lsn=lsn, end_lsn=0, first_ordinal=0, last_ordinal=0,
        count=0, xid=0, commit_time=BASE_TIME + lsn,
    )  # fmt: skip


def schema_piece(lsn: int, ordinal: int, schema: TableSchema, epoch: int = 1) -> Piece:
    body = pack_change(Op.SCHEMA, table=schema.oid, schema_id=schema.id, seq_delta=0, ordinal_delta=0, after=b"{}")
    return dataclasses.replace(
        progress(lsn, epoch), kind=Kind.SCHEMA, first_ordinal=ordinal, last_ordinal=ordinal, count=1, body=body,
        tables=1 << schema.oid % 64,
    )  # fmt: skip


def epoch_piece(lsn: int, epoch: int) -> Piece:
    """The record of a switch of timelines at `lsn`."""
    body = pack_change(Op.EPOCH, seq_delta=0, ordinal_delta=0, after=b"{}")
    return dataclasses.replace(progress(lsn, epoch), kind=Kind.EPOCH, count=1, body=body)


class UnsyncedFiles(Files):
    """Files that are not synced: for tests whose fault is in the bytes, and that open a log hundreds of times."""

    def fdatasync(self, fd: int) -> None:
        pass

    def fsync(self, fd: int) -> None:
        pass


class FileEngine:
    """The file engine in a folder.

    Args:
        folder: of the log.
        files: the file operations, for faults.
        segment_bytes: small, so that a test meets several segments.
    """

    name = "file"

    def __init__(self, folder: Path, *, files: Files | None = None, segment_bytes: int = 64 << 10) -> None:
        self.folder = folder
        self.files = files
        self.segment_bytes = segment_bytes
        self.retention_hours = 1.0
        self.retention_bytes: int | None = None
        self.compression_level: int | None = None
        self.lease_seconds = 10.0
        self.clock = Clock()
        self._opened: list[FileLogWriter | FileLogReader | FileCursor] = []

    def open_writer(self, source: SourceIdentity = SOURCE) -> FileLogWriter:
        writer = open_writer(
            self.folder,
            source,
            segment_bytes=self.segment_bytes,
            retention_hours=self.retention_hours,
            retention_bytes=self.retention_bytes,
            compression_level=self.compression_level,
            lease_seconds=self.lease_seconds,
            files=self.files,
            clock=self.clock,
        )
        self._opened.append(writer)
        return writer

    def open_reader(self) -> FileLogReader:
        reader = open_reader(self.folder)
        self._opened.append(reader)
        return reader

    def kill(self, writer: FileLogWriter) -> None:
        """What the kernel does when the process dies: files and lock are freed, buffers are lost, nothing is marked."""
        writer._broken = "killed by the test"
        writer.close()

    def close(self) -> None:
        for opened in reversed(self._opened):
            if isinstance(opened, FileLogWriter):
                self.kill(opened)
            else:
                opened.close()

    def units(self) -> int:
        """Of how many things that retention drops whole the log consists."""
        return len(self.segments())

    def segments(self) -> list[Path]:
        return sorted((self.folder / "segments").glob("*.seg"))

    def another(self) -> FileEngine:
        """The same engine with a log of its own."""
        return FileEngine(self.folder.with_name("another"))


def fill(writer: LogWriter, count: int, *, first: int = 1, size: int = 20, sync_every: int = 10) -> None:
    """Transactions of two changes at LSN 16 times their number."""
    for i in range(first, first + count):
        writer.append(transaction(i * 16, 2, size=size))
        if i % sync_every == 0:
            writer.sync()
    writer.sync()


def read_records(reader: LogReader, after: Position = ORIGIN, max_bytes: int = 1 << 20) -> list[bytes]:
    """All durable records behind a position."""
    cursor = reader.cursor(after)
    try:
        return [record for block in iter(lambda: cursor.read(max_bytes), []) for record in block]
    finally:
        cursor.close()


def read_all(reader: LogReader, after: Position = ORIGIN) -> list[RecordHeader]:
    """The headers of all durable records behind a position."""
    return [read_header(record) for record in read_records(reader, after)]


def commits(headers: list[RecordHeader]) -> list[int]:
    """The commit LSNs of whole transactions, in order; fails on half ones."""
    return list(_commits(headers))


def _commits(headers: list[RecordHeader]) -> Iterator[int]:
    current: int | None = None
    for header in headers:
        if header.kind != Kind.TRANSACTION:
            continue
        assert (current is None) == bool(header.flags & Flag.BEGIN), "a transaction without a beginning"
        assert current in (None, header.commit_lsn), "two transactions mixed"
        current = header.commit_lsn
        if header.flags & Flag.END:
            yield current
            current = None
    assert current is None, "a transaction without an end"
