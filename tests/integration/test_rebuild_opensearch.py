"""`walbus rebuild` of search indices on real servers: one request swaps all, and readers see no gap and no past."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import pytest

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, update
from support.rebuild_rig import (
    KEPT,
    Load,
    Looks,
    config_for,
    config_of,
    dropped,
    filled,
    looking_at,
    rebuilt,
    stopped_while_it_reads,
)
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import SinkUnderTest, opensearch_under_test
from support.waiting import wait_for
from support.walbus_command import walbus
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.rebuilding import discard, rebuild
from walbus.consumers.sinks import opensearch_swaps
from walbus.consumers.sinks.base import OutrankingSink
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.opensearch_options import OpenSearchOptions
from walbus.consumers.sinks.opensearch_server import IndexGone, OpenSearchServer
from walbus.consumers.sinks.opensearch_swaps import Swaps
from walbus.errors import SinkRefused, SinkUnavailable, WalbusError
from walbus.events import window_of
from walbus.position import Position

pytestmark = pytest.mark.one_version

FIRST, SECOND = f"{ITEMS}~1", f"{ITEMS}~2"
WRITER = f"walbus-consumers%to-{FIRST}"


@pytest.fixture
def under_test(opensearch_url: str, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, opensearch_url)


@pytest.fixture(params=["opensearch", "elasticsearch"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, request.getfixturevalue(f"{request.param}_url"), request.param)


class Server:
    """The server as an operator sees it."""

    def __init__(self, under_test: SinkUnderTest) -> None:
        self.http = httpx.Client(base_url=under_test.options["url"], timeout=60)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        answer = self.http.request(method, path, **({} if body is None else {"json": body}))
        answer.raise_for_status()
        return answer.json()

    def indices(self) -> set[str]:
        return {one["index"] for one in self.ask("GET", "/_cat/indices?h=index&format=json&expand_wildcards=all")}

    def aliases(self, index: str) -> dict[str, Any]:
        aliases: dict[str, Any] = self.ask("GET", f"/{quote(index)}/_alias")[index]["aliases"]
        return aliases

    def move(self, *actions: dict[str, Any]) -> None:
        self.ask("POST", "/_aliases", {"actions": list(actions)})

    def document(self, index: str, id_: object) -> Any:
        return self.http.get(f"/{quote(index)}/_doc/{id_}").json().get("_source")


@pytest.fixture
def server(under_test: SinkUnderTest) -> Iterator[Server]:
    made = Server(under_test)
    yield made
    made.http.close()


@pytest.mark.parametrize("asked_for", ["public.items", "public.*"])
@pytest.mark.timeout(300)
def test_a_rebuild_under_load_swaps_with_no_moment_without_an_answer(
    either: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, asked_for: str
) -> None:
    """Not for those who search by a pattern either, which two indices match for a while."""
    seed = announced_seed("a rebuild of indices under load")
    filled(relay, either, source)
    server = Server(either)
    by_hand = {"id": 7, "name": "by hand", "body": "body"}
    server.ask("PUT", f"/{ITEMS}/_doc/7?version={2**40}&version_type=external", by_hand)
    server.ask("PUT", f"/{ITEMS}/_doc/1999999?version=1&version_type=external", {"id": 1999999, "name": "ghost"})
    with Load(source, seed), Looks(looking_at(either, asked_for)) as looks, consumer(relay, either) as running:
        swapped = rebuilt(relay, either)
        behind = looks.seen
        wait_for(lambda: looks.seen > behind, what="somebody looked behind the swap")
        wait_for(lambda: running.status().get("last_done") and source.end > swapped)
    with consumer(relay, either):
        source.commit([update(ITEMS, 1, name="goes on"), insert(ITEMS, 300)])
        equal(either, relay)
    assert server.document(FIRST, 7)["name"] == "by hand", "what was replaced is kept"
    assert dropped(either)
    assert not dropped(either)
    assert {name for name in server.indices() if "hold" in name or "to-" in name or name == FIRST} == set()
    with consumer(relay, either):
        source.commit([delete(ITEMS, 300)])
        equal(either, relay)
    server.http.close()


def test_a_second_rebuild_takes_no_name_that_is_free_again(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    assert dropped(under_test)
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows(ITEMS)
    assert server.indices() == {SECOND, f"{ITEMS}~3", "walbus-consumers"}, "no name comes again"


def test_a_copy_that_is_dropped_leaves_no_index(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    filled(relay, under_test, source)
    before = server.indices()
    stopped_while_it_reads(relay, under_test)
    discard("test", config_for(under_test), under_test.place.folder)
    assert server.indices() == before


class Begun:
    """A rebuild in a thread, which gets no row until it is to end; `ended` gives its error.

    It has a relay of its own, which nobody else asks: what has been asked tells how far it is.
    """

    def __init__(self, source: ModelSource, under_test: SinkUnderTest) -> None:
        self._relay, self._under_test = ScriptedRelay(source), under_test
        self.stop = threading.Event()
        self._outcome: list[Position | WalbusError | None] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._relay.__enter__().seeding = True
        self._thread.start()
        wait_for(lambda: self._relay.asked("/v1/snapshot"), what="it reads rows")
        return self

    def __exit__(self, *_: object) -> None:
        self.gets_rows()
        self.stop.set()
        self._thread.join(60)
        self._relay.__exit__(None, None, None)
        assert not self._thread.is_alive()

    def gets_rows(self) -> None:
        self._relay.seeding = False

    def ended(self) -> Position | WalbusError | None:
        self.gets_rows()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._outcome[0]

    def _run(self) -> None:
        config, folder = config_for(self._under_test), self._under_test.place.folder
        try:
            self._outcome.append(rebuild("test", config, relay_url=self._relay.url, folder=folder, stop=self.stop))
        except WalbusError as error:
            self._outcome.append(error)


def test_a_rebuild_whose_copy_is_dropped_ends_and_never_swaps(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    filled(relay, under_test, source)
    before = server.indices()
    with Begun(source, under_test) as begun:
        assert discard("test", config_for(under_test), under_test.place.folder)
        outcome = begun.ended()
    assert isinstance(outcome, SinkRefused)
    assert "the copy was dropped while it was filled" in str(outcome)
    assert server.indices() == before
    assert not dropped(under_test), "nothing was swapped"
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows(ITEMS)


def test_of_two_rebuilds_the_later_one_goes_on_with_the_copy(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    filled(relay, under_test, source)
    with Begun(source, under_test) as first, Begun(source, under_test) as second:
        first.gets_rows()  # as the second one does by then
        swapped, outcome = second.ended(), first.ended()
    assert swapped == source.end
    assert isinstance(outcome, SinkRefused)
    assert "another rebuild goes on with this copy" in str(outcome)
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="goes on"), delete(ITEMS, 2)])
        equal(under_test, relay)
    assert dropped(under_test)
    assert len(server.indices()) == 2


def test_a_hold_is_its_takers_own_and_stands_alone(
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was ended, since its taker stood still, does not come through by the hold of the next one."""
    monkeypatch.setattr(opensearch_swaps, "HELD_AT_MOST", 0.2)
    filled(relay, under_test, source)
    with closing(search_server(under_test)) as asked:
        first, second, third = (Swaps(asked, "walbus-consumers", "test", lambda: False) for _ in range(3))
        first.take({FIRST: WRITER})
        with pytest.raises(SinkUnavailable, match="another `walbus rebuild`"):
            second.take({FIRST: WRITER})
        assert WRITER not in server.aliases(FIRST)
        third.settle()
        assert WRITER in server.aliases(FIRST)
        second.take({FIRST: WRITER})
        with pytest.raises(IndexGone):
            asked.move([first.ended])
        first.release()
        assert second.is_own() and not first.is_own()
        assert WRITER not in server.aliases(FIRST)
        second.release()
    assert not {name for name in server.indices() if "hold" in name}
    under_test.open().close()


