"""The tantivy index of the search sink: its fields, its documents, and reading them back. No knowledge of changes.

    _id      the document's name: `schema.table/key`, the key's columns separated by `/`
    _table   `schema.table`
    _seq     the row's version
    _mark    the generation that wrote it
    _source  the row as JSON (stored, not indexed): what a search gives back
    text     all text values of the row, analysed: what a search without a field looks in
    row      the row as a JSON field, analysed: `row.title:word`

Two more documents, in no table, hold what the sink must know after a restart: `walbus/state` (the checkpoint), and
`walbus/layouts`. They are replaced in the same commit as the rows, so that all are of one moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tantivy

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.tantivy_documents import MAX_VERSION, IndexedRow, id_prefix
from walbus.consumers.sinks.tantivy_reading import IndexReading, StoredDocument
from walbus.consumers.sinks.tantivy_waiting import WaitingDocuments, add_row

STATE_ID, LAYOUTS_ID = "walbus/state", "walbus/layouts"


def index_schema() -> tantivy.Schema:
    """The fields."""
    builder = tantivy.SchemaBuilder()
    for name in ("_id", "_table"):
        builder.add_text_field(name, stored=True, tokenizer_name="raw", index_option="basic")
    for name in ("_seq", "_mark"):
        builder.add_unsigned_field(name, stored=True, indexed=True, fast=True)
    builder.add_bytes_field("_source", stored=True, indexed=False)
    builder.add_text_field("text", stored=False)
    builder.add_json_field("row", stored=False)
    return builder.build()


class IndexView:
    """An index as it was committed last, whoever writes it: `reload` looks for later commits.

    Args:
        index: tantivy's.
        folder: it lies in.
    """

    def __init__(self, index: tantivy.Index, folder: Path) -> None:
        self._index, self._folder, self._schema = index, folder, index.schema
        self.reload()

    @classmethod
    def open(cls, folder: Path) -> IndexView | None:
        """An index that is there; None if it is none yet."""
        return cls(tantivy.Index.open(str(folder)), folder) if tantivy.Index.exists(str(folder)) else None

    def reload(self) -> None:
        """Takes in what was committed meanwhile."""
        self._index.reload()
        self._searcher = self._index.searcher()

    def find(self, row_id: str) -> IndexedRow | None:
        """The committed document with a name."""
        hits = self._searcher.search(self._term("_id", row_id), 1, count=False).hits
        return self._read(row_id, hits[0][1]) if hits else None

    def version(self, row_id: str) -> tuple[int, int] | None:
        """Seq and mark of the committed document with a name."""
        hits = self._searcher.search(self._term("_id", row_id), 1, count=False).hits
        if not hits:
            return None
        address = [hits[0][1]]
        seqs, marks = (self._searcher.fast_field_values(name, address) for name in ("_seq", "_mark"))
        return int(seqs[0] or 0), int(marks[0] or 0)

    def highest_seq(self) -> int:
        """No committed document has a seq above this."""
        hits = self._searcher.search(tantivy.Query.all_query(), 1, count=False, order_by_field="_seq").hits
        return int(self._searcher.fast_field_values("_seq", [hits[0][1]])[0] or 0) if hits else 0

    def documents_of(self, table: str) -> Iterator[list[StoredDocument]]:
        """All committed documents of a table; see `IndexReading.documents`."""
        return IndexReading(self._searcher, self._schema, str(self._folder)).documents(table, id_prefix(table))

    def has(self, table: str) -> bool:
        """Whether there is a committed document of a table."""
        return bool(self._searcher.search(self._term("_table", table), 1, count=False).hits)

    def document(self, name: str) -> dict[str, Any]:
        """One of the sink's own documents; empty in a new index."""
        found = self.find(name)
        return {} if found is None else msgspec.json.decode(found.source, type=dict[str, Any])

    def _read(self, row_id: str, address: tantivy.DocAddress) -> IndexedRow:
        document = self._searcher.doc(address)
        table, seq, mark = (document.get_first(name) for name in ("_table", "_seq", "_mark"))
        source = bytes(document.get_first("_source") or b"")
        return IndexedRow(row_id, table or "", seq or 0, mark or 0, source, msgspec.Raw(source), ())

    def _term(self, field: str, value: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, value, "basic")


