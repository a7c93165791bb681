"""Status files: how a room without an HTTP server tells what it is doing.

Each is a small JSON object, replaced atomically, so that a reader sees the old or the new one whole. They are for
people and gauges; nothing is decided by them.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class StatusFile:
    """The status file of somebody who goes on without it: that it cannot be written is said once, until it can again.

    Args:
        path: of the file; None for none.
        note: what goes on meanwhile, for the log.
    """

    def __init__(self, path: Path | None, note: str) -> None:
        self._path, self._note = path, note
        self._unwritten = False  # the file is not what it should be, and that was said

    def write(self, status: dict[str, Any]) -> None:
        """Replaces it. Never raises OSError: nothing is decided by it, so it ends nobody, not even on a full disk."""
        if self._path is None:
            return
        try:
            write_status(self._path, status)
        except OSError as error:
            if not self._unwritten:
                _log.warning("status.not_written", file=str(self._path), error=error.strerror, note=self._note)
            self._unwritten = True
        else:
            self._unwritten = False


def write_status(path: Path, status: dict[str, Any]) -> None:
    """Replaces the status file; the folder is made when missing.

    A disk without room for a second file still has that of the first: it is written over then, so that the gauge of a
    full disk can be seen on that disk too. A reader that meets it half-written gets nothing until the next time.

    Raises:
        OSError: neither could be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    content = json.dumps(status).encode()
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        temporary.unlink(missing_ok=True)
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()


def read_status(path: Path) -> dict[str, Any] | None:
    """The status last written; None if there is none that can be read."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
