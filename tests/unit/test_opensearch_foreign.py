"""Whatever somebody wrote into the indices and beside the checkpoints: what the sink reads of it. No server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.model_source import items_layout
from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Lacking,
    Marks,
    Part,
    Point,
    Snapshotting,
    TableProgress,
    dump_checkpoint,
    load_checkpoint,
)
from walbus.consumers.sinks.opensearch_bulks import UNREADABLE, Found, Place, fields_of
from walbus.consumers.sinks.opensearch_held import held_row
from walbus.consumers.sinks.opensearch_reading import all_documents, documents_at
from walbus.consumers.sinks.opensearch_server import Access, Answer, OpenSearchServer
from walbus.consumers.sinks.opensearch_state import read_checkpoint, read_document
from walbus.consumers.sinks.opensearch_table_index import FoundIndex, IndexSettings, TableIndex, note_in
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable
from walbus.position import Position

#: What servers take for a document, and give back as it came.
FOREIGN = [
    b'{"name": "half \\ud800 of a sign"}',
    b'{"\\udc00": 1}',
    b'{"name": /* why not */ "n"}',
    b'{"name": NaN}',
    b'{"name": ' + b"[" * 990 + b"]" * 990 + b"}",
]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


class Scripted(OpenSearchServer):
    """A server whose answers are a function's."""

    def __init__(self, answer: Callable[[str, str, Any], bytes | None]) -> None:
        super().__init__(Access("http://127.0.0.1:1", None, None, None, 1.0, 1))
        self._answered, self.asked = answer, 0

    def ask(self, method: str, path: str, body: object = None, **_: object) -> Answer:
        self.asked += 1
        answer = self._answered(method, path, body)
        return Answer(httpx.codes.NOT_FOUND, b"{}") if answer is None else Answer(httpx.codes.OK, answer)


def index_of(documents: dict[str, bytes]) -> Scripted:
    """A server with one index of these, as it puts them into `_mget` and pages of a search."""
    pages: dict[str, list[list[str]]] = {}

    def told(id_: str, source: bool, **more: object) -> bytes:
        if id_ not in documents:
            return json.dumps({"_index": "i", "_id": id_, "found": False}).encode()
        head = json.dumps({"_index": "i", "_id": id_, "_version": 7, **more})[:-1].encode()
        return head + (b', "_source": ' + documents[id_] if source else b"") + b"}"

    def page(scroll: str) -> bytes:
        ids = pages[scroll].pop(0) if pages[scroll] else []
        hits = b",".join(told(id_, scroll == "True") for id_ in ids)
        return b'{"_scroll_id":"%s","_shards":{"failed":0},"hits":{"hits":[%s]}}' % (scroll.encode(), hits)

    def answer(method: str, path: str, body: Any) -> bytes:
        if path == "/_mget":
            docs = [told(one["_id"], one.get("_source", True), found=True) for one in body["docs"]]
            return b'{"docs":[' + b",".join(docs) + b"]}"
        if method == "DELETE":
            pages.pop(body["scroll_id"][0])
            return b"{}"
        if path == "/_search/scroll":
            return page(body["scroll_id"])
        scroll, ids, size = str(body["_source"]), list(documents), body["size"]
        pages[scroll] = [ids[start : start + size] for start in range(0, len(ids), size)]
        return page(scroll)

    server = Scripted(answer)
    server.pages = pages  # type: ignore[attr-defined]
    return server


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_document_that_only_the_server_makes_sense_of_has_no_fields_and_keeps_no_other_from_being_read(
    foreign: bytes,
) -> None:
    documents = {str(n): b'{"id": %d}' % n for n in range(250)}
    documents |= {"3": foreign, "117": foreign, "118": foreign}
    server = index_of(documents)
    wanted = [Place("i", id_) for id_ in [*documents, "none"]]
    read = documents_at(server, wanted)
    assert read[-1] is None
    found = {one.id: one for one in read if one is not None}
    assert {id_ for id_, one in found.items() if fields_of(one.source) is None} == {"3", "117", "118"}
    assert {one.version for one in found.values()} == {7}
    pages = list(all_documents(server, "i"))
    assert max(len(page) for page in pages) <= 100, "they may be large"
    assert {one.id: bytes(one.source) for page in pages for one in page} == {
        id_: bytes(one.source) for id_, one in found.items()
    }
    assert not server.pages, "a search was left open"  # type: ignore[attr-defined]


