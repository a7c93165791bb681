"""The live index, opened to be written: by one process, for as long as it is the live one.

A rebuilt copy may take its place at any time (`tantivy_folders`). So its writer looks before it writes, and holds the
lock while it commits: what it commits otherwise would be for nobody, and its checkpoint would be believed by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import structlog

from walbus.consumers.sinks.tantivy_errors import index_errors
from walbus.consumers.sinks.tantivy_folders import IndexFolders
from walbus.consumers.sinks.tantivy_index import RowIndex
from walbus.errors import SinkError

_log = structlog.get_logger(__name__)


class OpenedIndex(Protocol):
    """An index with its writer, live or not.

    Attributes:
        folder: it lies in.
        rows: the index.
    """

    folder: Path
    rows: RowIndex

    def errors(self) -> AbstractContextManager[None]:
        """What is raised in it comes out as the sink's errors."""

    def turn_to_live(self) -> None:
        """Opens what has taken its place, if anything has; raises as its constructor."""

    def require_mine(self) -> None:
        """Sees to it that what is written counts; raises SinkSwapped, SinkRefused."""

    def while_mine(self) -> AbstractContextManager[None]:
        """It goes on to count; raises SinkUnavailable too."""

    def close(self) -> None:
        """Lets the writer go. Never raises."""


class LiveIndex:
    """See `OpenedIndex`.

    Args:
        path: what readers open.
        heap_bytes: memory of the writer.
        stopping: whether who waits is to give up.

    Raises:
        SinkUnavailable: another process writes it.
        SinkRefused: it cannot be opened.
    """

    def __init__(self, path: Path, heap_bytes: int, stopping: Callable[[], bool]) -> None:
        self._heap_bytes = heap_bytes
        with index_errors(path):
            self._folders = IndexFolders(path, stopping)
            self.folder, self.rows = self._open()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """See `OpenedIndex.errors`."""
        try:
            with index_errors(self.folder):
                yield
        except SinkError:
            self.require_mine()  # what was replaced may have been dropped, and is no trouble then
            raise

    def turn_to_live(self) -> None:
        """See `OpenedIndex.turn_to_live`."""
        if self._folders.live in (None, self.folder):
            return
        replaced = self.rows
        with index_errors(self._folders.path):
            self.folder, self.rows = self._open()
        let_go(replaced, is_there=False)

    def require_mine(self) -> None:
        """See `OpenedIndex.require_mine`."""
        self._folders.require_live(self.folder)

    def while_mine(self) -> AbstractContextManager[None]:
        """See `OpenedIndex.while_mine`."""
        return self._folders.while_live(self.folder)

    def close(self) -> None:
        """See `OpenedIndex.close`."""
        let_go(self.rows, is_there=self._folders.live == self.folder)

    def _open(self) -> tuple[Path, RowIndex]:
        """The live index. One that is replaced just now may be dropped as well: the next one is opened then."""
        while True:
            folder = self._folders.begun()
            try:
                return self._opened(folder)
            except (ValueError, OSError):
                if self._folders.live in (None, folder):
                    raise

    def _opened(self, folder: Path) -> tuple[Path, RowIndex]:
        """A folder of before, which nobody else writes now, becomes a link to it."""
        index = RowIndex(folder, self._heap_bytes)
        if folder != self._folders.path:
            return folder, index
        with self._folders.alone():
            try:
                folder = self._folders.make_link()
            except OSError as error:
                _log.warning("consumer.index_is_no_link", path=str(folder), reason=error.strerror)
                return folder, index
            index.close()
        return folder, RowIndex(folder, self._heap_bytes)


def let_go(index: RowIndex, *, is_there: bool = True) -> None:
    """Ends its writer, if that has not come to its end.

    Args:
        index: that it writes.
        is_there: whether nobody may have deleted its folder.
    """
    with suppress(ValueError, AttributeError):  # AttributeError: closed already, the writer is gone
        if is_there:
            index.close()
        else:
            index.leave()


__all__ = ["LiveIndex", "OpenedIndex", "let_go"]
