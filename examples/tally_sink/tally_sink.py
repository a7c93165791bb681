"""A sink of another package: how many rows of which table were inserted, updated and deleted on which day.

    [consumer.activity]
    sink = "tally"
    path = "/var/lib/walbus/activity.sqlite"
    start = "latest"                            # rows of a snapshot are not counted: nobody knows when they came

    $ sqlite3 /var/lib/walbus/activity.sqlite 'SELECT * FROM tally'
    2026-11-30|public.orders|INSERT|1204

A counter has no version to compare, so what comes again must not count again: counts and checkpoint are one transaction
of SQLite, and a transaction of the log that the checkpoint is behind is passed over. A crash anywhere loses nothing and
counts nothing twice.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from walbus.consumers.checkpoint import Checkpoint, Marks, dump_checkpoint, last_done_of, load_checkpoint
from walbus.consumers.sinks.base import Batching, SinkOptions, SinkPlace
from walbus.consumers.steps import Sweep
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable
from walbus.events import Window
from walbus.position import ORIGIN
from walbus.records import Kind, Op

_TALLY = """
CREATE TABLE IF NOT EXISTS tally (
    day TEXT, "table" TEXT, op TEXT, rows INTEGER NOT NULL, PRIMARY KEY (day, "table", op))
"""
_CHECKPOINT = "CREATE TABLE IF NOT EXISTS checkpoint (id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL)"
_ADD = 'INSERT INTO tally VALUES (?, ?, ?, ?) ON CONFLICT (day, "table", op) DO UPDATE SET rows = rows + excluded.rows'
_COUNTED = (Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE)


class TallyOptions(SinkOptions):
    """Keys of `[consumer.NAME]` with `sink = "tally"`."""

    path: Path | None = None  #: the database's file; default: tally.sqlite in the consumer's folder


class TallySink:
    """Counts in one SQLite file; see `walbus.consumers.sinks.base.Sink`."""

    def __init__(self, path: Path) -> None:
        self._where = str(path)
        self._counts: Counter[tuple[str, str, str]] = Counter()  # accepted, and not committed
        self._stored: str | None = None  # the checkpoint as it was read or written last
        self._done = ORIGIN  # everything up to here is accepted
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute(_TALLY)
            self._database.execute(_CHECKPOINT)

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`: this is what the entry point names."""
        return cls(TallyOptions.read(options, place).path or place.folder / "tally.sqlite")

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`: a commit is synced, so that some hundred transactions share it."""
        return Batching(linger=0.1, max_changes=10_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        with self._errors():
            self._stored = self._read()
        self.rollback()
        return self._loaded()

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`. Of a transaction in pieces the last one says that it is whole."""
        del marks  # they tell rows of one snapshot from those of another
        for window in windows:
            if window.kind is not Kind.TRANSACTION or window.last <= self._done:
                continue
            day = window.commit_time.date().isoformat()
            self._counts.update((day, one.table, one.op.name) for one in window if one.op in _COUNTED)
            if window.ends:
                self._done = window.last

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`: there are no rows that could be ghosts."""

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        text = dump_checkpoint(checkpoint)
        with self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                if self._read() != self._stored:
                    mend = "let one consumer write it, or give each its own path"
                    raise SinkRefused("another consumer has written this database", where=self._where, mend=mend)
                self._database.executemany(_ADD, [(*counted, rows) for counted, rows in self._counts.items()])
                self._database.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?)", (text,))
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        self._stored, self._done = text, last_done_of(checkpoint)
        self._counts.clear()

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        self._counts.clear()
        try:
            self._done = last_done_of(self._loaded())
        except SinkRefused:
            return  # `checkpoint()` tells what is wrong

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`: no value is kept, so none is missing."""
        return ()

    def close(self) -> None:
        """See `Sink.close`."""
        self._database.close()

    def _read(self) -> str | None:
        row = self._database.execute("SELECT text FROM checkpoint").fetchone()
        return None if row is None else str(row[0])

    def _loaded(self) -> Checkpoint | None:
        try:
            return None if self._stored is None else load_checkpoint(self._stored)
        except InvalidText as error:
            raise SinkRefused(error.what, where=self._where, mend=error.mend) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Trouble of its own is one of two: away for now, which is waited for, or never to be had like this."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise SinkUnavailable(f"SQLite is not available ({error.sqlite_errorname})", where=self._where) from None
        except (sqlite3.Error, OSError) as error:
            mend = "name a file that this user may write, and that is a database or is not there yet"
            raise SinkRefused(
                f"this is no place for counts ({type(error).__name__})", where=self._where, mend=mend
            ) from None
