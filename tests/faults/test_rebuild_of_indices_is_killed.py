"""A rebuild of search indices ends at each of its requests in turn, as by a kill: what is left is whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from support.between_search import Between, between_search
from support.model_source import ITEMS, ModelSource, update
from support.rebuild_rig import Load, Looks, config_for, dropped, filled, looking_at, stopped_while_it_reads
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import SinkUnderTest, opensearch_under_test
from support.waiting import wait_for
from walbus.consumers.rebuilding import discard, rebuild
from walbus.consumers.sinks import opensearch_swaps
from walbus.errors import SinkUnavailable
from walbus.position import Position

pytestmark = [pytest.mark.one_version, pytest.mark.long]

_LOAD_SECONDS = 0.4  # between two transactions: sinks, readers, relay and what is between are one process
_FIRST_REQUEST = ""  # whatever it is
_HOLD = "PUT /walbus-consumers%25hold"


@pytest.fixture
def between(opensearch_url: str) -> Iterator[Between]:
    with between_search(opensearch_url) as server:
        yield server


@pytest.fixture
def under_test(opensearch_url: str, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, opensearch_url)


def ended(relay: ScriptedRelay, through: SinkUnderTest, between: Between) -> Position | None:
    """Where a rebuild swapped; None if it was killed before, or did not hear of it."""
    stop, found = threading.Event(), list[Position | None]()
    config, folder = config_for(through), through.place.folder

    def run() -> None:
        with suppress(SinkUnavailable):  # when it opens the sink it does not wait
            found.append(rebuild("test", config, relay_url=relay.url, folder=folder, stop=stop))

    running = threading.Thread(target=run)
    running.start()
    try:
        wait_for(lambda: between.killed.is_set() or not running.is_alive(), 60, what="it is killed, or swaps")
    finally:
        stop.set()
        running.join(60)
    assert not running.is_alive()
    return found[0] if found else None


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("arrives", [False, True], ids=["not-sent", "not-answered"])
@pytest.mark.parametrize("since", [_HOLD, _FIRST_REQUEST], ids=["of-the-swap", "of-the-whole"])
def test_a_rebuild_that_ends_at_any_request_leaves_all_to_the_consumer_and_the_next_one(
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    between: Between,
    monkeypatch: pytest.MonkeyPatch,
    since: str,
    arrives: bool,
) -> None:
    monkeypatch.setattr(opensearch_swaps, "HELD_AT_MOST", 1.0)
    seed = announced_seed("a rebuild of indices that is killed")
    filled(relay, under_test, source)
    through = replace(under_test, options={**under_test.options, "url": between.url})
    with Load(source, seed, _LOAD_SECONDS), Looks(looking_at(under_test)) as looks, consumer(relay, under_test):
        at = 0
        while True:
            at += 1
            between.kill(at, since=since, arrives=arrives)
            swapped = ended(relay, through, between)
            killed = between.killed.is_set()
            print(f"{at}: {between.last if killed else 'came to its end'}, swapped: {swapped}")
            between.revive()
            seen = looks.seen
            source.commit([update(ITEMS, 1, name=f"behind {at}")])
            wait_for(lambda: under_test.rows()["1"]["name"] == f"behind {at}", 60, what="the consumer goes on")  # noqa: B023
            wait_for(lambda: looks.seen > seen, what="somebody looks")  # noqa: B023
            dropped(under_test)
            if not killed:
                break
            if since == _FIRST_REQUEST:
                discard("test", config_for(under_test), under_test.place.folder)
        assert swapped is not None
    assert at > 8, "all of its requests were met"
    with consumer(relay, under_test):
        equal(under_test, relay)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("arrives", [False, True], ids=["not-sent", "not-answered"])
def test_a_discard_that_ends_at_any_request_leaves_the_live_rows_and_is_done_again(
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    between: Between,
    monkeypatch: pytest.MonkeyPatch,
    arrives: bool,
) -> None:
    monkeypatch.setattr(opensearch_swaps, "HELD_AT_MOST", 1.0)
    filled(relay, under_test, source)
    through = replace(under_test, options={**under_test.options, "url": between.url})
    with Looks(looking_at(under_test)), consumer(relay, under_test):
        at = 0
        while True:
            at += 1
            stopped_while_it_reads(relay, under_test)
            between.kill(at, since=_FIRST_REQUEST, arrives=arrives)
            with suppress(SinkUnavailable):
                discard("test", config_for(through), through.place.folder)
            killed = between.killed.is_set()
            print(f"{at}: {between.last if killed else 'came to its end'}")
            between.revive()
            source.commit([update(ITEMS, 1, name=f"behind {at}")])
            wait_for(lambda: under_test.rows()["1"]["name"] == f"behind {at}", 60, what="the consumer goes on")  # noqa: B023
            discard("test", config_for(under_test), under_test.place.folder)
            assert not discard("test", config_for(under_test), under_test.place.folder)
            if not killed:
                break
    assert at > 10, "all of its requests were met"
    with consumer(relay, under_test):
        equal(under_test, relay)
