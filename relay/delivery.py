"""One stream's way through the log: records from a cursor, made into the bytes that its client asked for.

A delivery does the blocking work (disk, filter, JSON) in small steps, on whatever thread calls it; one lock keeps a
step and the closing apart.
"""

from __future__ import annotations

import copy
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from walbus.compressed_records import FLAGS_AT, plain_length
from walbus.jsonlines import LineRenderer
from walbus.log import Bounds
from walbus.native import new_filter
from walbus.native.pushing import ANYWHERE, Furthest, Stretch
from walbus.native.reading import WHOLE, RecordFilter
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader, pack_record, read_header
from walbus.relay.cursor import FileCursor
from walbus.relay.delivered import DeliveredCursor, DeliveredLog
from walbus.relay.file_push import Patience, Pushed, hand_out, push
from walbus.relay.projection import Projection
from walbus.relay.reader import FileLogReader
from walbus.relay.scan import split_records
from walbus.relay.selection import EVERYTHING, Selection
from walbus.relay.sse import EventRenderer
from walbus.relay.stream_query import Format
from walbus.relay.table_filter import TableFilter

_AHEAD_BYTES = 64 << 10  #: fewer are read, as they cost less so
BLOCK_BYTES = 256 << 10  #: made in one step, about; the most that a stream holds beside the socket's buffer


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


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a stream ends: at whichever of these comes first; None: it does not matter.

    Attributes:
        position: behind the transaction that holds it.
        seq: behind the transaction that holds the change with this seq.
        time: before the first transaction committed then or later (Unix microseconds).
    """

    position: Position | None = None
    seq: int | None = None
    time: int | None = None

    def reached(self, last: RecordHeader) -> bool:
        """Whether a stream ends behind a transaction's last record."""
        if self.position is not None and last.last >= self.position:
            return True
        return self.seq is not None and last.last_seq >= self.seq

    def lies_behind(self, after: Position) -> bool:
        """Whether the transaction at a position is none that a stream goes to."""
        return self.position is not None and self.position < after._replace(ordinal=0)

    def lies_ahead(self, last: RecordHeader) -> bool:
        """Whether a stream goes on at least up to here, whatever lies before."""
        if self.time is not None or (self.position is not None and last.last > self.position):
            return False
        return self.seq is None or last.last_seq <= self.seq

    @property
    def furthest(self) -> Furthest:
        """What no record lies behind up to which a stream goes on at least; the time does not count."""
        return Furthest(
            ANYWHERE.position if self.position is None else self.position,
            ANYWHERE.seq if self.seq is None else self.seq,
        )

    def cuts_off(self, header: RecordHeader) -> bool:
        """Whether a stream ends before a record."""
        if self.time is None or header.commit_time < self.time:
            return False
        return header.kind == _PROGRESS or (header.kind == _TRANSACTION and bool(header.flags & _BEGIN))


#: A stream without an end.
ENDLESS: Final = Bound()


@dataclass(frozen=True, slots=True)
class StreamForm:
    """What is sent of the log; streams of one form send the same bytes for the same records.

    Attributes:
        format: binary records, JSON lines, or server-sent events.
        selection: what passes.
    """

    format: Format = "binary"
    selection: Selection = EVERYTHING


_TRANSACTION, _SCHEMA, _PROGRESS = int(Kind.TRANSACTION), int(Kind.SCHEMA), int(Kind.PROGRESS)
_C = TypeVar("_C", bound=DeliveredCursor)
_BEGIN, _END, _ZSTD = int(Flag.BEGIN), int(Flag.END), int(Flag.ZSTD)
Encode = Callable[[RecordHeader, bytes], bytes]


_EVERY_RECORD: Final = StreamForm()


def _as_it_is(_: RecordHeader, record: bytes) -> bytes:
    return record


