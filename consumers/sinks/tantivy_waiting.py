"""Documents that wait to be written to a tantivy index together, since many at once cost less than each by itself.

A document goes to tantivy as one JSON text with all of its fields, which one call reads: a call for each field takes
longer than what is written. Names are deleted before documents of these names are added, many of them by one query. In
that a name is a fraction of the work that its own deletion is; the query as such is as much as a hundred of these, and
it looks through a bit for each document of the index, so that of a large one there must be more names.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import msgspec
import tantivy

_MOST = 5_000  # names, as many as a batch of the sink has changes
_MOST_BYTES = 4 << 20
_QUERY_FROM = 300  # names
_DOCUMENTS_A_NAME = 50_000  # that a query looks through while a name is deleted by itself


class RowDocument(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={"name": "_id", "table": "_table", "seq": "_seq", "mark": "_mark", "source": "_source"},
):
    """A row's document: its fields as they are called in the index (`tantivy_index`); `source` as Base64, in JSON."""

    name: str
    table: str
    seq: int
    mark: int
    source: bytes
    row: msgspec.Raw
    text: list[str]


_encode = msgspec.json.Encoder().encode


class WaitingDocuments:
    """What is to be done to names, the last word for each. Methods raise ValueError as tantivy does.

    Args:
        schema: of the index.
    """

    def __init__(self, schema: tantivy.Schema) -> None:
        self._schema = schema
        self._documents: dict[str, RowDocument | None] = {}  # by name; None: deleted
        self._size = 0  # bytes of rows, those replaced included

    @property
    def are_many(self) -> bool:
        """Whether they are not to wait for more."""
        return len(self._documents) >= _MOST or self._size >= _MOST_BYTES

    def put(self, document: RowDocument) -> None:
        """One that replaces what has its name."""
        self._documents[document.name] = document
        self._size += len(document.source)

    def delete(self, name: str) -> None:
        """Nothing is to have this name."""
        self._documents[name] = None

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
        self._delete(writer, waiting, documents)
        for document in waiting.values():
            if document is not None:
                add_row(writer, document)

    def _delete(self, writer: tantivy.IndexWriter, names: Collection[str], documents: int) -> None:
        if len(names) >= _QUERY_FROM + documents // _DOCUMENTS_A_NAME:
            writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema, "_id", list(names)))
            return
        for name in names:
            writer.delete_documents_by_term("_id", name)


def add_row(writer: tantivy.IndexWriter, document: RowDocument) -> None:
    """Adds a document at once; raises as `WaitingDocuments`."""
    with suppress(ValueError):  # which has the row's first words in it; and a row may be nested a level deeper
        writer.add_json(_encode(document).decode())
        return
    _add_by_field(writer, document)


def _add_by_field(writer: tantivy.IndexWriter, row: RowDocument) -> None:
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


__all__ = ["RowDocument", "WaitingDocuments", "add_row"]
