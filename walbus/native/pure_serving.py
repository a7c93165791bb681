"""Entries packed as changes, in Python. Pure; `walbus.native.serving` says what it does, `serving.pxi` is it in C."""

from __future__ import annotations

from collections.abc import Sequence

from walbus.native.folding import ENTRY_HEADER, PLACE, SPACE_SIZE, TOMBSTONE
from walbus.native.serving import EntryCursor, Portion
from walbus.records import Op, pack_change

_INSERT, _DELETE = int(Op.INSERT), int(Op.DELETE)


def pack_rows(cursor: EntryCursor, end: bytes, table: int, portion: Portion) -> tuple[bytes, int]:
    """See `walbus.native.serving.PackRows`."""
    body: list[bytes] = []
    size = 0
    for _ in range(portion.entries):
        key = cursor.key()
        if key is None or key >= end or size >= portion.size:
            break
        if len(key) < SPACE_SIZE:
            raise ValueError("this is no entry of a store")
        entry = _checked(cursor.value())
        if not entry[0] & TOMBSTONE:
            body.append(_change(key[SPACE_SIZE:], entry, table))
            size += len(body[-1])
        cursor.next()
    return b"".join(body), len(body)


def pack_versions(
    places: Sequence[tuple[bytes, int]], entries: Sequence[bytes | None], at: int, table: int, size: int
) -> tuple[bytes, int, int]:
    """See `walbus.native.serving.PackVersions`."""
    body: list[bytes] = []
    packed, last = 0, -1
    while at < len(places):
        key, place = places[at]
        if packed >= size and place != last:
            break
        entry = entries[at]
        at += 1
        if entry is not None and ENTRY_HEADER.unpack_from(_checked(entry))[1] == place:
            body.append(_change(key, entry, table))
            packed += len(body[-1])
            last = place
    return b"".join(body), len(body), at


def take_places(places: dict[bytes, int], page: bytes, after_seq: int) -> int:
    """See `walbus.native.serving.TakePlaces`."""
    at, end, taken = 0, len(page), 0
    while at < end:
        if end - at < PLACE.size:
            raise ValueError("a page of the change index is cut short")
        seq, length = PLACE.unpack_from(page, at)
        at += PLACE.size + length
        if at > end:
            raise ValueError("a page of the change index is cut short")
        if seq > after_seq:
            key = page[at - length : at]
            places.pop(key, None)
            places[key] = seq
            taken += 1
    return taken


def _checked(entry: bytes | None) -> bytes:
    """An entry whose parts lie within it."""
    if entry is None or len(entry) < ENTRY_HEADER.size or ENTRY_HEADER.size + _lacking(entry) > len(entry):
        raise ValueError("this is no entry of a store")
    return entry


def _lacking(entry: bytes) -> int:
    length: int = ENTRY_HEADER.unpack_from(entry)[4]
    return length


def _change(key: bytes, entry: bytes, table: int) -> bytes:
    """A checked entry as the change that it is: an insert of its row, or the delete that a tombstone stands for."""
    flags, seq, schema_id, _, lacking = ENTRY_HEADER.unpack_from(entry)
    op, row = (_DELETE, None) if flags & TOMBSTONE else (_INSERT, entry[ENTRY_HEADER.size + lacking :])
    return pack_change(op, table=table, schema_id=schema_id, seq_delta=seq, ordinal_delta=0, key=key, after=row)
