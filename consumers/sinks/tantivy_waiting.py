"""Documents that wait to be written to a tantivy index together, since many at once cost less than each by itself.

A document goes to tantivy as one JSON text with all of its fields, which one call reads: a call for each field takes
longer than what is written. Names are deleted before documents of these names are added, many of them by one query. In
that a name is a fraction of the work that its own deletion is; the query as such is as much as a hundred of these, and
it looks through a bit for each document of the index, so that of a large one there must be more names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

import msgspec
import tantivy

from walbus.consumers.sinks.tantivy_documents import IndexedRow

_MOST = 5_000  # names, as many as a batch of the sink has changes
_MOST_BYTES = 4 << 20
_WAIT_FOR = 3  # times as many names as are worth a query: tantivy writes documents while others are still gathered
_QUERY_FROM = 300  # names
_DOCUMENTS_A_NAME = 50_000  # that a query looks through while a name is deleted by itself


_encode = msgspec.json.Encoder().encode


class WaitingDocuments:
    """What is to be done to names, the last word for each. Methods raise ValueError as tantivy does.

    Args:
        schema: of the index.
    """

    def __init__(self, schema: tantivy.Schema) -> None:
        self._schema = schema
        self._documents: dict[str, IndexedRow | None] = {}  # by name; None: deleted
        self._size = 0  # bytes of rows, those replaced included
        self._most = _WAIT_FOR * _QUERY_FROM

    def put(self, document: IndexedRow) -> bool:
        """One that replaces what has its name; whether they are so many that they are not to wait for more."""
        self._documents[document.name] = document
        self._size += len(document.source)
        return len(self._documents) >= self._most or self._size >= _MOST_BYTES

    def put_all(self, documents: Mapping[str, IndexedRow]) -> bool:
        """As `put`, of each by its name."""
        self._documents.update(documents)
        self._size += sum([len(document.source) for document in documents.values()])
        return len(self._documents) >= self._most or self._size >= _MOST_BYTES

    def delete(self, name: str) -> bool:
        """Nothing is to have this name; as `put`."""
        self._documents[name] = None
        return len(self._documents) >= self._most

    def clear(self) -> None:
        """Forgets all of it."""
        self._documents = {}
        self._size = 0

    def write(self, writer: tantivy.IndexWriter, documents: int) -> None:
        """Hands all of it to the index's writer; none waits then, even where tantivy refuses one.

        Args:
            writer: of the index.
            documents: that the index has, about.
        """
        waiting = self._documents
        if not waiting:
            return
        self.clear()
        query_from = _QUERY_FROM + documents // _DOCUMENTS_A_NAME
        self._most = min(_MOST, _WAIT_FOR * query_from)
        self._delete(writer, waiting, query_from)
        for document in waiting.values():
            if document is not None:
                add_row(writer, document)

    def _delete(self, writer: tantivy.IndexWriter, names: Collection[str], query_from: int) -> None:
        if len(names) >= query_from:
            writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema, "_id", list(names)))
            return
        for name in names:
            writer.delete_documents_by_term("_id", name)


def add_row(writer: tantivy.IndexWriter, document: IndexedRow) -> None:
    """Adds a document at once; raises as `WaitingDocuments`."""
    with suppress(ValueError):  # which has the row's first words in it; and a row may be nested a level deeper
        writer.add_json(_encode(document).decode())
        return
    _add_by_field(writer, document)


def _add_by_field(writer: tantivy.IndexWriter, row: IndexedRow) -> None:
    document = tantivy.Document()
    document.add_text("_id", row.name)
    document.add_text("_table", row.table)
    document.add_unsigned("_seq", row.seq)
    document.add_unsigned("_mark", row.mark)
    document.add_bytes("_source", row.source)
    document.add_json("row", row.source.decode())
    for text in row.text:
        document.add_text("text", text)
    writer.add_document(document)


__all__ = ["WaitingDocuments", "add_row"]
