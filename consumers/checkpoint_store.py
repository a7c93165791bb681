"""Where checkpoints are kept by consumers whose sink does not keep them itself.

A store replaces a checkpoint whole: never half, and never backward by itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from walbus.consumers.checkpoint import Checkpoint, dump_checkpoint, load_checkpoint
from walbus.errors import InvalidText


class CheckpointStore(Protocol):
    """Where a consumer without a transactional sink keeps its checkpoint.

    `save` blocks until the checkpoint is durable, and replaces the one before it whole; `load` gives the last one
    saved, or None if there never was one.
    """

    def load(self) -> Checkpoint | None:
        """The checkpoint last saved."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces it, durably."""


class FileCheckpointStore:
    """One file: written beside it, synced, renamed over it, and the folder synced.

    Raises OSError when the disk refuses, InvalidText when the file is not a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.new")
        with temporary.open("w") as file:
            file.write(dump_checkpoint(checkpoint))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        _sync_folder(self._path.parent)


class MemoryCheckpointStore:
    """Keeps the checkpoint for the life of the process: each start is a first start."""

    def __init__(self) -> None:
        self._checkpoint: Checkpoint | None = None

    def load(self) -> Checkpoint | None:
        """The checkpoint last saved."""
        return self._checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces it."""
        self._checkpoint = checkpoint


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
