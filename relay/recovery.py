"""Opening a log for writing: a new one, one that was closed in order, or one whose writer died.

After a clean stop the writer goes on in the same segment. After any other stop the old segment is sealed at the
durable end, and whole transactions found behind that end are checked and written again into a new segment, which is
synced before use: the kernel may hold bytes that a failed sync reported only to the process that is gone, and a
second sync of the same file would report success falsely. What is not a whole transaction is cut, and said.

Cost does not grow with the log: only the bytes behind the durable end are looked at.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from walbus.errors import DamagedRecord
from walbus.log import SourceIdentity
from walbus.relay.control import ControlFile, Mark, control_epochs, control_path
from walbus.relay.fs import Files, sync_folder, write_at, write_new
from walbus.relay.index import SegmentIndex, parse_index
from walbus.relay.index_loader import build_index
from walbus.relay.lease import Lease
from walbus.relay.manifest import ActiveSegment, Manifest, SealedSegment, manifest_epochs, manifest_path
from walbus.relay.scan import TailScanner
from walbus.relay.segment import (
    HEADER_SIZE,
    SegmentHeader,
    index_path,
    parse_segment_header,
    segment_path,
    segments_folder,
)
from walbus.relay.segment_file import SegmentFile
from walbus.relay.tip import EMPTY_TIP, Tip
from walbus.relay.wake import wake_path

_log = structlog.get_logger(__name__)

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Opened:
    """A log that is ready to be written to, but for making its manifest durable.

    Attributes:
        manifest: as it is to be.
        mark: the durable end.
        file: the active segment.
        index: of the active segment.
    """

    manifest: Manifest
    mark: Mark
    file: SegmentFile
    index: SegmentIndex


@dataclass(frozen=True)
class NewLog:
    """What a new log is to be.

    Attributes:
        log_id: 32 random hexadecimal digits.
        source: the database that it belongs to.
        now: Unix seconds.
        base: of a copy: what is known before its first record; None: nothing is, the log is the first of its kind.
    """

    log_id: str
    source: SourceIdentity
    now: float
    base: Tip | None = None


def holder() -> str:
    """Host and process, for people who read the manifest."""
    return f"{socket.gethostname()}:{os.getpid()}"


def create_segment(files: Files, folder: Path, header: SegmentHeader) -> SegmentFile:
    """Makes a segment's file durable and opens it.

    Raises:
        LogFull: no room.
        FileExistsError: another writer made it.
    """
    path = segment_path(folder, header.number)
    write_new(files, path, header.pack())
    return SegmentFile(files, files.open(path), header.number, HEADER_SIZE)


def create_log(folder: Path, files: Files, lease: Lease, new: NewLog) -> Opened:
    """The first segment and manifest of a new log.

    Its seqs begin at the clock before anything is appended: rows that are copied before the first change take the seq
    of their place in the log, which must lie above every seq of a log that this one replaces.
    """
    number = _next_number(folder)
    tip = new.base or EMPTY_TIP._replace(last_seq=int(new.now * 1e6))
    header = SegmentHeader(number, lease.writer_epoch, new.log_id, tip.position, tip.last_seq, tip.last_seq)
    file = create_segment(files, folder, header)
    manifest = Manifest(
        new.log_id, new.source, lease.writer_epoch, lease.seconds, holder(), 1, tip.position, (),
        ActiveSegment(number, tip),
    )  # fmt: skip
    return Opened(manifest, Mark(number, HEADER_SIZE, tip, 0, 1), file, SegmentIndex())


def recover(folder: Path, files: Files, lease: Lease, manifest: Manifest, now: float) -> Opened:
    """Takes an existing log over.

    Raises:
        DamagedRecord: something before the durable end is damaged.
        LogFull: no room for a new segment.
    """
    manifest = replace(
        manifest,
        writer_epoch=lease.writer_epoch,
        lease_seconds=lease.seconds,
        holder=holder(),
        generation=manifest.generation + 1,
    )
    mark = _final_mark(folder, files, manifest, lease.writer_epoch)
    path = segment_path(folder, manifest.active.number)
    try:
        fd = files.open(path)
    except FileNotFoundError:
        raise DamagedRecord("a segment's file is missing", where=str(path), mend="restore the file") from None
    try:
        _check_header(files, fd, path, manifest)
        if mark.clean and files.size(fd) == mark.offset:
            return _go_on(folder, files, manifest, mark, fd)
        opened = _Recovery(folder, files, manifest, fd, now).run(mark)
    except BaseException:
        files.close(fd)
        raise
    files.close(fd)
    return opened


def _final_mark(folder: Path, files: Files, manifest: Manifest, epoch: int) -> Mark:
    """The durable end that the last writer published, sealed in its control file so that readers agree on it."""
    start = Mark(manifest.active.number, HEADER_SIZE, manifest.active.base, 0, manifest.generation)
    mark = None
    for older in control_epochs(folder):
        if older == epoch:
            continue
        control = ControlFile(files, files.open(control_path(folder, older)))
        try:
            state = control.state()
            found = state.final or state.own
            if found is not None and found.segment == manifest.active.number:
                mark = found
            if state.final is None:
                control.seal(mark or start)
        finally:
            control.close()
    if mark is None:
        _log.warning("log_durable_end_unknown", folder=str(folder), segment=manifest.active.number)
    return mark or start


def _check_header(files: Files, fd: int, path: Path, manifest: Manifest) -> None:
    header = parse_segment_header(files.pread(fd, HEADER_SIZE, 0), str(path))
    expected = (manifest.log_id, manifest.active.number, manifest.active.base.position)
    if (header.log_id, header.number, header.base) != expected:
        raise DamagedRecord("a segment's file belongs elsewhere", where=str(path), mend="restore the file")


def _go_on(folder: Path, files: Files, manifest: Manifest, mark: Mark, fd: int) -> Opened:
    """After a clean stop: the same segment, at its end."""
    number = manifest.active.number
    mark = replace(mark, clean=False, generation=manifest.generation)
    try:
        index = parse_index(index_path(folder, number).read_bytes(), number, sealed=False)
    except OSError:
        index = None
    if index is None:
        index = build_index(files, segment_path(folder, number), mark.offset)
    index.cut(mark.offset)
    return Opened(manifest, mark, SegmentFile(files, fd, number, mark.offset), index)


class _Recovery:
    """After an unclean stop: the old segment is sealed, and a new one begins with what lay behind its end."""

    def __init__(self, folder: Path, files: Files, manifest: Manifest, fd: int, now: float) -> None:
        self._folder = folder
        self._files = files
        self._manifest = manifest
        self._fd = fd
        self._size = files.size(fd)
        self._path = segment_path(folder, manifest.active.number)
        self._now = now
        self._index = SegmentIndex()

    def run(self, mark: Mark) -> Opened:
        """Seals at `mark` (or before it, if the file is shorter) and moves the tail."""
        if self._size < mark.offset:
            mark = self._cut_short(mark)
        scanner = self._scan(mark.tip, mark.offset, index=True)
        self._say_cut(scanner)
        number = _next_number(self._folder)
        header = SegmentHeader(
            number, self._manifest.writer_epoch, self._manifest.log_id, mark.tip.position, mark.tip.last_seq,
            int(self._now * 1e6),
        )  # fmt: skip
        file = create_segment(self._files, self._folder, header)
        self._copy(mark.offset, scanner.good, file)
        end = HEADER_SIZE + scanner.good - mark.offset
        self._index.cut(end)
        manifest = replace(self._manifest, sealed=self._sealed(mark), active=ActiveSegment(number, mark.tip))
        new_mark = Mark(number, end, scanner.tip, scanner.max_time, manifest.generation)
        return Opened(manifest, new_mark, SegmentFile(self._files, self._reopen(file), number, end), self._index)

    def _reopen(self, file: SegmentFile) -> int:
        file.close()
        return self._files.open(segment_path(self._folder, file.number))

    def _sealed(self, mark: Mark) -> tuple[SealedSegment, ...]:
        if mark.offset == HEADER_SIZE:
            return self._manifest.sealed  # an empty segment is not worth keeping
        old = SealedSegment(
            mark.segment, self._manifest.active.base.position, mark.offset, mark.tip.position, mark.tip.last_seq,
            mark.max_time, self._now,
        )  # fmt: skip
        return (*self._manifest.sealed, old)

    def _cut_short(self, mark: Mark) -> Mark:
        """The end of a file that lost bytes which had been durable: behind its last whole transaction."""
        scanner = self._scan(self._manifest.active.base, HEADER_SIZE, index=False)
        if scanner.problem is not None:
            raise DamagedRecord(scanner.problem, where=f"{self._path}, offset {scanner.good}", mend="restore the file")
        _log.error(
            "log_shorter_than_durable_end",
            file=str(self._path), bytes=self._size, durable=mark.offset, kept=scanner.good,
            lost_from=str(scanner.tip.position), lost_to=str(mark.tip.position),
        )  # fmt: skip
        self._size = scanner.good
        tip = scanner.tip._replace(last_seq=max(scanner.tip.last_seq, mark.tip.last_seq))
        return Mark(mark.segment, scanner.good, tip, scanner.max_time, mark.generation)

    def _scan(self, tip: Tip, start: int, *, index: bool) -> TailScanner:
        scanner = TailScanner(tip, start)
        at, before, seq, time = start, tip.position, tip.last_seq, 0
        while at < self._size and scanner.problem is None:
            block = self._files.pread(self._fd, max(_BLOCK, scanner.wanted), at)
            if not block:
                break
            at += len(block)
            for offset, header in scanner.feed(block):
                moved = offset - start + HEADER_SIZE
                if index and self._index.wants(moved):
                    self._index.add(moved, before, seq, time)
                before, seq, time = header.last, header.last_seq, max(time, header.commit_time)
        return scanner

    def _say_cut(self, scanner: TailScanner) -> None:
        if scanner.good < self._size:
            _log.warning(
                "log_tail_cut",
                file=str(self._path), offset=scanner.good, bytes=self._size - scanner.good,
                reason=scanner.problem or "an unfinished transaction", end=str(scanner.tip.position),
            )  # fmt: skip

    def _copy(self, start: int, stop: int, file: SegmentFile) -> None:
        """Writes whole transactions again, and makes them durable."""
        fd = self._files.open(segment_path(self._folder, file.number))
        try:
            for at in range(start, stop, _BLOCK):
                block = self._files.pread(self._fd, min(_BLOCK, stop - at), at)
                write_at(self._files, fd, block, HEADER_SIZE + at - start)
            self._files.fsync(fd)
        finally:
            self._files.close(fd)
        if stop > start:
            _log.info("log_tail_recovered", file=str(self._path), bytes=stop - start)


def _next_number(folder: Path) -> int:
    """A segment number that no file has ever had; files of a crashed roll count."""
    return max((int(path.stem) for path in segments_folder(folder).glob("[0-9]*.seg")), default=0) + 1


def clean_up(folder: Path, files: Files, manifest: Manifest) -> None:
    """Removes what earlier writers left and the manifest does not name."""
    epoch = manifest.writer_epoch
    for older in control_epochs(folder):
        if older != epoch:
            files.unlink(control_path(folder, older))
            files.unlink(wake_path(folder, older))
    for older in manifest_epochs(folder):
        if older != epoch:
            files.unlink(manifest_path(folder, older))
    for path in folder.glob(".manifest-*.new"):
        files.unlink(path)
    kept = set(manifest.numbers)
    for path in segments_folder(folder).glob("[0-9]*.*"):
        if int(path.stem) not in kept:
            files.unlink(path)
    sync_folder(files, folder)
    sync_folder(files, segments_folder(folder))