class RowIndex(IndexView):
    """An index and its one writer. What is put or deleted is seen by `find` after the next commit.

    Documents that are put wait for others until `flush`, or whatever else comes; so what tantivy refuses of them it may
    refuse then.

    Args:
        folder: it lies in; an index is made in one that has none.
        heap_bytes: memory of the writer.

    Raises:
        ValueError: tantivy cannot open it (its text says why), or another process writes it.
    """

    def __init__(self, folder: Path, heap_bytes: int) -> None:
        super().__init__(tantivy.Index(index_schema(), path=str(folder)), folder)
        self._waiting = WaitingDocuments(self._schema)
        self._heap_bytes = heap_bytes
        self._writer = self._index.writer(heap_bytes, 1)
        self.reload()  # nobody else commits from here on

    def put(self, row: IndexedRow) -> None:
        """Replaces the document with its name."""
        if self._waiting.put(row):
            self.flush()

    def put_all(self, rows: Mapping[str, IndexedRow]) -> None:
        """As `put`, of each row by its name."""
        if self._waiting.put_all(rows):
            self.flush()

    def add(self, row: IndexedRow) -> None:
        """Adds a document, of whose name there is none that is not deleted."""
        self.flush()
        add_row(self._writer, row)

    def delete(self, row_id: str) -> None:
        """Deletes the document with a name."""
        if self._waiting.delete(row_id):
            self.flush()

    def flush(self) -> None:
        """Has no document wait any longer."""
        self._waiting.write(self._writer, self._searcher.num_docs)

    def delete_rows(self, table: str) -> None:
        """Deletes a table's committed documents that have a name and a version, all at once: `is_row` tells which."""
        named = tantivy.Query.regex_query(self._schema, "_id", r"[\s\S]*")
        versions = [self._range(field, MAX_VERSION) for field in ("_seq", "_mark")]
        self._delete_where([self._term("_table", table), named, *versions])

    def truncate(self, table: str, seq: int, marks: Marks) -> None:
        """Deletes a table's documents below a version; pending ones too."""
        older = self._any([_below("_seq", seq), _below("_mark", marks.log_generation)])
        self._delete_where([self._term("_table", table), older])

    def sweep(self, table: str, seq: int, marks: Marks) -> None:
        """Deletes a table's documents that this generation did not write and whose version is at most `seq`."""
        old = self._range(*_below("_mark", marks.generation))
        older = self._any([_below("_seq", seq + 1), _below("_mark", marks.log_generation)])
        self._delete_where([self._term("_table", table), old, older])

    def put_document(self, name: str, content: dict[str, object]) -> None:
        """Replaces one of the sink's own documents."""
        self.flush()
        self._writer.delete_documents_by_term("_id", name)
        document = tantivy.Document()
        document.add_text("_id", name)
        document.add_bytes("_source", msgspec.json.encode(content))
        self._writer.add_document(document)

    def commit(self) -> None:
        """Makes everything durable, in one act, and visible to searchers that are opened (or reloaded) from now on."""
        self.flush()
        self._writer.commit()
        self.reload()

    def rollback(self) -> None:
        """Forgets everything since the last commit."""
        self._waiting.clear()
        self._writer.rollback()

    def settle(self) -> None:
        """Waits until everything is merged that is to be; behind a commit."""
        self._writer.wait_merging_threads()
        self._writer = self._index.writer(self._heap_bytes, 1)

    def hand_over(self) -> None:
        """Lets the writer's lock go once nothing is merged any more, for that may be another writer's at once."""
        self._writer.wait_merging_threads()
        del self._writer

    def close(self) -> None:
        """Lets the writer's lock go."""
        self._writer.rollback()
        del self._writer

    def leave(self) -> None:
        """As `close`, of an index whose folder may be gone: tantivy panics where it rolls back there."""
        del self._writer

    def _delete_where(self, queries: list[tantivy.Query]) -> None:
        self.flush()
        all_of_them = tantivy.Query.boolean_query([(tantivy.Occur.Must, query) for query in queries])
        self._writer.delete_documents_by_query(all_of_them)

    def _range(self, field: str, upper: int) -> tantivy.Query:
        kind = tantivy.FieldType.Unsigned
        return tantivy.Query.range_query(self._schema, field, kind, 0, upper, include_upper=False)

    def _any(self, ranges: list[tuple[str, int]]) -> tantivy.Query:
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, self._range(*part)) for part in ranges])


def _below(field: str, bound: int) -> tuple[str, int]:
    return field, min(bound, MAX_VERSION)
