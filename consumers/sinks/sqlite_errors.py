"""What SQLite's errors are for a sink, and what helps."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from walbus.consumers.refused_rows import RowRefused
from walbus.errors import SinkError, SinkRefused, SinkUnavailable

_AWAY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_CANTOPEN")

#: What helps, by the beginning of an error's name.
_MENDS = {
    "SQLITE_BUSY": "end whoever holds a lock on it",
    "SQLITE_FULL": "make room on its disk",
    "SQLITE_CANTOPEN": "let this user read and write the file and its folder",
    "SQLITE_READONLY": "let this user write the file and its folder",
    "SQLITE_NOTADB": "name a path where there is no other file, or move this one away",
    "SQLITE_CORRUPT": "move the file away and start the consumer, which fills a new one",
}


def told_of(error: sqlite3.Error, path: Path) -> SinkError:
    """The sink's error for one of SQLite's.

    Args:
        error: as it was raised.
        path: of the database.
    """
    name, where = getattr(error, "sqlite_errorname", ""), str(path)
    mend = next((mend for start, mend in _MENDS.items() if name.startswith(start)), None)
    if name.startswith(_AWAY):
        return SinkUnavailable(f"SQLite is not available ({name})", where=where, mend=mend)
    if isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError)):
        mend = "drop the constraint that the target has and the source has not"
        return RowRefused(f"SQLite refuses a row ({name})", where=where, mend=mend)
    return SinkRefused(f"SQLite refuses: {error}", where=where, mend=mend)


__all__ = ["told_of"]
