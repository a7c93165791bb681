"""The hold on a log whose folder is beside the bootstrap: a small file, which whoever trims the log looks at."""

from __future__ import annotations

from pathlib import Path

from walbus.position import Position
from walbus.status import write_status

HOLD_FILE = "bootstrap.json"


class FileHold:
    """See `walbus.log.RetentionHold`.

    Args:
        folder: of the holds on the log.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / HOLD_FILE

    def require(self) -> None:
        """The file is the hold; its store is locked by the process that has it."""

    def move(self, log_id: str, last_done: Position) -> None:
        """Replaces the file.

        Raises:
            OSError: it cannot be written.
        """
        del log_id  # the folder has one log
        write_status(self._path, {"last_done": str(last_done)})

    def close(self) -> None:
        """The file stays."""
