"""A tantivy index whose table gets another layout or another name: all of its documents are written anew, at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.sinks_under_test import SinkUnderTest, tantivy_under_test
from support.tampering import TantivyHand
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink
from walbus.consumers.sinks.tantivy_index import RowIndex
from walbus.consumers.sinks.tantivy_reading import StoredDocument
from walbus.errors import SinkRefused
from walbus.events import window_of
from walbus.position import ORIGIN, Position

pytestmark = pytest.mark.one_version

MARKS = Marks(1, 1)
KEY = column("id", 23, "int4", in_key=True)
RENAMED = (KEY, column("title"), column("body"))


@pytest.fixture
def source() -> ModelSource:
    return ModelSource()


@pytest.fixture
def index(tmp_path: Path) -> SinkUnderTest:
    return tantivy_under_test(tmp_path)


def accept(sink: Sink, source: ModelSource, after: Position = ORIGIN) -> None:
    sink.write([window_of(h, r, source.layouts.__getitem__, after=after) for h, r in source.after(after)], MARKS)


def commit(sink: Sink, source: ModelSource) -> None:
    sink.commit(Following(source.log_id, MARKS, Point(source.end, source.last_seq)))


def fill(sink: Sink, source: ModelSource, after: Position = ORIGIN) -> None:
    accept(sink, source, after)
    commit(sink, source)


def test_another_layout_takes_no_memory_of_each_row(source: ModelSource, index: SinkUnderTest) -> None:
    count = 20_000
    source.commit([insert(ITEMS, n, f"n{n}", "a body of some length") for n in range(count)])
    with closing(index.open()) as sink:
        fill(sink, source)
        done = source.end
        source.add_layout(items_layout("items", *RENAMED, schema_id=2))
        source.commit([update(ITEMS, 1, title="anew", body="b"), delete(ITEMS, 2)])
        tracemalloc.start()
        try:
            accept(sink, source, done)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        commit(sink, source)
    assert index.rows() == {id: {"id": id, "title": row.get("title", row.get("name")), "body": row["body"]}
                            for id, row in source.rows().items()}  # fmt: skip
    assert peak < 4 << 20, "a batch of documents, and not all of them"


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_rewrite_that_is_broken_off_is_done_anew(
    source: ModelSource, index: SinkUnderTest, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """Also one that came behind changes which were accepted, and not committed yet."""
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(10)])
    whole = RowIndex.documents_of

    def broken_off(self: RowIndex, table: str) -> Iterator[Sequence[StoredDocument]]:
        yield from islice(whole(self, table), batches)
        raise SinkRefused("the process dies here")

    sink = index.open()
    fill(sink, source)
    done = source.end
    source.commit([insert(ITEMS, 20, "accepted before")])
    source.add_layout(items_layout("items", *RENAMED, schema_id=2))
    source.commit([update(ITEMS, 1, title="anew", body="b")])
    monkeypatch.setattr(RowIndex, "documents_of", broken_off)
    with pytest.raises(SinkRefused, match="dies here"):
        accept(sink, source, done)
    monkeypatch.undo()
    sink.close()
    with closing(index.open()) as after:
        checkpoint = after.checkpoint()
        assert isinstance(checkpoint, Following)
        assert checkpoint.point.last_done == done
        fill(after, source, done)
    assert index.rows().keys() == source.rows().keys()
    assert all(row.keys() == {"id", "title", "body"} for row in index.rows().values())
    assert index.rows()["1"]["title"] == "anew"
    assert index.rows()["2"]["title"] == "n2"


def test_what_others_have_added_is_neither_taken_nor_doubled(source: ModelSource, index: SinkUnderTest) -> None:
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(5)])
    with closing(index.open()) as sink:
        fill(sink, source)
    done, hand = source.end, TantivyHand(index)
    stored = hand.fields(1)
    hand.add(
        {**hand.fields(2), "_seq": 0},  # an older one of that name
        {**hand.fields(3), "_table": "public.others"},
        {"_id": f"{ITEMS}/80", "_table": ITEMS, "_source": b'{"id":80}'},  # without a version
        {"_table": ITEMS, "_seq": 1, "_mark": 1, "_source": b'{"id":81}'},  # without a name
    )
    source.add_layout(items_layout("things", *RENAMED, schema_id=2))
    source.commit([update("public.things", 4, title="anew", body="b")])
    with closing(index.open()) as sink:
        fill(sink, source, done)
    rows = index.rows("public.things")
    assert rows.keys() == {"0", "1", "2", "3", "4"}
    assert [rows[id]["title"] for id in "01234"] == ["n0", "n1", "n2", "n3", "anew"]
    assert all_of(index, ITEMS) == [b'{"id":80}', b'{"id":81}']
    assert all_of(index, "public.others") == []
    assert stored["_seq"] == 2


def all_of(index: SinkUnderTest, table: str) -> list[bytes]:
    import tantivy

    opened: Any = tantivy.Index.open(str(index.options["path"]))
    searcher = opened.searcher()
    hits = searcher.search(tantivy.Query.term_query(opened.schema, "_table", table), 100).hits
    return sorted(bytes(searcher.doc(address).get_first("_source")) for _, address in hits)


def test_a_table_takes_the_name_of_another_one(source: ModelSource, index: SinkUnderTest) -> None:
    """Whose documents of the same keys give way, as they always did."""
    other = source.add_layout(items_layout("others", oid=16500)).table
    source.commit([insert(ITEMS, 1, "mine"), insert(ITEMS, 2, "mine"), insert(other, 1, "theirs")])
    with closing(index.open()) as sink:
        fill(sink, source)
        done = source.end
        source.add_layout(items_layout("others", *RENAMED, schema_id=2))
        source.commit([update("public.others", 2, title="anew", body="b")])
        accept(sink, source, done)
        commit(sink, source)
    assert {id: row["title"] for id, row in index.rows("public.others").items()} == {"1": "mine", "2": "anew"}


def test_a_list_of_segments_that_is_none_is_a_damaged_index(source: ModelSource, index: SinkUnderTest) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(index.open()) as sink:
        fill(sink, source)
        meta = Path(index.options["path"]) / "meta.json"
        for text in ("{}", '{"segments": 3}', '{"segments": [{}]}', "[]", "{", "\xff"):
            meta.write_text(text, encoding="latin-1")
            with pytest.raises(SinkRefused, match="files are damaged") as told:
                next(iter(sink.held(ITEMS)))  # type: ignore[attr-defined]
            assert "meta.json" in str(told.value)
        meta.unlink()
        with pytest.raises(SinkRefused, match="files are damaged"):
            next(iter(sink.held(ITEMS)))  # type: ignore[attr-defined]
