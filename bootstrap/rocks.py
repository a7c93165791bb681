"""The store's engine: RocksDB through `rocksdict`, in raw mode (bytes in, bytes out).

One column family each for entries, change index, missing keys, completions and (the default one) documents. All of a
`WriteSet` goes into one WriteBatch, which RocksDB writes to its own write-ahead log before the memtables, so the
families change together. That log is written by each batch and fsynced by `sync` alone (about once a second): the death
of the process loses nothing, a power loss loses the newest batches, always from the end (`point_in_time` recovery stops
at the first gap, across all families). Flushed tables are fsynced before RocksDB forgets the log that fed them.

Bulk goes around all of that, as table files (`rocks_bulk`).

Memory is bounded (`rocks_options`).
"""

from __future__ import annotations

import gc
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import structlog
from rocksdict import Cache, ColumnFamily, Rdict, WriteBatch

from walbus.bootstrap.change_index import page_key, places_of
from walbus.bootstrap.rocks_bulk import Incoming, SortedFile, move_in
from walbus.bootstrap.rocks_errors import Refusals
from walbus.bootstrap.rocks_manifest import ManifestNote
from walbus.bootstrap.rocks_options import CACHE_BYTES, database_options, family_options, scan_options
from walbus.bootstrap.rocks_view import ENTRIES, RocksView, scanned
from walbus.bootstrap.store import Prepared, StoreFigures, WriteSet, end_of
from walbus.errors import StoreDamaged, StoreError, StoreFull
from walbus.native import in_key_order
from walbus.relay.fs import Files, sync_folder

log = structlog.get_logger(__name__)

_FAMILIES = ("entries", "changes", "missing", "completions")
_SEQ = struct.Struct(">Q")  # key of a completion
_HALF = "half"  #: document that exists while the last transaction in the store is not complete


