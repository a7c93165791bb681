"""Status files: how a room without an HTTP server tells what it is doing.

Each is a small JSON object, replaced atomically, so that a reader sees the old or the new one whole. They are for
people and gauges; nothing is decided by them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_status(path: Path, status: dict[str, Any]) -> None:
    """Replaces the status file; the folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(status))
    temporary.replace(path)


def read_status(path: Path) -> dict[str, Any] | None:
    """The status last written; None if there is none that can be read."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
