"""A place in the log that moves forward: records across segments, never past the durable end.

Everything below the durable end has to be good. What is not is damage: it is refused with file and offset, and never
skipped.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from walbus.errors import DamagedRecord, PositionTrimmed, PositionUnknown
from walbus.native import good_records
from walbus.position import ORIGIN, Position
from walbus.records import Kind, RecordHeader, read_header
from walbus.relay.fs import Files
from walbus.relay.index import Places
from walbus.relay.scan import is_done, place_of_seq, record_length, split_records
from walbus.relay.segment import HEADER_SIZE, SegmentHeader, parse_segment_header, segment_path
from walbus.relay.view import LogView

_T = TypeVar("_T")
_MEND = "read a snapshot from the bootstrap server, or read from `earliest`"
_SEEK_BLOCK = 128 << 10  # bytes read at a time while looking for a place


class Span(NamedTuple):
    """Whole records that lie side by side in a segment's file.

    Attributes:
        fd: of the file; good until the cursor is asked for what lies behind, or is closed.
        offset, length: where they lie, in bytes.
    """

    fd: int
    offset: int
    length: int

    def fileno(self) -> int:
        """The file, for `sendfile`."""
        return self.fd


class Located(NamedTuple):
    """Where a record lies, and what is known there.

    Attributes:
        segment, offset: its place.
        seq: the last seq given before it; 0 if that is not known.
        commit_time: its own, Unix microseconds.
    """

    segment: int
    offset: int
    seq: int
    commit_time: int


class FileCursor:
    """A cursor over the segments of a folder (`walbus.log.LogCursor`).

    Args:
        folder: of the log.
        files: the file operations.
        view: gives the log as it is now.
        index: gives the index of a segment.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        view: Callable[[], LogView],
        index: Callable[[LogView, int], Places],
    ) -> None:
        self._folder = folder
        self._files = files
        self._view = view
        self._index = index
        self._fd: int | None = None
        self._number = 0  # of the segment that is open
        self._offset = 0
        self._done: Position = Position(0, 0, 0)  # behind the last record that was read or passed over
        self._skipped: list[bytes] = []  # read while seeking, and not given out yet

    @property
    def done(self) -> Position:
        """Position of the last record that was read or passed over: everything up to it is behind the cursor."""
        return self._done

    def seek(self, after: Position) -> None:
        """Stands before the first record that is not done at `after`.

        Raises:
            PositionTrimmed: what comes after `after` is no longer held.
            PositionUnknown: `after` is past the end.
        """
        self._while_it_is_held(lambda view: self._seek(view, after))

    def _seek(self, view: LogView, after: Position) -> None:
        if after < view.manifest.trimmed:
            raise _trimmed(after, view)
        if after > view.mark.tip.position:
            raise PositionUnknown(f"position {after} is past the log's end", where=f"end {view.mark.tip.position}")
        at = max(bisect_left(view.manifest.bases, after) - 1, 0)
        self._open(view, at)
        place = self._index(view, at).place_for_position(after)
        self._pass_over(place, lambda header: is_done(after, header))
        if not self._skipped:
            self._done = max(self._done, after)

    def seek_time(self, microseconds: int) -> None:
        """Stands before the first record with a commit time of at least this, or at the end if there is none.

        Raises:
            PositionTrimmed: some of what was committed from then on may no longer be held.
        """
        self._while_it_is_held(lambda view: self._seek_time(view, microseconds))

    def _seek_time(self, view: LogView, microseconds: int) -> None:
        at = bisect_left(view.manifest.latest_times, microseconds)
        created = self._open(view, at).created
        place = self._index(view, at).place_for_time(microseconds)
        self._pass_over(place, lambda header: header.commit_time < microseconds)
        trimmed = view.manifest.trimmed
        if trimmed > ORIGIN and self._done == trimmed and microseconds <= created:  # nothing older is held
            what = "the log may no longer hold all that was committed since that time"
            raise PositionTrimmed(what, where=f"it begins behind {trimmed}", mend=_MEND)

    def seek_seq(self, seq: int) -> Position:
        """Stands before the record that holds the first change with a seq of at least this; "last done" before it.

        Raises:
            PositionTrimmed: the log no longer holds the change of this seq.
            PositionUnknown: the seq is more than one past the end.
        """
        return self._while_it_is_held(lambda view: self._seek_seq(view, seq))

    def _seek_seq(self, view: LogView, seq: int) -> Position:
        if seq > view.mark.tip.last_seq + 1:
            raise PositionUnknown(f"seq {seq} is past the log's end", where=f"last seq {view.mark.tip.last_seq}")
        at = bisect_left(view.manifest.last_seqs, seq)
        base_seq = self._open(view, at).base_seq
        if at == 0 and seq <= base_seq and view.manifest.trimmed > ORIGIN:
            raise PositionTrimmed(
                f"the log no longer holds seq {seq}", where=f"it begins behind {base_seq}", mend=_MEND
            )
        place = self._index(view, at).place_for_seq(seq)
        self._pass_over(place, lambda header: header.last_seq < seq)
        if not self._skipped:
            return self._done
        return place_of_seq(read_header(self._skipped[0]), seq, self._done)

    def _while_it_is_held(self, seek: Callable[[LogView], _T]) -> _T:
        """Seeks in the log as it is; once more if retention has dropped meanwhile what the seek was about to open."""
        while True:
            view = self._view()
            try:
                return seek(view)
            except (PositionTrimmed, FileNotFoundError):
                if self._view().manifest.generation == view.manifest.generation:
                    raise

    @property
    def place(self) -> tuple[int, int] | None:
        """Segment and offset of what will be read next; None while records are held that were read in seeking."""
        return None if self._skipped else (self._number, self._offset)

    @property
    def found(self) -> RecordHeader | None:
        """The record that a seek has found; None if it found none, or reading has gone on."""
        return read_header(self._skipped[0]) if self._skipped else None

    def fork(self) -> FileCursor:
        """Another cursor at the same place. A closed one cannot be forked."""
        twin = copy.copy(self)
        twin._skipped = self._skipped.copy()
        twin._fd = None if self._fd is None else self._files.duplicate(self._fd)
        return twin

    def read(self, max_bytes: int) -> list[bytes]:
        """The next whole records; see `walbus.log.LogCursor.read`."""
        if self._skipped:
            records, self._skipped = self._skipped, []
            self._done = read_header(records[-1]).last
            return records
        return self._read(self._view(), max_bytes)

    def read_bytes(self, max_bytes: int) -> tuple[bytes, RecordHeader] | None:
        """As `read`, but in one piece, and with the header of the last record; None at the durable end."""
        if not self._skipped and (limit := self._ahead(self._view())) is not None:
            data = self._pread(min(max_bytes, limit - self._offset))
            used, last = good_records(data)
            if used:
                self._offset += used
                header = read_header(data, last)
                self._done = header.last
                return (data if used == len(data) else data[:used]), header
        records = self.read(max_bytes)
        return (b"".join(records), read_header(records[-1])) if records else None

    def ahead(self, least: int) -> Span | None:
        """What is durable ahead in the segment's file, and was not checked; the cursor stays (`skip`).

        None where that is less than `least` bytes, and where records are to be read that were read in seeking.
        """
        if self._skipped or (limit := self._ahead(self._view())) is None or self._fd is None:
            return None
        if limit - self._offset < least:
            return None
        return Span(self._fd, self._offset, limit - self._offset)

    def skip(self, length: int, last: RecordHeader) -> None:
        """Goes behind some of the bytes ahead, and their last record."""
        self._offset += length
        self._done = last.last

    def located(self) -> Located | None:
        """Where the record lies that a seek has found; None if it found none, or reading has gone on."""
        if not self._skipped:
            return None
        header = read_header(self._skipped[0])
        takes_seq = header.kind == Kind.TRANSACTION and header.last_ordinal > 0
        offset = self._offset - sum(map(len, self._skipped))
        return Located(self._number, offset, header.first_seq - takes_seq, header.commit_time)

    @property
    def next_record(self) -> tuple[int, int]:
        """Segment, and offset in it, of the first record that `read` has not given out."""
        return self._number, self._offset - sum(map(len, self._skipped))

    def pending(self) -> int:
        """Durable bytes between the cursor and the end of its segment, or of the log."""
        return max(self._limit(self._view()) - self._offset, 0)

    def close(self) -> None:
        """Closes the file."""
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None

    def _read(self, view: LogView, max_bytes: int) -> list[bytes]:
        limit = self._ahead(view)
        if limit is None:
            return []
        records = self._block(limit, max_bytes)
        self._done = read_header(records[-1]).last
        return records

    def _ahead(self, view: LogView) -> int | None:
        """Up to where the segment may be read in which the next record lies; None if there is none yet."""
        while True:
            limit = self._limit(view)
            if self._offset < limit:
                return limit
            if not self._advance(view):
                return None

    def _limit(self, view: LogView) -> int:
        """Up to where the open segment may be read."""
        numbers = view.manifest.numbers
        at = bisect_left(numbers, self._number)
        if at < len(numbers) and numbers[at] == self._number:
            return view.limit(at)
        return 0  # dropped meanwhile: go on with the next one, if nothing is lost between

    def _block(self, limit: int, max_bytes: int) -> list[bytes]:
        size = min(max(max_bytes, HEADER_SIZE), limit - self._offset)
        data = self._pread(size)
        records, used = self._split(data)
        if not records and len(data) >= 8:
            size = min(max(record_length(data), size), limit - self._offset)
            records, used = self._split(self._pread(size))
        if not records:
            raise self._damage("a record reaches past the durable end, or the file is too short")
        self._offset += used
        return records

    def _pread(self, size: int) -> bytes:
        if self._fd is None:
            raise ValueError("the cursor is closed")
        return self._files.pread(self._fd, size, self._offset)

    def _split(self, data: bytes) -> tuple[list[bytes], int]:
        try:
            return split_records(data)
        except DamagedRecord as error:
            raise self._damage(error.what) from error

    def _damage(self, what: str) -> DamagedRecord:
        path = segment_path(self._folder, self._number)
        return DamagedRecord(
            what,
            where=f"{path}, offset {self._offset}",
            mend="restore the file from a backup, or begin a new log in an empty folder and let consumers bootstrap",
        )

    def _advance(self, view: LogView) -> bool:
        """Goes to the next segment; False if this is the last one that holds anything."""
        numbers = view.manifest.numbers
        at = bisect_left(numbers, self._number + 1)
        if at == len(numbers) or numbers[at] > view.mark.segment:
            return False
        if view.manifest.bases[at] > self._done:
            raise _trimmed(self._done, view)
        self._open(view, at)
        return True

    def _open(self, view: LogView, at: int) -> SegmentHeader:
        """Opens a segment, checks that it is the right one, and stands at its first record; its header."""
        number, base = view.manifest.numbers[at], view.manifest.bases[at]
        path = segment_path(self._folder, number)
        try:
            fd = self._files.open_for_reading(path)
        except FileNotFoundError:
            newest = self._view()
            if number not in newest.manifest.numbers:
                raise _trimmed(self._done, newest) from None
            raise DamagedRecord("a segment's file is missing", where=str(path), mend="restore the file") from None
        self.close()
        self._fd = fd
        header = parse_segment_header(self._files.pread(fd, HEADER_SIZE, 0), str(path))
        if (header.log_id, header.number, header.base) != (view.manifest.log_id, number, base):
            raise DamagedRecord("a segment's file belongs elsewhere", where=str(path), mend="restore the file")
        self._number, self._offset, self._done = number, HEADER_SIZE, base
        return header

    def _pass_over(self, place: tuple[int, Position] | None, done: Callable[[RecordHeader], bool]) -> None:
        """Reads on from a place in the open segment to the first record that is not done, and keeps it."""
        if place is not None:
            self._offset, self._done = place
        self._skipped = []
        view = self._view()
        while records := self._read_from(view):
            for i, record in enumerate(records):
                header = read_header(record)
                if not done(header):
                    self._skipped = records[i:]
                    return
                self._done = header.last

    def _read_from(self, view: LogView) -> list[bytes]:
        before = self._done
        records = self._read(view, _SEEK_BLOCK)
        self._done = before  # `_pass_over` counts record by record
        return records


def _trimmed(after: Position, view: LogView) -> PositionTrimmed:
    return PositionTrimmed(
        f"the log no longer holds what comes after {after}",
        where=f"trimmed up to {view.manifest.trimmed}",
        mend=_MEND,
    )