class RocksStore:
    """A `Store` in a folder of this machine; one process at a time (RocksDB locks the folder)."""

    def __init__(self, folder: Path) -> None:
        """Opens the store, made when missing.

        Raises:
            StoreDamaged: files are damaged, or gone.
            StoreFull: the disk has no room.
            StoreError: another process holds the folder, or it cannot be opened.
        """
        _make_durably(folder)
        self._refusals = Refusals(folder)
        if any(folder.glob("*.sst")) and not (folder / "CURRENT").exists():
            raise StoreDamaged("CURRENT is missing beside table files", where=str(folder))
        self._manifest = ManifestNote(folder)
        self._manifest.check()
        self._cache = Cache(CACHE_BYTES)
        families = {name: family_options(self._cache) for name in _FAMILIES}
        with self._refusals.told():
            self._db = Rdict(str(folder), database_options(self._cache), column_families=families)
        self._folder = folder
        self._incoming = Incoming(folder / "incoming", families["entries"])
        self._families: dict[str, Rdict] = {name: self._db.get_column_family(name) for name in _FAMILIES}
        self._handles: dict[str, ColumnFamily] = {name: self._db.get_column_family_handle(name) for name in _FAMILIES}
        self._scan_options = scan_options()
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._before_half: RocksView | None = None
        self._half = self.document(_HALF) is not None
        self._open = True

    def get(self, store_key: bytes) -> bytes | None:
        """See `Store`."""
        with self._refusals.told():
            value: bytes | None = self._families["entries"].get(store_key)
        return value

    def get_many(self, store_keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Store`."""
        if not store_keys:
            return []
        with self._refusals.told():
            values: list[bytes | None] = self._families["entries"].get(list(store_keys))  # type: ignore[assignment]  # Any | None
        return values

    def entries(self, space: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See `Store`."""
        return self._live(self._families["entries"], space, end_of(space))

    def pages(self, space: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """See `Store`."""
        start = after + b"\0" if after else space
        return list(islice(self._live(self._families["changes"], start, end_of(space), limit), limit))

    def changes(self, space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        """See `Store`."""
        pages = self._live(self._families["changes"], page_key(space, after_seq + 1), end_of(space))
        return ((seq, space + key) for _, page in pages for seq, key in places_of(page) if seq > after_seq)

    def missing(self, space: bytes, limit: int) -> list[bytes]:
        """See `Store`."""
        keys = self._live(self._families["missing"], space, end_of(space), limit)
        return [key for key, _ in islice(keys, limit)]

    def completions(self, first_seq: int, last_seq: int) -> Iterator[tuple[int, bytes]]:
        """See `Store`."""
        found = self._live(self._families["completions"], _SEQ.pack(first_seq), _SEQ.pack(last_seq + 1))
        return ((_SEQ.unpack(key)[0], value) for key, value in found)

    def document(self, name: str) -> bytes | None:
        """See `Store`."""
        with self._refusals.told():
            content: bytes | None = self._db.get(name.encode())
        return content

    def documents(self, prefix: str) -> Mapping[str, bytes]:
        """See `Store`."""
        start = prefix.encode()
        return {name.decode(): content for name, content in self._live(self._db, start, start + b"\xff")}

    def write(self, changes: WriteSet) -> None:
        """See `Store`."""
        batch = self._batch(changes)
        with self._lock:
            if changes.whole is False and not self._half:
                self._before_half = self._now()
            with self._refusals.told():
                self._db.write(batch)
            if changes.whole is not None:
                self._half = not changes.whole
            if not self._half:
                self._before_half = None

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> SortedFile:
        """See `Store`."""
        with self._refusals.told():
            return self._incoming.write(entries)

    def ingest(self, prepared: Prepared) -> None:
        """See `Store`."""
        if not isinstance(prepared, SortedFile):
            raise TypeError("prepared by another store")
        try:
            if prepared.count:
                self.sync()
                with self._lock, self._refusals.told():
                    move_in(self._families["entries"], prepared)
        finally:
            prepared.discard()

    def sync(self) -> None:
        """See `Store`."""
        self._refusals.raise_damage()
        with self._syncing, self._refusals.told():
            self._manifest.take()
            self._db.flush_wal(sync=True)

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

    def figures(self) -> StoreFigures:
        """See `Store`."""
        families = [self._db, *self._families.values()]
        cached = self._cache.get_usage()
        with self._refusals.told():
            return StoreFigures(
                bytes=_size_of(self._folder),
                keys=_property([self._families["entries"]], "estimate-num-keys"),
                compaction_bytes=_property(families, "estimate-pending-compaction-bytes"),
                memory_bytes=cached
                + _property(families, "cur-size-all-mem-tables")
                + _property(families, "estimate-table-readers-mem"),
                slowed=_property([self._db], "is-write-stopped") + _property([self._db], "actual-delayed-write-rate")
                > 0,
            )

    def close(self) -> None:
        """See `Store`."""
        if not self._open:
            return
        self._open = False
        try:
            self.sync()
        except StoreFull:
            log.warning("store_closed_on_a_full_disk", folder=str(self._folder))
        finally:
            self._before_half = None
            self._handles.clear()
            for database in (*self._families.values(), self._db):
                with suppress(Exception):  # rocksdict raises it for everything; what could be synced is
                    database.close()
            self._families.clear()
            del self._db
            gc.collect()  # the folder is free once nothing refers to the database any more

    def _now(self) -> RocksView:
        families = self._families
        with self._refusals.told():
            entries, changes = families["entries"], families["changes"]
            scan = entries.iter(self._scan_options)
            return RocksView(self._db.iter(), scan, entries.snapshot(), changes.iter(), self._refusals)

    def _live(self, family: Rdict, start: bytes, end: bytes, most: int = ENTRIES) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in [start, end) as of the call, `most` at a time."""
        with self._refusals.told():
            iterator = family.iter()
        return scanned(iterator, start, end, self._refusals.told, min(most, ENTRIES))

    def _batch(self, changes: WriteSet) -> WriteBatch:
        batch = WriteBatch(raw_mode=True)
        entries, index, missing, completions = (self._handles[name] for name in _FAMILIES)
        for space in changes.cleared:
            for handle in (entries, index, missing):
                batch.delete_range(space, end_of(space), handle)
        _put_all(batch, in_key_order(changes.entries), entries)
        _put_all(batch, changes.pages.items(), index)
        _put_all(batch, ((key, b"" if is_missing else None) for key, is_missing in changes.missing.items()), missing)
        if changes.forgotten is not None:
            batch.delete_range(_SEQ.pack(0), _SEQ.pack(changes.forgotten + 1), completions)
        _put_all(batch, ((_SEQ.pack(seq), row) for seq, row in changes.completions.items()), completions)
        _put_all(batch, ((name.encode(), content) for name, content in changes.documents.items()), None)
        if changes.whole is not None:
            _put_all(batch, [(_HALF.encode(), None if changes.whole else b"1")], None)
        return batch


def _put_all(batch: WriteBatch, pairs: Iterable[tuple[bytes, bytes | None]], family: ColumnFamily | None) -> None:
    batch.set_default_column_family(family)
    for key, value in pairs:
        if value is None:
            del batch[key]
        else:
            batch[key] = value  # quicker than `put` with a family


def _property(families: Sequence[Rdict], name: str) -> int:
    """A property of RocksDB that is a number, over some families."""
    return sum(family.property_int_value(f"rocksdb.{name}") or 0 for family in families)


def _make_durably(folder: Path) -> None:
    """Makes a folder whose name survives a power loss; RocksDB syncs what lies inside alone."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    sync_folder(Files(), folder.parent)


def _size_of(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # compaction removes files at any time
            if file.is_file():
                size += file.stat().st_size
    return size
