"""`walbus verify --sink` of search indices on real servers: whatever somebody did to a document, and to its version."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.rebuild_rig import verified
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import SinkUnderTest, opensearch_under_test
from support.tampering import SearchHand
from support.waiting import wait_for
from walbus.consumers.sinks.opensearch_documents import document_id
from walbus.keys import encode_key

pytestmark = pytest.mark.one_version


@pytest.fixture(params=["opensearch", "elasticsearch"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, request.getfixturevalue(f"{request.param}_url"), request.param)


def filled(relay: ScriptedRelay, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(300)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.commit([update(ITEMS, 3, name="changed"), delete(ITEMS, 4), update(ITEMS, 5, new_id=500, name=None)])
        equal(under_test, relay)


def test_documents_that_were_written_deleted_and_added_in_the_ordinary_way_are_mended(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """A server gives each of those the next version, which is above the row's."""
    filled(relay, either, source)
    assert verified(relay, either).differing == 0
    hand = SearchHand(either)
    hand.put(1, {**hand.get(1)["_source"], "name": "by hand"})
    hand.put(2, {"id": 2})  # without the sink's own field
    hand.remove(3)
    hand.put(4, {"id": 4, "name": "is back"})
    hand.put(900, {"id": 900, "name": "never was"})
    hand.put("what-ever", {"id": "what", "colour": "red"})
    hand.put(6, {**hand.get(6)["_source"], "colour": "red"})
    found = verified(relay, either)
    expected = [("different", ["1"]), ("different", ["2"]), ("different", ["6"]), ("missing", ["3"])]
    expected += [("ghost", [id_]) for id_ in ("4", "900", "what-ever")]
    assert sorted(found.keys) == sorted(expected)
    assert (found.rows, found.differing, found.mended) == (299, 7, 0)
    mended = verified(relay, either, repair=True)
    assert (mended.differing, mended.mended) == (7, 7)
    assert either.rows() == source.rows()
    assert verified(relay, either).differing == 0
    with consumer(relay, either):
        source.commit([update(ITEMS, 1, name="goes on"), delete(ITEMS, 2), insert(ITEMS, 3, "n3", "anew")])
        equal(either, relay)


def test_a_version_that_was_raised_is_outranked_unless_there_is_none_above_it(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either, source)
    hand = SearchHand(either)
    for id_, version in ((1, None), (7, 2**40), (8, 2**53 - 1), (901, 2**52), (10, 5 * 2**53 + 7), (902, 2**62 - 1)):
        row = {"id": id_, "name": "by hand", "_walbus_mark": 1}
        hand.put(id_, row, hand.get(1)["_version"] if version is None else version)
    mended = verified(relay, either, repair=True)
    assert (mended.differing, mended.mended) == (6, 6)
    assert either.rows() == source.rows()
    hand.put(9, {"id": 9, "name": "by hand"}, 1020 * 2**53)
    left = verified(relay, either, repair=True)
    assert (left.keys, left.mended) == ([("different", ["9"])], 0)
    with consumer(relay, either):
        source.commit([update(ITEMS, 7, name="goes on")])
        wait_for(lambda: without(9, either.rows()) == without(9, source.rows()), 60)


def without(id_: int, rows: dict[str, Any]) -> dict[str, Any]:
    return {one: row for one, row in rows.items() if one != str(id_)}


def test_a_document_under_another_route_is_a_ghost(
    opensearch_url: str, tmp_path: Path, relay: ScriptedRelay, source: ModelSource
) -> None:
    options = {"routing": {ITEMS: "id"}, "settings": {"number_of_shards": 3}}
    under_test = opensearch_under_test(tmp_path, opensearch_url, **options)
    filled(relay, under_test, source)
    assert verified(relay, under_test).differing == 0
    hand = SearchHand(under_test)
    hand.put("1?routing=2", {"id": 1, "name": "twice"})
    mended = verified(relay, under_test, repair=True)
    assert (mended.keys, mended.mended) == ([("ghost", ["1", "routing 2"])], 1)
    assert under_test.rows() == source.rows()


def test_long_and_empty_keys_lie_where_they_are_looked_for(opensearch_url: str, tmp_path: Path) -> None:
    """The id of a long one is a digest, which tells nothing of the key: the routing is compared beside it."""
    source = ModelSource(layouts=[items_layout("items", column("id", in_key=True), column("name"), column("body"))])
    keys: list[Any] = ["", "a", "x" * 513, "\u00fc" * 1_000, "y" * 20_000, "z,1", "%empty"]
    source.commit([insert(ITEMS, key, "n", "b") for key in keys])
    options = {"routing": {ITEMS: "id"}, "settings": {"number_of_shards": 3}}
    under_test = opensearch_under_test(tmp_path, opensearch_url, **options)
    with ScriptedRelay(source) as relay:
        with consumer(relay, under_test):
            equal(under_test, relay)
            source.commit([update(ITEMS, key, name="changed") for key in keys])
            equal(under_test, relay)
        assert (verified(relay, under_test).rows, verified(relay, under_test).differing) == (len(keys), 0)
        hand, digest = SearchHand(under_test), document_id(encode_key([b"x" * 513], [25]))
        for route in range(20):  # in each shard one document has this id, also where the row's own was
            hand.put(f"{quote(digest)}?routing={route}", {"id": keys[2], "name": "n", "body": "b"})
        mended = verified(relay, under_test, repair=True)
        assert sorted(kind for kind, _ in mended.keys) == ["ghost", "ghost", "ghost", "missing"]
        assert {key[0] for _, key in mended.keys} == {digest}
        assert mended.mended == 4
        assert under_test.rows() == source.rows()
        with consumer(relay, under_test):
            source.commit([delete(ITEMS, key) for key in keys])
            equal(under_test, relay)
        assert under_test.rows() == {}
        assert verified(relay, under_test).differing == 0


def test_keys_of_any_text_and_of_several_columns_are_compared(
    opensearch_url: str, tmp_path: Path, source: ModelSource
) -> None:
    layout = items_layout("items", column("id", in_key=True), column("name"), column("body"))
    source = ModelSource(layouts=[layout])
    keys = ["", " ", "%", "%empty", "a/b?c#d", "a:b", "%25", "\u00fc" * 401, "%sha256-0", "\n"]
    source.commit([insert(ITEMS, key, "n", "b") for key in keys])  # type: ignore[arg-type]
    under_test = opensearch_under_test(tmp_path, opensearch_url)
    with ScriptedRelay(source) as relay:
        with consumer(relay, under_test):
            equal(under_test, relay)
        assert (verified(relay, under_test).rows, verified(relay, under_test).differing) == (len(keys), 0)