class RecordDelivery(Generic[_C]):
    """A stream's cursor and form. Steps may run on any thread, one at a time.

    Args:
        reader: the log.
        after: where to begin.
        bound: where to end.
        form: what is sent.

    Raises:
        UsageError: the selection names what there is not.
        PositionTrimmed, PositionUnknown: the log does not go on behind `after`.
    """

    def __init__(
        self, reader: DeliveredLog[_C], after: Position, *, bound: Bound = ENDLESS, form: StreamForm = _EVERY_RECORD
    ) -> None:
        self._lock = threading.Lock()
        self._bound = bound
        self._cursor: _C | None = reader.cursor(after)
        try:  # behind the cursor: the layouts of all that lies before it are known by now
            self._renderer, self._filter = encoders(reader, after, form)
            self._last = _before(after, reader.bounds())
        except BaseException:
            self._cursor.close()
            raise
        self._encode = self._encoder()
        self._held: list[bytes] = []  # records that were read, and wait for the next step
        # whether no transaction is under way
        self._whole = bound.lies_behind(after) or not _inside(self._cursor.found, after)
        self._started = False  # whether a record of a transaction was read
        self._cut_off = False  # whether the bound's time was met
        self.told = True  #: whether what was sent says how far the stream has looked

    @property
    def scanned(self) -> Position:
        """Position of the last record that was read, or where the stream began."""
        return self._last.last

    def step(self) -> Step:
        """Reads and encodes about `BLOCK_BYTES`; of compressed records as many as are that large without.

        Raises:
            DamagedRecord: names file and offset.
            PositionTrimmed: retention overtook the stream.
        """
        with self._lock:
            if self._cursor is None or self._is_finished():
                return Step(b"", at_end=False, finished=True)
            cursor = self._cursor
            if self.verbatim:
                parts = self._verbatim(cursor)
                at_end = not parts
            else:
                records = self._held or cursor.read(BLOCK_BYTES)
                portion = _portion(records)
                self._held = records[portion:]
                parts = self._made_of(records[:portion])
                at_end = not records
            finished = self._is_finished()
            if finished and not self.told:
                parts.append(self._heartbeat())
            return Step(b"".join(parts), at_end=at_end, finished=finished)

    @property
    def verbatim(self) -> bool:
        """Whether the log's own bytes are sent."""
        return self._cursor is not None and self._encode is _as_it_is

    def _verbatim(self, cursor: _C) -> list[bytes]:
        """A block: only its last record is looked at, unless the stream ends in it."""
        block = cursor.read_bytes(BLOCK_BYTES)
        if block is None:
            return []
        data, last = block
        if not self._bound.lies_ahead(last):
            records, _ = split_records(data)
            return self._encoded(records)
        self._note(last, told=True)
        return [data]

    def _made_of(self, records: list[bytes]) -> list[bytes]:
        """Records in the stream's form. Filtered ones are only looked at here if the stream starts or ends in them."""
        if records and self._filter is not None and self._renderer is None and self._started:
            last = read_header(records[-1])
            if self._bound.lies_ahead(last):
                parts = self._filter.scan(records)
                self._note(last, told=bool(parts[-1]))
                return parts
        return self._encoded(records)

    def _encoded(self, records: list[bytes]) -> list[bytes]:
        parts = []
        for record in records:
            header = read_header(record)
            if self._bound.cuts_off(header):
                self._cut_off = True
                break
            if not self._started and header.kind == _TRANSACTION:
                self._start(header)
            encoded = self._encode(header, record)
            parts.append(encoded)
            self._note(header, told=bool(encoded))
            if self._is_finished():
                break
        return parts

    def _note(self, header: RecordHeader, *, told: bool) -> None:
        self._last, self.told = header, told
        if header.kind == _TRANSACTION:
            self._whole = bool(header.flags & _END)
        else:  # a layout stands before a transaction, or between two pieces of it; nothing else is inside one
            self._whole = header.kind != _SCHEMA or header.last_ordinal == 0

    def _start(self, header: RecordHeader) -> None:
        """A stream that starts inside a transaction is inside its window: its client gets the END, whatever passes."""
        self._started = True
        inside = not header.flags & _BEGIN or self._last.last >= header.first
        if self._filter is not None and inside:
            self._filter.in_window = True

    def heartbeat(self, flags: int = 0) -> bytes:
        """A sign of life that says how far the stream has looked; it carries further flags if it is told to.

        It is a PROGRESS record, whose position is that of the last record that was read: everything up to there is
        done. Inside a transaction of which the client has a part, that would be too much: there it is a piece without
        changes, and in lines and events the place before the transaction. Inside one of which a filter has sent nothing
        yet, the binary form tells the place before it too.
        """
        with self._lock:
            return self._heartbeat(flags)

    def _heartbeat(self, flags: int = 0) -> bytes:
        last = self._last
        if self._renderer is not None:
            in_window, before = False, not self._whole and self._renderer.in_window(last)
        else:
            in_window = not self._whole and (self._filter is None or self._filter.in_window)
            before = not self._whole and not in_window
        ordinal = 0 if before else last.last_ordinal
        seq = last.last_seq - (last.last_ordinal - ordinal)  # a transaction's seqs rise with its ordinals
        record = pack_record(
            Kind.TRANSACTION if in_window else Kind.PROGRESS,
            flags=flags | Flag.FILTERED,  # no record of the log has it: a copy of the log leaves this one out
            epoch=last.epoch,
            commit_lsn=last.commit_lsn,
            first_ordinal=ordinal,
            last_ordinal=ordinal,
            first_seq=max(seq, 0),
            last_seq=max(seq, 0),
            xid=last.xid if in_window else 0,
            commit_time=last.commit_time,
        )
        return self._renderer.render(read_header(record), record) if self._renderer else record

    def close(self) -> None:
        """Waits for a step under way and frees the cursor, and what it takes to make the form."""
        with self._lock:
            if self._cursor is not None:
                self._cursor.close()
                self._cursor = None
            self._renderer = self._filter = None
            self._encode, self._held = _as_it_is, []

    def _encoder(self) -> Encode:
        if self._renderer is not None:
            return self._renderer.render if self._filter is None else self._rendered
        return self._filter.filter if self._filter is not None else _as_it_is

    def _rendered(self, header: RecordHeader, record: bytes) -> bytes:
        """The lines of what is left of a record."""
        if self._renderer is None or self._filter is None:
            return record
        left = self._filter.filter(header, record)
        return self._renderer.render(read_header(left), left) if left else b""

    def _is_finished(self) -> bool:
        return self._cut_off or (self._whole and self._bound.reached(self._last))


