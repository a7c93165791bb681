"""Rows of chunks, past the fold and into the store by the file: where no event has touched a key, nothing is decided.

Nearly every row of a seeding meets no entry, or one that an earlier chunk read. Such rows need no look at the store:

- no entry: the row is stored, the first line of the rule (`walbus.bootstrap.fold`);
- a row that another chunk read, and no event since P0: whichever of the two is stored, the table ends the same. The key
  is in two chunks because a transaction X moved the row between two blocks, and X's event is still to come. It replaces
  a row whose snapshot does not see X, and keeps one whose snapshot does. The table is consistent only behind it.

So a slice of a chunk becomes a sorted file without the keys that events have touched, and the file is moved into the
store. The others are folded. What events have touched is in the store's change index, which is in the order of seqs:
each look reads on where the last one ended. The file is written without the lock, so under the lock one more look
follows; keys that were touched meanwhile are taken out, and the file is written again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from walbus.bootstrap.entry import FromSnapshot, pack_prefix
from walbus.bootstrap.ledger import Ledger, Verdict
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.store import SPACE_SIZE, Prepared

#: Store keys that are kept in memory; behind that, the store is asked for each key of a chunk.
_MOST_TOUCHED = 200_000
#: Rows folded in one critical section, so that the applier is not held up for long.
_FOLDED_ROWS = 2000
#: Times that a file is written without the lock, before it is written under it.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Offer:
    """A slice of a chunk, ready to go in.

    Attributes:
        prepared: what needs no decision.
        keys: the store keys of `prepared`, in order.
        decided: (store key, packed entry) of rows whose keys events have touched.
        seen: the seq up to which events were looked at.
    """

    prepared: Prepared
    keys: Sequence[bytes]
    decided: list[tuple[bytes, bytes]]
    seen: int


class Bulk:
    """Takes slices of chunks in. Any number of threads may."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def take_in(self, run: TableRun, origin: FromSnapshot, keys: Sequence[bytes], entries: Sequence[bytes]) -> bool:
        """Puts a slice of a chunk into the store.

        Args:
            run: the table.
            origin: from `Ledger.admit`.
            keys: store keys, ascending.
            entries: the packed entry of each.

        Returns:
            False if the generation is over.

        Raises:
            StoreError: the slice is not wholly in the store.
        """
        for _ in range(_ATTEMPTS):
            offer = self.offer(run, keys, entries)
            self._ledger.store.sync()  # what entries refer to; under the lock it would hold up the applier
            if self.accept(run, origin, offer):
                return self._fold(run, origin, offer.decided)
        with self._ledger.lock:
            offer = self.offer(run, keys, entries)
            self.accept(run, origin, offer)
        return self._fold(run, origin, offer.decided)

    def offer(self, run: TableRun, keys: Sequence[bytes], entries: Sequence[bytes]) -> Offer:
        """Writes a slice into a file beside the store, without the keys that events have touched."""
        store = self._ledger.store
        with self._ledger.lock:
            seen = self._look(run)
            present = None if run.touched is None else run.touched.intersection(keys)
        if present is None:
            present = {key for key, entry in zip(keys, store.get_many(keys), strict=True) if entry is not None}
        if not present:  # as for nearly every slice, which is then not looked at key by key
            return Offer(store.prepare(zip(keys, entries, strict=True)), keys, [], seen)
        pairs = list(zip(keys, entries, strict=True))
        free = [pair for pair in pairs if pair[0] not in present]
        decided = [pair for pair in pairs if pair[0] in present]
        return Offer(store.prepare(free), [key for key, _ in free], decided, seen)

    def accept(self, run: TableRun, origin: FromSnapshot, offer: Offer) -> bool:
        """Moves the file in, if no event has touched any of its keys meanwhile; False if it must be made again."""
        ledger = self._ledger
        with ledger.lock:
            if ledger.verdict(run, origin) is not Verdict.COUNTS:
                offer.prepared.discard()
                return True
            if any(_holds(offer.keys, key) for _, key in ledger.store.changes(run.space, offer.seen)):
                offer.prepared.discard()
                return False
            run.rows += offer.prepared.count
            ledger.store.ingest(offer.prepared)
            return True

    def _look(self, run: TableRun) -> int:
        """Learns what events have touched, up to the seq that is returned. The caller holds the lock."""
        applied = self._ledger.applied
        last_seq = applied.last_seq if applied else 0
        if run.touched is not None:
            for _, key in self._ledger.store.changes(run.space, run.touched_up_to):
                run.touched.add(key)
                if len(run.touched) > _MOST_TOUCHED:
                    run.touched = None
                    return last_seq
            run.touched_up_to = last_seq
        return last_seq

    def _fold(self, run: TableRun, origin: FromSnapshot, rows: Sequence[tuple[bytes, bytes]]) -> bool:
        prefix = len(pack_prefix(0, 0, origin))
        parts = [rows[at : at + _FOLDED_ROWS] for at in range(0, max(1, len(rows)), _FOLDED_ROWS)]
        return all(
            self._ledger.fold_rows(run, origin, [(key[SPACE_SIZE:], entry[prefix:]) for key, entry in part])
            for part in parts
        )


def _holds(keys: Sequence[bytes], key: bytes) -> bool:
    """Whether a key is among others that are in order."""
    at = bisect_left(keys, key)
    return at < len(keys) and keys[at] == key
