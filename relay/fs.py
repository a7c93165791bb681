"""The file operations that the log's durability rests on, as one object that is passed in.

Tests pass in a `Files` whose syncs fail or whose disk is full; everything else of the log stays as it is. Writes go
to explicit offsets: a write that failed half-way is done again at the same place, and leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from walbus.errors import LogFull

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FILE_MODE = 0o640  # rows are in these files


class Files:
    """The real file system."""

    def create(self, path: Path) -> int:
        """Opens a new file for reading and writing.

        Raises:
            FileExistsError: it is there already.
        """
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)

    def open(self, path: Path) -> int:
        """Opens an existing file for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open_for_reading(self, path: Path) -> int:
        """Opens an existing file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def duplicate(self, fd: int) -> int:
        """Another descriptor of the same open file."""
        return os.dup(fd)

    def close(self, fd: int) -> None:
        """Closes a file."""
        os.close(fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """One `pwrite(2)`; may write less than it was given."""
        return os.pwrite(fd, data, offset)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; less only at the end of the file."""
        return os.pread(fd, size, offset)

    def size(self, fd: int) -> int:
        """Bytes in the file."""
        return os.fstat(fd).st_size

    def fdatasync(self, fd: int) -> None:
        """Makes the file's bytes durable. After an error the only right thing is to end the process."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Makes the file's bytes and metadata durable; the same holds."""
        os.fsync(fd)

    def truncate(self, fd: int, length: int) -> None:
        """Cuts the file back."""
        os.ftruncate(fd, length)

    def replace(self, source: Path, target: Path) -> None:
        """Renames over the target, atomically."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a second name, atomically.

        Raises:
            FileExistsError: the name is taken.
        """
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Removes a name; it is no error when there is none."""
        path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        """Bytes that this process may still write to the folder's file system."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize


def write_at(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Writes all of `data` at `offset`.

    Raises:
        LogFull: the disk or the quota has no room; a part may have been written.
    """
    view = data
    while view:
        try:
            written = files.pwrite(fd, view, offset)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise disk_full() from error
            raise
        offset += written
        view = view[written:]


def read_whole(files: Files, path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    fd = files.open_for_reading(path)
    try:
        return files.pread(fd, files.size(fd), 0)
    finally:
        files.close(fd)


def disk_full() -> LogFull:
    """The error for a disk without room."""
    return LogFull("the disk under the log has no room", mend="free space or lower relay.retention_bytes")


def is_disk_full(error: OSError) -> bool:
    """Whether an operation failed for lack of room."""
    return error.errno in _NO_ROOM


def sync_folder(files: Files, folder: Path) -> None:
    """Makes the folder's names durable: new, renamed and removed files."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def passing_name(path: Path) -> Path:
    """A name beside a path that no other process uses; process numbers repeat where containers share a volume."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_new(files: Files, path: Path, data: bytes) -> None:
    """Makes a new file durable, its name too.

    Raises:
        FileExistsError: the name is taken.
        LogFull: no room; the name is free again.
    """
    try:
        fd = files.create(path)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full() from error
        raise
    try:
        write_at(files, fd, data, 0)
        files.fsync(fd)
    except BaseException:
        files.unlink(path)
        raise
    finally:
        files.close(fd)
    sync_folder(files, path.parent)


def replace_whole(files: Files, path: Path, data: bytes) -> None:
    """Puts new content in place of a file's, atomically and durably.

    Raises:
        LogFull: no room; the old content stands.
    """
    temporary = path.with_name(f".{path.name}.new")
    files.unlink(temporary)  # of a process that died half-way
    write_new(files, temporary, data)
    try:
        files.replace(temporary, path)
    except OSError as error:
        files.unlink(temporary)
        if is_disk_full(error):
            raise disk_full() from error
        raise
    sync_folder(files, path.parent)
