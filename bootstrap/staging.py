"""One batch of changes, folded in memory before it is written.

A hot key is folded as often as it changes and packed once. Entries are read through the batch, so a later change of a
batch sees the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from walbus.bootstrap.entry import Entry, pack_entry, unpack_entry
from walbus.bootstrap.store import SPACE_SIZE, Store, WriteSet, change_key
from walbus.bootstrap.visibility import Snapshot


class Stage:
    """Reads through to the store, keeps writes back. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[bytes, Entry | None] = {}
        self._changed: set[bytes] = set()
        self._cleared: set[bytes] = set()
        self._writes = WriteSet()

    def get(self, store_key: bytes, snapshots: Mapping[int, Snapshot]) -> Entry | None:
        """The entry as the batch has left it so far."""
        if store_key in self._entries:
            return self._entries[store_key]
        if store_key[:SPACE_SIZE] in self._cleared:
            return None
        value = self._store.get(store_key)
        return None if value is None else unpack_entry(value, snapshots)

    def get_many(self, store_keys: list[bytes], snapshots: Mapping[int, Snapshot]) -> list[Entry | None]:
        """The stored entries of keys that the batch has not touched."""
        values = self._store.get_many(store_keys)
        return [None if value is None else unpack_entry(value, snapshots) for value in values]

    def put(self, store_key: bytes, entry: Entry, before: Entry | None) -> None:
        """An entry that a chunk's row made.

        Args:
            store_key: its key.
            entry: its new state.
            before: its state so far, where that was read.
        """
        self._entries[store_key] = entry
        if entry.missing:
            self._writes.missing[store_key] = True
        elif before is not None and before.missing:
            self._writes.missing[store_key] = False

    def put_new(self, store_keys: list[bytes], values: list[bytes]) -> None:
        """Packed entries of keys that have none, neither in the store nor in the batch."""
        self._writes.entries.update(zip(store_keys, values, strict=True))

    def put_changed(self, store_key: bytes, entry: Entry, before: Entry | None) -> None:
        """An entry that an event made: it enters the change index."""
        self.put(store_key, entry, before)
        self._changed.add(store_key)

    def remove(self, store_key: bytes, before: Entry) -> None:
        """Takes an entry out without a trace (TRUNCATE)."""
        self._entries[store_key] = None
        self._changed.discard(store_key)
        if before.missing:
            self._writes.missing[store_key] = False

    def unmark(self, store_key: bytes) -> None:
        """The key no longer belongs to those with missing columns."""
        self._writes.missing[store_key] = False

    def clear(self, space: bytes) -> None:
        """Takes every entry of a space out."""
        for store_key in [key for key in self._entries if key.startswith(space)]:
            del self._entries[store_key]
            self._changed.discard(store_key)
            self._writes.missing.pop(store_key, None)
        self._cleared.add(space)

    def entries(self, space: bytes, snapshots: Mapping[int, Snapshot]) -> Iterator[tuple[bytes, Entry]]:
        """Every entry of a space as the batch has left it so far; the batch must not change while this is read."""
        for store_key, entry in self._entries.items():
            if entry is not None and store_key.startswith(space):
                yield store_key, entry
        if space not in self._cleared:
            for store_key, value in self._store.entries(space):
                if store_key not in self._entries:
                    yield store_key, unpack_entry(value, snapshots)

    def document(self, name: str, content: bytes | None) -> None:
        """A document that is written with the batch; None removes it."""
        self._writes.documents[name] = content

    def commit(self, whole: bool | None = None) -> None:
        """Writes everything at once.

        Args:
            whole: whether the store now stands between two transactions of the log; None leaves that as it was.

        Raises:
            StoreError: nothing was written.
        """
        writes = self._writes
        writes.cleared = list(self._cleared)
        for key, changed in self._entries.items():
            writes.entries[key] = None if changed is None else pack_entry(changed)
        for store_key in self._changed:
            entry = self._entries[store_key]
            if entry is not None:
                writes.changes.append(change_key(store_key, entry.seq))
        writes.whole = whole
        self._store.write(writes)
