"""Logged, but perhaps not visible yet: the xids that seeding must wait for. Pure.

A commit is in the WAL, and so in the log, before it is visible to snapshots. A chunk may only be read in a snapshot
that sees everything logged up to P0, or rows of that gap would be in neither. Which transactions are in the gap
cannot be asked of PostgreSQL afterwards, so the applier notes every xid that it meets, and forgets those that a later
snapshot sees: what is left is a handful. The set is stored with the position that it is complete for; after a restart
the log is read again from there.
"""

from __future__ import annotations

from collections.abc import Iterable

from walbus.bootstrap.visibility import Snapshot


class UnseenCommits:
    """The xids of logged transactions that no snapshot was known to see. Not thread-safe."""

    def __init__(self, xids: Iterable[int] = (), *, complete: bool = True) -> None:
        """Starts with what was stored.

        Args:
            xids: of logged transactions.
            complete: False where earlier parts of the log were never read (they are trimmed); whatever runs when the
                next snapshot is taken may then be in them, and is waited for too.
        """
        self._xids = set(xids)
        self._complete = complete

    def __len__(self) -> int:
        return len(self._xids)

    def update(self, xids: Iterable[int]) -> None:
        """Notes transactions of the log."""
        self._xids.update(xids)

    def observe(self, snapshot: Snapshot) -> None:
        """Forgets what the snapshot sees."""
        if not self._complete:
            self._xids.update(snapshot.running)
            self._complete = True
        self._xids = {xid for xid in self._xids if not snapshot.sees(xid)}

    @property
    def complete(self) -> bool:
        """Whether the set speaks for all of the log; false until the first snapshot after a start without history."""
        return self._complete

    def xids(self) -> frozenset[int]:
        """Those that are left."""
        return frozenset(self._xids)
