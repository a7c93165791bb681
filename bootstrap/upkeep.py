"""Keeps the change index in proportion to the rows: drops places that no longer say anything.

Folding writes blindly, so each change of a key leaves the key's earlier place in the index behind. A place whose seq is
not its entry's is stale, and stays so forever (seqs only rise): it can be dropped at any later time, without a look at
what is folded meanwhile. A pass over the index begins when as many changes have come as the last pass left places, so
that the work is a constant part of folding, and the index at most a few times the size of what it has to hold.

Tombstones, and their places, stay: a delta needs them, back to a horizon that is yet to be defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from walbus.bootstrap.entry import seq_of
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.store import WriteSet, change_key

_SMALLEST_PASS = 50_000
_PORTION = 2_000


class IndexUpkeep:
    """One pass after the other, a little at a time. Belongs to one thread."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._pass: Iterator[tuple[bytes, int, bytes]] | None = None
        self._next_at = 0
        self._kept = 0

    def work(self, seconds: float) -> int:
        """Goes on for about so long; returns how many places were dropped."""
        until = self._clock() + seconds
        dropped = 0
        while self._clock() < until:
            places = self._begin()
            if places is None:
                break
            dropped += self._portion(places)
        return dropped

    def _begin(self) -> Iterator[tuple[bytes, int, bytes]] | None:
        """The pass under way, or a new one if it is time for it."""
        applied = self._ledger.applied
        if (
            self._pass is None
            and applied is not None
            and self._ledger.store.whole
            and applied.last_seq >= self._next_at
        ):
            self._pass = self._places()
            self._kept = 0
        return self._pass

    def _places(self) -> Iterator[tuple[bytes, int, bytes]]:
        """(space, seq, key) of every place, of the store as it is now."""
        view = self._ledger.store.view()
        for run in [run for run in self._ledger.runs() if run.folding]:
            for seq, key in view.changes(run.space, 0):
                yield run.space, seq, key

    def _portion(self, places: Iterator[tuple[bytes, int, bytes]]) -> int:
        portion = list(islice(places, _PORTION))
        if not portion:
            self._end()
            return 0
        store_keys = [space + key for space, _, key in portion]
        entries = self._ledger.store.get_many(store_keys)
        stale = [
            change_key(store_key, seq)
            for store_key, (_, seq, _), entry in zip(store_keys, portion, entries, strict=True)
            if entry is None or seq_of(entry) != seq
        ]
        self._kept += len(portion) - len(stale)
        if stale:
            with self._ledger.lock:
                self._ledger.store.write(WriteSet(dropped_changes=stale))
        return len(stale)

    def _end(self) -> None:
        applied = self._ledger.applied
        self._pass = None
        self._next_at = (applied.last_seq if applied else 0) + max(_SMALLEST_PASS, self._kept)
