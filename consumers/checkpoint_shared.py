"""Checkpoints in files of a folder that the members of a group share: processes of one machine, or of one shared disk.

`FileCheckpointStore` belongs to one process, which locks it for as long as it lives, standing still included. Members
take turns: each locks the file for a save alone, and compares what is there (`walbus.consumers.checkpoint_fence`). One
that stands still in the very middle of a save has the lock until it goes on; nobody else saves meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

from walbus.consumers.checkpoint_fence import FencedCheckpointStore, Replaced
from walbus.consumers.checkpoint_store import lock_path, replace_durably
from walbus.errors import CheckpointUnavailable, ConfigError

_LOCK_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.02


class SharedFileCheckpointStore(FencedCheckpointStore):
    """One file, replaced whole and durably by whoever has its lock.

    Args:
        path: of the file; its folder is made when it is missing.
    """

    stays_here: ClassVar[bool] = True

    def __init__(self, path: Path | str) -> None:
        super().__init__(str(path))
        self._path = Path(path)

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self) -> str | None:
        try:
            return self._path.read_text()
        except FileNotFoundError:
            return None

    def _replace(self, before: str | None, text: str) -> Replaced:
        with self._locked():
            there = self._read()
            if there != before:
                return Replaced(done=False, there=there)
            replace_durably(self._path, text.encode())
        return Replaced(done=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_path(self._path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    what = "another process has the checkpoint's lock, and stands still with it"
                    mend = "end it, if it reads the part without the group, or is stopped"
                    raise CheckpointUnavailable(what, where=self._where, mend=mend) from None
                time.sleep(_PAUSE_SECONDS)
            except OSError as error:
                mend = "put the folder on a disk with locks, or give the group another store of checkpoints"
                what = f"the file system has no locks: {error.strerror}"
                raise ConfigError(what, where=self._where, mend=mend) from None
            else:
                return
