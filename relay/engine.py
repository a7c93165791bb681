"""Opening the file engine: the composition of its parts."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from walbus.compression import Compressor
from walbus.errors import ConfigError, SourceReplaced
from walbus.log import SourceIdentity
from walbus.relay.fs import Files, disk_full, is_disk_full, sync_folder
from walbus.relay.groups_file import begin_groups
from walbus.relay.lease import Clock, Lease, claim
from walbus.relay.manifest import Manifest, load_manifest, write_manifest
from walbus.relay.reader import FileLogReader
from walbus.relay.recovery import NewLog, Opened, clean_up, create_log, recover
from walbus.relay.retention import Retention, holds_folder
from walbus.relay.schemas import schemas_folder
from walbus.relay.segment import segments_folder
from walbus.relay.standbys import Standbys, drop_reports_beyond
from walbus.relay.tip import Tip
from walbus.relay.writer import FileLogWriter, WriterSettings

LEASE_SECONDS = 10.0  #: how long a writer may stand still before another one may take over


def _new_log_id() -> str:
    return secrets.token_hex(16)


def open_writer(  # noqa: PLR0913  # the log's settings, and what tests pass in
    folder: Path,
    source: SourceIdentity,
    *,
    segment_bytes: int,
    retention_hours: float,
    retention_bytes: int | None,
    compression_level: int | None = None,
    lease_seconds: float = LEASE_SECONDS,
    files: Files | None = None,
    clock: Clock | None = None,
    new_log_id: Callable[[], str] = _new_log_id,
    base: Tip | None = None,
) -> FileLogWriter:
    """Opens the log for writing; makes it when there is none.

    Args:
        folder: of the log.
        source: the database that is captured.
        segment_bytes: size from which a segment is rolled, at the next transaction.
        retention_hours: age from which a segment may be dropped.
        retention_bytes: size of the log from which its oldest segments may be dropped; None: by age alone.
        compression_level: of zstd, for the bodies of records that are written from now on; None: they are left as they
            are. Readers need not know.
        lease_seconds: how long this writer may stand still before another one may take over.
        files: the file operations.
        clock: time.
        new_log_id: makes 32 random hexadecimal digits; of a copy, gives those of the log that it copies.
        base: what is known before the first record of a copy, if it is made now.

    Raises:
        LogBusy: another live process writes this log.
        SourceReplaced: the log belongs to another database or slot.
        DamagedRecord: the log is damaged before its durable end.
        LogFull: the disk has no room.
        ConfigError: the folder cannot be made.
    """
    files, clock = files or Files(), clock or Clock()
    _make_folders(folder, files)
    _check_source(load_manifest(folder), source, folder)
    lease = claim(folder, files, lease_seconds, clock)
    try:
        opened = _open(folder, files, lease, NewLog(new_log_id(), source, clock.now(), base))
        compressor = None if compression_level is None else Compressor(compression_level)
        settings = WriterSettings(segment_bytes, Retention(retention_hours, retention_bytes), clock, compressor)
        return FileLogWriter(folder, files, lease, opened, settings)
    except BaseException:
        lease.release()
        raise


def open_reader(folder: Path, *, files: Files | None = None, standbys: Standbys | None = None) -> FileLogReader:
    """Opens the log for reading.

    Args:
        folder: of the log.
        files: the file operations.
        standbys: read only up to what these hold; None: up to the durable end.

    Raises:
        LogMissing: there is no log in the folder yet.
        DamagedRecord: its manifest is damaged.
    """
    return FileLogReader(folder, files, standbys)


def _make_folders(folder: Path, files: Files) -> None:
    try:
        for path in (folder, segments_folder(folder), schemas_folder(folder), holds_folder(folder)):
            if not path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                sync_folder(files, path.parent)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full() from error
        mend = "let this user write there, or choose another folder with relay.dir"
        raise ConfigError(f"the log's folder cannot be made: {error.strerror}", where=str(folder), mend=mend) from error


def _check_source(manifest: Manifest | None, source: SourceIdentity, folder: Path) -> None:
    if manifest is not None and manifest.source != source:
        raise SourceReplaced(
            f"the log belongs to {manifest.source}, and the source is {source}",
            where=str(folder),
            mend="point relay.dir to an empty folder, or the source to the database that the log belongs to",
        )


def _open(folder: Path, files: Files, lease: Lease, new: NewLog) -> Opened:
    """The durable state of a writer that has just claimed the log: control file first, then manifest, then order.

    `new` is what the log is to be if there is none; if there is one, its source has to be the same.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        if new.base is None:  # else it is a copy, and has no groups
            begin_groups(folder, files)
        opened = create_log(folder, files, lease, new)
    else:
        _check_source(manifest, new.source, folder)
        opened = recover(folder, files, lease, manifest, new.now)
    drop_reports_beyond(folder, opened.mark.tip)
    lease.control.publish(opened.mark)
    lease.control.sync()
    write_manifest(files, folder, opened.manifest)
    clean_up(folder, files, opened.manifest)
    return opened
