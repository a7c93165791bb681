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

import structlog

from walbus.compression import Compressor
from walbus.errors import Fenced, LogError, LogFull
from walbus.log import Bounds, Held, Piece, Run
from walbus.position import Position
from walbus.records import RecordHeader
from walbus.relay.control import Mark
from walbus.relay.copied_run import CopiedRun
from walbus.relay.cursor import FileCursor
from walbus.relay.fs import Files, disk_full, is_disk_full, sync_folder
from walbus.relay.held import TransactionFinder
from walbus.relay.index import IndexFile, SegmentIndex
from walbus.relay.index_loader import IndexLoader
from walbus.relay.lease import Clock, Lease
from walbus.relay.manifest import ActiveSegment, Manifest, SealedSegment, write_manifest
from walbus.relay.recovery import Opened, create_segment
from walbus.relay.retention import Retention, expired, lowest_hold, unheld
from walbus.relay.schemas import SchemaWriter
from walbus.relay.segment import HEADER_SIZE, SegmentHeader, index_path, segment_path, segments_folder
from walbus.relay.segment_file import SegmentFile
from walbus.relay.sequence import Packed, Place, Sequence
from walbus.relay.tip import Tip
from walbus.relay.view import LogView
from walbus.relay.wake import WakeServer
from walbus.schema import TableSchema

_log = structlog.get_logger(__name__)

_FLUSH_BYTES = 1 << 20  #: a buffer of this size is written without waiting for `sync`


