"""The spool's files: each call opens its file and closes it again, so thousands of transactions take no descriptors.

Writes go to explicit offsets: one that failed half-way is done again at the same place. A full disk is `LogFull`, as
it is for the log: confirming stands still until there is room.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from walbus.errors import LogFull

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FILE_MODE = 0o640  # rows are in these files
_FOLDER_MODE = 0o750


class SpoolFiles:
    """The files of one folder.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._make_folder(folder)

    def _make_folder(self, folder: Path) -> None:
        """Makes the folder's own name durable too, or what is synced in it could not be found after a power loss."""
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        self._sync_folder(folder.parent)

    def names(self, suffix: str) -> list[str]:
        """The files whose names end so."""
        return sorted(path.name for path in self.folder.iterdir() if path.name.endswith(suffix))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.folder / name).stat().st_size

    def write(self, name: str, data: bytes, offset: int) -> None:
        """Writes at an offset, beyond which the file held nothing that counts; makes the file when missing.

        Raises:
            LogFull: no room; nothing behind `offset` counts.
            OSError: the disk failed.
        """
        view = memoryview(data)
        with self._open(name, os.O_WRONLY | os.O_CREAT) as fd:
            while view:
                try:
                    written = self._pwrite(fd, view, offset)
                except OSError as error:
                    raise self._failure(error, name) from None
                view, offset = view[written:], offset + written

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes at an offset; less only at the end of the file."""
        with self._open(name, os.O_RDONLY) as fd:
            return os.pread(fd, size, offset)

    def sync(self, name: str) -> None:
        """Makes the file's bytes durable. After an error the only right thing is to end the process."""
        with self._open(name, os.O_WRONLY) as fd:
            os.fdatasync(fd)

    def rename(self, name: str, final: str) -> None:
        """Gives a file another name, durably; a file of that name is replaced."""
        try:
            (self.folder / name).replace(self.folder / final)
        except OSError as error:
            raise self._failure(error, name) from None
        self._sync_folder(self.folder)

    def remove(self, *names: str, durably: bool = False) -> None:
        """Deletes files, those that are there."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        if durably:
            self._sync_folder(self.folder)

    def _pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def _sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextmanager
    def _open(self, name: str, flags: int) -> Iterator[int]:
        try:
            fd = os.open(self.folder / name, flags | os.O_CLOEXEC, _FILE_MODE)
        except OSError as error:
            raise self._failure(error, name) from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _failure(self, error: OSError, name: str) -> Exception:
        if error.errno not in _NO_ROOM:
            return error
        what = "the disk of the spool is full"
        return LogFull(what, where=str(self.folder / name), mend="free room, or move data_dir to a larger disk")
