"""The sink of JSON lines: each change as one line on the standard output, for programs that read a pipe.

The lines are those of `walbus.consumers.sinks.lines`. One more says what a reader who keeps rows must do:
`{"op":"rollback"}` (what came since the last `commit` does not count, and comes again).

Lines gather until `commit`; those of a transaction that is larger than the buffer go out as they come. The checkpoint
is a file in the consumer's folder, written when the lines have gone; those of the last commit may come again after a
crash, with the same positions and seqs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from walbus.consumers.checkpoint import Checkpoint, Marks, last_done_of
from walbus.consumers.checkpoint_store import FileCheckpointStore
from walbus.consumers.sinks.base import Batching, SinkOptions, SinkPlace, no_folder
from walbus.consumers.sinks.lines import WindowLines, sweep_line
from walbus.consumers.steps import Sweep
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable
from walbus.events import Window
from walbus.jsonlines import Line, encode_line
from walbus.position import ORIGIN
from walbus.records import Kind

_STDOUT = 1
_GATHERED_BYTES = 1 << 20
_ROLLBACK = b'{"op":"rollback"}\n'


class StdoutOptions(SinkOptions):
    """There are no keys of `[consumer.NAME]` beside `sink = "stdout"`."""


class StdoutSink:
    """Lines on a descriptor; see `walbus.consumers.sinks.base.Sink`.

    Args:
        descriptor: where lines go.
        path: of the checkpoint.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path
        self._store = FileCheckpointStore(path)
        self._lines_of = WindowLines()
        self._lines: list[bytes] = []  # since the last commit
        self._size = 0
        self._unsent = b""  # of lines that must go before any other, for they have begun to
        self._shown = False  # whether lines since the last commit have gone
        self._done = self._committed = ORIGIN  # everything up to here is accepted, or committed
        self.checkpoint()

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        StdoutOptions.read(options, place)
        return cls(_STDOUT, place.folder / "stdout.json")

    @property
    def batching(self) -> Batching:
        """The checkpoint's file is synced with each commit: windows wait a moment for others."""
        return Batching(linger=0.02, max_changes=5_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        try:
            checkpoint = self._store.load()
        except InvalidText as error:
            raise SinkRefused(error.what, where=error.where, mend=error.mend) from None
        except OSError as error:
            raise no_folder(error, self._path.parent) from None
        self._done = self._committed = last_done_of(checkpoint)
        return checkpoint

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        del marks  # a reader compares seqs
        for window in windows:
            is_transaction = window.kind is Kind.TRANSACTION
            if is_transaction and window.last <= self._done:
                continue
            for line in self._lines_of.of(window):
                self._gather(line)
            if is_transaction and window.ends:
                self._done = window.last

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        self._gather(sweep_line(sweep))

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        self._send()
        try:
            if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                os.fsync(self._descriptor)
            self._store.save(checkpoint)
        except OSError as error:
            raise no_folder(error, self._path.parent) from None
        self._shown = False
        self._done = self._committed = last_done_of(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        self._lines, self._size, self._done = [], 0, self._committed
        if self._shown:
            self._unsent += _ROLLBACK
            self._shown = False

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`: a line names the columns that it lacks, and a reader has them."""
        return ()

    def close(self) -> None:
        """See `Sink.close`; the descriptor is the process's."""
        self.rollback()

    # Lines

    def _gather(self, line: Line) -> None:
        text = encode_line(line) + b"\n"
        self._lines.append(text)
        self._size += len(text)
        if self._size >= _GATHERED_BYTES:
            self._send()

    def _send(self) -> None:
        """Writes what has gathered. A line that was cut off goes on before anything else."""
        self._shown = self._shown or bool(self._lines)
        data = memoryview(self._unsent + b"".join(self._lines))
        self._lines, self._size = [], 0
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise _not_written(error) from None
        finally:
            self._unsent = bytes(data)


def _not_written(error: OSError) -> SinkRefused | SinkUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN):
        return SinkUnavailable(f"the standard output takes nothing now: {error.strerror}", where="stdout")
    mend = "start the consumer again together with the program that reads its lines"
    return SinkRefused(f"nobody reads the standard output: {error.strerror}", where="stdout", mend=mend)


__all__ = ["StdoutOptions", "StdoutSink"]
