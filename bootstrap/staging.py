"""One batch of changes, folded in memory before it is written.

A hot key is folded as often as it changes and packed once. Entries are read through the batch, so a later change of a
batch sees the earlier ones.

An entry stands here in the form in which it came: packed by the native fold, as an `Entry`, as an `Unfilled` whose
values have still to be found, or as None where it was taken out. Those that events made stand in the order of their
seqs, which is the order of the change index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from walbus.bootstrap.entry import Entry, FromEvent, pack_entry, unpack_entry
from walbus.bootstrap.fold import Fill, Upsert, fold_key_change, fold_upsert
from walbus.bootstrap.store import SPACE_SIZE, Store, WriteSet
from walbus.bootstrap.visibility import Snapshot
from walbus.native import new_fold, pack_pages
from walbus.native.folding import ENTRY_HEADER, TOMBSTONE, Fold, Unfilled

_COMPLETION_BYTES = 8 << 20  # that a batch holds, about

#: Where a packed entry says how much it lacks, and what it says where that is nothing.
_LACKING, _NOTHING = slice(ENTRY_HEADER.size - 2, ENTRY_HEADER.size), b"\0\0"

#: What stands for a key: see the module.
_Staged = bytes | Entry | Unfilled | None


class Stage:
    """Reads through to the store, keeps writes back. Not thread-safe."""

    def __init__(self, store: Store, fill: Fill | None = None) -> None:
        """An empty batch.

        Args:
            store: where it goes.
            fill: how columns are filled from another state of a row; needed where `fold` is used.
        """
        self._store = store
        self._fill = fill
        self._entries: dict[bytes, Any] = {}
        self._unlisted: set[bytes] = set()  # keys whose entry is not of an event
        self._cleared: set[bytes] = set()
        self._writes = WriteSet()
        self._lacking: set[bytes] = set()  # spaces in which an unfilled entry stayed so
        self._read: dict[bytes, bytes | None] = {}  # what `read_ahead` found
        self._completion_bytes = 0

    def get(self, store_key: bytes, snapshots: Mapping[int, Snapshot]) -> Entry | None:
        """The entry as the batch has left it so far."""
        if store_key in self._entries:
            staged: _Staged = self._entries[store_key]
            if isinstance(staged, tuple):
                staged = self._entries[store_key] = self._filled(store_key, staged, self._sources([staged]))
            return unpack_entry(staged, snapshots) if isinstance(staged, bytes) else staged
        value = self._stored(store_key)
        return None if value is None else unpack_entry(value, snapshots)

    def get_many(self, store_keys: list[bytes], snapshots: Mapping[int, Snapshot]) -> list[Entry | None]:
        """The stored entries of keys that the batch has not touched."""
        values = self._store.get_many(store_keys)
        return [None if value is None else unpack_entry(value, snapshots) for value in values]

    def read_ahead(self, store_keys: Iterable[bytes]) -> None:
        """Reads entries that `get` will be asked for, at once; forgets those that were read so before."""
        keys = [key for key in dict.fromkeys(store_keys) if key not in self._entries]
        self._read = dict(zip(keys, self._store.get_many(keys), strict=True))

    def fold(self, spaces: Mapping[int, bytes]) -> Fold:
        """Folds records straight into this batch, for tables whose every row is known.

        Args:
            spaces: of these tables, by OID. Their entries have no snapshots.
        """
        return new_fold(spaces, self._entries)

    def put(self, store_key: bytes, entry: Entry, before: Entry | None) -> None:
        """An entry that a chunk's row made.

        Args:
            store_key: its key.
            entry: its new state.
            before: its state so far, where that was read.
        """
        self._unlisted.add(store_key)
        self._put(store_key, entry, before)

    def put_new(self, store_keys: list[bytes], values: list[bytes]) -> None:
        """Packed entries of keys that have none, neither in the store nor in the batch."""
        self._writes.entries.update(zip(store_keys, values, strict=True))

    def put_changed(self, store_key: bytes, entry: Entry, before: Entry | None) -> None:
        """An entry that an event made, later than all before it: it enters the change index."""
        self._unlisted.discard(store_key)
        self._entries.pop(store_key, None)
        self._put(store_key, entry, before)

    def remove(self, store_key: bytes, before: Entry) -> None:
        """Takes an entry out without a trace (TRUNCATE)."""
        self._entries[store_key] = None
        if before.missing:
            self._writes.missing[store_key] = False

    def unmark(self, store_key: bytes) -> None:
        """The key no longer belongs to those with missing columns."""
        self._writes.missing[store_key] = False

    def clear(self, space: bytes) -> None:
        """Takes every entry of a space out."""
        for store_key in [key for key in self._entries if key.startswith(space)]:
            del self._entries[store_key]
            self._unlisted.discard(store_key)
            self._writes.missing.pop(store_key, None)
        self._lacking.discard(space)
        self._cleared.add(space)

    def entries(self, space: bytes, snapshots: Mapping[int, Snapshot]) -> Iterator[tuple[bytes, Entry]]:
        """Every entry of a space as the batch has left it so far; the batch must not change while this is read."""
        for store_key in [key for key in self._entries if key.startswith(space)]:
            entry = self.get(store_key, snapshots)
            if entry is not None:
                yield store_key, entry
        if space not in self._cleared:
            for store_key, value in self._store.entries(space):
                if store_key not in self._entries:
                    yield store_key, unpack_entry(value, snapshots)

    def complete(self, seq: int, before: Entry) -> None:
        """Keeps what a change's row was before it.

        Where these become many they are written ahead of the batch: nobody is shown them before the position behind
        their change is applied, and a crash in between has the same ones written again.
        """
        self._complete(seq, pack_entry(before))

    def exchange(self, store_key: bytes, packed: bytes, completed: int | None) -> bool:
        """Puts a packed entry that an event made, and that lacks nothing, in the place of the one before it.

        Args:
            store_key: its key.
            packed: the entry.
            completed: the seq under which the row before is kept; None if it is not.

        Returns:
            False if nothing was done: the entry before lacks values.
        """
        if completed is not None:
            before: _Staged = self._entries[store_key] if store_key in self._entries else self._stored(store_key)
            if isinstance(before, Entry):
                before = pack_entry(before)
            if isinstance(before, tuple) or (before is not None and before[_LACKING] != _NOTHING):
                return False
            if before is not None and not before[0] & TOMBSTONE:
                self._complete(completed, before)
        self._unlisted.discard(store_key)
        self._entries.pop(store_key, None)
        self._entries[store_key] = packed
        return True

    def _complete(self, seq: int, packed: bytes) -> None:
        self._writes.completions[seq] = packed
        self._completion_bytes += len(packed)
        if self._completion_bytes > _COMPLETION_BYTES:
            self._store.write(WriteSet(completions=self._writes.completions))
            self._writes.completions, self._completion_bytes = {}, 0

    def forget_completions(self, seq: int) -> None:
        """Takes out the completions of changes up to a seq, but for those of this batch."""
        self._writes.forgotten = seq

    def document(self, name: str, content: bytes | None) -> None:
        """A document that is written with the batch; None removes it."""
        self._writes.documents[name] = content

    def settle(self) -> set[bytes]:
        """Fills in what `fold` left unfilled; the spaces with entries that still miss values."""
        unfilled = [(key, staged) for key, staged in self._entries.items() if isinstance(staged, tuple)]
        if unfilled:
            stored = self._sources([staged for _, staged in unfilled])
            for key, staged in unfilled:
                self._entries[key] = self._filled(key, staged, stored)
        return self._lacking

    def commit(self, whole: bool | None = None) -> None:
        """Writes everything at once.

        Args:
            whole: whether the store now stands between two transactions of the log; None leaves that as it was.

        Raises:
            StoreError: nothing was written.
        """
        self.settle()
        writes, entries = self._writes, self._entries
        for key, staged in entries.items():
            if isinstance(staged, Entry):
                entries[key] = pack_entry(staged)
        listed = {key: entries[key] for key in entries if key not in self._unlisted} if self._unlisted else entries
        writes.pages.update(pack_pages(listed))
        writes.cleared = list(self._cleared)
        if writes.entries:
            writes.entries.update(entries)
        else:
            writes.entries = entries
        writes.whole = whole
        self._store.write(writes)

    def _put(self, store_key: bytes, entry: Entry, before: Entry | None) -> None:
        self._entries[store_key] = entry
        if entry.missing:
            self._writes.missing[store_key] = True
        elif before is not None and before.missing:
            self._writes.missing[store_key] = False

    def _stored(self, store_key: bytes) -> bytes | None:
        if store_key[:SPACE_SIZE] in self._cleared:
            return None
        return self._read[store_key] if store_key in self._read else self._store.get(store_key)

    def _sources(self, unfilled: Sequence[Unfilled]) -> dict[bytes, bytes | None]:
        """What the store holds where the chains of unfilled entries begin, read at once."""
        wanted = {begin[1] for begin in map(_begin_of, unfilled) if begin[2] is None}
        keys = [key for key in wanted if key[:SPACE_SIZE] not in self._cleared]
        return dict(zip(keys, self._store.get_many(keys), strict=True))

    def _filled(self, store_key: bytes, unfilled: Unfilled, stored: Mapping[bytes, bytes | None]) -> Entry:
        """An unfilled entry with its values, taken from the chain of states before it."""
        if self._fill is None:
            raise AssertionError("a batch that folds has to be able to fill")
        chain = [unfilled]
        while isinstance(chain[-1][2], tuple):
            chain.append(chain[-1][2])
        _, source, begin = chain[-1]
        staged = stored.get(source) if begin is None else begin or None
        before = unpack_entry(staged, {}) if isinstance(staged, bytes) else staged
        if before is not None and before.missing and begin is None:
            self._writes.missing.setdefault(source, False)
        for packed, _, _ in reversed(chain):
            before = _completed(unpack_entry(packed, {}), before, self._fill)
        if before is None:
            raise AssertionError("a chain has at least one link")
        if before.missing:
            self._writes.missing[store_key] = True
            self._lacking.add(store_key[:SPACE_SIZE])
        return before


def _begin_of(unfilled: Unfilled) -> Unfilled:
    while isinstance(unfilled[2], tuple):
        unfilled = unfilled[2]
    return unfilled


def _completed(entry: Entry, before: Entry | None, fill: Fill) -> Entry:
    """An event's entry with the values that it lacks, from the state of its row before it."""
    if entry.row is None or not isinstance(entry.origin, FromEvent):
        raise AssertionError("only events with rows are unfilled")
    event = Upsert(entry.seq, entry.schema_id, entry.row, entry.missing, entry.origin)
    if entry.moved:
        return fold_key_change(before, None, event, fill)[1]
    return fold_upsert(before, event, fill)