def test_documents_that_make_sense_are_read_by_one_search() -> None:
    server = index_of({str(n): b'{"id": %d}' % n for n in range(250)})
    assert sum(len(page) for page in all_documents(server, "i")) == 250
    assert server.asked == 5  # three pages, the empty one, and the end


def test_an_answer_from_something_in_between_is_no_document() -> None:
    server = Scripted(lambda *_: b"<html>")
    with pytest.raises(SinkUnavailable):
        documents_at(server, [Place("i", "1")])
    with pytest.raises(SinkUnavailable):
        list(all_documents(server, "i"))
    with pytest.raises(SinkUnavailable):
        read_document(server, "state", "checkpoint", "test")


@pytest.mark.parametrize("foreign", [*map(bytes, FOREIGN), bytes(UNREADABLE), b"5", b"[]"])
def test_what_has_no_fields_equals_no_row(foreign: bytes) -> None:
    found = Found("1", 7, msgspec.Raw(foreign))
    assert fields_of(found.source) is None
    assert fields_of(b'{"a": 1, "a": 1e999999, "b": "\xff"}') is not None


def test_values_that_cannot_be_brought_into_one_form_are_compared_as_they_are() -> None:
    deep = msgspec.Raw(b"[" * 400 + b" 1" + b"]" * 400)
    row, again = (held_row(1, Place("i", "1"), 7, {"a": deep, "b": None}) for _ in range(2))
    assert row == again
    assert [name for name, _ in row.values] == ["a"]  # type: ignore[misc]


# What the consumer keeps


def state_of(body: bytes) -> Scripted:
    """A server with one document, of this source."""

    def answer(_method: str, path: str, _body: object) -> bytes:
        head = b'{"_id":"checkpoint:test","_version":3,"_seq_no":2,"_primary_term":1,"found":true'
        return head + (b"}" if path.endswith("?_source=false") else b',"_source":' + body + b"}")

    return Scripted(answer)


@pytest.mark.parametrize(
    "body",
    [
        *FOREIGN,
        b"5",
        b"{}",
        b'{"checkpoint": 5}',
        b'{"checkpoint": null}',
        b'{"writer": []}',
        b'{"aliases": "items"}',
        b'{"aliases": [null]}',
        b'{"aliases": [""]}',
        b'{"aliases": ["_all"]}',
        b'{"aliases": ["*"]}',
        b'{"staying": ["a,b"]}',
    ],
)
def test_a_document_of_the_sinks_own_that_somebody_rewrote_is_refused_by_its_address(body: bytes) -> None:
    with pytest.raises(SinkRefused, match="delete that document") as refused:
        read_document(state_of(body), "state", "checkpoint", "test")
    assert refused.value.where == "http://127.0.0.1:1/state/_doc/checkpoint%3Atest"


def test_a_document_without_its_source_is_refused_too() -> None:
    """As where an index template has taken `_source` from the index."""
    server = Scripted(lambda *_: b'{"_seq_no":2,"_primary_term":1,"found":true}')
    with pytest.raises(SinkRefused, match="delete that document"):
        read_document(server, "state", "checkpoint", "test")


@pytest.mark.parametrize("text", ["by hand", "5", "{}", "[" * 100_000, '{"version": 99}', '{"version": []}'])
def test_a_text_that_is_no_checkpoint_is_refused_by_its_address(text: str) -> None:
    with pytest.raises(SinkRefused) as refused:
        read_checkpoint(state_of(json.dumps({"checkpoint": text, "writer": "w"}).encode()), "state", "test")
    assert refused.value.where == "http://127.0.0.1:1/state/_doc/checkpoint%3Atest"


