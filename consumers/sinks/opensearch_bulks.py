"""What goes into a `_bulk`, and what a server answers to that, to `_mget` and to a search. No connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from walbus.events import Change

_encoder = msgspec.json.Encoder()
_BULK_DOCUMENTS = 1_000
_BULK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document is: its index, its id, and its routing if the index has one."""

    index: str
    id: str
    routing: str | None = None

    def told(self) -> dict[str, str]:
        """For a request."""
        place = {"_index": self.index, "_id": self.id}
        return place if self.routing is None else place | {"routing": self.routing}


@dataclass(slots=True)
class Write:
    """One document to be indexed, or deleted.

    Attributes:
        place: of the document.
        alias: that its index is written by; None: by its own name.
        version: below or at the stored one, the write changes nothing.
        source: the document as JSON; None: deleted.
        even: whether it applies at the stored version too.
        lacks: whether a value of the document is missing.
        change: that it comes from, for errors; None: a document that is moved, or swept.
    """

    place: Place
    alias: str | None
    version: int
    source: bytes | None
    even: bool = False
    lacks: bool = False
    change: Change | None = None

    def lines(self) -> bytes:
        """Its part of the body of a `_bulk`.

        An alias must be one: an index that went away is then an error, and not made anew with whatever mapping. (Of a
        delete a server does not ask that: it is seen by the index that it was done in.)
        """
        head: dict[str, object] = {**self.place.told(), "version": self.version}
        head["version_type"] = "external_gte" if self.even else "external"
        if self.alias is not None:
            head["_index"] = self.alias
        if self.source is None:
            return _encoder.encode({"delete": head}) + b"\n"
        if self.alias is not None:
            head["require_alias"] = True
        return b"%b\n%b\n" % (_encoder.encode({"index": head}), self.source)


class Found(msgspec.Struct, rename={"id": "_id", "version": "_version", "source": "_source", "routing": "_routing"}):
    """A document as it is stored; its source is `UNREADABLE` where nobody but the server makes sense of it."""

    id: str
    version: int = 0
    source: msgspec.Raw = msgspec.Raw(b"{}")
    routing: str | None = None
    found: bool = True
    error: dict[str, Any] | None = None


class BulkError(msgspec.Struct):
    """What a server says of a request, or of one write, that it did not take."""

    type: str = ""
    reason: str | None = ""


class BulkItem(msgspec.Struct, rename={"index": "_index"}):
    """What became of one write."""

    status: int
    error: BulkError | None = None
    index: str = ""  #: of a delete, where it was done


class _Items(msgspec.Struct):
    items: list[dict[str, BulkItem]] = []


class _Hits(msgspec.Struct):
    hits: list[Found]


class Shards(msgspec.Struct):
    """How many shards had their part in an answer, and how many should have had and had not."""

    failed: int = 0


class _Answered(msgspec.Struct, rename={"shards": "_shards"}):
    shards: Shards


class Page(msgspec.Struct, rename={"scroll_id": "_scroll_id", "shards": "_shards"}):
    """A page of what a search found."""

    scroll_id: str
    shards: Shards
    hits: _Hits


class _Documents(msgspec.Struct):
    docs: list[Found]


#: What the readers below raise of bytes that they make no sense of: one may be nested deeper than they go.
NO_SENSE: Final = (ValueError, RecursionError)

#: Servers take, and give back as they came, documents that are no JSON to others: with half of a sign (an escaped
#: surrogate alone), bytes that are no UTF-8, comments, `NaN`, or a thousand levels.
UNREADABLE: Final = msgspec.Raw(b"")

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(_Items)
_page = msgspec.json.Decoder(Page)
_documents = msgspec.json.Decoder(_Documents)
_answered = msgspec.json.Decoder(_Answered)


def fields_of(source: bytes | msgspec.Raw) -> dict[str, msgspec.Raw] | None:
    """The fields of a document; None where nobody but the server makes sense of it."""
    try:
        return _fields.decode(source)
    except NO_SENSE:
        return None


def bulk_items(body: bytes) -> list[BulkItem]:
    """What became of each write of a bulk, in its order."""
    return [item for wrapped in _items.decode(body).items for item in wrapped.values()]


def documents_of(body: bytes) -> list[Found]:
    """The documents of an `_mget`, in the order in which they were asked for."""
    return _documents.decode(body).docs


def shards_of(body: bytes) -> Shards:
    """The shards of a refresh."""
    return _answered.decode(body).shards


def page_of(body: bytes) -> Page:
    """A page of a search."""
    return _page.decode(body)


def bulks_of(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """The writes, in as many bulks as their number and size take."""
    bulk: list[Write] = []
    size = 0
    for write in writes:
        bulk.append(write)
        size += len(write.source or b"")
        if len(bulk) >= _BULK_DOCUMENTS or size >= _BULK_BYTES:
            yield bulk
            bulk, size = [], 0
    if bulk:
        yield bulk
