"""What the store keeps for one key: an `Entry`, and its bytes.

    entry = flags (1) | seq (8) | schema id (4) | origin number (8) | length of missing (2) | missing | row

Little-endian. The origin number is the xid of an event, or the number of a chunk's snapshot (the snapshots themselves
are documents of the seeding, dropped when it ends).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from walbus.bootstrap.visibility import SETTLED, Snapshot
from walbus.errors import StoreDamaged
from walbus.native.folding import ENTRY_HEADER, FROM_SNAPSHOT, MOVED, TOMBSTONE

_HEADER = ENTRY_HEADER


@dataclass(frozen=True, slots=True)
class FromEvent:
    """The entry is what a transaction of the log made of it.

    Attributes:
        xid: its top-level xid, 64 bits.
    """

    xid: int


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    """The entry's row is what a chunk's snapshot saw.

    Attributes:
        number: under which the store keeps the snapshot, unique in a table's generation.
        snapshot: which transactions the row already holds.
    """

    number: int
    snapshot: Snapshot


Origin = FromEvent | FromSnapshot


@dataclass(frozen=True, slots=True)
class Entry:
    """The latest known state of one key.

    Attributes:
        seq: its version; of two states of one key the later has the larger seq.
        schema_id: layout of `row` (of a tombstone: of the delete).
        row: Avro bytes; None is a tombstone, which is kept because the delete may be later than a chunk's row.
        origin: where the state is from.
        missing: bitmap of columns whose TOASTed value has not been seen; empty when the row is whole.
        moved: whether `missing` came with a key change. The values then belong to the row as it was under another
            key, and a chunk's row of this key must not fill them.
    """

    seq: int
    schema_id: int
    row: bytes | None
    origin: Origin
    missing: bytes = b""
    moved: bool = False


def pack_entry(entry: Entry) -> bytes:
    """The entry as the store holds it."""
    origin = entry.origin
    flags = TOMBSTONE if entry.row is None else 0
    if isinstance(origin, FromSnapshot):
        flags |= FROM_SNAPSHOT
        number = origin.number
    else:
        number = origin.xid
    if entry.moved:
        flags |= MOVED
    missing = entry.missing
    return _HEADER.pack(flags, entry.seq, entry.schema_id, number, len(missing)) + missing + (entry.row or b"")


def pack_prefix(seq: int, schema_id: int, origin: FromSnapshot) -> bytes:
    """What stands before the row in every whole entry with these parts: prefix + row is the packed entry."""
    return _HEADER.pack(FROM_SNAPSHOT, seq, schema_id, origin.number, 0)


def unpack_entry(value: bytes, snapshots: Mapping[int, Snapshot]) -> Entry:
    """The inverse of `pack_entry`.

    Args:
        value: the stored bytes.
        snapshots: those of the table's running seeding, by number; any other number has settled.

    Raises:
        StoreDamaged: the bytes are no entry.
    """
    try:
        flags, seq, schema_id, number, length = _HEADER.unpack_from(value)
    except struct.error:
        raise StoreDamaged(f"an entry of {len(value)} bytes is cut short") from None
    start = _HEADER.size + length
    origin: Origin = (
        FromSnapshot(number, snapshots.get(number, SETTLED)) if flags & FROM_SNAPSHOT else FromEvent(number)
    )
    row = None if flags & TOMBSTONE else value[start:]
    return Entry(seq, schema_id, row, origin, value[_HEADER.size : start], bool(flags & MOVED))


def seq_of(value: bytes) -> int:
    """The seq of a stored entry."""
    seq: int = _HEADER.unpack_from(value)[1]
    return seq


def is_tombstone(value: bytes) -> bool:
    """Whether a stored entry says that its key is gone."""
    return bool(value[0] & TOMBSTONE)


def live_row(value: bytes) -> tuple[int, int, bytes] | None:
    """Seq, schema id and row of a stored entry, None for a tombstone: all that serving needs, without the rest."""
    flags, seq, schema_id, _, length = _HEADER.unpack_from(value)
    if flags & TOMBSTONE:
        return None
    return seq, schema_id, value[_HEADER.size + length :]


def served_version(value: bytes) -> tuple[int, int, bytes | None]:
    """Seq, schema id and row of a stored entry; the row of a tombstone is None."""
    flags, seq, schema_id, _, length = _HEADER.unpack_from(value)
    return seq, schema_id, None if flags & TOMBSTONE else value[_HEADER.size + length :]
