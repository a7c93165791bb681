"""The bootstrap store in memory: for model tests that open thousands of stores. Passes the store's contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from walbus.bootstrap.change_index import page_key, places_of
from walbus.bootstrap.store import SPACE_SIZE, StoreFigures, View, WriteSet, end_of
from walbus.errors import StoreError
from walbus.native import pack_rows
from walbus.native.serving import Portion


class MemoryView:
    def __init__(self, documents: dict[str, bytes], entries: dict[bytes, bytes], pages: dict[bytes, bytes]) -> None:
        self._documents, self._entries, self._pages = dict(documents), dict(entries), dict(pages)

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        return {name: self._documents[name] for name in sorted(self._documents) if name.startswith(prefix)}

    def entries(self, space: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._entries):
            if key.startswith(space) and (not after or key[SPACE_SIZE:] > after):
                yield key[SPACE_SIZE:], self._entries[key]

    def get_many(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._entries.get(space + key) for key in keys]

    def packed_rows(
        self, space: bytes, table: int, portion: Portion, after: bytes = b""
    ) -> Iterator[tuple[bytes, int]]:
        cursor = ListCursor([(space + key, value) for key, value in self.entries(space, after)])
        while cursor.key() is not None:
            yield pack_rows(cursor, end_of(space), table, portion)

    def change_pages(self, space: bytes, after_seq: int) -> Iterator[bytes]:
        for page in sorted(self._pages):
            if page_key(space, after_seq + 1) <= page < end_of(space):
                yield self._pages[page]


class ListCursor:
    """Entries as an engine's cursor gives them."""

    def __init__(self, entries: list[tuple[bytes, bytes]]) -> None:
        self._entries = entries
        self._at = 0

    def key(self) -> bytes | None:
        return self._entries[self._at][0] if self._at < len(self._entries) else None

    def value(self) -> bytes | None:
        return self._entries[self._at][1] if self._at < len(self._entries) else None

    def next(self) -> None:
        self._at += 1


def places_behind(view: View, space: bytes, after_seq: int) -> list[tuple[int, bytes]]:
    """(seq, key) of the change index behind a seq, of any engine's view."""
    return [place for page in view.change_pages(space, after_seq) for place in places_of(page) if place[0] > after_seq]


class MemoryPrepared:
    def __init__(self, entries: list[tuple[bytes, bytes]]) -> None:
        self.entries = entries

    @property
    def count(self) -> int:
        return len(self.entries)

    def discard(self) -> None:
        self.entries = []


class MemoryStore:
    def __init__(self) -> None:
        self._documents: dict[str, bytes] = {}
        self._entries: dict[bytes, bytes] = {}
        self._pages: dict[bytes, bytes] = {}
        self._missing: set[bytes] = set()
        self._completions: dict[int, bytes] = {}
        self._half = False
        self._before_half: MemoryView | None = None

    def get(self, store_key: bytes) -> bytes | None:
        return self._entries.get(store_key)

    def get_many(self, store_keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._entries.get(key) for key in store_keys]

    def entries(self, space: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, self._entries[key]) for key in sorted(self._entries) if key.startswith(space)])

    def changes(self, space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        return iter([(seq, space + key) for seq, key in places_behind(self._snapshot(), space, after_seq)])

    def pages(self, space: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found = sorted(key for key in self._pages if key.startswith(space) and key > after)
        return [(key, self._pages[key]) for key in found[:limit]]

    def missing(self, space: bytes, limit: int) -> list[bytes]:
        return sorted(key for key in self._missing if key.startswith(space))[:limit]

    def completions(self, first_seq: int, last_seq: int) -> Iterator[tuple[int, bytes]]:
        return iter([(seq, row) for seq, row in sorted(self._completions.items()) if first_seq <= seq <= last_seq])

    def document(self, name: str) -> bytes | None:
        return self._documents.get(name)

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        return {name: self._documents[name] for name in sorted(self._documents) if name.startswith(prefix)}

    def write(self, changes: WriteSet) -> None:
        if changes.whole is False and not self._half:
            self._before_half = self._snapshot()
        for space in changes.cleared:
            self._entries = {key: value for key, value in self._entries.items() if not key.startswith(space)}
            self._pages = {key: page for key, page in self._pages.items() if not key.startswith(space)}
            self._missing = {key for key in self._missing if not key.startswith(space)}
        _put_all(self._entries, changes.entries)
        _put_all(self._pages, changes.pages)
        for key, is_missing in changes.missing.items():
            (self._missing.add if is_missing else self._missing.discard)(key)
        if changes.forgotten is not None:
            self._completions = {seq: row for seq, row in self._completions.items() if seq > changes.forgotten}
        self._completions.update(changes.completions)
        _put_all(self._documents, changes.documents)
        if changes.whole is not None:
            self._half = not changes.whole
        if not self._half:
            self._before_half = None

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> MemoryPrepared:
        taken = list(entries)
        if any(left[0] >= right[0] for left, right in pairwise(taken)):
            raise ValueError("a key does not come behind the one before it")
        return MemoryPrepared(taken)

    def ingest(self, prepared: MemoryPrepared) -> None:
        self._entries.update(prepared.entries)
        prepared.discard()

    def sync(self) -> None:
        pass

    def view(self) -> MemoryView:
        if not self._half:
            return self._snapshot()
        if self._before_half is None:
            raise StoreError("the store is in the middle of a transaction")
        return self._before_half

    @property
    def whole(self) -> bool:
        return not self._half or self._before_half is not None

    def figures(self) -> StoreFigures:
        return StoreFigures(keys=len(self._entries))

    def close(self) -> None:
        pass

    def _snapshot(self) -> MemoryView:
        return MemoryView(self._documents, self._entries, self._pages)


def _put_all(stored: dict[Any, bytes], changes: Mapping[Any, bytes | None]) -> None:
    for key, value in changes.items():
        if value is None:
            stored.pop(key, None)
        else:
            stored[key] = value
