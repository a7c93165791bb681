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
