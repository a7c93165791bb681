"""Where, among the changes that come again, one is that a sink refused without saying which. Pure.

What comes behind a checkpoint is the same each time, so a change is told by how many come before it. Those before the
call that was refused are handed over as they come, that call's in pieces, and what follows as it comes again.

    |------------------------|----|----|----|----|---------------------
    checkpoint               first               last

A piece that is refused is the next stretch to be searched, with the rest of the one before, in smaller pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from walbus.events import Window

_PIECES = 32  # into which a refused call is cut when it comes again


class RefusedSearch:
    """The search behind one checkpoint; it moves with each commit."""

    def __init__(self) -> None:
        self._given = 0  # changes since the last commit, or since it was gone back to
        self._first = self._last = 0  # the stretch that is searched
        self._piece = 1  # changes in one of its pieces

    def refused(self, count: int) -> None:
        """The call with the next so many changes was refused."""
        self._first, self._last = self._given, max(self._last, self._given + count)
        self._piece = max(1, count // _PIECES)

    def took(self, count: int) -> None:
        """A call with so many changes was accepted."""
        self._given += count

    def committed(self) -> None:
        """All that was accepted does not come again."""
        self._first, self._last = max(0, self._first - self._given), max(0, self._last - self._given)
        self._given = 0

    def rewound(self) -> None:
        """All that was accepted comes again."""
        self._given = 0

    def calls(self, windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
        """The windows as they are to be handed over; what was handed over is to be told before the next is taken."""
        if self._given >= self._last:
            yield windows
            return
        whole: list[Window] = []
        at = self._given
        for window in windows:
            size = len(window.changes)
            first, last = min(size, max(0, self._first - at)), min(size, max(0, self._last - at))
            at += size
            if first >= last:
                whole.append(window)
                continue
            if first:
                whole.append(_part(window, 0, first))
            if whole:
                yield whole
            for start in range(first, last, self._piece):
                yield [_part(window, start, min(last, start + self._piece))]
            whole = [_part(window, last, size)] if last < size else []
        if whole:
            yield whole


def _part(window: Window, start: int, stop: int) -> Window:
    begins, ends = window.begins and start == 0, window.ends and stop == len(window.changes)
    return replace(window, changes=window.changes[start:stop], begins=begins, ends=ends)
