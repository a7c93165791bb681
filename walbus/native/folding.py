"""What the cores of the bootstrap do: fold the log's changes into entries, list and sort these. Pure.

A table whose every row is known needs no reading: what an event says is the entry of its key, whatever was there. So a
`Fold` takes the changes of such tables straight from the records' bytes, packs the latest of each key, and leaves the
rest to its owner (`walbus.bootstrap.applier`), record by record:

- A record is taken whole or not at all. One that is left is untouched: it says a layout or an epoch, it is not wholly
  behind what is done, it empties a table, or it lacks what its operation calls for (which the owner words as an error).
- Tables that the fold is not told of are passed over.
- An update that left TOASTed values out is packed without them, and stands in `entries` as an `Unfilled`, which says
  where the values are: the owner fills them in before it writes.

The entries are in the order of each key's last change, so that their places in the change index come sorted.

    entry = flags (1) | seq (8) | schema id (4) | origin number (8) | length of missing (2) | missing | row
    page  = (seq (8) | length of key (4) | key)*

Little-endian. `walbus.bootstrap.entry` and `walbus.bootstrap.change_index` say what these are for.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from walbus.position import Position

ENTRY_HEADER = struct.Struct("<BQIQH")
#: Flags of an entry.
TOMBSTONE, FROM_SNAPSHOT, MOVED = 1, 2, 4
PLACE = struct.Struct("<QI")
SPACE_SIZE = 8
#: A page of the change index is closed when it holds this many bytes.
PAGE_BYTES = 8 << 10

#: A packed entry that misses values; the store key of the entry that has them; and that entry as the batch left it:
#: packed or in any form of the owner's, unfilled itself, empty bytes where there is none, None where the batch has not
#: touched it, so that the store knows.
Unfilled = tuple[bytes, bytes, Any]


class Fold(Protocol):
    """Folds the records of one batch. Belongs to one thread.

    Attributes:
        xids: of the transactions that were taken.
    """

    xids: set[int]

    def take(self, records: Sequence[bytes], at: int, done: Position) -> int:
        """Folds records from `at` on; the index of the first one that is left, or their number.

        Args:
            records: whole records, in the log's order.
            at: where to begin.
            done: "last done" before it. Its epoch is that of every record that is taken.

        Raises:
            DamagedRecord: a record makes no sense. What was taken before it has been folded.
        """

    def counts(self) -> dict[int, int]:
        """Inserts less deletes, by OID, of the tables with changes among what was taken since the last call."""


class NewFold(Protocol):
    """Makes the fold of one batch."""

    def __call__(self, spaces: Mapping[int, bytes], entries: MutableMapping[bytes, Any]) -> Fold:
        """A fold.

        Args:
            spaces: by OID, the prefix of a table's store keys.
            entries: gets the packed or unfilled entries by store key. What the owner puts there itself is a dict's
                value like any other; None stands for an entry that is gone.
        """


class PackPages(Protocol):
    """Lists entries by seq, as the change index has them."""

    def __call__(self, entries: Mapping[bytes, bytes | None]) -> list[tuple[bytes, bytes]]:
        """(space | seq of the last place, big-endian; page) for the entries of every space.

        Args:
            entries: packed, by store key; of one space in the order of their seqs. Those that are None have no place.
        """


class InKeyOrder(Protocol):
    """Sorts a batch: RocksDB takes keys in order in less than half of the time."""

    def __call__(self, entries: Mapping[bytes, bytes | None]) -> list[tuple[bytes, bytes | None]]:
        """The items in the bytewise order of their keys."""
