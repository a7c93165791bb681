"""Where checkpoints are kept by consumers whose sink does not keep them itself.

A store replaces a checkpoint whole: never half, and never backward by itself.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Protocol, runtime_checkable

import structlog

from walbus.consumers.checkpoint import Checkpoint, dump_checkpoint, load_checkpoint
from walbus.errors import InvalidText, UsageError

_log = structlog.get_logger(__name__)


class CheckpointStore(Protocol):
    """Where a consumer without a transactional sink keeps its checkpoint.

    `save` blocks until the checkpoint is durable, and replaces the one before it whole; `load` gives the last one
    saved, or None if there never was one.
    """

    def load(self) -> Checkpoint | None:
        """The checkpoint last saved."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces it, durably."""


@runtime_checkable
class OneReader(Protocol):
    """A store that one subscription has at a time: two would set each other's checkpoint back.

    A store of your own need not be one.
    """

    def take(self) -> None:
        """Has it for the subscription that begins.

        Raises:
            UsageError: another one has it.
        """

    def release(self) -> None:
        """The subscription has ended."""


def _taken(where: str) -> UsageError:
    mend = "close the other subscription first, or give this one a name of its own"
    what = "another subscription reads under this name, and the two would set each other's checkpoint back"
    return UsageError(what, where=where, mend=mend)


class FileCheckpointStore:
    """One file: written beside it, synced, renamed over it, and the folder synced.

    A file beside it is locked while a subscription has the store, in whatever process; the kernel frees it when the
    process ends.

    Raises OSError when the disk refuses, InvalidText when the file is not a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def take(self) -> None:
        """See `OneReader`."""
        if self._lock is not None:
            raise _taken(str(self._path))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        path = lock_path(self._path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _taken(str(self._path)) from None
        except OSError as error:  # a file system without locks
            _log.warning("consumer.checkpoint_not_locked", file=str(path), why=error.strerror)
        self._lock = descriptor

    def release(self) -> None:
        """See `OneReader`."""
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            os.close(descriptor)

    def load(self) -> Checkpoint | None:
        """The checkpoint last saved."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        try:
            return load_checkpoint(text)
        except InvalidText as error:
            raise InvalidText(error.what, where=str(self._path), mend=error.mend) from None

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces it, durably."""
        replace_durably(self._path, dump_checkpoint(checkpoint).encode())


class MemoryCheckpointStore:
    """Keeps the checkpoint for the life of the process: each start is a first start."""

    def __init__(self) -> None:
        self._checkpoint: Checkpoint | None = None
        self._free = threading.Lock()

    def take(self) -> None:
        """See `OneReader`."""
        if not self._free.acquire(blocking=False):
            raise _taken("checkpoints")

    def release(self) -> None:
        """See `OneReader`."""
        if self._free.locked():
            self._free.release()

    def load(self) -> Checkpoint | None:
        """The checkpoint last saved."""
        return self._checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces it."""
        self._checkpoint = checkpoint


def lock_path(path: Path) -> Path:
    """The file beside a checkpoint that is locked for it, since the checkpoint itself is replaced."""
    return path.with_name(f".{path.name}.lock")


def replace_durably(path: Path, content: bytes) -> None:
    """Writes a file beside another, syncs it, renames it over that one, and syncs the folder, which it makes.

    Raises:
        OSError: the disk refuses; the file is what it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes it durable which files a folder has; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
