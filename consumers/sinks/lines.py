"""Windows as JSON lines: the form of the relay's `application/x-ndjson` (`walbus.jsonlines`), for sinks that pass on.

A transaction stands between `begin` and `commit`; rows of a snapshot have `"snapshot":true`, changes of a delta
`"delta":true`. `{"op":"sweep","table":…,"seq":…}` stands behind a table's last snapshot row: rows that the snapshot did
not bring, and whose seq is not above this one, are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC

from walbus.consumers.steps import Sweep
from walbus.events import Change, Window
from walbus.jsonlines import Line, LineRenderer
from walbus.position import Position
from walbus.records import Kind, Op
from walbus.schema import TableSchema

_SERVED = {Kind.SNAPSHOT: "snapshot", Kind.DELTA: "delta"}


class WindowLines:
    """Renders the windows of one consumer, in their order."""

    def __init__(self) -> None:
        self._layouts: dict[int, TableSchema] = {}
        self._renderer = LineRenderer(self._layouts.__getitem__)

    def of(self, window: Window) -> Iterator[Line]:
        """A line for each change, with `begin` and `commit` around those of a transaction."""
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
        at = window.commit_time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        net = {"net": True} if window.net else {}
        if window.begins:
            before = Position(window.last.epoch, window.commit_lsn, 0)
            yield {"op": "begin", "xid": window.xid, "position": str(before), "commit_time": at} | net
        for change in window.changes:
            head = {"op": _name(change), "position": str(change.position), "seq": change.seq, "xid": window.xid}
            yield head | {"commit_time": at} | net | self._content(change)
        if window.ends:
            yield {"op": "commit", "position": str(window.last)}

    def _content(self, change: Change) -> Line:
        if change.schema is not None:
            self._layouts[change.schema.id] = change.schema
        return self._renderer.content(change.raw)


def sweep_line(sweep: Sweep) -> Line:
    """What is told of a sweep."""
    return {"op": "sweep", "table": sweep.table, "seq": sweep.seq}


def _name(change: Change) -> str:
    return Op(change.raw.op).name.lower()
