"""Generations of the sink's topics: a topic has one name for good, so what takes its place has another.

    PREFIX.public.orders      until the first rebuild
    PREFIX-1.public.orders    behind it, and PREFIX-1.transactions; the number of a generation never comes again

PREFIX.checkpoint says which one is written, and names the topic of each table: it is what a swap changes, and what
readers find the topics by. A generation's copy of the rows is a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from walbus.consumers.checkpoint_store import FileCheckpointStore
from walbus.consumers.sinks.base import no_folder
from walbus.consumers.sinks.kafka_rows import RowCopy
from walbus.errors import SinkRefused, SinkUnavailable, UsageError

_ROWS: Final = "kafka.rows"


def generation_prefix(prefix: str, number: int) -> str:
    """What the names of a generation's topics begin with."""
    return prefix if number == 0 else f"{prefix}-{number}"


def rows_path(folder: Path, number: int) -> Path:
    """The file with the copy of a generation's rows."""
    return folder / (_ROWS if number == 0 else f"{_ROWS}.{number}")


def lock_consumer(folder: Path) -> FileCheckpointStore:
    """Has the files of a consumer, which no other process of this machine writes then.

    Raises:
        SinkRefused: another one does.
        SinkUnavailable: the folder cannot be written to.
    """
    path = rows_path(folder, 0)
    lock = _lock(path)
    if lock is None:
        mend = "stop the other process of this consumer first"
        raise SinkRefused("another process has this copy of the rows", where=str(path), mend=mend)
    return lock


def _lock(path: Path) -> FileCheckpointStore | None:
    lock = FileCheckpointStore(path)
    try:
        lock.take()
    except UsageError:
        return None
    except OSError as error:
        raise no_folder(error, path.parent) from None
    return lock


class GenerationRows:
    """The copy of a generation's rows, which one process has.

    Args:
        folder: of the consumer.
        number: of the generation.

    Raises:
        SinkUnavailable: a rebuild has it yet, or the file is not to be had.
        SinkRefused: SQLite refuses it.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._path = rows_path(folder, number)
        self._lock: FileCheckpointStore | None = None
        if number:  # the first one's is the consumer's
            self._lock = _lock(self._path)
            if self._lock is None:
                what = "`walbus rebuild` has the copy of the rows that it has made"
                raise SinkUnavailable(what, where=str(self._path), mend="wait: it ends in a moment, or end it")
        try:
            self.copy = RowCopy(self._path)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Frees the file."""
        self.copy.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def drop_rows(folder: Path, number: int) -> None:
    """Deletes the copy of a generation's rows, if it is there; nobody has it open."""
    path = rows_path(folder, number)
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        name.unlink(missing_ok=True)


__all__ = ["GenerationRows", "drop_rows", "generation_prefix", "lock_consumer", "rows_path"]
