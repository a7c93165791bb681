"""The sink of JSON lines: each change as one line on the standard output, for programs that read a pipe.

The lines are those of the relay's `application/x-ndjson` (`walbus.jsonlines`): a transaction between `begin` and
`commit`, rows of a snapshot with `"snapshot":true`, changes of a delta with `"delta":true`. Two more say what a reader
who keeps rows must do: `{"op":"sweep","table":…,"seq":…}` behind a table's last snapshot row (rows that the snapshot
did not bring, and whose seq is not above this one, are gone), and `{"op":"rollback"}` (what came since the last
`commit` does not count, and comes again).

Lines gather until `commit`; those of a transaction that is larger than the buffer go out as they come. The checkpoint
is a file in the consumer's folder, written when the lines have gone; those of the last commit may come again after a
crash, with the same positions and seqs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, Self

from walbus.consumers.checkpoint import Checkpoint, Marks, last_done_of
from walbus.consumers.checkpoint_store import FileCheckpointStore
from walbus.consumers.sinks.base import Batching, SinkOptions, SinkPlace, no_folder
from walbus.consumers.steps import Sweep
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable
from walbus.events import Change, Window
from walbus.jsonlines import Line, LineRenderer, encode_line
from walbus.position import ORIGIN, Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema

_STDOUT = 1
_GATHERED_BYTES = 1 << 20
_ROLLBACK = b'{"op":"rollback"}\n'
_SERVED = {Kind.SNAPSHOT: "snapshot", Kind.DELTA: "delta"}


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
        self._layouts: dict[int, TableSchema] = {}
        self._renderer = LineRenderer(self._layouts.__getitem__)
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
            for line in self._rendered(window):
                self._gather(line)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        self._gather({"op": "sweep", "table": sweep.table, "seq": sweep.seq})

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

    def _rendered(self, window: Window) -> Iterator[Line]:
        if window.kind is Kind.TRANSACTION:
            yield from self._transaction(window)
        elif window.kind in _SERVED:
            place = {_SERVED[window.kind]: True, "position": str(window.last)}
            for change in window.changes:
                yield {"op": _name(change), **place, "seq": change.seq} | self._content(change)
        else:
            for change in window.changes:
                yield {"op": _name(change), "position": str(change.position)} | self._content(change)

    def _transaction(self, window: Window) -> Iterator[Line]:
        if window.last <= self._done:
            return
        at = window.commit_time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        net = {"net": True} if window.net else {}
        if window.begins:
            before = Position(window.last.epoch, window.commit_lsn, 0)
            yield {"op": "begin", "xid": window.xid, "position": str(before), "commit_time": at} | net
        for change in window.changes:
            head = {"op": _name(change), "position": str(change.position), "seq": change.seq, "xid": window.xid}
            yield head | {"commit_time": at} | net | self._content(change)
        if window.ends:
            self._done = window.last
            yield {"op": "commit", "position": str(window.last)}

    def _content(self, change: Change) -> Line:
        if change.schema is not None:
            self._layouts[change.schema.id] = change.schema
        return self._renderer.content(change.raw)

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


def _name(change: Change) -> str:
    return Op(change.raw.op).name.lower()


def _not_written(error: OSError) -> SinkRefused | SinkUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN):
        return SinkUnavailable(f"the standard output takes nothing now: {error.strerror}", where="stdout")
    mend = "start the consumer again together with the program that reads its lines"
    return SinkRefused(f"nobody reads the standard output: {error.strerror}", where="stdout", mend=mend)


__all__ = ["StdoutOptions", "StdoutSink"]
