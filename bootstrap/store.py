"""The bootstrap store as an interface: the latest entry of every key, and how far the log has been folded into it.

Engines implement `Store`; `tests/contract/test_store.py` runs on each.

Keys. Each table, in each generation of its seeding, has a *space*: eight bytes, the table's OID and the generation,
big-endian. An entry's store key is the space followed by the memcomparable key of `walbus.keys`, so bytewise order is
first by table, then by key, and a whole generation is one range.

Beside the entries lie
    the change index   (seq, key) of every entry that an event made, in pages (`walbus.bootstrap.change_index`); an
                       entry written again leaves its old place behind, so who reads the index compares the seq with
                       the entry's,
    the missing keys   of entries with TOASTed columns that were never seen,
    completions        by seq, what a change's row was before it (`walbus.bootstrap.completions`),
    documents          small named values: applied position, tables, chunks, snapshots.

Atomicity. `write` applies one `WriteSet` whole or not at all: a crash can never keep rows without the applied
position that belongs to them, or the other way round. So a crash replays events, and never skips one.

Durability. `write` survives the death of the process, not that of the machine; `sync` makes all earlier writes
survive that too. After a power loss the store is some earlier state of itself, and the log replays the difference,
as long as the log's retention trails the position of the last `sync` (`BootstrapState.durable`).

Bulk. `prepare` shows nothing: it puts entries that come in order into a file beside the store, in any thread.
`ingest` makes that file a part of the store in one step, without the write-ahead log and without the memtables, which
is several times as fast as `write`, and durable at once. It touches neither change index nor missing keys nor
documents, so whatever says that these entries are there is written *behind* it: a crash between the two leaves entries
that nobody counts on, and that are prepared and ingested again. And whatever these entries refer to is written
*before* it: `ingest` makes all earlier writes durable first, so no power loss keeps the entries without it.

Consistency of reads. A `View` is the store at one instant. It shows only *whole* states: while a transaction that is
larger than one write set is being folded, a new view is the state before that transaction.

Threads. Calls of `write` and `ingest` must not overlap (the caller holds one lock); everything else may be called from
any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from walbus.native import folding
from walbus.native.serving import Portion

_SPACE = struct.Struct(">II")
SPACE_SIZE = folding.SPACE_SIZE


def space_of(oid: int, generation: int) -> bytes:
    """The prefix of every store key of one table in one generation."""
    return _SPACE.pack(oid, generation)


def end_of(space: bytes) -> bytes:
    """The first key behind every key of a space."""
    oid, generation = _SPACE.unpack(space)
    return _SPACE.pack(oid, generation + 1)


@dataclass(slots=True)
class WriteSet:
    """What one `write` changes.

    Attributes:
        cleared: spaces whose entries, change index and missing keys go first, before everything below.
        entries: store key -> packed entry; None removes the entry altogether.
        pages: pages of the change index by key; None removes one.
        missing: store key -> whether it now belongs to the missing keys.
        forgotten: completions up to this seq go first; None leaves all.
        completions: seq of a change -> packed entry of its row before it.
        documents: name -> content; None removes it.
        whole: whether the applied position now stands between two transactions; None leaves that as it was.
    """

    cleared: list[bytes] = field(default_factory=list)
    entries: dict[bytes, bytes | None] = field(default_factory=dict)
    pages: dict[bytes, bytes | None] = field(default_factory=dict)
    missing: dict[bytes, bool] = field(default_factory=dict)
    forgotten: int | None = None
    completions: dict[int, bytes] = field(default_factory=dict)
    documents: dict[str, bytes | None] = field(default_factory=dict)
    whole: bool | None = None


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """What an engine tells of itself; estimates but for `bytes`.

    Attributes:
        bytes: size of its files.
        keys: entries, tombstones too.
        compaction_bytes: to be rewritten until the files are in order.
        memory_bytes: what its caches and buffers take.
        slowed: whether it makes writers wait for that.
    """

    bytes: int = 0
    keys: int = 0
    compaction_bytes: int = 0
    memory_bytes: int = 0
    slowed: bool = False


class View(Protocol):
    """The store at one instant; any thread may read it, one at a time. It costs disk space while it is held."""

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        """The documents whose names begin so, by name."""

    def entries(self, space: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key without space, packed entry) of a space in bytewise order, tombstones too.

        Args:
            space: the table and generation.
            after: leaves out this key and all before it.
        """

    def get_many(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """The packed entries of keys (without space), in the order of the keys; cheapest for few at a time."""

    def packed_rows(
        self, space: bytes, table: int, portion: Portion, after: bytes = b""
    ) -> Iterator[tuple[bytes, int]]:
        """The rows of a space as changes of a snapshot, and how many, a portion at a time (`walbus.native.serving`).

        Args:
            space: the table and generation.
            table: its OID.
            portion: of which some may give no row, if they are tombstones all over.
            after: leaves out this key and all before it.
        """

    def change_pages(self, space: bytes, after_seq: int) -> Iterator[bytes]:
        """The pages of the change index with places behind a seq, by seq; the first may have others before them."""


class Prepared(Protocol):
    """Entries in order that are not in the store yet. Belongs to whoever made it; gone with the process."""

    @property
    def count(self) -> int:
        """How many entries."""

    def discard(self) -> None:
        """Frees its file; a second call, or one behind `ingest`, does nothing."""


class Store(Protocol):
    """The writing side and what folding needs to read."""

    def get(self, store_key: bytes) -> bytes | None:
        """The packed entry, None if there is none."""

    def get_many(self, store_keys: Sequence[bytes]) -> list[bytes | None]:
        """The packed entries, in the order of the keys."""

    def entries(self, space: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(store key, packed entry) of a space in bytewise order, as of the call."""

    def changes(self, space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        """(seq, store key) of the change index behind a seq, by seq, as of the call; stale places too."""

    def pages(self, space: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first (key, page) of a space's change index.

        Args:
            space: the table and generation.
            after: leaves out the page of this key and all before it; may be empty.
            limit: how many at most.
        """

    def missing(self, space: bytes, limit: int) -> list[bytes]:
        """The first store keys of a space with columns that were never seen."""

    def completions(self, first_seq: int, last_seq: int) -> Iterator[tuple[int, bytes]]:
        """(seq, packed entry) of the completions of changes by seq, both ends included, as of the call."""

    def document(self, name: str) -> bytes | None:
        """One document, None if there is none."""

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        """The documents whose names begin so, by name."""

    def write(self, changes: WriteSet) -> None:
        """Applies the write set, whole or not at all.

        Raises:
            StoreError: the engine refused; nothing of it was kept.
        """

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> Prepared:
        """Entries for `ingest`. Any thread, at any time; blocks until they are on the disk.

        Args:
            entries: (store key, packed entry), in strictly ascending bytewise order of the keys.

        Raises:
            ValueError: a key does not come behind the one before it.
            StoreError: the engine refused (a full disk); nothing is left of it.
        """

    def ingest(self, prepared: Prepared) -> None:
        """Makes prepared entries a part of the store, whole or not at all, and durable together with all before it.

        It replaces whatever a key holds at that moment, without a look at it. So the caller promises that no key of it
        has an entry that is worth keeping: it holds the lock of `write`, and knows that nothing has been written to
        these keys. Views that were made before do not see it. It costs one or two fsyncs; and where the range of keys
        reaches over entries that were written lately, these are flushed first, so a few large files are better than
        many small ones.

        Raises:
            StoreError: the engine refused; nothing of it was kept, and `prepared` is discarded.
        """

    def sync(self) -> None:
        """Makes every earlier write survive a power loss. Blocks for one fsync.

        Raises:
            StoreError: the sync failed; the process must end.
        """

    def view(self) -> View:
        """The last whole state.

        Raises:
            StoreError: the store was opened in the middle of a transaction that is not folded yet (`whole` is false).
        """

    @property
    def whole(self) -> bool:
        """Whether `view` can be had."""

    def figures(self) -> StoreFigures:
        """How large it is, and how much work waits."""

    def close(self) -> None:
        """Syncs and frees the files; a second call does nothing."""
