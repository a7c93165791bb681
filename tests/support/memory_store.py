"""The bootstrap store in memory: for model tests that open thousands of stores. Passes the store's contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from walbus.bootstrap.store import SPACE_SIZE, WriteSet, change_key, end_of, split_change_key
from walbus.errors import StoreError


class MemoryView:
    def __init__(self, documents: dict[str, bytes], entries: dict[bytes, bytes], changes: set[bytes]) -> None:
        self._documents, self._entries, self._changes = dict(documents), dict(entries), set(changes)

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        return {name: self._documents[name] for name in sorted(self._documents) if name.startswith(prefix)}

    def entries(self, space: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._entries):
            if key.startswith(space) and (not after or key[SPACE_SIZE:] > after):
                yield key[SPACE_SIZE:], self._entries[key]

    def get_many(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._entries.get(space + key) for key in keys]

    def changes(self, space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        start = change_key(space, after_seq + 1)
        for place in sorted(self._changes):
            if start <= place < end_of(space):
                key, seq = split_change_key(place)
                yield seq, key[SPACE_SIZE:]


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
        self._changes: set[bytes] = set()
        self._missing: set[bytes] = set()
        self._half = False
        self._before_half: MemoryView | None = None

    def get(self, store_key: bytes) -> bytes | None:
        return self._entries.get(store_key)

    def get_many(self, store_keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._entries.get(key) for key in store_keys]

    def entries(self, space: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, self._entries[key]) for key in sorted(self._entries) if key.startswith(space)])

    def changes(self, space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        start = change_key(space, after_seq + 1)
        places = [split_change_key(place) for place in sorted(self._changes) if start <= place < end_of(space)]
        return iter([(seq, store_key) for store_key, seq in places])

    def missing(self, space: bytes, limit: int) -> list[bytes]:
        return sorted(key for key in self._missing if key.startswith(space))[:limit]

    def document(self, name: str) -> bytes | None:
        return self._documents.get(name)

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        return {name: self._documents[name] for name in sorted(self._documents) if name.startswith(prefix)}

    def write(self, changes: WriteSet) -> None:
        if changes.whole is False and not self._half:
            self._before_half = self._snapshot()
        for space in changes.cleared:
            self._entries = {key: value for key, value in self._entries.items() if not key.startswith(space)}
            self._changes = {key for key in self._changes if not key.startswith(space)}
            self._missing = {key for key in self._missing if not key.startswith(space)}
        for key, value in changes.entries.items():
            if value is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = value
        self._changes.difference_update(changes.dropped_changes)
        self._changes.update(changes.changes)
        for key, is_missing in changes.missing.items():
            (self._missing.add if is_missing else self._missing.discard)(key)
        for name, content in changes.documents.items():
            if content is None:
                self._documents.pop(name, None)
            else:
                self._documents[name] = content
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

    def bytes_on_disk(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def _snapshot(self) -> MemoryView:
        return MemoryView(self._documents, self._entries, self._changes)
