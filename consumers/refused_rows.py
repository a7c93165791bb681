"""Which row a sink, or a mapping before it, refused. Pure.

A row is told by its relation, its key (or, without one, its place in the log) and its seq: it may come again as another
object, a snapshot's row from another state too.
"""

from __future__ import annotations

from typing import NamedTuple

from walbus.errors import SinkRefused
from walbus.events import Change
from walbus.position import Position


class RefusedRow(NamedTuple):
    """See the module."""

    relation: int
    key: bytes | Position
    seq: int


class RowRefused(SinkRefused):
    """A row that will never be taken as it is, while others are: what `on_error` decides on.

    Args:
        what, where, mend: as of every error.
        row: which one; None: one of those that were handed over by this call.
    """

    def __init__(
        self, what: str, *, where: str | None = None, mend: str | None = None, row: RefusedRow | None = None
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.row = row


def row_of(change: Change) -> RefusedRow:
    """The row of a change, as errors name it."""
    raw = change.raw
    return RefusedRow(raw.table, change.position if raw.key is None else raw.key, change.seq)
