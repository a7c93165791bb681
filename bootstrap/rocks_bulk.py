"""Entries on their way into RocksDB as a table file: written in order beside the database, and moved in at once.

The files lie in a folder of the database's own, so that moving is a hard link and no copy. RocksDB syncs the file and
its folder when it takes it over. What a dead process left there is removed when the store is opened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from rocksdict import IngestExternalFileOptions, Options, Rdict, SstFileWriter

#: How RocksDB tells that a key does not come behind the one before it.
_OUT_OF_ORDER = "strict ascending order"


class SortedFile:
    """A `walbus.bootstrap.store.Prepared`; without a file if it holds nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def discard(self) -> None:
        """See `Prepared`."""
        self.count = 0
        self.path.unlink(missing_ok=True)


class Incoming:
    """The folder of these files. Thread-safe."""

    def __init__(self, folder: Path, options: Options) -> None:
        """Removes what an earlier process left.

        Args:
            folder: on the file system of the database.
            options: those of the family that the files go into.
        """
        self._folder = folder
        self._options = options
        self._lock = threading.Lock()
        self._number = 0
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()

    def write(self, entries: Iterable[tuple[bytes, bytes]]) -> SortedFile:
        """Entries as a file; nothing is left of it if that fails.

        Raises:
            ValueError: they are not in order.
            Exception: RocksDB's.
        """
        with self._lock:
            self._number += 1
            file = SortedFile(self._folder / f"{self._number}.sst")
        try:
            _fill(file, entries, self._options)
        except BaseException as error:
            file.discard()
            if _OUT_OF_ORDER in str(error):
                raise ValueError("a key does not come behind the one before it") from None
            raise
        return file


def move_in(family: Rdict, file: SortedFile) -> None:
    """Makes a file a part of a family; it is durable behind that.

    Raises:
        Exception: RocksDB's.
    """
    options = IngestExternalFileOptions()
    options.set_move_files(True)
    family.ingest_external_file([str(file.path)], options)


def _fill(file: SortedFile, entries: Iterable[tuple[bytes, bytes]], options: Options) -> None:
    writer = SstFileWriter(options)
    writer.open(str(file.path))
    count = 0
    for key, value in entries:
        writer[key] = value
        count += 1
    if count:
        writer.finish()
        file.count = count
    else:
        file.discard()
