"""A relay log in memory, for tests of those who write it: `LogWriter` without a disk.

log = MemoryLog()
... capture writes ...
log.durable                  the records that are durable, as bytes of the log's own format
again = log.crashed()        what a process that was killed finds at its next start
log.full = True              appends and syncs raise LogFull until it is False again
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

from walbus.errors import LogFull
from walbus.log import Bounds, Held, Piece, Run, append_to
from walbus.native import seal
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, RecordHeader, pack_record, read_header
from walbus.relay.scan import is_done
from walbus.schema import TableSchema


def _held(header: RecordHeader) -> Held:
    return Held(header.commit_lsn, header.end_lsn, header.xid, header.commit_time)


class MemorySchemas:
    """Layouts by number."""

    def __init__(self) -> None:
        self._schemas: list[TableSchema] = []

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        known = next((one for one in reversed(self._schemas) if one.oid == schema.oid), None)
        if known is not None and known.same_layout(schema):
            return known, False
        numbered = dataclasses.replace(schema, id=len(self._schemas) + 1)
        self._schemas.append(numbered)
        return numbered, True

    def get(self, schema_id: int) -> TableSchema:
        if not 0 < schema_id <= len(self._schemas):
            raise KeyError(schema_id)
        return self._schemas[schema_id - 1]

    def all(self) -> list[TableSchema]:
        return list(self._schemas)


def split_records(data: bytes) -> list[bytes]:
    """Records that stand behind each other."""
    records, offset = [], 0
    while offset < len(data):
        length = read_header(data, offset).length
        records.append(data[offset : offset + length])
        offset += length
    return records


class MemoryLog:
    """The writing half; what `sync` published stays when the process that wrote it is gone.

    Attributes:
        durable: the published records.
        syncs: how often `sync` published something.
        full: whether there is no room.
    """

    def __init__(self, durable: list[bytes] | None = None, schemas: MemorySchemas | None = None) -> None:
        self.durable: list[bytes] = durable if durable is not None else []
        self.syncs = 0
        self.full = False
        self.appended = threading.Event()
        self._schemas = schemas or MemorySchemas()
        self._waiting: list[bytes] = []
        self._whole = 0  # records of `_waiting` that a sync may publish
        self._open = False
        headers = [read_header(record) for record in self.durable]
        self._last = headers[-1].last if headers else ORIGIN
        self._seq = headers[-1].last_seq if headers else 0
        self._held = {(h.epoch, h.commit_lsn): _held(h) for h in headers if h.end_lsn}

    @property
    def schemas(self) -> MemorySchemas:
        return self._schemas

    def bounds(self) -> Bounds:
        headers = [read_header(record) for record in self.durable]
        since = max((i for i, h in enumerate(headers) if h.kind == Kind.EPOCH), default=0)
        between = (Kind.PROGRESS, Kind.EPOCH)
        ends = [h.commit_lsn if h.kind in between else h.end_lsn for h in headers[since:]]
        return Bounds(
            log_id="memory",
            trimmed=ORIGIN,
            end=headers[-1].last if headers else ORIGIN,
            end_lsn=max(ends, default=0),
            last_seq=headers[-1].last_seq if headers else 0,
            bytes=sum(map(len, self.durable)),
            commit_time=headers[-1].commit_time if headers else 0,
        )

    def append(self, piece: Piece) -> None:
        if self.full:
            raise LogFull("the memory is full")
        between = piece.kind in (Kind.PROGRESS, Kind.EPOCH)
        if self._open and (between or piece.flags & Flag.BEGIN or self._goes_back(piece)):
            self._drop_unfinished()
        self._check_order(piece)
        takes_seqs = piece.kind == Kind.TRANSACTION and piece.count > 0
        first_seq = self._seq + 1 if takes_seqs else self._seq
        if takes_seqs:
            self._seq += piece.last_ordinal - piece.first_ordinal + 1
        fields = {f.name: getattr(piece, f.name) for f in dataclasses.fields(piece)}
        self._waiting.append(pack_record(fields.pop("kind"), first_seq=first_seq, last_seq=self._seq, **fields))
        self._last = Position(piece.epoch, piece.commit_lsn, piece.last_ordinal)
        if piece.kind == Kind.TRANSACTION:
            self._open = not piece.flags & Flag.END
        if not self._open:
            self._whole = len(self._waiting)
        self.appended.set()

    def append_run(self, run: Run) -> None:
        if self.full:
            raise LogFull("the memory is full")
        if self._open:
            self._drop_unfinished()
        if run.first <= self._last:
            raise ValueError(f"a run at {run.first} behind {self._last}")
        self._waiting += split_records(seal(run.records, self._seq + 1))
        self._seq += run.changes
        self._last = run.last
        self._whole = len(self._waiting)
        self.appended.set()

    def write(self, given: list[Piece | Run]) -> None:
        """Appends what an assembler gave."""
        for one in given:
            append_to(self, one)

    def drop_unfinished(self) -> None:
        if self._open:
            self._drop_unfinished()

    def _goes_back(self, piece: Piece) -> bool:
        first = Position(piece.epoch, piece.commit_lsn, piece.first_ordinal)
        return first <= self._last if piece.kind == Kind.TRANSACTION and piece.count else first < self._last

    def _drop_unfinished(self) -> None:
        del self._waiting[self._whole :]
        self._open = False
        last = (self._waiting or self.durable or [None])[-1]
        self._last = read_header(last).last if last else ORIGIN
        self._seq = read_header(last).last_seq if last else 0

    def _check_order(self, piece: Piece) -> None:
        if self._goes_back(piece):
            raise ValueError(f"a piece at {piece.commit_lsn} behind {self._last}")
        if piece.kind == Kind.TRANSACTION and bool(piece.flags & Flag.BEGIN) == self._open:
            raise ValueError(f"a piece at {piece.commit_lsn} that does not continue what is open")

    def sync(self) -> Bounds:
        if self.full:
            raise LogFull("the memory is full")
        published, self._waiting = self._waiting[: self._whole], self._waiting[self._whole :]
        self._whole = 0
        for record in published:
            header = read_header(record)
            if header.end_lsn:
                self._held[header.epoch, header.commit_lsn] = _held(header)
        self.durable += published
        self.syncs += bool(published)
        return self.bounds()

    def find(self, epoch: int, commit_lsn: int) -> Held | None:
        return self._held.get((epoch, commit_lsn))

    def records_after(self, after: Position) -> Iterator[bytes]:
        return (record for record in list(self.durable) if not is_done(after, read_header(record)))

    def trim(self, now: float) -> Position:
        return ORIGIN

    def close(self) -> None:
        self.sync()

    def crashed(self) -> MemoryLog:
        """The log as the next process finds it: what was not published is gone."""
        return MemoryLog(list(self.durable), self._schemas)
