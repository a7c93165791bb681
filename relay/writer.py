"""The writing half of the file engine.

`append` gives a piece its seqs, packs it and puts it into a buffer; full buffers go to the segment's file. `sync` is
the group commit: it writes the rest, makes the file durable, publishes the new end and wakes the readers, once for
all transactions that were appended since the last one. The published end lies behind the last *whole* transaction;
pieces of an unfinished one may be in the file behind it, and are cut when the transaction is begun again or the log is
closed.

A full segment is rolled before the next transaction begins, so that a segment holds whole transactions only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import structlog

from walbus.errors import Fenced, LogError, LogFull
from walbus.log import Bounds, Held, Piece, Run
from walbus.native import seal
from walbus.position import Position
from walbus.records import Flag, Kind, iter_changes, pack_record
from walbus.relay.control import Mark
from walbus.relay.fs import Files, disk_full, is_disk_full, sync_folder
from walbus.relay.held import TransactionFinder
from walbus.relay.index import IndexFile, SegmentIndex
from walbus.relay.lease import Clock, Lease
from walbus.relay.manifest import ActiveSegment, Manifest, SealedSegment, write_manifest
from walbus.relay.recovery import Opened, create_segment
from walbus.relay.retention import Retention, expired, lowest_hold, unheld
from walbus.relay.schemas import SchemaWriter
from walbus.relay.segment import HEADER_SIZE, SegmentHeader, index_path, segment_path, segments_folder
from walbus.relay.segment_file import SegmentFile
from walbus.relay.tip import Tip, end_behind
from walbus.relay.view import LogView
from walbus.relay.wake import WakeServer

_log = structlog.get_logger(__name__)

_FLUSH_BYTES = 1 << 20  #: a buffer of this size is written without waiting for `sync`
_BEGIN, _END, _TRANSACTION = int(Flag.BEGIN), int(Flag.END), int(Kind.TRANSACTION)
_BETWEEN = (int(Kind.PROGRESS), int(Kind.EPOCH))  # kinds that never stand inside a transaction
_SEQ_END = 1 << 53  #: seqs stay below, since JSON and Lua have doubles


class _Place(NamedTuple):
    """A place behind an appended record, durable or not."""

    offset: int
    tip: Tip
    max_time: int


@dataclass(frozen=True)
class WriterSettings:
    """How a writer behaves.

    Attributes:
        segment_bytes: size from which a segment is rolled.
        retention: what `trim` drops.
        clock: time.
    """

    segment_bytes: int
    retention: Retention
    clock: Clock


class FileLogWriter:
    """See `walbus.log.LogWriter`.

    Args:
        folder: of the log.
        files: the file operations.
        lease: the right to write.
        opened: the log as recovery left it.
        settings: sizes, retention and time.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        lease: Lease,
        opened: Opened,
        settings: WriterSettings,
    ) -> None:
        self._folder, self._files, self._lease, self._settings = folder, files, lease, settings
        self._manifest, self._mark, self._file = opened.manifest, opened.mark, opened.file
        number = opened.file.number
        self._index = IndexFile(files, index_path(folder, number), number, lease.writer_epoch, opened.index)
        self._schemas = SchemaWriter(folder, files, opened.mark.tip.announced_schema)
        self._wake = WakeServer(folder, lease.writer_epoch)
        self._first_seq = self._next_seq = max(opened.mark.tip.last_seq + 1, int(settings.clock.now() * 1e6))
        self._whole = _Place(opened.mark.offset, opened.mark.tip, opened.mark.max_time)  # behind a whole transaction
        self._here = self._whole  # behind the last record
        self._open: tuple[int, int] | None = None  # xid and commit LSN of an unfinished transaction
        self._open_schemas: list[int] = []  # announced in it
        self._broken: str | None = None  # why nothing may be written any more
        self._closed = False
        self._finder = TransactionFinder(folder, files, self._view)

    @property
    def schemas(self) -> SchemaWriter:
        """The log's table layouts."""
        return self._schemas

    def bounds(self) -> Bounds:
        """What is durable now."""
        return self._view().bounds()

    def find(self, epoch: int, commit_lsn: int) -> Held | None:
        """The durable transaction at this place; quick when the LSNs of successive calls ascend."""
        return self._finder.find(epoch, commit_lsn)

    def records_after(self, after: Position) -> Iterator[bytes]:
        """The durable records behind a position; see `walbus.log.LogWriter.records_after`."""
        return self._finder.records_after(after)

    def append(self, piece: Piece) -> None:
        """Takes a piece; see `walbus.log.LogWriter.append`."""
        self._check_usable()
        flags = int(piece.flags)  # arithmetic on enum members costs as much as all the rest
        self._make_way(piece, flags)
        if self._open is None and self._file.size >= self._settings.segment_bytes:
            self._roll()
        record, tip = self._pack(piece, flags)
        self._put(record, tip, piece.commit_time)
        self._note_bounds(piece, flags)

    def append_run(self, run: Run) -> None:
        """Takes whole small transactions; see `walbus.log.LogWriter.append_run`.

        The index gets at most one entry a run, which is why a run is not longer than about an entry's distance.
        """
        self._check_usable()
        if self._open is not None:
            self._drop_unfinished()
        if run.first <= self._here.tip.position:
            raise ValueError(f"a run at {run.first} cannot stand behind {self._here.tip.position}")
        if self._file.size >= self._settings.segment_bytes:
            self._roll()
        base, before = self._next_seq, self._here.tip
        last_seq = _checked_seq(base + run.changes - 1)
        tip = Tip(run.last, max(before.end_lsn, run.end_lsn), last_seq, run.commit_time, before.announced_schema)
        self._put(seal(run.records, base), tip, run.latest)
        self._whole = self._here

    def _put(self, records: bytes, tip: Tip, latest: int) -> None:
        """Puts packed records behind all others; `latest` is their largest commit time."""
        if self._file.buffered + len(records) > _FLUSH_BYTES:
            self._flush()
        if self._index.index.wants(self._file.size):
            before = self._here
            self._index.index.add(self._file.size, before.tip.position, before.tip.last_seq, before.max_time)
        self._file.append(records)
        self._here = _Place(self._file.size, tip, max(self._here.max_time, latest))
        if tip.last_seq >= self._next_seq:
            self._next_seq = tip.last_seq + 1

    def sync(self) -> Bounds:
        """The group commit; see `walbus.log.LogWriter.sync`."""
        self._check_usable()
        if self._whole.offset != self._mark.offset:
            self._sync()
        else:
            self._lease_check()  # a writer that was stopped must not act on the source with its old lease
        return self.bounds()

    def _sync(self) -> None:
        self._flush()
        self._fdatasync()
        self._publish(
            replace(self._mark, offset=self._whole.offset, tip=self._whole.tip, max_time=self._whole.max_time)
        )
        self._index.flush()
        self._wake.notify()

    def trim(self, now: float) -> Position:
        """Drops whole old segments; see `walbus.log.LogWriter.trim`."""
        self._check_usable()
        count = self._droppable(now)
        if count:
            self._drop(count)
        with contextlib.suppress(LogFull):  # tried again at the next call
            self._roll_if_old(now)
        return self._manifest.trimmed

    def close(self) -> None:
        """Syncs what is whole, marks the log as cleanly stopped, and frees it."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._broken is None:
                self._stop_cleanly()
        finally:
            self._finder.close()
            self._wake.close()
            self._index.close()
            self._file.close()
            self._lease.release()

    # --- append -----------------------------------------------------------------------------------------------

    def _make_way(self, piece: Piece, flags: int) -> None:
        """Checks the piece's place; drops an unfinished transaction that the source begins again.

        Raises:
            ValueError: the piece cannot stand here.
        """
        begins = piece.kind == _TRANSACTION and flags & _BEGIN
        if self._open is not None and (begins or piece.kind in _BETWEEN or self._goes_back(piece)):
            self._drop_unfinished()
        if not begins and piece.kind == _TRANSACTION and self._open != (piece.xid, piece.commit_lsn):
            raise ValueError(f"a piece of transaction {piece.xid} does not follow its first piece")
        if self._goes_back(piece):
            at = Position(piece.epoch, piece.commit_lsn, piece.first_ordinal)
            raise ValueError(f"a piece at {at} cannot stand behind {self._here.tip.position}")

    def _goes_back(self, piece: Piece) -> bool:
        here = self._here.tip.position
        if piece.kind == _TRANSACTION and piece.count:
            return (piece.epoch, piece.commit_lsn, piece.first_ordinal) <= here
        return (piece.epoch, piece.commit_lsn, piece.last_ordinal) < here

    def _drop_unfinished(self) -> None:
        """Cuts the pieces of a transaction that never ended; nobody has seen them, and their seqs are free again."""
        self._file.cut(self._whole.offset)
        self._index.cut(self._whole.offset)
        self._schemas.forget_announcements(self._open_schemas)
        self._next_seq = max(self._whole.tip.last_seq + 1, self._first_seq)
        self._here, self._open, self._open_schemas = self._whole, None, []

    def _pack(self, piece: Piece, flags: int) -> tuple[bytes, Tip]:
        tip = self._here.tip
        if piece.kind == _TRANSACTION and piece.count:
            first_seq = self._next_seq
            last_seq = _checked_seq(first_seq + piece.last_ordinal - piece.first_ordinal)
        else:
            first_seq = last_seq = tip.last_seq
        record = pack_record(
            piece.kind,
            flags=flags,
            epoch=piece.epoch,
            commit_lsn=piece.commit_lsn,
            end_lsn=piece.end_lsn,
            first_ordinal=piece.first_ordinal,
            last_ordinal=piece.last_ordinal,
            first_seq=first_seq,
            last_seq=last_seq,
            xid=piece.xid,
            commit_time=piece.commit_time,
            count=piece.count,
            origin=piece.origin,
            tables=piece.tables,
            body=piece.body,
        )
        end_lsn = end_behind(tip, piece.kind, piece.commit_lsn, piece.end_lsn)
        announced = _announced(piece) if piece.kind == Kind.SCHEMA else 0
        return record, Tip(
            Position(piece.epoch, piece.commit_lsn, piece.last_ordinal),
            end_lsn,
            last_seq,
            piece.commit_time,
            max(tip.announced_schema, announced),
        )

    def _note_bounds(self, piece: Piece, flags: int) -> None:
        """Knows whether a transaction is under way, and where the last whole one ended."""
        if piece.kind == _TRANSACTION:
            self._open = None if flags & _END else (piece.xid, piece.commit_lsn)
        elif piece.kind == Kind.SCHEMA and self._open is not None:
            self._open_schemas.append(_announced(piece))
        if self._open is None:
            self._whole, self._open_schemas = self._here, []

    # --- durability -------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._lease_check()
        with self._breaks_on_disk_errors("a write failed"):
            self._file.flush()

    def _fdatasync(self) -> None:
        with self._breaks_on_disk_errors("a sync failed"):
            self._file.sync()

    @contextlib.contextmanager
    def _breaks_on_disk_errors(self, what: str) -> Iterator[None]:
        """After an error of the disk nothing is written any more: a second try would report success falsely."""
        try:
            yield
        except OSError as error:
            self._broken = f"{what} ({error.strerror})"
            _log.error("log_disk_failed", error=self._broken, mend="end the process; check the disk")
            raise

    def _publish(self, mark: Mark) -> None:
        """Shows a new end to readers, and makes sure that it was still ours to show."""
        self._lease.control.publish(mark)
        self._mark = mark
        self._lease_check()

    def _lease_check(self) -> None:
        try:
            self._lease.check()
        except Fenced as error:
            self._broken = error.what
            raise

    def _check_usable(self) -> None:
        if self._closed:
            raise LogError("the log is closed", where=str(self._folder))
        if self._broken is not None:
            raise LogError(f"the log cannot be written any more: {self._broken}", mend="end the process")

    def _stop_cleanly(self) -> None:
        """The last sync; without room the log is left as after a kill, which loses nothing that was confirmed."""
        if self._open is not None:
            self._drop_unfinished()
        try:
            self._sync()
            self._publish(replace(self._mark, clean=True))
            self._lease.control.sync()
        except (LogFull, Fenced) as error:
            _log.warning("log_not_closed_cleanly", error=error.what)

    # --- segments ---------------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """Seals the active segment and begins the next one; nothing changes if there is no room."""
        self.sync()
        number, tip = self._file.number + 1, self._mark.tip
        now = self._settings.clock.now()
        header = SegmentHeader(
            number, self._lease.writer_epoch, self._manifest.log_id, tip.position, tip.last_seq, int(now * 1e6)
        )
        file, index = self._make_segment(header)
        sealed = SealedSegment(
            self._file.number, self._manifest.active.base.position, self._mark.offset, tip.position, tip.last_seq,
            self._mark.max_time, now,
        )  # fmt: skip
        try:
            self._put_manifest(
                replace(self._manifest, sealed=(*self._manifest.sealed, sealed), active=ActiveSegment(number, tip))
            )
        except LogFull:
            self._discard_segment(file, index)
            raise
        self._index.seal()
        self._file.close()
        self._file, self._index = file, index
        self._whole = self._here = _Place(HEADER_SIZE, tip, 0)
        self._publish(Mark(number, HEADER_SIZE, tip, 0, self._manifest.generation))

    def _roll_if_old(self, now: float) -> None:
        """A quiet segment never grows full, and would hold its changes for ever."""
        idle = self._open is None and self._whole.offset > HEADER_SIZE
        if idle and self._file.created() < now - self._settings.retention.hours * 3600:
            self._roll()

    def _make_segment(self, header: SegmentHeader) -> tuple[SegmentFile, IndexFile]:
        try:
            file = create_segment(self._files, self._folder, header)
        except FileExistsError as error:
            self._lease_check()
            raise LogError("a segment of this number exists already", where=str(error.filename)) from error
        path = index_path(self._folder, header.number)
        try:
            return file, IndexFile(self._files, path, header.number, header.writer_epoch, SegmentIndex())
        except OSError as error:
            file.close()
            self._files.unlink(segment_path(self._folder, header.number))
            if is_disk_full(error):
                raise disk_full() from error
            raise

    def _discard_segment(self, file: SegmentFile, index: IndexFile) -> None:
        file.close()
        index.close()
        self._files.unlink(segment_path(self._folder, file.number))
        self._files.unlink(index_path(self._folder, file.number))

    def _put_manifest(self, manifest: Manifest) -> None:
        self._lease_check()
        manifest = replace(manifest, generation=self._manifest.generation + 1)
        write_manifest(self._files, self._folder, manifest)
        self._manifest = manifest

    # --- retention --------------------------------------------------------------------------------------------

    def _droppable(self, now: float) -> int:
        """How many of the oldest segments go."""
        manifest = self._manifest
        count = expired(manifest.sealed, self.bounds().bytes, now, self._settings.retention)
        free = unheld(manifest.sealed[:count], lowest_hold(self._folder)) if count else 0
        if free == count or self._files.free_bytes(self._folder) >= self._settings.retention.disk_floor:
            return free
        _log.error(
            "log_hold_overridden",
            folder=str(self._folder),
            segments=count - free,
            reason="the disk is nearly full",
            mend="the room that held them must begin again from a snapshot",
        )
        return count

    def _drop(self, count: int) -> None:
        dropped, kept = self._manifest.sealed[:count], self._manifest.sealed[count:]
        for segment in dropped:  # first, since the manifest needs room and an index can be built again
            self._files.unlink(index_path(self._folder, segment.number))
        self._put_manifest(replace(self._manifest, sealed=kept, trimmed=dropped[-1].end))
        self._publish(replace(self._mark, generation=self._manifest.generation))
        for segment in dropped:
            self._files.unlink(segment_path(self._folder, segment.number))
        sync_folder(self._files, segments_folder(self._folder))
        _log.info("log_trimmed", segments=count, trimmed=str(self._manifest.trimmed))

    def _view(self) -> LogView:
        return LogView(self._manifest, self._mark)


def _announced(piece: Piece) -> int:
    return max((change.schema_id for change in iter_changes(piece.body)), default=0)


def _checked_seq(seq: int) -> int:
    if seq >= _SEQ_END:
        raise LogError("the seqs of this log are used up", mend="begin a new log in an empty folder")
    return seq
