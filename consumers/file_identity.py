"""Which file a path names: one that is removed or replaced stays with whoever has it open, and nobody else finds it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

FileIdentity: TypeAlias = tuple[int, int]


def identity_of(path: Path) -> FileIdentity | None:
    """The file's device and inode, whatever it is called; None: there is none.

    Raises:
        OSError: that cannot be told.
    """
    try:
        told = path.stat()
    except FileNotFoundError:
        return None
    return told.st_dev, told.st_ino


__all__ = ["FileIdentity", "identity_of"]
