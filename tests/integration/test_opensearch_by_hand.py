"""What somebody wrote by hand into search indices, and beside the checkpoints, on real servers: nothing stands still.

Documents that are not ours are told and go; what the consumer keeps is refused by its address once it is not as it was
written, and without it the tables are read again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.rebuild_rig import config_for, rebuilt, verified
from support.running_consumer import RunningConsumer, consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.sink_writing import fill
from support.sinks_under_test import SinkUnderTest, opensearch_under_test
from support.tampering import SearchHand
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.rebuilding import rebuild
from walbus.consumers.sink_verifying import verify_sink
from walbus.consumers.steps import Sweep
from walbus.errors import SinkRefused

pytestmark = pytest.mark.one_version

#: Documents that other readers of JSON do not take, or not all of them; `%d` is the id.
ODD = [
    b'{"id": %d, "name": "half \\ud800 of a sign", "_walbus_mark": 1}',
    b'{"id": %d, "half a name \\udc00": 1}',
    b'{"id": %d, /* a comment */ "name": "n"}',
    b'{"id": %d, "what": 1e999999}',
    b'{"id": %d, "name": "no UTF-8: \xed\xa0\x80"}',
    b'{"id": %d, "what": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    b'{"id": %d, "what": ' + b"9" * 900 + b"}",
]
NOT_SHOWN = b"---\nid: %d\nwhat: .nan\n"  # YAML, of which a server makes no JSON that it would take itself


@pytest.fixture(params=["opensearch", "elasticsearch"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, request.getfixturevalue(f"{request.param}_url"), request.param)


def filled(relay: ScriptedRelay, under_test: SinkUnderTest, rows: int = 40) -> None:
    source = relay.source
    source.commit([insert(ITEMS, n, f"n{n}", "toasted") for n in range(rows)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 0, name="behind the snapshot"))


def odd_documents(hand: SearchHand, first: int) -> list[int]:
    """Puts documents of every odd kind under ids from `first` on; those that the server took."""
    ids = range(first, first + len(ODD))
    assert all(hand.put_text(id_, odd % id_) for id_, odd in zip(ids, ODD, strict=True))
    assert hand.put_text(first + len(ODD), NOT_SHOWN % (first + len(ODD)), "yaml")
    return [*ids, first + len(ODD)]


def test_documents_that_no_other_reader_takes_are_named_and_give_way(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either)
    hand = SearchHand(either)
    rows, ghosts = odd_documents(hand, 10), odd_documents(hand, 900)
    expected = [("different", [str(id_)]) for id_ in rows] + [("ghost", [str(id_)]) for id_ in ghosts]
    assert sorted(verified(relay, either).keys) == sorted(expected)
    mended = verified(relay, either, repair=True)
    assert (mended.differing, mended.mended) == (len(expected), len(expected))
    assert either.rows() == source.rows()


def test_a_consumer_goes_on_over_documents_that_no_other_reader_takes(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """An update that leaves a value out finds it in the document that is there, or has the table read again."""
    filled(relay, either)
    hand = SearchHand(either)
    with consumer(relay, either) as running:
        rows = odd_documents(hand, 10)
        hand.put(5, {"id": 5})  # none of the values that the next update leaves out
        for n in (1, 2, 3):  # seqs above the versions that the server gave
            followed_by(running, relay, update(ITEMS, n, name="later"))
        source.commit([update(ITEMS, id_, name="goes on") for id_ in [5, *rows]])
        equal(either, relay)
        source.commit([delete(ITEMS, rows[0]), update(ITEMS, rows[1], new_id=500, name="moved")])
        equal(either, relay)
    assert verified(relay, either).differing == 0


def followed_by(running: RunningConsumer, relay: ScriptedRelay, *edits: Any) -> None:
    """As `followed`, whatever else is in the index."""
    end = str(relay.source.commit(edits))
    wait_for(lambda: running.status().get("last_done") == end, 60, what="its checkpoint is stored")


def test_a_layout_and_a_truncate_go_over_documents_that_no_other_reader_takes(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """Documents are copied where a column goes; a row that somebody rewrote so is read again."""
    filled(relay, either)
    hand = SearchHand(either)
    with consumer(relay, either):
        odd_documents(hand, 10), odd_documents(hand, 900)
        source.add_layout(items_layout("items", column("id", 23, "int4", in_key=True), column("body"), column("more")))
        source.commit([update(ITEMS, 1, body="b", more="m")])
        wait_for(lambda: either.rows().keys() == source.rows().keys() and named(hand) == {"body", "id", "more"}, 60)
        odd_documents(hand, 900)
        source.commit([truncate(ITEMS), insert(ITEMS, 7)])
        wait_for(lambda: either.rows().keys() == {"7"}, 60)


def named(hand: SearchHand) -> set[str]:
    source = hand.get(1)["_source"]
    return {name for name in source if not name.startswith("_walbus")}


def test_a_rebuild_goes_past_documents_that_no_other_reader_takes(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either)
    odd_documents(SearchHand(either), 10)
    rebuilt(relay, either)
    assert either.rows() == source.rows()


def test_a_sweep_goes_over_documents_that_no_other_reader_takes(either: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n) for n in range(3)])
    with closing(either.open()) as sink:
        fill(sink, source)
        odd_documents(SearchHand(either), 900)
        marks = Marks(2, 1)
        source.commit([insert(ITEMS, n) for n in range(3, 30)])  # above the versions that the server gave
        fill(sink, source, source.records[0][0].last, marks)
        after = Following(source.log_id, marks, Point(source.end, source.last_seq))
        sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
        sink.commit(after)
    assert set(either.rows()) == {str(n) for n in range(3, 30)}


# Fields of the sink's own, by hand


def test_marks_that_somebody_copied_from_elsewhere_are_swept_by_a_repair(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either)
    hand = SearchHand(either)
    marks = {900: 7, 901: 2**62, 902: [1, 99], 903: None, 904: -1}
    for id_, mark in marks.items():
        hand.put(id_, {"id": id_, "name": "of another index", "_walbus_mark": mark})
    mended = verified(relay, either, repair=True)
    assert sorted(mended.keys) == [("ghost", [str(id_)]) for id_ in marks]
    assert mended.mended == len(marks)
    assert either.rows() == source.rows()


@pytest.mark.parametrize("version", [None, 2**40, 2**60, 2**62 + 1])
def test_a_document_that_says_it_lacks_a_value_is_not_read_for_ever(
    version: int | None, either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """A version that somebody raised is outranked; above 2^62 the document is left as it is."""
    filled(relay, either)
    hand = SearchHand(either)
    hand.put(3, {"id": 3, "name": "by hand", "_walbus_lacks": True}, version)
    hand.put(900, {"id": 900, "_walbus_lacks": True, "_walbus_mark": 1})
    asked = len(relay.asked("/v1/snapshot"))
    with consumer(relay, either) as running:
        if version != 2**62 + 1:
            equal(either, relay)
        for n in range(3):
            followed_by(running, relay, update(ITEMS, n, name=f"goes on {n}"))
        read = len(relay.asked("/v1/snapshot"))
        assert read - asked <= 4
        followed_by(running, relay, update(ITEMS, 0, name="and on"))
        assert len(relay.asked("/v1/snapshot")) == read
    assert differing(either, source) == (set() if version != 2**62 + 1 else {"3"})


def differing(under_test: SinkUnderTest, source: ModelSource) -> set[str]:
    there, wanted = under_test.rows(), source.rows()
    return {id_ for id_ in there.keys() | wanted.keys() if there.get(id_) != wanted.get(id_)}


# What the consumer keeps beside its checkpoint


def by_every_command(relay: ScriptedRelay, under_test: SinkUnderTest, *, rebuilds: bool = True) -> list[SinkRefused]:
    """What consume and verify refuse with, and rebuild unless it does not look at that."""
    config, folder = config_for(under_test), under_test.place.folder
    ways: list[Callable[[], object]] = [
        lambda: verify_sink("test", config, relay_url=relay.url, folder=folder),
        lambda: rebuild("test", config, relay_url=relay.url, folder=folder, stop=threading.Event()),
    ]
    refused = [refused_at_start(relay, under_test)]
    for way in ways if rebuilds else ways[:1]:
        with pytest.raises(SinkRefused) as raised:
            way()
        refused.append(raised.value)
    return refused


@pytest.mark.parametrize(
    "source_by_hand",
    [
        b'{"checkpoint": "half \\ud800 of a sign"}',
        {"checkpoint": 5},
        {"checkpoint": "by hand"},
        {"checkpoint": json.dumps({"version": 1, "phase": "online", "log_id": "log-a", "marks": ["a", "b"]})},
    ],
)
def test_a_checkpoint_by_hand_is_refused_by_its_address_and_a_snapshot_follows_its_removal(
    source_by_hand: object, either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either)
    hand = SearchHand(either)
    hand.state("checkpoint", source_by_hand)
    for refused in by_every_command(relay, either):
        assert refused.where == f"{either.options['url']}/walbus-consumers/_doc/checkpoint%3Atest"
        assert refused.mend is not None
    hand.state("checkpoint", delete=True)
    hand.put(900, {"id": 900, "name": "a ghost"})
    with consumer(relay, either) as running:
        followed(running, either, relay, update(ITEMS, 1, name="goes on"))


def test_a_checkpoint_that_is_rewritten_under_a_running_consumer_ends_it(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either)
    running = RunningConsumer(relay, either.name, either.options, either.place.folder)
    followed(running, either, relay, update(ITEMS, 1, name="before"))
    SearchHand(either).state("checkpoint", b'{"checkpoint": "\\ud800"}')
    source.commit([update(ITEMS, 1, name="behind")])
    ended = running.ended()
    assert isinstance(ended, SinkRefused)
    assert ended.where == f"{either.options['url']}/walbus-consumers/_doc/checkpoint%3Atest"


@pytest.mark.parametrize(
    "rewritten", [b'{"aliases": ["\\ud800"]}', {"aliases": [""]}, {"aliases": ["_all"]}, {"aliases": 1}]
)
def test_tables_by_hand_are_refused_by_their_address_and_a_snapshot_follows_their_removal(
    rewritten: object, either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either)
    hand = SearchHand(either)
    hand.state("tables", rewritten)
    for refused in by_every_command(relay, either, rebuilds=False):
        assert refused.where == f"{either.options['url']}/walbus-consumers/_doc/tables%3Atest"
    hand.state("tables", delete=True)
    hand.put(900, {"id": 900, "name": "a ghost"})
    with consumer(relay, either) as running:
        followed(running, either, relay, update(ITEMS, 1, name="goes on"))
    assert hand.state("tables").json()["_source"]["aliases"] == [ITEMS]


@pytest.mark.parametrize("note", [{"layout": {}}, {"number": "1"}, {"log_generation": None}, {"floor": [1]}])
def test_a_note_by_hand_in_an_indexs_mapping_is_refused_by_the_indexs_name(
    note: dict[str, object], either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, either)
    hand, path = SearchHand(either), f"/{ITEMS}~1"
    meta = hand.ask("GET", path).json()[f"{ITEMS}~1"]["mappings"]["_meta"]["walbus"]
    hand.ask("PUT", f"{path}/_mapping", {"_meta": {"walbus": {**meta, **note}}})
    for refused in by_every_command(relay, either, rebuilds="layout" in note):
        assert refused.where is not None
        assert refused.where.endswith(f"{ITEMS}~1")
    hand.ask("DELETE", path)
    with consumer(relay, either) as running:
        followed(running, either, relay, update(ITEMS, 1, name="goes on"))


def test_what_else_somebody_keeps_in_metadata_is_nothing_to_the_consumer(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """An alias that looks as one of a swap, and documents that are nobody's."""
    filled(relay, either)
    hand = SearchHand(either)
    for alias in ("walbus-consumers%25swaps-test~x", "walbus-consumers%25swaps-test~", "mine"):
        hand.ask("PUT", f"/walbus-consumers/_alias/{alias}")
    half_a_sign = {"filter": {"bool": {"must_not": {"term": {"name": "\ud800"}}}}}
    hand.ask("PUT", f"/{ITEMS}~1/_alias/theirs", half_a_sign)
    assert hand.ask("PUT", "/walbus-consumers/_doc/mine", {"x": 1}).is_success
    with consumer(relay, either) as running:
        followed(running, either, relay, update(ITEMS, 1, name="goes on"))
    rebuilt(relay, either)
    assert either.rows() == source.rows()
    assert hand.ask("GET", "/theirs/_alias/theirs").json().keys() == {f"{ITEMS}~2"}
    hand.ask("PUT", f"/{ITEMS}~2/_mapping", {"_meta": {"mine": "\ud800"}})
    assert refused_at_start(relay, either).where == f"{either.options['url']}, {ITEMS}"


# Index templates


@pytest.mark.parametrize("restricted", [{"enabled": False}, {"excludes": ["body"]}])
def test_no_index_template_takes_documents_away(
    restricted: dict[str, object], either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """What the sink says of `_source` counts for its indices; what an update leaves out is found there."""
    hand = SearchHand(either)
    template = {"index_patterns": ["*items*", "walbus-*"], "template": {"mappings": {"_source": restricted}}}
    hand.ask("PUT", "/_index_template/restricted", template)
    try:
        source.commit([insert(ITEMS, 1, "a", "toasted")])
        with consumer(relay, either) as running:
            followed(running, either, relay, update(ITEMS, 1, name="b"))
            followed(running, either, relay, update(ITEMS, 1, name="c"))
    finally:
        hand.ask("DELETE", "/_index_template/restricted")


def refused_at_start(relay: ScriptedRelay, under_test: SinkUnderTest) -> SinkRefused:
    ended = RunningConsumer(relay, under_test.name, under_test.options, under_test.place.folder).ended()
    assert isinstance(ended, SinkRefused), ended
    return ended