class Delivery(RecordDelivery[FileCursor]):
    """A stream of a log in files, whose parts may be sent as they lie there.

    Args:
        reader: the log.
        after: where to begin.
        bound: where to end.
        form: what is sent.

    Raises:
        As `RecordDelivery`.
    """

    def __init__(
        self, reader: FileLogReader, after: Position, *, bound: Bound = ENDLESS, form: StreamForm = _EVERY_RECORD
    ) -> None:
        super().__init__(reader, after, bound=bound, form=form)
        self._patience = Patience()

    def pending(self) -> int:
        """Durable bytes that lie before the cursor in its segment, as of the last step; a hint."""
        if self._cursor is None:
            return 0
        return self._cursor.pending() + (BLOCK_BYTES if self._held else 0)

    def push(self, connection: socket.socket | None) -> Pushed:
        """Sends what lies ahead in the log's files as it lies there (`file_push`); `step` goes on behind that.

        Args:
            connection: closed here; None where a part is only to be handed out.

        Raises:
            As `step`, and as `file_push.push`.
        """
        with self._lock:
            if connection is None:
                return hand_out(self._ahead, self._went)
            return push(self._ahead, self._went, connection, self._patience)

    def _ahead(self) -> Stretch | None:
        """What a push may go over; None where `step` has to go on."""
        if self._cursor is None or not self.verbatim or self._bound.time is not None:
            return None
        span = self._cursor.ahead(_AHEAD_BYTES)
        if span is None:
            return None
        return Stretch(span.fd, span.offset, span.offset + span.length, self._bound.furthest)

    def _went(self, length: int, last: RecordHeader) -> None:
        if self._cursor is not None:
            self._cursor.skip(length, last)
        self._note(last, told=True)

    @property
    def place(self) -> tuple[int, int] | None:
        """Segment and offset of what will be read next; None inside a transaction and where it is not known.

        Two deliveries of one form at the same place give the same from then on.
        """
        return self._cursor.place if self._cursor is not None and self._whole and not self._held else None

    def fork(self) -> Delivery:
        """Another delivery that goes on from here as this one does. A closed one cannot be forked."""
        with self._lock:
            if self._cursor is None:
                raise ValueError("the delivery is closed")
            twin = copy.copy(self)
            twin._lock, twin._patience = threading.Lock(), Patience()
            twin._cursor = self._cursor.fork()
            twin._renderer, twin._filter = copy.copy(self._renderer), copy.copy(self._filter)
            twin._encode = twin._encoder()
            return twin


def _portion(records: list[bytes]) -> int:
    """How many of some records are made into a form at once: decompressed they could be a thousand times as large."""
    if not any(record[FLAGS_AT] & _ZSTD for record in records):
        return len(records)
    total = 0
    for count, record in enumerate(records, 1):
        total += plain_length(record)
        if total >= BLOCK_BYTES:
            return count
    return len(records)


def encoders(
    reader: DeliveredLog[DeliveredCursor], after: Position, form: StreamForm
) -> tuple[LineRenderer | None, RecordFilter | None]:
    """What makes a form out of records: a filter where not everything passes, and behind it what writes lines.

    The writer of lines leaves columns out by itself, since it knows each row's columns by name.
    """
    selection = form.selection
    tables = TableFilter(selection.tables, reader.schemas, selection.ops)
    projection = Projection(selection.columns, reader.schemas, selection.tables)
    whole_rows = projection if form.format == "binary" else Projection((), reader.schemas)
    everything = tables.everything and whole_rows.everything and selection.partition == WHOLE
    record_filter = None if everything else new_filter(tables, whole_rows, selection.partition)
    if form.format == "binary":
        return None, record_filter
    layout, columns = reader.schemas.get, projection.columns
    if form.format == "json":
        return LineRenderer(layout, after=after, columns=columns), record_filter
    return EventRenderer(layout, after=after, columns=columns, log_id=reader.bounds().log_id), record_filter


def _inside(first: RecordHeader | None, after: Position) -> bool:
    """Whether a stream that begins with this record begins inside a transaction."""
    if first is None or first.kind not in (_TRANSACTION, _SCHEMA):
        return False
    if first.kind == _SCHEMA:
        return first.last_ordinal > 0
    return not first.flags & _BEGIN or first.first <= after


def _before(after: Position, bounds: Bounds) -> RecordHeader:
    """What a stream knows before its first record."""
    seq, time = (bounds.last_seq, bounds.commit_time) if after == bounds.end else (0, 0)
    return RecordHeader(
        length=0, kind=Kind.PROGRESS, flags=0, epoch=after.epoch, commit_lsn=after.commit_lsn, end_lsn=0,
        first_ordinal=after.ordinal, last_ordinal=after.ordinal, first_seq=seq, last_seq=seq, xid=0, commit_time=time,
        count=0, origin_length=0, tables=0,
    )  # fmt: skip