@dataclass(frozen=True)
class WriterSettings:
    """How a writer behaves.

    Attributes:
        segment_bytes: size from which a segment is rolled.
        retention: what `trim` drops.
        clock: time.
        compressor: of records' bodies; None leaves them as they are.
    """

    segment_bytes: int
    retention: Retention
    clock: Clock
    compressor: Compressor | None = None


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
        start = Place(opened.mark.offset, opened.mark.tip, opened.mark.max_time)
        first_seq = max(start.tip.last_seq + 1, int(settings.clock.now() * 1e6))
        self._sequence = Sequence(start, first_seq, settings.compressor)
        self._broken: str | None = None  # why nothing may be written any more
        self._closed = False
        indexes = IndexLoader(folder, files)
        self._finder = TransactionFinder(lambda: FileCursor(folder, files, self._view, indexes), self.bounds)

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
        sequence = self._sequence
        if sequence.abandons(piece):
            self._drop_unfinished()
        sequence.check(piece)
        self._roll_if_full()
        self._put(sequence.pack(piece))
        sequence.note(piece)

    def append_run(self, run: Run) -> None:
        """Takes whole small transactions; see `walbus.log.LogWriter.append_run`.

        The index gets at most one entry a run, which is why a run is not longer than about an entry's distance.
        """
        self._check_usable()
        sequence = self._sequence
        if sequence.open:
            self._drop_unfinished()
        sequence.check_run(run)
        self._roll_if_full()
        self._put(sequence.pack_run(run))
        sequence.note_whole()

    def append_copy(self, header: RecordHeader, record: bytes) -> None:
        """Takes the next record of the log that this one is a copy of, as it is: position, seq and bytes.

        Args:
            header: of the record.
            record: whole, with a checksum that holds.

        Raises:
            ProtocolError: it cannot stand here.
            LogFull, Fenced: as `append`.
        """
        self._check_usable()
        sequence = self._sequence
        packed = sequence.copy(header, record)
        self._roll_if_full()
        self._put(packed)
        sequence.note_copied(header, packed)

    def append_copied_run(self, run: CopiedRun) -> None:
        """As `append_copy`, for whole transactions; the index gets at most one entry a run, as for `append_run`."""
        self._check_usable()
        packed = self._sequence.copy_run(run)
        self._roll_if_full()
        self._put(packed)
        self._sequence.note_whole()

    def adopt(self, schema: TableSchema) -> None:
        """Takes a layout of the log that this one is a copy of, under its number; durable when the call returns.

        Raises:
            LogDiverged: the records here are of another layout of this number.
            LogFull, Fenced: as `append`.
        """
        self._schemas.adopt(schema, self._sequence.here.tip.announced_schema)

    @property
    def unfinished(self) -> bool:
        """Whether the last record that was appended is of a transaction that has not ended."""
        return self._sequence.open

    def drop_unfinished(self) -> None:
        """Forgets the pieces of a transaction that has not ended; where there is none, nothing happens."""
        self._check_usable()
        if self._sequence.open:
            self._drop_unfinished()

    def note_announced(self, schema_id: int) -> None:
        """All layouts up to this number were announced before this copy begins; durable with the next sync."""
        self._sequence.note_announced(schema_id)

    @property
    def received(self) -> Position:
        """Of the last record that was appended, durable or not, of a transaction that has ended or not."""
        return self._sequence.here.tip.position

    @property
    def durable(self) -> Tip:
        """What is known at the durable end."""
        return self._mark.tip

    def _put(self, packed: Packed) -> None:
        """Puts packed records behind all others."""
        if self._file.buffered + len(packed.records) > _FLUSH_BYTES:
            self._flush()
        if self._index.index.wants(self._file.size):
            before = self._sequence.here
            self._index.index.add(self._file.size, before.tip.position, before.tip.last_seq, before.max_time)
        self._file.append(packed.records)
        self._sequence.appended(packed, self._file.size)

    def _drop_unfinished(self) -> None:
        """Cuts the pieces of a transaction that never ended; nobody has seen them."""
        self._file.cut(self._sequence.whole.offset)
        self._index.cut(self._sequence.whole.offset)
        self._schemas.forget_announcements(self._sequence.drop_open())

    def sync(self) -> Bounds:
        """The group commit; see `walbus.log.LogWriter.sync`."""
        self._check_usable()
        whole = self._sequence.whole
        if (whole.offset, whole.tip) != (self._mark.offset, self._mark.tip):
            self._sync()
        else:
            self._lease_check()  # a writer that was stopped must not act on the source with its old lease
        return self.bounds()

    def _sync(self) -> None:
        self._flush()
        self._fdatasync()
        whole = self._sequence.whole
        self._publish(replace(self._mark, offset=whole.offset, tip=whole.tip, max_time=whole.max_time))
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
        """After an error of the disk nothing is written any more: a second try would report success falsely.

        Where another writer took over, its removals are what the error tells of.
        """
        try:
            yield
        except OSError as error:
            self._lease_check()
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
        if self._sequence.open:
            self._drop_unfinished()
        try:
            self._sync()
            self._publish(replace(self._mark, clean=True))
            self._lease.control.sync()
        except (LogFull, Fenced) as error:
            _log.warning("log_not_closed_cleanly", error=error.what)

    # --- segments ---------------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """Seals the active segment and begins the next one.

        If there is no room, nothing changes; but for the very last act, which the next sync makes up for.
        """
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
        self._sequence.moved(HEADER_SIZE)
        self._mark = Mark(number, HEADER_SIZE, tip, 0, self._manifest.generation)  # if not now, the next sync shows it
        self._publish(self._mark)

    def _roll_if_full(self) -> None:
        if not self._sequence.open and self._file.size >= self._settings.segment_bytes:
            self._roll()

    def _roll_if_old(self, now: float) -> None:
        """A quiet segment never grows full, and would hold its changes for ever."""
        idle = not self._sequence.open and self._sequence.whole.offset > HEADER_SIZE
        if idle and self._file.created() < now - self._settings.retention.hours * 3600:
            self._roll()

    def _make_segment(self, header: SegmentHeader) -> tuple[SegmentFile, IndexFile]:
        try:
            with self._breaks_on_disk_errors("a segment could not be made"):
                file = create_segment(self._files, self._folder, header)
        except FileExistsError as error:
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
        with self._breaks_on_disk_errors("the manifest could not be replaced"):
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
        self._mark = replace(self._mark, generation=self._manifest.generation)
        self._publish(self._mark)
        for segment in dropped:
            self._files.unlink(segment_path(self._folder, segment.number))
        sync_folder(self._files, segments_folder(self._folder))
        _log.info("log_trimmed", segments=count, trimmed=str(self._manifest.trimmed))

    def _view(self) -> LogView:
        return LogView(self._manifest, self._mark)
