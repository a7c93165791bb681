"""What was last told of the catalog, kept over restarts in one small file beside the log.

`walbus.capture.silent` finds changes without events by comparing. What it compares with must outlive the process, or
whatever is altered while capture is down would pass unnoticed. The file is replaced whole (temporary file, fsync,
rename, fsync of the folder), and only after the events of the differences are durable in the log: a crash in between
tells them a second time, which costs a reader work and no row.

The file belongs to one log, by its `log_id`: a new log begins with nothing remembered. A file that is missing, damaged
or of another form is not mended in silence: what was altered before is not known then, and the log says so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from walbus.capture.definition import CatalogState
from walbus.errors import LogFull

logger = structlog.get_logger(__name__)

#: Name of the file, in the folder of the log that it belongs to.
CATALOG_FILE = "catalog.json"
#: Of the file; another one is not read.
FORMAT = 1


class _Document(msgspec.Struct, frozen=True):
    format: int
    log_id: str
    state: CatalogState
    regrouped_lsn: int = 0
    doubtful: bool = False


class Remembered:
    """The catalog as everything up to now has been told.

    `keep` belongs to one thread, the rest to the one that writes the log; `state` may be read by both.

    Args:
        path: of the file; None to remember nothing beyond the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._log_id = ""
        self._state: CatalogState | None = None
        self._telling: CatalogState | None = None
        #: PostgreSQL 14: a session that began at this LSN has met no table before the last ATTACH or DETACH that was
        #: told; 0 as long as none was.
        self.regrouped_lsn = 0
        #: PostgreSQL 14: a session that began before it went on behind the log's end, so all partitions must be told.
        self.doubtful = False

    @property
    def state(self) -> CatalogState | None:
        """What was told; None if nothing is known."""
        return self._state

    def open(self, log_id: str, *, log_is_empty: bool) -> None:
        """A connection begins: reads the file if it was not read, and what was being told counts as untold.

        Args:
            log_id: of the log that the events go to.
            log_is_empty: whether there is nothing yet that could be missed.
        """
        self._telling = None
        if self._log_id == log_id:
            return
        self._log_id, document = log_id, self._read(log_id)
        self._state = document.state if document else None
        self.regrouped_lsn = document.regrouped_lsn if document else 0
        self.doubtful = document is not None and document.doubtful
        if self._state is None and self._path is not None and not log_is_empty:
            logger.warning(
                "catalog.nothing_remembered",
                file=str(self._path),
                note="tables that were altered while capture was down are not noticed this time",
            )

    def keep(self, state: CatalogState) -> None:
        """Remembers a state whose differences from the last one are told; durable when it returns.

        Raises:
            OSError: it could not be written; the old state stands.
        """
        if state != self._state:
            self._write(state, self.regrouped_lsn, doubtful=self.doubtful)
        self._state = state

    def regrouped(self, state: CatalogState, lsn: int) -> None:
        """As `keep`, where it was told of partitions that PostgreSQL 14 publishes as they were; nothing is in doubt.

        Args:
            state: what was told.
            lsn: of the look that saw it.
        """
        self._write(state, lsn, doubtful=False)
        self._state, self.regrouped_lsn, self.doubtful = state, lsn, False

    def forget(self) -> None:
        """Every table is about to be told: what it was before does not matter any more. Durable when it returns."""
        self._state, self.regrouped_lsn, self.doubtful = None, 0, False
        if self._path is not None and self._path.exists():
            self._path.unlink()

    def begin(self, state: CatalogState) -> None:
        """A slot is about to be made, with the catalog as it is now; durable when it returns.

        Whatever is altered from here on is a difference: the first look may come long behind the slot.

        Raises:
            LogFull: there is no room for it.
            OSError: it could not be written.
        """
        with self._room():
            self.keep(state)

    def doubt(self) -> None:
        """A session is about to go on that began before `regrouped_lsn`; durable when it returns.

        Raises:
            LogFull: there is no room for it.
            OSError: it could not be written.
        """
        if self._state is None or self.doubtful:
            return
        with self._room():
            self._write(self._state, self.regrouped_lsn, doubtful=True)
        self.doubtful = True

    @contextmanager
    def _room(self) -> Iterator[None]:
        """A full disk that refuses what is written is a `LogFull`."""
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise LogFull(f"disk full: {error.strerror}", where=str(self._path)) from error
            raise

    def _write(self, state: CatalogState, regrouped_lsn: int, *, doubtful: bool) -> None:
        if self._path is not None:
            document = _Document(FORMAT, self._log_id, state, regrouped_lsn, doubtful)
            replace_file(self._path, msgspec.json.encode(document))

    def telling(self, state: CatalogState) -> None:
        """The log is being told of this state: rows behind that have its keys, before it is kept."""
        self._telling = state

    def primary_key(self, oid: int) -> frozenset[str] | None:
        """Columns of a table's primary key as it was told; None for a table that is not known."""
        state = self._telling or self._state
        table = state.tables.get(oid) if state is not None else None
        return None if table is None else table.primary_key

    def _read(self, log_id: str) -> _Document | None:
        if self._path is None or not self._path.exists():
            return None
        try:
            document = msgspec.json.decode(self._path.read_bytes(), type=_Document)
        except msgspec.MsgspecError as error:
            logger.warning("catalog.memory_damaged", file=str(self._path), error=str(error))
            return None
        return document if (document.format, document.log_id) == (FORMAT, log_id) else None


def replace_file(path: Path, content: bytes) -> None:
    """Puts a small file in a path's place, atomically and durably; the folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
