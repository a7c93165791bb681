"""The store's engine: RocksDB through `rocksdict`, in raw mode (bytes in, bytes out).

One column family each for entries, change index, missing keys and (the default one) documents. All of a `WriteSet`
goes into one WriteBatch, which RocksDB writes to its own write-ahead log before the memtables, so the families
change together. That log is written by each batch and fsynced by `sync` alone (about once a second): the death of
the process loses nothing, a power loss loses the newest batches, always from the end (`point_in_time` recovery stops
at the first gap, across all families). Flushed tables are fsynced before RocksDB forgets the log that fed them.

Bulk goes around all of that, as table files (`rocks_bulk`).

Memory is bounded: one block cache, one write buffer budget for all families.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import cast

from rocksdict import (
    BlockBasedOptions,
    Cache,
    ColumnFamily,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
)

from walbus.bootstrap.rocks_bulk import Incoming, SortedFile, move_in
from walbus.bootstrap.store import SPACE_SIZE, Prepared, WriteSet, change_key, end_of, split_change_key
from walbus.errors import StoreError

_CACHE_BYTES = 64 << 20
_WRITE_BUFFER_BYTES = 32 << 20
_ALL_WRITE_BUFFERS_BYTES = 96 << 20
_WAL_BYTES = 128 << 20
_PAGE = 500  # entries that a view reads in one go
_FAMILIES = ("entries", "changes", "missing")
_HALF = "half"  #: document that exists while the last transaction in the store is not complete


class RocksView:
    """One iterator of each family, all made between the same two writes.

    An iterator of RocksDB shows the state at its making, however often it seeks. (The snapshots of `rocksdict` do so
    for single keys only: iterators made from them show later writes.) Readers share the iterators page by page.
    """

    def __init__(self, documents: RdictIter, entries: RdictIter, changes: RdictIter) -> None:
        self._documents, self._entries, self._changes = documents, entries, changes
        self._lock = threading.Lock()

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        """See `View`."""
        start = prefix.encode()
        found = self._scan(self._documents, start, start + b"\xff")
        return {name.decode(): content for name, content in found}

    def entries(self, space: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See `View`."""
        start = space + after + b"\0" if after else space
        for key, value in self._scan(self._entries, start, end_of(space)):
            yield key[SPACE_SIZE:], value

    def get_many(self, space: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `View`. The iterator goes through the keys in their order: the store's own `get` shows later writes."""
        found: dict[bytes, bytes | None] = {}
        iterator = self._entries
        with self._lock:
            for key in sorted(keys):
                store_key = space + key
                iterator.seek(store_key)
                there = iterator.valid() and iterator.key() == store_key
                found[key] = iterator.value() if there else None
            iterator.status()
        return [found[key] for key in keys]

    def changes(self, space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        """See `View`."""
        for place, _ in self._scan(self._changes, change_key(space, after_seq + 1), end_of(space)):
            store_key, seq = split_change_key(place)
            yield seq, store_key[SPACE_SIZE:]

    def _scan(self, iterator: RdictIter, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in [start, end)."""
        while True:
            with self._lock:
                page = _page(iterator, start, end)
            yield from page
            if len(page) < _PAGE:
                return
            start = page[-1][0] + b"\0"


def _page(iterator: RdictIter, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    page: list[tuple[bytes, bytes]] = []
    iterator.seek(start)
    while len(page) < _PAGE and iterator.valid():
        key: bytes = iterator.key()
        if key >= end:
            break
        page.append((key, iterator.value()))
        iterator.next()
    iterator.status()
    return page


class RocksStore:
    """A `Store` in a folder of this machine; one process at a time (RocksDB locks the folder)."""

    def __init__(self, folder: Path) -> None:
        """Opens the store, made when missing.

        Raises:
            StoreError: the files cannot be opened, or another process holds them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        cache = Cache(_CACHE_BYTES)
        families = {name: _family_options(cache) for name in _FAMILIES}
        try:
            self._db = Rdict(str(folder), _database_options(cache), column_families=families)
        except Exception as error:  # rocksdict raises bare Exception for everything
            raise _store_error(error, folder) from None
        self._folder = folder
        self._incoming = Incoming(folder / "incoming", families["entries"])
        self._families: dict[str, Rdict] = {name: self._db.get_column_family(name) for name in _FAMILIES}
        self._handles: dict[str, ColumnFamily] = {name: self._db.get_column_family_handle(name) for name in _FAMILIES}
        self._lock = threading.Lock()
        self._before_half: RocksView | None = None
        self._half = self.document(_HALF) is not None
        self._open = True

    def get(self, store_key: bytes) -> bytes | None:
        """See `Store`."""
        value: bytes | None = self._families["entries"].get(store_key)
        return value

    def get_many(self, store_keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Store`."""
        if not store_keys:
            return []
        values: list[bytes | None] = self._families["entries"].get(list(store_keys))  # type: ignore[assignment]  # Any | None
        return values

    def entries(self, space: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See `Store`."""
        return _live(self._families["entries"], space, end_of(space))

    def changes(self, space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        """See `Store`."""
        for place, _ in _live(self._families["changes"], change_key(space, after_seq + 1), end_of(space)):
            store_key, seq = split_change_key(place)
            yield seq, store_key

    def missing(self, space: bytes, limit: int) -> list[bytes]:
        """See `Store`."""
        keys = _live(self._families["missing"], space, end_of(space))
        return [key for key, _ in islice(keys, limit)]

    def document(self, name: str) -> bytes | None:
        """See `Store`."""
        content: bytes | None = self._db.get(name.encode())
        return content

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        """See `Store`."""
        start = prefix.encode()
        return {name.decode(): content for name, content in _live(self._db, start, start + b"\xff")}

    def write(self, changes: WriteSet) -> None:
        """See `Store`."""
        batch = self._batch(changes)
        with self._lock:
            if changes.whole is False and not self._half:
                self._before_half = self._now()
            try:
                self._db.write(batch)
            except Exception as error:  # rocksdict raises bare Exception for everything
                raise _store_error(error, self._folder) from None
            if changes.whole is not None:
                self._half = not changes.whole
            if not self._half:
                self._before_half = None

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> SortedFile:
        """See `Store`."""
        try:
            return self._incoming.write(entries)
        except (ValueError, StoreError):
            raise
        except Exception as error:  # rocksdict raises bare Exception for everything
            raise _store_error(error, self._folder) from None

    def ingest(self, prepared: Prepared) -> None:
        """See `Store`."""
        if not isinstance(prepared, SortedFile):
            raise TypeError("prepared by another store")
        try:
            if prepared.count:
                self.sync()
                with self._lock:
                    move_in(self._families["entries"], prepared)
        except StoreError:
            raise
        except Exception as error:  # rocksdict raises bare Exception for everything
            raise _store_error(error, self._folder) from None
        finally:
            prepared.discard()

    def sync(self) -> None:
        """See `Store`."""
        try:
            self._db.flush_wal(sync=True)
        except Exception as error:  # rocksdict raises bare Exception for everything
            raise _store_error(error, self._folder) from None

    def view(self) -> RocksView:
        """See `Store`."""
        with self._lock:
            if not self._half:
                return self._now()
            if self._before_half is None:
                raise StoreError("the store is in the middle of a transaction", mend="ask again in a moment")
            return self._before_half

    @property
    def whole(self) -> bool:
        """See `Store`."""
        with self._lock:
            return not self._half or self._before_half is not None

    def bytes_on_disk(self) -> int:
        """See `Store`."""
        return sum(file.stat().st_size for file in self._folder.glob("*") if file.is_file())

    def close(self) -> None:
        """See `Store`."""
        if not self._open:
            return
        self._open = False
        self.sync()
        self._before_half = None
        self._handles.clear()
        for family in self._families.values():
            family.close()
        self._families.clear()
        self._db.close()

    def _now(self) -> RocksView:
        return RocksView(self._db.iter(), self._families["entries"].iter(), self._families["changes"].iter())

    def _batch(self, changes: WriteSet) -> WriteBatch:
        batch = WriteBatch(raw_mode=True)
        entries, index, missing = (self._handles[name] for name in _FAMILIES)
        for space in changes.cleared:
            for handle in (entries, index, missing):
                batch.delete_range(space, end_of(space), handle)
        _put_all(batch, changes.entries.items(), entries)
        _put_all(batch, ((place, None) for place in changes.dropped_changes), index)
        _put_all(batch, ((place, b"") for place in changes.changes), index)
        _put_all(batch, ((key, b"" if is_missing else None) for key, is_missing in changes.missing.items()), missing)
        _put_all(batch, ((name.encode(), content) for name, content in changes.documents.items()), None)
        if changes.whole is not None:
            _put_all(batch, [(_HALF.encode(), None if changes.whole else b"1")], None)
        return batch


def _put_all(batch: WriteBatch, pairs: Iterable[tuple[bytes, bytes | None]], family: ColumnFamily | None) -> None:
    for key, value in pairs:
        if value is None:
            batch.delete(key, family)
        else:
            batch.put(key, value, family)


def _live(family: Rdict, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values in [start, end) as of the call: in raw mode both are bytes, which the stubs cannot say."""
    pairs = cast(Iterator[tuple[bytes, bytes]], family.items(from_key=start))
    return takewhile(lambda pair: pair[0] < end, pairs)


def _database_options(cache: Cache) -> Options:
    options = _family_options(cache)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_max_total_wal_size(_WAL_BYTES)
    options.set_db_write_buffer_size(_ALL_WRITE_BUFFERS_BYTES)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(4)
    options.set_max_open_files(512)
    return options


def _family_options(cache: Cache) -> Options:
    options = Options(raw_mode=True)
    blocks = BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_bloom_filter(10, False)
    blocks.set_cache_index_and_filter_blocks(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_compression_type(DBCompressionType.lz4())
    return options


def _store_error(error: Exception, folder: Path) -> StoreError:
    text = str(error)
    if "lock" in text.lower():
        return StoreError("another process holds it", where=str(folder), mend="stop the other `walbus bootstrap`")
    return StoreError(
        f"RocksDB: {text}", where=str(folder), mend="free the disk, or remove the folder: it is seeded again"
    )