def test_an_empty_text_is_no_checkpoint_and_no_error() -> None:
    """As a copy has it before its first commit."""
    assert read_checkpoint(state_of(b'{"checkpoint": "", "writer": "w"}'), "state", "test") is None
    assert read_checkpoint(Scripted(lambda *_: None), "state", "test") is None


AT = Point(Position(1, 0x1000, 3), 42)
CHECKPOINTS: list[Checkpoint] = [
    Following("log", Marks(3, 2), AT, (Lacking("public.a", 7),), 5, Position(1, 2, 3), ("public.*",), Part("1/2", 9)),
    CatchingUp("log", Marks(3, 2), AT, Position(2, 3, 4), (Lacking("public.a"),)),
    Snapshotting("log", Marks(3, 2), (TableProgress("a", b"\1"), TableProgress("b", since=AT, done=True)), AT, AT),
]


def places_in(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = enumerate(document) if isinstance(document, list) else ()
    if isinstance(document, dict):
        inner = document.items()
    return [path, *(place for name, value in inner for place in places_in(value, (*path, name)))]


@given(st.sampled_from(CHECKPOINTS), st.data())
def test_a_checkpoint_of_which_a_part_was_replaced_is_one_or_is_refused(checkpoint: Checkpoint, data: Any) -> None:
    document = json.loads(dump_checkpoint(checkpoint))
    path = data.draw(st.sampled_from(places_in(document)))
    instead = data.draw(anything)
    if not path:
        document = instead
    else:
        at = document
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = instead
    try:
        loaded = load_checkpoint(json.dumps(document))
    except InvalidText:
        return
    assert load_checkpoint(dump_checkpoint(loaded)) == loaded
    dump_checkpoint(loaded).encode()


LAYOUT = items_layout()
NOTE = TableIndex("public.items", "public.items~1", LAYOUT, 1).meta("test")


def found_index(meta: object, **more: Any) -> FoundIndex:
    return FoundIndex({}, {"_meta": meta, **more.get("mappings", {})}, IndexSettings(more.get("index", {})))


@given(anything)
def test_notes_of_somebody_elses_are_no_consumers(meta: object) -> None:
    assert found_index(meta).consumer is None
    assert found_index({"walbus": meta}).consumer is None or isinstance(meta, dict)


@given(st.sampled_from(places_in(NOTE["walbus"])[1:]), anything)
def test_a_note_of_which_a_part_was_replaced_is_one_or_is_refused_by_the_indexs_name(
    path: tuple[Any, ...], instead: object
) -> None:
    meta = json.loads(json.dumps(NOTE))
    at = meta["walbus"]
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = instead
    try:
        note = note_in("public.items~1", found_index(meta))
    except SinkRefused as error:
        assert error.where == "public.items~1"
    else:
        assert msgspec.convert(note.layout.to_dict(), type(LAYOUT)) == note.layout


@pytest.mark.parametrize(
    ("mappings", "index", "keeps"),
    [
        ({}, {}, True),
        ({"_source": {"enabled": True}}, {}, True),
        ({"_source": {"enabled": False}}, {}, False),
        ({"_source": {"excludes": ["body"]}}, {}, False),
        ({"_source": {"includes": ["id"]}}, {}, False),
        ({"_source": {"mode": "synthetic"}}, {}, False),
        ({}, {"mapping": {"source": {"mode": "SYNTHETIC"}}}, False),
        ({}, {"mapping": {"source": {"mode": "stored"}, "total_fields": {"limit": "9"}}}, True),
        ({}, {"derived_source": {"enabled": "true"}}, False),
    ],
)
def test_an_index_that_does_not_keep_documents_is_known(
    mappings: dict[str, Any], index: dict[str, Any], keeps: bool
) -> None:
    assert found_index({}, mappings=mappings, index=index).keeps_documents is keeps
