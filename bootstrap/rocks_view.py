"""A RocksDB store at one instant: iterators, read page by page.

An iterator of RocksDB shows the state at its making, however often it seeks. (The snapshots of `rocksdict` do so for
single keys only: iterators made from them show later writes.) So a view is one iterator of each family and a snapshot
for single entries, all made between the same two writes; its readers share the iterators page by page. A snapshot finds
an entry by the filters of the table files, where an iterator has to seek in every file and write buffer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from rocksdict import RdictIter, Snapshot

from walbus.bootstrap.change_index import page_key
from walbus.bootstrap.rocks_errors import Refusals
from walbus.bootstrap.store import SPACE_SIZE, end_of
from walbus.native import pack_rows
from walbus.native.serving import Portion

ENTRIES = 500  #: that are read in one go, at most
_PAGE_BYTES = 128 << 10


class RocksView:
    """See `walbus.bootstrap.store.View`."""

    def __init__(
        self, documents: RdictIter, entries: RdictIter, single: Snapshot, changes: RdictIter, refusals: Refusals
    ) -> None:
        self._documents, self._entries, self._changes = documents, entries, changes
        self._single = single  # of the entries
        self._refusals = refusals
        self._lock = threading.Lock()

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        """See `View`."""
        start = prefix.encode()
        found = self._scan(self._documents, start, start + b"\xff")
        return {name.decode(): content for name, content in found}

    def entries(self, space: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See `View`."""
        for key, value in self._scan(self._entries, _behind(space, after), end_of(space)):
            yield key[SPACE_SIZE:], value

    def packed_rows(
        self, space: bytes, table: int, portion: Portion, after: bytes = b""
    ) -> Iterator[tuple[bytes, int]]:
        """See `View`."""
        iterator, end = self._entries, end_of(space)
        start: bytes | None = _behind(space, after)
        while start is not None and start < end:
            with self._alone():
                iterator.seek(start)
                packed = pack_rows(iterator, end, table, portion)
                start = iterator.key()  # None behind the last key
                iterator.status()
            yield packed

    def get_many(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `View`. The keys are looked up in their order: neighbours stand in one block."""
        found: dict[bytes, bytes | None] = {}
        single = self._single
        for key in sorted(keys):
            try:
                found[key] = single[space + key]
            except Exception:  # for a key that is not there, and for damage, which is told below
                found[key] = self._sought(space + key)
        return [found[key] for key in keys]

    def _sought(self, store_key: bytes) -> bytes | None:
        iterator = self._entries
        with self._alone():
            iterator.seek(store_key)
            value: bytes | None = iterator.value() if iterator.valid() and iterator.key() == store_key else None
            iterator.status()
        return value

    def change_pages(self, space: bytes, after_seq: int) -> Iterator[bytes]:
        """See `View`."""
        return (page for _, page in self._scan(self._changes, page_key(space, after_seq + 1), end_of(space)))

    def _scan(self, iterator: RdictIter, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        return scanned(iterator, start, end, self._alone)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock, self._refusals.told():
            yield


def scanned(
    iterator: RdictIter,
    start: bytes,
    end: bytes,
    alone: Callable[[], AbstractContextManager[None]],
    most: int = ENTRIES,
) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values in [start, end), read page by page.

    (`Rdict.items` ends at a damaged block without a word.)

    Args:
        iterator: of the family; it is sought anew for each page.
        start: the first key.
        end: the key behind the last.
        alone: around the reading of each page: it shuts out others, and translates what RocksDB raises.
        most: entries of a page.
    """
    while True:
        with alone():
            page, start = _page(iterator, start, end, most)
        yield from page
        if not start:
            return


def _behind(space: bytes, after: bytes) -> bytes:
    """Where a space's entries go on behind a key; its begin, if that is empty."""
    return space + after + b"\0" if after else space


def _page(iterator: RdictIter, start: bytes, end: bytes, most: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Keys and values from a key on, and where the next page begins; that is empty behind the last one."""
    page: list[tuple[bytes, bytes]] = []
    size = 0
    key_of, value_of, go_on = iterator.key, iterator.value, iterator.next
    iterator.seek(start)
    key: bytes | None = key_of()  # None behind the last key
    while key is not None and key < end:
        if len(page) >= most or size >= _PAGE_BYTES:
            return page, key
        value: bytes = value_of()
        page.append((key, value))
        size += len(value)
        go_on()
        key = key_of()
    iterator.status()
    return page, b""
