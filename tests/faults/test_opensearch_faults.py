"""An OpenSearch that is away, empty, full, read-only, pushes back or lost an index; and writes that come late."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import plain_http
from support.between_search import Between, between_search
from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.opensearch_server import OpenSearchServer, local_opensearch
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, fill, windows
from support.sinks_under_test import SinkUnderTest, opensearch_under_test
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink
from walbus.errors import SinkRefused, SinkUnavailable
from walbus.events import window_of
from walbus.position import ORIGIN, Position

pytestmark = pytest.mark.one_version


@pytest.fixture
def under_test(opensearch_url: str, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, opensearch_url)


@pytest.fixture
def http(opensearch_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=opensearch_url, timeout=30) as client:
        yield client


def accept(sink: Sink, source: ModelSource, after: Position = ORIGIN) -> None:
    sink.write(windows(source, after), MARKS)


# Away, empty


@pytest.mark.timeout(240)
def test_a_server_that_dies_is_waited_for_and_one_that_is_empty_is_filled(
    relay: ScriptedRelay, source: ModelSource, own_opensearch: OpenSearchServer, tmp_path: Path
) -> None:
    under_test = opensearch_under_test(tmp_path, own_opensearch.url)
    source.commit([insert(ITEMS, n, "a", "toasted") for n in range(20)])
    with consumer(relay, under_test) as running:
        wait_until_equal(under_test, source)
        source.commit([update(ITEMS, 3, name="behind the snapshot")])
        wait_until_equal(under_test, source)
        wait_for(lambda: running.status().get("last_done") == str(source.end), 60, what="its checkpoint is stored")
        snapshots = len(relay.asked("/v1/snapshot"))  # more than one where the server was slow
        own_opensearch.stop()
        source.commit([update(ITEMS, 1, name="meanwhile"), delete(ITEMS, 2), update(ITEMS, 4, new_id=40)])
        wait_for(lambda: "does not answer" in str(running.status().get("waiting_for")), 60)
        own_opensearch.start()
        wait_until_equal(under_test, source)
        assert len(relay.asked("/v1/snapshot")) == snapshots
        own_opensearch.stop()
        source.trim(source.end)
        own_opensearch.start(empty=True)
        source.commit([delete(ITEMS, 5)])
        wait_until_equal(under_test, source)
    assert len(relay.asked("/v1/snapshot")) > snapshots, "it is filled by one, or by more where the server is slow"


def wait_until_equal(under_test: SinkUnderTest, source: ModelSource) -> None:
    wait_for(lambda: under_test.rows() == source.rows(), 60, what="the sink equals the source")


@pytest.mark.timeout(240)
def test_a_server_that_stands_still_is_waited_for(
    relay: ScriptedRelay, source: ModelSource, own_opensearch: OpenSearchServer, tmp_path: Path
) -> None:
    under_test = opensearch_under_test(tmp_path, own_opensearch.url, request_seconds=2)
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test) as running:
        wait_until_equal(under_test, source)
        source.commit([update(ITEMS, 3, name="behind the snapshot")])
        wait_until_equal(under_test, source)
        wait_for(lambda: running.status().get("last_done") == str(source.end), 60, what="its checkpoint is stored")
        snapshots = len(relay.asked("/v1/snapshot"))  # more than one where the server was slow
        os.kill(own_opensearch.pid, signal.SIGSTOP)
        source.commit([update(ITEMS, 1, name="meanwhile"), delete(ITEMS, 2)])
        wait_for(lambda: "does not answer" in str(running.status().get("waiting_for")), 60)
        os.kill(own_opensearch.pid, signal.SIGCONT)
        wait_until_equal(under_test, source)
    assert len(relay.asked("/v1/snapshot")) == snapshots


def test_a_server_that_was_never_there_is_waited_for(relay: ScriptedRelay, tmp_path: Path) -> None:
    with consumer(relay, opensearch_under_test(tmp_path, "http://127.0.0.1:1")) as running:
        wait_for(lambda: "the search server does not answer" in str(running.status().get("waiting_for")))


def test_an_index_that_was_removed_is_filled_again(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    source.commit([insert(ITEMS, n, "a", "toasted") for n in range(5)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.commit([update(ITEMS, 0, name="behind the snapshot")])
        equal(under_test, relay)
        http.delete(f"/{ITEMS}~1")
        source.commit([delete(ITEMS, 1)])  # for this alone a server makes an index anew, and finds nothing wrong
        equal(under_test, relay)
        http.delete(f"/{ITEMS}~2").raise_for_status()
        source.commit([update(ITEMS, 2, name="b")])
        equal(under_test, relay)
    (name,) = http.get(f"/{ITEMS}").json()
    assert name == f"{ITEMS}~3"


def test_a_server_without_its_checkpoint_but_with_old_rows_keeps_no_ghost(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test):
        equal(under_test, relay)
    http.delete("/walbus-consumers")
    source.commit([delete(ITEMS, 1), update(ITEMS, 2, new_id=9, name="m")])
    with consumer(relay, under_test):
        equal(under_test, relay)


# Late writes


def test_a_zombie_that_writes_late_changes_nothing(source: ModelSource, under_test: SinkUnderTest) -> None:
    source.commit([insert(ITEMS, 1, "old"), insert(ITEMS, 2)])
    with closing(under_test.open()) as zombie:
        accept(zombie, source)  # it stops here, and another process takes over
        first = source.end
        source.commit([update(ITEMS, 1, name="new", body="b"), delete(ITEMS, 2), insert(ITEMS, 3), truncate(ITEMS)])
        source.commit([insert(ITEMS, 4)])
        with closing(under_test.open()) as other:
            fill(other, source)
            with pytest.raises(SinkRefused, match="another consumer writes"):
                zombie.commit(Following(source.log_id, MARKS, Point(first, 2)))
            fill(other, source, source.end)
    assert under_test.rows() == source.rows()


def test_a_write_that_a_server_does_long_after_it_was_sent_changes_nothing(
    source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    """As from a proxy that kept a request for a while: an upsert of before the delete, and one of before an update."""
    source.commit([insert(ITEMS, 1, "old"), insert(ITEMS, 2, "old")])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.commit([delete(ITEMS, 1), update(ITEMS, 2, name="new", body="b")])
        fill(sink, source, done)
    for id_ in ("1", "2"):
        place = f"/{ITEMS}/_doc/{id_}?version={id_}&version_type=external&require_alias=true"
        assert http.put(place, json={"id": id_, "name": "late"}).status_code == httpx.codes.CONFLICT
    assert under_test.rows() == source.rows()
    settings = http.get(f"/{ITEMS}").json()[f"{ITEMS}~1"]["settings"]["index"]
    assert settings["gc_deletes"] == "3600s"


def test_the_time_for_which_deletes_are_remembered_is_put_right(
    source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    http.put(f"/{ITEMS}/_settings", json={"index.gc_deletes": "1s"})
    under_test.open().close()
    assert http.get(f"/{ITEMS}").json()[f"{ITEMS}~1"]["settings"]["index"]["gc_deletes"] == "3600s"


def test_an_index_that_may_lose_what_it_confirmed_is_refused(
    source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    http.put(f"/{ITEMS}/_settings", json={"index.translog.durability": "async"})
    with pytest.raises(SinkRefused, match=r"set index\.translog\.durability to request"):
        under_test.open()


def test_an_index_of_somebody_else_is_not_written_to(
    source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    http.put(f"/{ITEMS}/_doc/7", json={"theirs": True})
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink, pytest.raises(SinkRefused, match="not this consumer's"):
        fill(sink, source)
    assert http.get(f"/{ITEMS}/_doc/7").json()["_source"] == {"theirs": True}


# Busy, full, read-only, poisoned


def test_a_server_that_pushes_back_is_waited_for(
    source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    source.commit([insert(ITEMS, n, "x" * 500) for n in range(50)])
    limit = "network.breaker.inflight_requests.limit"
    with closing(under_test.open()) as sink:
        http.put("/_cluster/settings", json={"transient": {limit: "8kb"}})
        try:
            with pytest.raises(SinkUnavailable, match=r"cannot do this now.*circuit_breaking_exception"):
                fill(sink, source)
        finally:
            http.put("/_cluster/settings", json={"transient": {limit: None}})
        sink.rollback()
        sink.checkpoint()
        fill(sink, source)
    assert under_test.rows() == source.rows()


def rejections(url: str) -> int:
    """How many bulks a node has refused so far for want of memory."""
    nodes = plain_http.get(f"{url}/_nodes/stats/indexing_pressure").json()["nodes"].values()
    (pressure,) = (node["indexing_pressure"]["memory"]["total"] for node in nodes)
    return int(pressure["coordinating_rejections"] + pressure["primary_rejections"])


def test_documents_that_are_pushed_back_for_a_moment_are_sent_again(source: ModelSource, tmp_path: Path) -> None:
    """A node whose memory for indexing takes a bulk or two at a time, and four that come at once."""
    source.commit([insert(ITEMS, n, "x" * 200) for n in range(9000)], pieces=3)
    with local_opensearch(settings={"indexing_pressure.memory.limit": "1mb"}) as server:
        under_test = opensearch_under_test(tmp_path, server.url, connections=4)
        with closing(under_test.open()) as sink:
            fill(sink, source)
            while not rejections(server.url):  # none where the bulks came one by one
                done = source.end
                source.commit([update(ITEMS, n, name="x" * 200, body="b") for n in range(9000)], pieces=3)
                fill(sink, source, done)
        assert under_test.rows() == source.rows()


def test_an_index_that_is_read_only_is_waited_for(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    """As a server makes all indices when its disk is about to be full."""
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        http.put(f"/{ITEMS}/_settings", json={"index.blocks.read_only_allow_delete": True})
        source.commit([update(ITEMS, 1, name="meanwhile", body="b")])
        wait_for(lambda: "cluster_block_exception" in str(running.status().get("waiting_for")))
        http.put(f"/{ITEMS}/_settings", json={"index.blocks.read_only_allow_delete": None})
        equal(under_test, relay)


def test_a_document_that_a_mapping_refuses_is_told_without_its_value(
    source: ModelSource, opensearch_url: str, tmp_path: Path
) -> None:
    under_test = opensearch_under_test(tmp_path, opensearch_url, fields={ITEMS: {"name": {"type": "integer"}}})
    source.commit([insert(ITEMS, 1, "hunter2canary", "b")])
    with closing(under_test.open()) as sink, pytest.raises(SinkRefused) as caught:
        fill(sink, source)
    text = str(caught.value)
    assert "canary" not in text
    assert "field name" in text and f"{ITEMS} at {source.end}" in text and "mapper_parsing_exception" in text


def test_a_bulk_that_is_too_large_for_a_server_is_sent_in_parts(source: ModelSource, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, n, "x" * 20_000) for n in range(60)])
    with local_opensearch(settings={"http.max_content_length": "100kb"}) as server:
        under_test = opensearch_under_test(tmp_path, server.url)
        with closing(under_test.open()) as sink:
            fill(sink, source)
            assert under_test.rows() == source.rows()
            done = source.end
            source.commit([insert(ITEMS, 99, "x" * 200_000)])
            with pytest.raises(SinkRefused, match=f"a document of this size.*{ITEMS} at {source.end}"):
                fill(sink, source, done)


def test_no_password_is_in_any_error(tmp_path: Path) -> None:
    secret = "hunter2canary"
    options: list[dict[str, Any]] = [
        {"url": f"http://me:{secret}@127.0.0.1:1"},
        {"user": "me", "password": secret},
        {"api_key": secret},
    ]
    under_test = opensearch_under_test(tmp_path, "http://127.0.0.1:1")
    for given in options:
        with pytest.raises(SinkUnavailable) as caught:
            under_test.open(**given)
        assert secret not in str(caught.value) + repr(caught.value)


class _Stranger(SimpleHTTPRequestHandler):
    """A server of something else, which has nothing there."""

    def do_GET(self) -> None:
        self.send_error(404)


@pytest.mark.parametrize("stranger", [SimpleHTTPRequestHandler, _Stranger])
def test_another_kind_of_server_is_refused(tmp_path: Path, stranger: type[SimpleHTTPRequestHandler]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), stranger) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            with pytest.raises(SinkRefused, match="this is no OpenSearch or Elasticsearch"):
                opensearch_under_test(tmp_path, f"http://127.0.0.1:{server.server_address[1]}").open()
        finally:
            server.shutdown()


# Something in between that answers in its own way


@pytest.fixture
def between(opensearch_url: str) -> Iterator[Between]:
    with between_search(opensearch_url) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "status", "answer"),
    [
        ("/_bulk", 200, b"{}"),
        ("/_bulk", 200, b'{"items": [{"index": {"status": 201}}]}'),
        ("/_bulk", 302, b""),
        ("/_mget", 200, b"{}"),
        ("/_mget", 200, b'{"docs": []}'),
        ("/_mget", 302, b""),
        ("/_doc/checkpoint", 200, b"{}"),
        ("/_doc/checkpoint", 200, b"<html>"),
        ("/_refresh", 302, b""),
    ],
)
def test_an_answer_without_the_expected_parts_is_waited_out(
    path: str, status: int, answer: bytes, source: ModelSource, between: Between, tmp_path: Path
) -> None:
    source.commit([insert(ITEMS, n, "a", "toasted") for n in range(3)])
    under_test = opensearch_under_test(tmp_path, between.url, refresh="commit")
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.commit([update(ITEMS, 1, name="b"), delete(ITEMS, 2)])
        between.answers[path] = status, answer
        with pytest.raises(SinkUnavailable, match="makes no sense"):
            fill(sink, source, done)
        sink.rollback()
        between.answers.clear()
        sink.checkpoint()
        fill(sink, source, done)
        assert under_test.rows() == source.rows()


def test_an_index_that_nothing_is_told_of_is_not_taken_for_none(
    source: ModelSource, between: Between, tmp_path: Path
) -> None:
    under_test = opensearch_under_test(tmp_path, between.url)
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        between.answers[f"/{ITEMS}"] = 200, b"{}"
        with pytest.raises(SinkUnavailable, match="tells nothing of an index"):
            sink.checkpoint()


# Copies of an index


def test_a_copy_that_was_broken_off_is_begun_anew(
    source: ModelSource, under_test: SinkUnderTest, http: httpx.Client
) -> None:
    """The process died while documents were copied to another layout: the half copy has no alias yet."""
    source.commit([insert(ITEMS, n, "a", "b") for n in range(10)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    done = source.end
    meta = http.get(f"/{ITEMS}").json()[f"{ITEMS}~1"]["mappings"]["_meta"]
    http.put(f"/{ITEMS}~2", json={"mappings": {"dynamic": False, "_meta": meta}})
    http.put(f"/{ITEMS}~2/_doc/77", json={"id": 77})
    source.add_layout(items_layout("items", column("id", 23, "int4", in_key=True), column("title"), column("body")))
    source.commit([update(ITEMS, 1, title="new", body="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
    assert set(under_test.rows()) == set(source.rows())
    assert under_test.rows()["1"]["title"] == "new" and under_test.rows()["2"]["title"] == "a"
    assert list(http.get(f"/{ITEMS}").json()) == [f"{ITEMS}~3"]
    assert [http.get(f"/{ITEMS}~{n}").status_code for n in (1, 2)] == [httpx.codes.NOT_FOUND] * 2


def test_a_column_that_becomes_a_boolean_does_not_stop_at_old_values(
    source: ModelSource, under_test: SinkUnderTest
) -> None:
    source.commit([insert(ITEMS, 1, "yes"), insert(ITEMS, 2, "no")])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        key = column("id", 23, "int4", in_key=True)
        source.add_layout(items_layout("items", key, column("name", 16, "bool"), column("body")))
        source.commit([update(ITEMS, 1, name="t", body="b")])
        fill(sink, source, done)
        assert under_test.rows() == {
            "1": {"id": "1", "name": "True", "body": "b"},
            "2": {"id": "2", "name": None, "body": "body"},
        }
        source.commit([update(ITEMS, 2, name="f", body="b")])
        old = source.records[0]
        sink.write([window_of(*old, source.layouts.__getitem__)], Marks(1, 1))  # from before the change, and late
        fill(sink, source, done)
    assert under_test.rows()["2"]["name"] == "False"


def test_what_a_row_lacks_is_known_behind_a_copy_and_a_restart(source: ModelSource, under_test: SinkUnderTest) -> None:
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)  # the insert never came
        assert sink.incomplete() == (ITEMS,)
        done = source.end
        source.add_layout(items_layout("items", column("id", 23, "int4", in_key=True), column("title"), column("body")))
        source.commit([insert(ITEMS, 2)])
        fill(sink, source, done)
        assert sink.incomplete() == (ITEMS,)
    with closing(under_test.open()) as sink:
        assert sink.incomplete() == (ITEMS,)
