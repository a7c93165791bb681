"""The reading half of the file engine, for any process on the machine."""

from __future__ import annotations

import time
from pathlib import Path

from walbus.log import Bounds, SourceIdentity
from walbus.position import Position
from walbus.relay.cursor import FileCursor, Located
from walbus.relay.fs import Files
from walbus.relay.index_loader import IndexLoader
from walbus.relay.schemas import SchemaFiles
from walbus.relay.seq_gaps import SeqGaps
from walbus.relay.served import Holders, ServedViews, base_of
from walbus.relay.tip import Tip
from walbus.relay.view import LogView, ViewFiles
from walbus.relay.wake import Waker


class FileLogReader:
    """See `walbus.log.LogReader`. `wait` may be called by one thread at a time, everything else by any."""

    def __init__(self, folder: Path, files: Files | None = None, standbys: Holders | None = None) -> None:
        self._folder = folder
        self._files = files or Files()
        views = ViewFiles(folder, self._files)
        self._views = ServedViews(folder, self._files, views, standbys) if standbys is not None else views
        self._indexes = IndexLoader(folder, self._files)
        self._waker = Waker(folder)
        self._schemas = SchemaFiles(folder)
        self._source = self._views.view().manifest.source

    @property
    def schemas(self) -> SchemaFiles:
        """The log's table layouts."""
        return self._schemas

    @property
    def source(self) -> SourceIdentity:
        """Which database the log belongs to."""
        return self._source

    def bounds(self) -> Bounds:
        """What is durable now; one read of half a kilobyte."""
        return self._views.view().bounds()

    def view(self) -> LogView:
        """The log now: its segments and its durable end; one read of half a kilobyte."""
        return self._views.view()

    def tip(self) -> Tip:
        """What is known at the durable end."""
        return self._views.view().mark.tip

    def base(self) -> Tip:
        """What is known before the first record that is held."""
        while True:
            view = self._views.view()
            try:
                return base_of(self._folder, self._files, view)
            except FileNotFoundError:
                if view.manifest.numbers[0] == self._views.view().manifest.numbers[0]:
                    raise

    def segments(self) -> int:
        """Number of segments held."""
        return len(self._views.view().manifest.numbers)

    def cursor(self, after: Position) -> FileCursor:
        """A cursor behind a "last done" position; see `walbus.log.LogReader.cursor`."""
        cursor = self._cursor()
        try:
            cursor.seek(after)
        except BaseException:
            cursor.close()
            raise
        return cursor

    def position_at(self, time: float) -> Position:
        """The position to read `after` so as to get every transaction committed at or after a time (Unix seconds).

        Commit times need not rise with positions; this is the place before the first transaction whose time is late
        enough.

        Raises:
            PositionTrimmed: none that is held is older, so that some of what was dropped may have been late enough.
        """
        cursor = self._cursor()
        try:
            cursor.seek_time(int(time * 1e6))
            return cursor.done
        finally:
            cursor.close()

    def position_at_seq(self, seq: int) -> Position:
        """The position to read `after` so as to get every change from a seq on; see `walbus.log.LogReader`."""
        cursor = self._cursor()
        try:
            return cursor.seek_seq(seq)
        finally:
            cursor.close()

    def locate(self, after: Position) -> Located | None:
        """Where the first record lies that is not done at `after`; None at the end.

        Raises:
            PositionTrimmed, PositionUnknown: as for `cursor`.
        """
        cursor = self._cursor()
        try:
            cursor.seek(after)
            return cursor.located()
        finally:
            cursor.close()

    def seq_gaps(self) -> SeqGaps:
        """What finds the seqs that no change has."""
        return SeqGaps(self._folder, self._files, self._indexes)

    def wait(self, seen: Position, timeout: float) -> bool:
        """Blocks until the durable end is past `seen`; False after `timeout` seconds without that."""
        views = self._views
        return self._waker.wait(
            lambda: views.view().manifest.writer_epoch,
            lambda: views.view().mark.tip.position > seen,
            timeout,
            time.monotonic,
        )

    def close(self) -> None:
        """Frees files and sockets."""
        self._waker.close()
        self._views.close()

    def _cursor(self) -> FileCursor:
        return FileCursor(self._folder, self._files, self._views.view, self._indexes)
