"""What RocksDB says when it refuses, as errors of ours. `rocksdict` raises a bare `Exception` for everything.

A block or a file that is damaged shows at any read, in any thread. Whoever meets it raises `StoreDamaged`, and it is
remembered here, so that the next `sync` raises it too and the process learns of it, whatever became of the reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from walbus.errors import StoreDamaged, StoreError, StoreFull, WalbusError

_FULL = ("no space left", "disk quota exceeded", "enospc", "max allowed space")
_DAMAGED = ("corruption", "no such file", "not an sstable", "checksum", "file size mismatch", "truncated", "is missing")


class Refusals:
    """Translates, and remembers damage. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._damage: StoreDamaged | None = None
        self._full: StoreFull | None = None

    @contextmanager
    def told(self) -> Iterator[None]:
        """What is raised inside is one of ours outside.

        Raises:
            StoreFull: the disk has no room.
            StoreDamaged: files are damaged or gone.
            StoreError: anything else that RocksDB refuses.
        """
        try:
            yield
        except (WalbusError, TypeError, ValueError, GeneratorExit):
            raise
        except Exception as error:  # rocksdict raises it for everything
            raise self._translated(error) from None

    def raise_damage(self) -> None:
        """Raises the damage that was met before, if any."""
        if self._damage is not None:
            raise StoreDamaged(self._damage.what, where=self._damage.where)

    def _translated(self, error: Exception) -> StoreError:
        text, where = str(error), str(self._folder)
        low = text.lower()
        if any(words in low for words in _FULL):
            self._full = StoreFull(f"the disk is full: {text}", where=where, mend="free some of it")
            return self._full
        if "/lock:" in low or "lock hold" in low:
            return StoreError("another process holds it", where=where, mend="stop the other `walbus bootstrap`")
        if any(words in low for words in _DAMAGED):
            self._damage = StoreDamaged(f"RocksDB: {text}", where=where)
            return self._damage
        if self._full is not None:  # RocksDB refuses every write from then on, and does not say why again
            return self._full
        return StoreError(f"RocksDB: {text}", where=where, mend="see to the disk; the store is seeded again without it")
