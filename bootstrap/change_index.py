"""The change index: which keys changed, by seq, in pages. Pure.

    key of a page = space (8) | the seq of its last place, or a later one (8, big-endian)
    page          = places in the order of their seqs (`walbus.native.folding` has their form)

One batch of events adds a few pages, not an item for each change: what the store does for an item costs as much as for
an entry, so an index of single places would halve the applier. Pages of one space never overlap, for a batch's seqs lie
behind those of the batch before; so the first page whose key is not below a seq is where the places from it on begin.
Two places with the same seq (a key change has an old key and a new one) stand in one page.

A key that changes again leaves its earlier place behind: a place is *stale* if the entry of its key has another seq.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from walbus.errors import StoreDamaged
from walbus.native import take_places
from walbus.native.folding import PAGE_BYTES, PLACE, SPACE_SIZE

_SEQ = struct.Struct(">Q")

#: Seq of a change, and its key without the space.
Place = tuple[int, bytes]

#: So many places are walked in one go at most, however few keys they are of.
PLACES = 1_000_000


def page_key(space: bytes, seq: int) -> bytes:
    """Where a page lies whose last place has this seq."""
    return space + _SEQ.pack(seq)


def seq_of_page(key: bytes) -> int:
    """The seq in a page's key: no place of the page has a later one."""
    (seq,) = _SEQ.unpack_from(key, SPACE_SIZE)
    return int(seq)


def places_of(page: bytes) -> Iterator[Place]:
    """The places of a page.

    Raises:
        StoreDamaged: it is cut short.
    """
    at, end = 0, len(page)
    while at < end:
        if end - at < PLACE.size:
            raise _damaged()
        seq, length = PLACE.unpack_from(page, at)
        at += PLACE.size + length
        if at > end:
            raise _damaged()
        yield seq, page[at - length : at]


def take(latest: dict[bytes, int], page: bytes, after_seq: int = 0) -> int:
    """Takes the places of a page behind a seq; how many.

    Args:
        latest: gets the last seq of each key, in the order of the seqs.
        page: behind all those that were taken.
        after_seq: what lies at this seq or before is passed over.

    Raises:
        StoreDamaged: it is cut short.
    """
    try:
        return take_places(latest, page, after_seq)
    except ValueError:
        raise _damaged() from None


def latest_of(pages: Iterable[bytes], after_seq: int, keys: int) -> Iterator[tuple[int, list[tuple[bytes, int]]]]:
    """How many places were walked, and of each key among them the last one: (key, seq), by seq.

    Any earlier place of a key is stale. No two places of one seq are parted.

    Args:
        pages: that follow each other.
        after_seq: what lies at this seq or before is passed over.
        keys: that are held, about; places are walked until there are so many, or `PLACES`.

    Raises:
        StoreDamaged: a page is cut short.
    """
    latest: dict[bytes, int] = {}
    walked = 0
    for page in pages:
        if len(latest) >= keys or walked >= PLACES:
            yield walked, list(latest.items())
            latest, walked = {}, 0
        walked += take(latest, page, after_seq)
    if walked:
        yield walked, list(latest.items())


def pages_of(space: bytes, places: Iterable[Place]) -> dict[bytes, bytes]:
    """Pages by key that hold places, which are in the order of their seqs."""
    pages: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    size = last = 0
    for seq, key in places:
        if size >= PAGE_BYTES and seq != last:
            pages[page_key(space, last)] = b"".join(parts)
            parts, size = [], 0
        parts += (PLACE.pack(seq, len(key)), key)
        size += PLACE.size + len(key)
        last = seq
    if parts:
        pages[page_key(space, last)] = b"".join(parts)
    return pages


def _damaged() -> StoreDamaged:
    return StoreDamaged("a page of the change index is cut short")
