"""Documents of a tantivy index as they are written: many at a time, each as one JSON text."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import tantivy

from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import tantivy_under_test
from walbus.consumers.sinks import tantivy as tantivy_sink
from walbus.consumers.sinks import tantivy_waiting
from walbus.consumers.sinks.tantivy_documents import IndexedRow, document_id, document_ids, indexed_row, key_of
from walbus.consumers.sinks.tantivy_index import RowIndex, index_schema
from walbus.consumers.sinks.tantivy_waiting import WaitingDocuments, add_row
from walbus.keys import encode_key, key_texts
from walbus.records import Kind

pytestmark = pytest.mark.one_version

HEAP = 16 << 20
#: Below and above the number from which names are deleted by one query.
COUNTS = pytest.mark.parametrize("count", [20, 900])

ODD: list[dict[str, Any]] = [
    {"id": 1, "title": "Two words", "at": "2026-01-01T00:00:00Z", "none": None, "yes": True},
    {"id": 2**63 - 1, "n": [2**63, 2**64 - 1, -(2**63), 0.1, -0.0, 1e300], "at": "2026-01-01T05:00:00.5+02:00"},
    {"_id": "a/b%c", "row": {"row": {"_seq": 5}}, "text": ["inner", ["deeper"]], "a.b": {"": "empty", "c.d": 1}},
    {'q"\\': 'say "so"', "ü": "é\U0001f600\u2028", "nul": "a\x00b", "\n": "\t"},
    {"long": "word " * 2_000, "term": "x" * 70_000},
    {},
]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[RowIndex]:
    opened = RowIndex(tmp_path, HEAP)
    yield opened
    opened.close()


def row(name: str, seq: int, columns: dict[str, Any] | None = None, mark: int = 1) -> IndexedRow:
    return indexed_row(name, "public.t", seq, mark, {"id": seq} if columns is None else columns)


def held(index: RowIndex, names: list[str]) -> dict[str, int]:
    found = {name: index.find(name) for name in names}
    return {name: one.seq for name, one in found.items() if one is not None}


def written(folder: Path, add: Callable[[tantivy.IndexWriter, IndexedRow], None]) -> tuple[dict[str, bytes], list[Any]]:
    """Words, places, numbers and lengths of the only segment by kind of file, and what is stored."""
    folder.mkdir()
    made = tantivy.Index(index_schema(), path=str(folder))
    writer = made.writer(HEAP, 1)
    for number, columns in enumerate(ODD):
        add(writer, row(f"public.t/{number}", 1, columns))
    writer.commit()
    made.reload()
    searcher = made.searcher()
    stored = [searcher.doc(tantivy.DocAddress(0, number)).to_dict() for number in range(len(ODD))]
    kinds = {".term", ".idx", ".pos", ".fast", ".fieldnorm"}
    return {file.suffix: file.read_bytes() for file in folder.iterdir() if file.suffix in kinds}, stored


def by_field(writer: tantivy.IndexWriter, row: IndexedRow) -> None:
    made = tantivy.Document()
    for name, value in (("_id", row.name), ("_table", row.table), *(("text", text) for text in row.text)):
        made.add_text(name, value)
    made.add_unsigned("_seq", row.seq)
    made.add_unsigned("_mark", row.mark)
    made.add_bytes("_source", row.source)
    made.add_json("row", row.source.decode())
    writer.add_document(made)


def never(*_: object) -> None:
    pytest.fail("tantivy reads the JSON of this document")


def test_a_document_in_json_is_indexed_to_the_byte_as_field_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tantivy_waiting, "_add_by_field", never)
    files, stored = written(tmp_path / "json", add_row)
    assert len(files) == 5
    assert (files, stored) == written(tmp_path / "fields", by_field)


def test_a_row_is_read_as_deep_as_tantivy_reads_it_alone(index: RowIndex) -> None:
    deepest = {"doc": json.loads("[" * 126 + '"found"' + "]" * 126)}
    index.put(row("public.t/1", 1, deepest))
    index.commit()
    assert held(index, ["public.t/1"]) == {"public.t/1": 1}
    with pytest.raises(ValueError, match="recursion") as caught:
        index.put(row("public.t/2", 2, {"doc": json.loads("[" * 127 + '"secret"' + "]" * 127)}))
        index.flush()
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None, "the other error has the document's beginning in it"


@COUNTS
def test_the_last_word_on_a_name_counts(index: RowIndex, count: int) -> None:
    names = [f"public.t/{number}" for number in range(count)]
    for name in names:
        index.put(row(name, 1))
    index.commit()
    for name in names[::2]:
        index.put(row(name, 2))
    index.flush()
    for name in names[::3]:
        index.delete(name)
    for name in names[::5]:
        index.put(row(name, 3))
        index.put(row(name, 4))
    index.commit()
    expected = {name: 4 if n % 5 == 0 else 2 if n % 2 == 0 else 1
                for n, name in enumerate(names) if n % 5 == 0 or n % 3}  # fmt: skip
    assert held(index, names) == expected
    assert [len(together) for together in index.documents_of("public.t")] == [1] * len(expected)


@COUNTS
def test_a_truncate_takes_what_waits_before_it_and_nothing_behind(index: RowIndex, count: int) -> None:
    for number in range(count):
        index.put(row(f"public.t/{number}", 1))
    index.truncate("public.t", 5, MARKS)
    index.put(row("public.t/0", 6))
    index.commit()
    assert held(index, [f"public.t/{number}" for number in range(count)]) == {"public.t/0": 6}


@COUNTS
def test_what_waits_is_rolled_back_too(index: RowIndex, count: int) -> None:
    index.put(row("public.t/0", 1))
    index.commit()
    for number in range(count):
        index.put(row(f"public.t/{number}", 2))
    index.delete("public.t/0")
    index.rollback()
    index.commit()
    assert held(index, [f"public.t/{number}" for number in range(count)]) == {"public.t/0": 1}


@COUNTS
def test_there_is_one_document_of_a_name_behind_a_rollback_and_when_the_index_is_opened_again(
    tmp_path: Path, count: int
) -> None:
    names = [f"public.t/{number}" for number in range(count)]
    for seq in (1, 2):
        with closing(RowIndex(tmp_path, HEAP)) as opened:
            for _ in range(2):
                for name in names:
                    opened.put(row(name, seq))
                opened.flush()
                opened.rollback()
            opened.put_all({name: row(name, seq) for name in names})
            opened.commit()
            assert held(opened, names) == dict.fromkeys(names, seq)
            assert [len(together) for together in opened.documents_of("public.t")] == [1] * count


@pytest.mark.parametrize("together", [False, True])
def test_rows_of_many_bytes_do_not_wait_for_many_others(index: RowIndex, together: bool) -> None:
    text = "word " * 100_000
    tracemalloc.start()
    try:
        for number in range(40):
            large = row(f"public.t/{number}", 1, {"body": text})
            if together:
                index.put_all({large.name: large})
            else:
                index.put(large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    index.commit()
    assert peak < 10 << 20, "some, and not the 20 MB that all of them are"
    assert len(held(index, [f"public.t/{number}" for number in range(40)])) == 40


def test_documents_are_written_while_others_are_still_gathered_and_more_wait_for_a_larger_index() -> None:
    waiting, writer = WaitingDocuments(index_schema()), Mock()

    def gathered() -> int:
        """How many there are when they are not to wait any longer."""
        return next(n for n in itertools.count(1) if waiting.put(row(f"public.t/{n}", 1)))

    counts = []
    for documents in (0, 20_000_000, 10**9, 0):
        counts.append(gathered())
        waiting.write(writer, documents)
        assert writer.add_json.call_count == sum(counts)
    assert counts == [900, 900, 2_100, 5_000]
    waiting.put_all({f"public.t/{n}": row(f"public.t/{n}", 1) for n in range(898)})
    assert not waiting.delete("public.t/898")
    assert waiting.delete("public.t/899")


def test_names_tell_every_key_from_every_other() -> None:
    one, two = [20], [25, 20]
    keys = [
        encode_key([b"7"], one),
        encode_key([b"-7"], one),
        *(encode_key([text], [25]) for text in (b"7/8", b"7%2F8")),
    ]
    keys += [encode_key([b"a/b", b"1"], two), encode_key([b"a", b"1"], two), encode_key([b"%", b"1"], two)]
    names = document_ids("shop.a/b", keys)
    assert names == [document_id("shop.a/b", key) for key in keys]
    assert [key_of(name, "shop.a/b") for name in names] == [key_texts(key) for key in keys]
    assert names[:4] == ["shop.a%2Fb/7", "shop.a%2Fb/-7", "shop.a%2Fb/7%2F8", "shop.a%2Fb/7%252F8"]


def test_texts_are_told_from_all_else_in_json_too() -> None:
    columns = {"id": 7, "title": "a title", "on": None, "doc": msgspec.Raw(b' "in json"'), "n": msgspec.Raw(b'["x"]')}
    assert row("public.t/7", 1, columns).text == ("a title", "in json")
    del columns["doc"], columns["n"]
    assert row("public.t/7", 1, columns).text == ("a title",)


def test_of_a_keys_changes_in_one_window_the_latest_counts_in_any_order(tmp_path: Path) -> None:
    source, under_test = ModelSource(), tantivy_under_test(tmp_path)
    source.commit([insert(ITEMS, 1, "first"), insert(ITEMS, 2, "other"), update(ITEMS, 1, name="second", body="b")])
    (window,) = (one for one in windows(source) if one.kind == Kind.TRANSACTION)
    with closing(under_test.open()) as sink:
        sink.write([dataclasses.replace(window, changes=window.changes[::-1])], MARKS)
        sink.commit(following(source))
    assert {id: one["name"] for id, one in under_test.rows().items()} == {"1": "second", "2": "other"}


def test_rows_of_many_bytes_are_not_all_remembered_until_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, under_test = ModelSource(), tantivy_under_test(tmp_path)
    monkeypatch.setattr(tantivy_sink, "_REMEMBERED_BYTES", 10_000)
    with closing(under_test.open()) as sink:
        source.commit([insert(ITEMS, n, "name") for n in range(10)])
        sink.write(windows(source), MARKS)
        assert under_test.rows() == {}
        source.commit([insert(ITEMS, n, "long " * 1_000) for n in range(10, 20)])
        sink.write(windows(source), MARKS)
        assert under_test.rows().keys() == {str(n) for n in range(20)}


def test_many_rows_changed_many_times_in_one_batch_are_as_in_the_source(tmp_path: Path) -> None:
    source, under_test = ModelSource(), tantivy_under_test(tmp_path)
    source.commit([insert(ITEMS, n, f"first {n}") for n in range(1_000)])
    source.commit([update(ITEMS, n, name=f"second {n}", body="b") for n in range(0, 1_000, 2)])
    source.commit([delete(ITEMS, n) for n in range(0, 1_000, 7)])
    source.commit([insert(ITEMS, n, f"third {n}") for n in range(0, 1_000, 14)])
    source.commit([update(ITEMS, n, name=f"fourth {n}", body="b") for n in range(0, 1_000, 28)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        assert {id: one["name"] for id, one in under_test.rows().items()} == {
            id: one["name"] for id, one in source.rows().items()
        }
        source.commit([update(ITEMS, 5, name="gone", body="b"), truncate(ITEMS)])
        source.commit([insert(ITEMS, n, f"fifth {n}") for n in range(600)])
        fill(sink, source)
    assert {id: one["name"] for id, one in under_test.rows().items()} == {str(n): f"fifth {n}" for n in range(600)}
