"""The log's changes folded, in Python. Pure; `walbus.native.folding` says what it does, `fold.pxi` is its twin in C."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from walbus.errors import DamagedRecord
from walbus.native.folding import ENTRY_HEADER, MOVED, PAGE_BYTES, PLACE, SPACE_SIZE, TOMBSTONE, Unfilled
from walbus.position import Position
from walbus.records import Kind, Op, RawChange, RecordHeader, body_of, iter_changes, read_header

# As numbers, since enums are slow where each change asks.
_TRANSACTION, _PROGRESS = int(Kind.TRANSACTION), int(Kind.PROGRESS)
_INSERT, _DELETE, _TRUNCATE = int(Op.INSERT), int(Op.DELETE), int(Op.TRUNCATE)
_UNTOUCHED = object()


class Fold:
    """See `walbus.native.folding.NewFold` and `Fold`."""

    def __init__(self, spaces: Mapping[int, bytes], entries: MutableMapping[bytes, Any]) -> None:
        self.xids: set[int] = set()
        self._spaces = spaces
        self._bits = 0
        for oid in spaces:
            self._bits |= 1 << oid % 64
        self._entries = entries
        self._counts: dict[int, int] = {}

    def take(self, records: Sequence[bytes], at: int, done: Position) -> int:
        """See the interface."""
        for index in range(at, len(records)):
            header = read_header(records[index])
            if header.length != len(records[index]):
                raise DamagedRecord(f"a record of {header.length} bytes lies in {len(records[index])} bytes")
            if header.epoch != done.epoch:
                return index
            if header.kind == _TRANSACTION:
                if header.first <= done or not self._taken(records[index], header):
                    return index
                done = header.last
            elif header.kind != _PROGRESS:
                return index
        return len(records)

    def counts(self) -> dict[int, int]:
        """See the interface."""
        counts, self._counts = self._counts, {}
        return counts

    def _taken(self, record: bytes, header: RecordHeader) -> bool:
        if header.tables & self._bits:
            changes = [
                change
                for change in iter_changes(body_of(record, header))
                if change.table in self._spaces and 0 < change.op <= _TRUNCATE
            ]
            if not all(map(_plain, changes)):
                return False
            for change in changes:
                self._fold(change, header.first_seq + change.seq_delta, header.xid)
        self.xids.add(header.xid)
        return True

    def _fold(self, change: RawChange, seq: int, xid: int) -> None:
        oid = change.table
        space = self._spaces[oid]
        key = source = space + (change.key or b"")
        if change.op == _DELETE:
            self._counts[oid] = self._counts.get(oid, 0) - 1
            self._put(key, ENTRY_HEADER.pack(TOMBSTONE, seq, change.schema_id, xid, 0))
            return
        self._counts[oid] = self._counts.get(oid, 0) + (change.op == _INSERT)
        moved = change.old_key is not None and change.old_key != change.key
        if moved:
            source = space + (change.old_key or b"")
        before = self._entries.get(source, _UNTOUCHED) if change.unchanged else None
        if moved:
            self._put(source, ENTRY_HEADER.pack(TOMBSTONE, seq, change.schema_id, xid, 0))
        flags = MOVED if moved and change.unchanged else 0
        head = ENTRY_HEADER.pack(flags, seq, change.schema_id, xid, len(change.unchanged))
        packed = head + change.unchanged + (change.after or b"")
        self._put(key, _unfilled(packed, source, before) if change.unchanged else packed)

    def _put(self, key: bytes, entry: bytes | Unfilled) -> None:
        self._entries.pop(key, None)
        self._entries[key] = entry


def pack_pages(entries: Mapping[bytes, bytes | None]) -> list[tuple[bytes, bytes]]:
    """See `walbus.native.folding.PackPages`."""
    pages: list[tuple[bytes, bytes]] = []
    writers: dict[bytes, _Page] = {}
    for key, entry in entries.items():
        if entry is None:
            continue
        if len(key) < SPACE_SIZE or len(entry) < ENTRY_HEADER.size:
            raise ValueError("this is no entry of a store")
        space = key[:SPACE_SIZE]
        page = writers.get(space)
        if page is None:
            page = writers[space] = _Page(space)
        seq = ENTRY_HEADER.unpack_from(entry)[1]
        if page.size >= PAGE_BYTES and seq != page.seq:
            pages.append(page.closed())
        page.add(seq, key[SPACE_SIZE:])
    return pages + [page.closed() for page in writers.values()]


def in_key_order(entries: Mapping[bytes, bytes | None]) -> list[tuple[bytes, bytes | None]]:
    """See `walbus.native.folding.InKeyOrder`."""
    return [(key, entries[key]) for key in sorted(entries)]


class _Page:
    """Places of one space, until it is closed and begins again."""

    def __init__(self, space: bytes) -> None:
        self._space = space
        self._parts: list[bytes] = []
        self.size = 0
        self.seq = 0  # of the last place

    def add(self, seq: int, key: bytes) -> None:
        self._parts += (PLACE.pack(seq, len(key)), key)
        self.size += PLACE.size + len(key)
        self.seq = seq

    def closed(self) -> tuple[bytes, bytes]:
        content = b"".join(self._parts)
        self._parts, self.size = [], 0
        return self._space + self.seq.to_bytes(8, "big"), content


def _plain(change: RawChange) -> bool:
    """Whether the change can be folded without its owner."""
    return change.op != _TRUNCATE and change.key is not None and (change.op == _DELETE or change.after is not None)


def _unfilled(packed: bytes, source: bytes, before: object) -> Unfilled:
    """Refers to where the values are: the same as the entry before does, if it lacks the same ones."""
    if before is _UNTOUCHED:
        return packed, source, None
    if before is None:
        return packed, source, b""
    if isinstance(before, tuple) and _lacks_the_same(packed, before[0]):
        return packed, before[1], before[2]
    return packed, source, before


def _lacks_the_same(packed: bytes, before: bytes) -> bool:
    flags, _, schema_id, _, length = ENTRY_HEADER.unpack_from(packed)
    flags_before, _, schema_before, _, length_before = ENTRY_HEADER.unpack_from(before)
    if flags or flags_before or schema_id != schema_before or length != length_before:
        return False
    start, end = ENTRY_HEADER.size, ENTRY_HEADER.size + length
    return packed[start:end] == before[start:end]