def test_of_many_that_take_the_hold_at_once_one_has_it_at_most(under_test: SinkUnderTest) -> None:
    with closing(search_server(under_test)) as asked:
        takers = [Swaps(asked, "walbus-consumers", "test", lambda: False) for _ in range(6)]

        def took(swaps: Swaps) -> bool:
            try:
                swaps.take({})
            except SinkUnavailable:
                return False
            return True

        with ThreadPoolExecutor(len(takers)) as pool:
            for _ in range(5):
                assert sum(pool.map(took, takers)) <= 1
                for swaps in takers:
                    swaps.release()
                assert not takers[0].is_held()


def test_what_a_hold_gives_back_is_nothing_that_was_replaced_meanwhile(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    """It was taken by what its taker saw before another one's swap."""
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    with closing(search_server(under_test)) as asked:
        late = Swaps(asked, "walbus-consumers", "test", lambda: False)
        late.take({FIRST: WRITER})
        late.release()
    assert server.aliases(FIRST) == {f"{ITEMS}%old": {"is_hidden": True}}


def test_a_rebuild_begins_without_a_touch_of_the_live_indices(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    """The consumer is in the middle of a table's new name: the alias is moved, and the list of tables is not stored."""
    filled(relay, under_test, source)
    server.move(
        {"remove": {"index": FIRST, "alias": ITEMS}}, {"add": {"index": FIRST, "alias": "public.renamed"}},
    )  # fmt: skip
    place = "/walbus-consumers/_doc/checkpoint%3Atest"
    before = server.ask("GET", place), server.ask("GET", f"/{quote(FIRST)}")
    stop = threading.Event()
    stop.set()
    config, folder = config_for(under_test), under_test.place.folder
    assert rebuild("test", config, relay_url=relay.url, folder=folder, stop=stop) is None
    assert (server.ask("GET", place), server.ask("GET", f"/{quote(FIRST)}")) == before


def search_server(under_test: SinkUnderTest) -> OpenSearchServer:
    options = OpenSearchOptions.read(under_test.options, under_test.place)
    return OpenSearchServer(options.access(under_test.place))


def test_aliases_of_the_operator_move_and_settings_are_those_of_the_configuration(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    filled(relay, under_test, source)
    cheap = {"filter": {"range": {"id": {"lt": 10}}}}
    server.move({"add": {"index": FIRST, "alias": "cheap", **cheap}}, {"add": {"index": FIRST, "alias": "all-items"}})
    fields = {ITEMS: {"name": {"type": "keyword"}}}
    with Load(source, 3), Looks(looking_at(under_test, "all-items")), consumer(relay, under_test):
        rebuilt(relay, under_test, fields=fields, settings={"number_of_shards": 2})
    assert server.aliases(SECOND) == {
        ITEMS: {}, "cheap": cheap, "all-items": {}, WRITER.replace("~1", "~2"): {"is_hidden": True},
    }  # fmt: skip
    assert server.aliases(FIRST) == {f"{ITEMS}%old": {"is_hidden": True}}
    assert server.ask("GET", "/cheap/_count")["count"] == 10
    told = server.ask("GET", f"/{quote(SECOND)}")[SECOND]
    assert told["mappings"]["properties"]["name"] == {"type": "keyword"}
    assert told["settings"]["index"]["number_of_shards"] == "2"
    assert told["settings"]["index"]["hidden"] == "false"


def written(sink: Any, source: ModelSource, after: Position) -> None:
    marks = Marks(1, 1)
    sink.write([window_of(h, r, source.layouts.__getitem__, after=after) for h, r in source.after(after)], marks)
    sink.commit(Following(source.log_id, marks, Point(source.end, source.last_seq)))


@pytest.mark.parametrize("edit", [update(ITEMS, 1, name="late", body="late"), delete(ITEMS, 1)])
def test_what_an_older_process_writes_behind_the_swap_reaches_no_index(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server, edit: Any
) -> None:
    filled(relay, under_test, source)
    with closing(under_test.open()) as older:
        rebuilt(relay, under_test)
        before, done = under_test.rows(), source.end
        source.commit([edit])
        with pytest.raises(SinkSwapped):
            written(older, source, done)
        assert under_test.rows() == before
        assert server.document(FIRST, 1)["name"] == "n1"
        assert {name for name in server.indices() if "to-" in name} == set(), "what a late delete made is removed"
        older.rollback()
        checkpoint = older.checkpoint()
        assert isinstance(checkpoint, Following)
        assert checkpoint.point.last_done == done, "it goes on behind the copy's checkpoint"
        written(older, source, done)
    assert under_test.rows() == source.rows(ITEMS)


def test_what_a_process_remembers_from_before_several_swaps_names_no_index(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    """It rested behind a repair: its versions are above all those of the indices that were made since."""
    filled(relay, under_test, source)
    with closing(under_test.open()) as older:
        assert isinstance(older, OutrankingSink)
        older.outrank(ITEMS)
        rebuilt(relay, under_test)
        assert dropped(under_test)
        discard("test", config_for(under_test), under_test.place.folder)
        rebuilt(relay, under_test)
        assert dropped(under_test)
        before, done = under_test.rows(), source.end
        source.commit([update(ITEMS, 1, name="late", body="late")])
        with pytest.raises(SinkSwapped):
            written(older, source, done)
        assert under_test.rows() == before
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="behind it")])
        equal(under_test, relay)


def test_an_index_that_is_made_has_a_number_above_all_that_were(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    """As they are where this was not seen to: the live one has a number, and those below it are free."""
    server.ask("PUT", f"/{quote(ITEMS)}~7")
    filled(relay, under_test, source)
    assert server.indices() == {f"{ITEMS}~7", f"{ITEMS}~8", "walbus-consumers"}
    server.http.delete(f"/{quote(ITEMS)}~7")
    rebuilt(relay, under_test)
    assert dropped(under_test)
    assert server.indices() == {f"{ITEMS}~9", "walbus-consumers"}


def test_indices_of_before_are_given_their_alias_for_writing_once(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    filled(relay, under_test, source)
    meta = server.ask("GET", f"/{quote(FIRST)}")[FIRST]["mappings"]["_meta"]
    del meta["walbus"]["fenced"]
    server.ask("PUT", f"/{quote(FIRST)}/_mapping", {"_meta": meta})
    server.move({"remove": {"index": FIRST, "alias": WRITER}})
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="as ever")])
        equal(under_test, relay)
    assert WRITER in server.aliases(FIRST)
    server.move({"remove": {"index": FIRST, "alias": WRITER}})
    with pytest.raises(SinkUnavailable, match="lacks the alias"):
        under_test.open()


def test_a_table_that_comes_while_the_writer_is_to_wait_puts_the_swap_off(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, server: Server
) -> None:
    """The live side is about to make an index when the hold is taken: it does not, and does it behind the swap."""
    filled(relay, under_test, source)
    with closing(under_test.open()) as live:
        done = source.end
        rebuilt(relay, under_test)
        other = source.add_layout(items_layout("others", oid=16700)).table
        source.commit([insert(other, 1)])
        with pytest.raises(SinkSwapped):
            written(live, source, done)
        assert live.checkpoint() is not None
        written(live, source, done)
        assert under_test.rows(other) == source.rows(other)


def test_the_command_rebuilds_drops_and_says_where(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    filled(relay, under_test, source)
    config = str(config_of(relay, under_test, tmp_path))
    done = walbus("rebuild", "test", "-c", config)
    assert done.code == 0, done.stderr
    assert done.stdout == f"test was swapped at {source.end}; `walbus rebuild test --drop-old` drops what it replaced\n"
    assert walbus("rebuild", "test", "--drop-old", "-c", config).stdout == "test: what was replaced is dropped\n"
    assert walbus("rebuild", "test", "--discard", "-c", config).stdout == "test: there is no copy\n"
    assert len(under_test.rows()) == KEPT
