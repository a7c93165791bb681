"""The documents of a tantivy index read back, whatever was done to them, in bounded memory.

A search gives the addresses of all that it finds at once. So documents are taken in the order in which they lie, a
batch at a time, those that were deleted among them; a search for the names of a batch tells which ones live. It finds
documents that have one name together too, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tantivy

from walbus.errors import SinkRefused

_BATCH = 1_000
_BATCH_BYTES = 8 << 20
_Address = tuple[int, int]


class StoredDocument(NamedTuple):
    """What is stored of one document; None where it has no such field.

    Attributes:
        name: its `_id`.
        tables: its `_table`; somebody may have given it several.
        seq, mark: its version.
        source: the row as JSON.
    """

    name: str | None
    tables: tuple[str, ...]
    seq: int | None
    mark: int | None
    source: bytes


class IndexReading:
    """One state of an index. Methods raise ValueError as tantivy does, and SinkRefused where its files disagree."""

    def __init__(self, searcher: tantivy.Searcher, schema: tantivy.Schema, where: str) -> None:
        self._searcher, self._schema, self._where = searcher, schema, where

    def documents(self, table: str, prefix: str) -> Iterator[list[StoredDocument]]:
        """The documents of a table: those that say so, and those whose name begins with `prefix`.

        Yields: documents with one name, which is one document in an index that nobody else has written.
        """
        own = self._term("_table", table)
        left = self._count(own)
        for batch in self._batches(table, prefix):
            places = self._living({stored.name for _, stored in batch if stored.name is not None})
            for address, stored in batch:
                together = places.get(stored.name or "", [])
                if stored.name is None or address not in together:
                    continue
                left -= table in stored.tables
                if address == together[0]:
                    yield [stored, *(self._read(*other) for other in together[1:])]
        if left:
            named = tantivy.Query.regex_query(self._schema, "_id", r"[\s\S]*")
            for one in self._found([(tantivy.Occur.Must, own), (tantivy.Occur.MustNot, named)]):
                left -= 1
                yield [one]
        if left:
            what = "the index's files do not agree with each other"
            mend = "move the folder away and start the consumer, which fills a new index"
            raise SinkRefused(what, where=self._where, mend=mend)

    def _batches(self, table: str, prefix: str) -> Iterator[list[tuple[_Address, StoredDocument]]]:
        batch, size = [], 0
        for address, stored in self._all():
            if table in stored.tables or (stored.name or "").startswith(prefix):
                batch.append((address, stored))
                size += len(stored.source)
            if len(batch) == _BATCH or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        yield batch

    def _all(self) -> Iterator[tuple[_Address, StoredDocument]]:
        """Every document, deleted or not, in the order of their addresses."""
        for segment in range(self._searcher.num_segments):
            number = 0
            while True:
                try:
                    stored = self._read(segment, number)
                except ValueError as error:
                    if "Failed to lookup Doc" not in str(error):
                        raise
                    break  # the segment's end, as `documents` checks by the number of documents
                yield (segment, number), stored
                number += 1

    def _living(self, names: set[str]) -> dict[str, list[_Address]]:
        """Where the documents with these names are, in order."""
        query, limit = tantivy.Query.term_set_query(self._schema, "_id", sorted(names)), len(names) + 1
        found = self._searcher.search(query, limit)
        if (count := _counted(found)) > limit:
            found = self._searcher.search(query, count)
        places: dict[str, list[_Address]] = {}
        for _, address in found.hits:
            name = self._searcher.doc(address).get_first("_id")
            places.setdefault(str(name), []).append((address.segment_ord, address.doc))
        return {name: sorted(some) for name, some in places.items()}

    def _found(self, parts: Sequence[tuple[tantivy.Occur, tantivy.Query]]) -> Iterator[StoredDocument]:
        query, offset = tantivy.Query.boolean_query(parts), 0
        while hits := self._searcher.search(query, _BATCH, count=False, offset=offset).hits:
            yield from (self._read(address.segment_ord, address.doc) for _, address in hits)
            offset += len(hits)

    def _read(self, segment: int, number: int) -> StoredDocument:
        document = self._searcher.doc(tantivy.DocAddress(segment, number))
        name, seq, mark, source = (document.get_first(field) for field in ("_id", "_seq", "_mark", "_source"))
        return StoredDocument(name, tuple(document.get_all("_table")), seq, mark, bytes(source or b""))

    def _term(self, field: str, value: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, value, "basic")

    def _count(self, query: tantivy.Query) -> int:
        return _counted(self._searcher.search(query, 1))


def _counted(found: tantivy.SearchResult) -> int:
    """How many documents a search has found."""
    result: Any = found  # the package's types do not have it
    return int(result.count or 0)


__all__ = ["IndexReading", "StoredDocument"]
