"""How long RocksDB's MANIFEST was: one that was cut short since then is told from what a crash leaves.

The MANIFEST lists the table files. RocksDB appends to it, syncs what it has appended before it counts on it, and takes
an end that is missing for an append which a crash has interrupted: it goes on with the files that the rest lists,
removes the others, and replays the write-ahead logs that are still there. If what is missing had been synced, those
logs are not all that followed the rest. The store would then be no state that it ever had, and nobody would notice:
bulk that is documented as being there is not, and the applied position says that nothing is to be replayed.

So its name and its length are noted beside it whenever they have changed, behind a sync of it and in front of the sync
of what may count on it. The note itself is not synced: one that is older, or does not parse, only finds less.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from walbus.errors import StoreDamaged


class _Note(msgspec.Struct):
    file: str
    bytes: int


class ManifestNote:
    """The note in one store's folder. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "walbus-manifest.json"
        self._last: _Note | None = None

    def check(self) -> None:
        """Compares the MANIFEST with the note, before RocksDB opens it.

        Raises:
            StoreDamaged: it is shorter than it was, or an older one is named as the current one.
        """
        try:
            noted = msgspec.json.decode(self._path.read_bytes(), type=_Note)
            current = self._current()
            size = (self._folder / current).stat().st_size
        except (OSError, ValueError):  # an error of msgspec is a ValueError, and so is a name with a NUL in it
            return  # there is nothing to compare; RocksDB says what is missing
        if current == noted.file and size < noted.bytes:
            what = f"{current} has {size} bytes, and had {noted.bytes}"
            raise StoreDamaged(what, where=str(self._folder))
        if _number(current) < _number(noted.file):
            raise StoreDamaged(f"CURRENT names {current}, and named {noted.file}", where=str(self._folder))

    def take(self) -> None:
        """Notes how it is now, if that is not what was noted last. A disk without room keeps the older note."""
        with suppress(OSError):
            current = self._current()
            found = _Note(current, (self._folder / current).stat().st_size)
            if found == self._last:
                return
            _sync(self._folder / current)
            temporary = self._path.with_suffix(".new")
            temporary.write_bytes(msgspec.json.encode(found))
            temporary.replace(self._path)
            self._last = found

    def _current(self) -> str:
        return (self._folder / "CURRENT").read_text(errors="replace").strip()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(manifest: str) -> int:
    number = manifest.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
