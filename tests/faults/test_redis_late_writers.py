"""A process that was stopped, and goes on when another one has its place, changes nothing: no row, no note of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, update
from support.redis_cluster import LocalCluster
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import SinkUnderTest, redis_cluster_under_test, redis_under_test
from walbus.consumers.sinks.redis_cluster import open_store
from walbus.consumers.sinks.redis_server import RedisServer
from walbus.consumers.sinks.redis_store import RedisStore
from walbus.errors import SinkRefused

pytestmark = pytest.mark.one_version

THINGS = "public.things"


@dataclass(frozen=True)
class Place:
    """A Redis with a sink.

    Attributes:
        under_test: the sink.
        connect: a client.
    """

    under_test: SinkUnderTest
    connect: Callable[[], Any]

    def keys(self) -> dict[str, Any]:
        """All that is there, but for what tells who wrote last."""
        with self.connect() as client:
            return {
                key: _value_of(client, key)
                for key in client.scan_iter()
                if not key.startswith("walbus:test:fence:") and key != "walbus:test:done"
            }


def _value_of(client: Any, key: str) -> Any:
    match client.type(key):
        case "hash":
            return {name: value for name, value in client.hgetall(key).items() if name != "writer"}
        case "set":
            return client.smembers(key)
        case _:
            return client.get(key)


@pytest.fixture
def source() -> ModelSource:
    source = ModelSource()
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(6)])
    return source


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["server", "cluster"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "server":
        url = request.getfixturevalue("redis_url")
        yield Place(redis_under_test(tmp_path, url, "hash"), lambda: redis.Redis.from_url(url, decode_responses=True))
        return
    cluster: LocalCluster = request.getfixturevalue("redis_cluster")
    yield Place(redis_cluster_under_test(tmp_path, cluster, "hash"), cluster.client)


# The store: every command of a writer that another one has come after


@pytest.mark.parametrize(
    "command",
    [
        lambda store: store.remove(f"{ITEMS}:1", store.beside(f"{ITEMS}:1")),
        lambda store: store.set_document("layouts", b'{"log_generation":1,"layouts":[]}'),
        lambda store: store.add_lacking(f"{ITEMS}\0{ITEMS}:2"),
        lambda store: store.remove_lacking([f"{ITEMS}\0{ITEMS}:3"]),
    ],
    ids=["row removed", "layouts replaced", "lacking noted", "lacking removed"],
)
def test_a_store_refuses_each_command_of_a_writer_that_another_one_came_after(
    command: Callable[[RedisStore], None], place: Place, source: ModelSource, stack: ExitStack
) -> None:
    with closing(place.under_test.open()) as first:
        fill(first, source)
    with closing(open_store(place.under_test.options["url"], "test")) as late:
        late.begin()
        late.lacking()
        late.add_lacking(f"{ITEMS}\0{ITEMS}:3")
        successor = stack.enter_context(closing(place.under_test.open()))
        done = source.end
        source.commit([update(ITEMS, n, name="successor's") for n in range(6)])
        fill(successor, source, done)
        there = place.keys()
        with pytest.raises(SinkRefused, match="another consumer writes"):
            command(late)
        assert place.keys() == there


# The sink: what it notes while it takes changes


def test_a_late_writer_that_meets_its_first_layout_does_not_forget_those_of_its_successor(
    place: Place, source: ModelSource
) -> None:
    with closing(place.under_test.open()) as late, closing(place.under_test.open()) as successor:
        source.add_layout(items_layout("things", oid=16500))
        source.commit([insert(THINGS, 1)])
        fill(successor, source)
        there = place.keys()
        with pytest.raises(SinkRefused, match="another consumer writes"):
            late.write(windows(source)[:1], MARKS)
            late.commit(following(source))
        assert place.keys() == there
        done = source.end
        source.commit([update(ITEMS, 1, name="goes on"), update(THINGS, 1, name="goes on")])
        fill(successor, source, done)
    assert place.under_test.rows() == source.rows()


def test_a_late_writer_notes_no_row_as_lacking_a_value(place: Place, source: ModelSource, stack: ExitStack) -> None:
    """It would have its successor's next start read the whole table again."""
    with closing(place.under_test.open()) as late:
        fill(late, source)
        successor = stack.enter_context(closing(place.under_test.open()))
        done = source.end
        source.commit([update(ITEMS, 5, name="without its body")])
        to_come_late = windows(source, done)
        source.commit([delete(ITEMS, 5)])
        fill(successor, source, done)
        there = place.keys()
        with pytest.raises(SinkRefused, match="another consumer writes"):
            late.write(to_come_late, MARKS)  # whose row is not there any more
            late.commit(following(source))
        assert place.keys() == there
    with closing(place.under_test.open()) as sink:
        assert sink.incomplete() == ()
    assert place.under_test.rows() == source.rows()


# The pointer, which is set at each start


def test_a_start_finds_the_rows_while_another_process_commits_all_the_time(
    redis_url: str, tmp_path: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`walbus rebuild` begins so beside a consumer that runs; it was given up after three commits that came between."""
    under_test = redis_under_test(tmp_path, redis_url, "hash", pointer="items:live")
    with closing(under_test.open()) as running:
        fill(running, source)
        read = RedisServer._text

        def reading(server: RedisServer, key: str) -> str:
            text = read(server, key)
            if key == "walbus:test:checkpoint" and server is not running._server:  # type: ignore[attr-defined]
                done = source.end
                source.commit([update(ITEMS, 1, name=f"behind {done}")])
                fill(running, source, done)
            return text

        monkeypatch.setattr(RedisServer, "_text", reading)
        with closing(under_test.open()):
            monkeypatch.undo()
    assert under_test.rows() == source.rows()
