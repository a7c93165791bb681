"""Checkpoints in a SQLite database, which may be the consumer's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from walbus.consumer_reports import checked_name
from walbus.consumers.checkpoint_fence import FencedCheckpointStore, Replaced
from walbus.errors import CheckpointUnavailable

_BUSY_SECONDS = 10.0
_TABLE = "CREATE TABLE IF NOT EXISTS walbus_checkpoints (name TEXT PRIMARY KEY, checkpoint TEXT NOT NULL)"
_READ = "SELECT checkpoint FROM walbus_checkpoints WHERE name = ?"
_FIRST = "INSERT OR IGNORE INTO walbus_checkpoints (name, checkpoint) VALUES (?, ?)"
_NEXT = "UPDATE walbus_checkpoints SET checkpoint = ? WHERE name = ? AND checkpoint = ?"


class SqliteCheckpointStore(FencedCheckpointStore):
    """A row of the table `walbus_checkpoints`, which is made when it is missing.

    Args:
        path: of the database, made when it is missing.
        name: of the consumer.
    """

    stays_here: ClassVar[bool] = True

    def __init__(self, path: Path | str, name: str) -> None:
        super().__init__(f"{path}, consumer {checked_name(name)}")
        self._path, self._name = Path(path), name
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Closes the database; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _read(self) -> str | None:
        with self._opened() as connection:
            row = connection.execute(_READ, (self._name,)).fetchone()
        return None if row is None else str(row[0])

    def _replace(self, before: str | None, text: str) -> Replaced:
        with self._opened() as connection:
            if before is None:
                done = connection.execute(_FIRST, (self._name, text)).rowcount == 1
            else:
                done = connection.execute(_NEXT, (text, self._name, before)).rowcount == 1
        return Replaced(done=True) if done else Replaced(done=False, there=self._read())

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = self._open()
            yield self._connection
        except sqlite3.Error as error:
            self.close()
            mend = "see that it is a SQLite database that this user may write, with room on its disk"
            what = f"the checkpoint's database refuses: {error}"
            raise CheckpointUnavailable(what, where=self._where, mend=mend) from None

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Loaded by the thread that subscribes, saved by the one that reads; never by two at a time.
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_TABLE)
        except sqlite3.Error:
            connection.close()
            raise
        return connection
