"""What the cores of those who read the bootstrap's store do: pack entries as changes, walk the change index. Pure.

Rows are packed where the engine's cursor stands, so a row that is served is never a Python object of its own. Of the
change index only the last place of each key within what is walked can be its entry's; all others are *stale*, and that
can be told without a look at the entries.

`walbus.native.folding` has the form of entries and of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Portion(NamedTuple):
    """How much is packed in one go.

    Attributes:
        size: bytes of changes from which on no more are added.
        entries: how many are looked at, at most.
    """

    size: int
    entries: int


class EntryCursor(Protocol):
    """Stands at an entry of the store, as RocksDB's iterators do."""

    def key(self) -> bytes | None:
        """The store key where it stands; None behind the last one."""

    def value(self) -> bytes | None:
        """The packed entry there."""

    def next(self) -> None:
        """Goes to the next one."""


class PackRows(Protocol):
    """Packs entries as a snapshot's changes."""

    def __call__(self, cursor: EntryCursor, end: bytes, table: int, portion: Portion) -> tuple[bytes, int]:
        """The body of a SNAPSHOT record, and how many changes it holds: an insert for each entry but the tombstones.

        Args:
            cursor: where to begin; it stands at the first entry that is left in the end.
            end: the store key that ends the rows.
            table: OID of the table.
            portion: how much, at most.

        Raises:
            ValueError: something is no entry.
        """


class PackVersions(Protocol):
    """Packs entries as a delta's changes."""

    def __call__(
        self, places: Sequence[tuple[bytes, int]], entries: Sequence[bytes | None], at: int, table: int, size: int
    ) -> tuple[bytes, int, int]:
        """The body of a DELTA record, how many changes it holds, and the place where it ends.

        An insert for each entry, or a delete for a tombstone, if the entry is its place's; stale places are passed
        over. Two changes of one seq are never parted.

        Args:
            places: (key without its space, seq), by seq.
            entries: of their keys, packed; None where there is none.
            at: the place to begin at.
            table: OID of the table.
            size: bytes of changes from which on no more are added; above 0.

        Raises:
            ValueError: something is no entry.
        """


class TakePlaces(Protocol):
    """Walks a page of the change index."""

    def __call__(self, places: dict[bytes, int], page: bytes, after_seq: int) -> int:
        """How many places of the page lie behind a seq; they are taken.

        Args:
            places: gets the seq of the last place of each key, in the order of the seqs.
            page: of places behind all those before.
            after_seq: what lies at this seq or before is passed over.

        Raises:
            ValueError: the page is cut short. What stands before that has been taken.
        """
