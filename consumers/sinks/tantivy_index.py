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
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tantivy

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.tantivy_reading import IndexReading, StoredDocument
from walbus.consumers.sinks.tantivy_waiting import RowDocument, WaitingDocuments, add_row
from walbus.keys import key_texts

STATE_ID, LAYOUTS_ID = "walbus/state", "walbus/layouts"
_MAX = (1 << 63) - 1
_Columns = dict[str, msgspec.Raw]
_columns = msgspec.json.Decoder(_Columns)


class Version(NamedTuple):
    """What a row's document says of it beside its columns: table, seq, and the generation that wrote it."""

    table: str
    seq: int
    mark: int


class IndexedRow(NamedTuple):
    """One document: a row, its version, and the generation that wrote it."""

    table: str
    seq: int
    mark: int
    source: bytes

    def columns(self) -> _Columns:
        """The row's columns, each as the JSON that it is."""
        return _columns.decode(self.source)

    @property
    def is_readable(self) -> bool:
        """Whether its columns are there: somebody may have written the document."""
        return columns_of(self.source) is not None


def columns_of(source: bytes) -> _Columns | None:
    """The columns that a document's `_source` has; None if it is none of a row."""
    try:
        return _columns.decode(source)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def is_row(document: StoredDocument, table: str) -> bool:
    """Whether `RowIndex.delete_rows` deletes it, as all that the sink has written of a table."""
    versions = (document.seq, document.mark)
    return bool(document.name) and document.tables == (table,) and all(v is not None and v < _MAX for v in versions)


def document_id(table: str, key: bytes) -> str:
    """The name of a row's document."""
    texts = key_texts(key)
    return id_prefix(table) + (_escaped(texts[0]) if len(texts) == 1 else "/".join(map(_escaped, texts)))


def keyless_id(table: str, seq: int) -> str:
    """The name of the document of a row without a key: it is only ever added."""
    return f"{id_prefix(table)}#{seq}"


def table_of(row_id: str) -> str:
    """The table of a document by its name."""
    return _unescaped(row_id.partition("/")[0])


def renamed_id(row_id: str, table: str) -> str:
    """The name that a document has once its table is called otherwise."""
    return id_prefix(table) + row_id.partition("/")[2]


def texts_of(columns: Mapping[str, object]) -> list[str]:
    """The values of a row that are texts, which a search without a field looks in."""
    plain = [msgspec.json.decode(v) if type(v) is msgspec.Raw and _is_text(v) else v for v in columns.values()]
    return [value for value in plain if type(value) is str]


def _is_text(json: msgspec.Raw) -> bool:
    return bytes(json).lstrip(b" \t\r\n").startswith(b'"')


@lru_cache(1_000)
def id_prefix(table: str) -> str:
    """What the names of a table's documents begin with."""
    return f"{_escaped(table)}/"


def key_of(row_id: str, table: str) -> tuple[str, ...] | None:
    """The key's texts in the name of a table's document; None if it is no such name."""
    head, *parts = row_id.split("/")
    key = tuple(map(_unescaped, parts))
    return key if key and head == _escaped(table) and "/".join(map(_escaped, (table, *key))) == row_id else None


def _escaped(part: str) -> str:
    if "/" not in part and "%" not in part:
        return part
    return part.replace("%", "%25").replace("/", "%2F")


def _unescaped(part: str) -> str:
    return part.replace("%2F", "/").replace("%25", "%")


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
        return self._read(hits[0][1]) if hits else None

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

    def _read(self, address: tantivy.DocAddress) -> IndexedRow:
        document = self._searcher.doc(address)
        table, seq, mark = (document.get_first(name) for name in ("_table", "_seq", "_mark"))
        return IndexedRow(table or "", seq or 0, mark or 0, bytes(document.get_first("_source") or b""))

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

    def put(self, row_id: str, row: IndexedRow, texts: list[str]) -> None:
        """Replaces the document with a name."""
        self._waiting.put(_document(row_id, row, texts))
        if self._waiting.are_many:
            self.flush()

    def add(self, row_id: str, row: IndexedRow, texts: list[str]) -> None:
        """Adds a document, of whose name there is none that is not deleted."""
        self.flush()
        add_row(self._writer, _document(row_id, row, texts))

    def delete(self, row_id: str) -> None:
        """Deletes the document with a name."""
        self._waiting.delete(row_id)
        if self._waiting.are_many:
            self.flush()

    def flush(self) -> None:
        """Has no document wait any longer."""
        self._waiting.write(self._writer, self._searcher.num_docs)

    def delete_rows(self, table: str) -> None:
        """Deletes a table's committed documents that have a name and a version, all at once: `is_row` tells which."""
        named = tantivy.Query.regex_query(self._schema, "_id", r"[\s\S]*")
        versions = [self._range(field, _MAX) for field in ("_seq", "_mark")]
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


def _document(row_id: str, row: IndexedRow, texts: list[str]) -> RowDocument:
    return RowDocument(row_id, row.table, row.seq, row.mark, row.source, msgspec.Raw(row.source), texts)


def _below(field: str, bound: int) -> tuple[str, int]:
    return field, min(bound, _MAX)
