"""One stream's way through the log: records from a cursor, made into the bytes that its client asked for.

A delivery does the blocking work (disk, filter, JSON) in small steps, on whatever thread calls it; one lock keeps a
step and the closing apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from walbus.jsonlines import LineRenderer
from walbus.log import Bounds
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader, pack_record, read_header
from walbus.relay.cursor import FileCursor
from walbus.relay.reader import FileLogReader
from walbus.relay.record_filter import RecordFilter
from walbus.relay.table_filter import TableFilter

BLOCK_BYTES = 256 << 10  #: read in one step, about; the most that a stream holds beside the socket's buffer


@dataclass(frozen=True, slots=True)
class Step:
    """What one step gave.

    Attributes:
        data: bytes to send; may be empty though records were read.
        at_end: whether nothing more was durable.
        finished: whether the stream's bound is reached.
    """

    data: bytes
    at_end: bool
    finished: bool


_TRANSACTION, _SCHEMA, _END = int(Kind.TRANSACTION), int(Kind.SCHEMA), int(Flag.END)
Encode = Callable[[RecordHeader, bytes], bytes]


def _as_it_is(_: RecordHeader, record: bytes) -> bytes:
    return record


class Delivery:
    """A stream's cursor and form. Steps may run on any thread, one at a time.

    Args:
        reader: the log.
        after: where to begin.
        until: where to end: behind the transaction that holds this position. None: nowhere.
        tables: what passes.
        json: whether JSON lines are wanted.
    """

    def __init__(
        self, reader: FileLogReader, after: Position, *, until: Position | None, tables: TableFilter, json: bool
    ) -> None:
        self._lock = threading.Lock()
        self._until = until
        self._renderer = LineRenderer(reader.schemas.get, after=after, wants=tables.wants) if json else None
        self._filter = None if tables.everything or json else RecordFilter(tables)
        self._encode = self._encoder()
        self._last = _before(after, reader.bounds())
        self._whole = True  # whether the last record ended its transaction
        self._told = True  # whether what was sent says how far the stream has looked
        self._cursor: FileCursor | None = reader.cursor(after)

    @property
    def scanned(self) -> Position:
        """Position of the last record that was read, or where the stream began."""
        return self._last.last

    def pending(self) -> int:
        """Durable bytes that lie before the cursor in its segment, as of the last step; a hint."""
        return self._cursor.pending() if self._cursor is not None else 0

    def step(self) -> Step:
        """Reads and encodes about `BLOCK_BYTES`.

        Raises:
            DamagedRecord: names file and offset.
            PositionTrimmed: retention overtook the stream.
        """
        with self._lock:
            if self._cursor is None or self._is_finished():
                return Step(b"", at_end=False, finished=True)
            records = self._cursor.read(BLOCK_BYTES)
            parts = self._pass_on(records) if self._encode is _as_it_is else self._encoded(records)
            finished = self._is_finished()
            if finished and not self._told:
                parts.append(self._heartbeat())
            return Step(b"".join(parts), at_end=not records, finished=finished)

    def _pass_on(self, records: list[bytes]) -> list[bytes]:
        """An unfiltered block: only its last record is looked at, unless the stream ends in it."""
        if records and (self._until is None or read_header(records[-1]).last < self._until):
            self._note(read_header(records[-1]), told=True)
            return records
        return self._encoded(records)

    def _encoded(self, records: list[bytes]) -> list[bytes]:
        parts = []
        for record in records:
            header = read_header(record)
            encoded = self._encode(header, record)
            parts.append(encoded)
            self._note(header, told=bool(encoded))
            if self._is_finished():
                break
        return parts

    def _note(self, header: RecordHeader, *, told: bool) -> None:
        self._last, self._told = header, told
        if header.kind == _TRANSACTION:
            self._whole = bool(header.flags & _END)
        elif header.kind == _SCHEMA:  # stands before a transaction, or between two pieces of it
            self._whole = header.last_ordinal == 0

    def heartbeat(self) -> bytes:
        """A sign of life that says how far the stream has looked.

        It is a PROGRESS record, whose position is that of the last record that was read. Inside a transaction of which
        a part was sent it is a piece without changes, and inside one of which nothing was sent yet the PROGRESS says
        that everything before the transaction has been looked at.
        """
        with self._lock:
            return self._heartbeat()

    def _heartbeat(self) -> bytes:
        last = self._last
        inside = not self._whole and self._renderer is None
        in_window = inside and (self._filter is None or self._filter.in_window)
        ordinal = 0 if inside and not in_window else last.last_ordinal
        record = pack_record(
            Kind.TRANSACTION if in_window else Kind.PROGRESS,
            flags=Flag.FILTERED if in_window else 0,
            epoch=last.epoch,
            commit_lsn=last.commit_lsn,
            first_ordinal=ordinal,
            last_ordinal=ordinal,
            first_seq=last.last_seq,
            last_seq=last.last_seq,
            xid=last.xid if in_window else 0,
            commit_time=last.commit_time,
        )
        return self._renderer.render(read_header(record), record) if self._renderer else record

    def close(self) -> None:
        """Waits for a step under way and frees the cursor."""
        with self._lock:
            if self._cursor is not None:
                self._cursor.close()
                self._cursor = None

    def _encoder(self) -> Encode:
        if self._renderer is not None:
            return self._renderer.render
        return self._filter.filter if self._filter is not None else _as_it_is

    def _is_finished(self) -> bool:
        return self._until is not None and self._whole and self._last.last >= self._until


def _before(after: Position, bounds: Bounds) -> RecordHeader:
    """What a stream knows before its first record."""
    seq, time = (bounds.last_seq, bounds.commit_time) if after == bounds.end else (0, 0)
    return RecordHeader(
        length=0, kind=Kind.PROGRESS, flags=0, epoch=after.epoch, commit_lsn=after.commit_lsn, end_lsn=0,
        first_ordinal=after.ordinal, last_ordinal=after.ordinal, first_seq=seq, last_seq=seq, xid=0, commit_time=time,
        count=0, origin_length=0, tables=0,
    )  # fmt: skip
