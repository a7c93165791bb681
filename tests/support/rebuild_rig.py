"""What goes on around a rebuild: a source that is written to, readers who look all the while, and the command.

with Load(source, seed), Looks(under_test) as looks:
    ...                              rows 0 to 199 are always there; row 0 counts in its `name`, and never backward;
                                     rows 1 to 9 are as they were, for what is done to them by hand
looks.seen                           how often somebody looked; a look that failed, or saw older rows, fails at the end
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
import redis

from support.model_source import ITEMS, Edit, ModelSource, delete, insert, update
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import SinkUnderTest
from support.waiting import wait_for
from walbus.config import ConsumerConfig
from walbus.consumers.rebuilding import drop_kept, rebuild
from walbus.consumers.sink_verifying import TableVerdict, verify_sink
from walbus.position import Position

#: Rows that are never deleted.
KEPT = 200
_BY_HAND = 10  # rows below are not changed
_PAUSE_SECONDS = 0.004

#: How many rows there are, and the `name` of row 0 of whatever form.
_LOOK = """
local rows = (redis.call('GET', KEYS[1]) or '') .. ARGV[1]
local first, name = rows .. '0', nil
if redis.call('TYPE', first).ok == 'hash' then
  name = redis.call('HGET', first, 'name')
else
  local text = redis.call('GET', first) or ''
  name = string.match(text, '"name":"(%d+)"') or string.match(text, '^0|(%d+)|')
end
return {#redis.call('KEYS', rows .. '*'), name}
"""

Look = Callable[[], tuple[int, int]]  #: how many rows there are, and what row 0 counts


def fill(source: ModelSource) -> None:
    """The rows that are there before the load."""
    source.commit([insert(ITEMS, n, "0" if n == 0 else f"n{n}", "body") for n in range(KEPT)])


class Load:
    """Commits small transactions in a thread while it is entered."""

    def __init__(self, source: ModelSource, seed: int, pause: float = _PAUSE_SECONDS) -> None:
        self._source, self._random, self._pause = source, random.Random(seed), pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._passing: list[int] = []  # ids above those that are kept

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        count = int(self._source.rows(ITEMS)["0"]["name"] or 0)
        while not self._stop.wait(self._pause):
            count += 1
            self._source.commit([update(ITEMS, 0, name=str(count)), self._edit(count)])

    def _edit(self, count: int) -> Edit:
        choice = self._random.random()
        if choice < 0.4 or not self._passing:
            self._passing.append(1_000_000 + count)
            return insert(ITEMS, self._passing[-1], f"n{count}", "body")
        if choice < 0.7:
            return delete(ITEMS, self._passing.pop(self._random.randrange(len(self._passing))))
        if choice < 0.85:
            return update(ITEMS, self._random.randrange(_BY_HAND, KEPT), name=f"n{count}")  # its body is left out
        return update(ITEMS, self._random.randrange(_BY_HAND, KEPT), name=f"n{count}", body=f"b{count}")


class Looks:
    """Reads a sink in a thread while it is entered; at the end it says what readers may never see."""

    def __init__(self, looking: Callable[[], Any]) -> None:
        self.seen = 0
        self._looking = looking
        self._wrong: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for(lambda: self.seen or self._wrong, what="somebody looks")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            assert self._wrong is None, self._wrong
            assert self.seen > 0

    def _run(self) -> None:
        highest = 0
        try:
            with self._looking() as look:
                while not self._stop.wait(0.001):
                    rows, count = look()
                    self.seen += 1
                    if rows < KEPT or count < highest:
                        self._wrong = f"look {self.seen}: {rows} rows, and {count} behind {highest}"
                        return
                    highest = count
        except Exception as error:
            self._wrong = f"look {self.seen + 1}: {error!r}"


def looking_at(under_test: SinkUnderTest, table: str = "") -> Callable[[], Any]:
    """Opens one reader's connection, as a context; it gives the look."""
    table = table or (ITEMS if under_test.name in ("opensearch", "elasticsearch") else "items")
    query = f"SELECT count(*), max(CASE WHEN id = 0 THEN name END) FROM {table}"

    @contextmanager
    def sqlite() -> Iterator[Look]:
        with closing(sqlite3.connect(f"file:{under_test.options['path']}?mode=ro", uri=True)) as database:
            yield lambda: _read(database.execute(query).fetchone())

    @contextmanager
    def postgres() -> Iterator[Look]:
        with psycopg.connect(under_test.options["dsn"], autocommit=True, prepare_threshold=1) as connection:
            yield lambda: _read(connection.execute(query).fetchone())

    @contextmanager
    def redis_server() -> Iterator[Look]:
        pointer = under_test.options.get("pointer", "")
        with redis.Redis.from_url(under_test.options["url"], decode_responses=True) as client:
            yield lambda: _read(client.eval(_LOOK, 1, pointer, f"public.{table}:"))

    @contextmanager
    def search() -> Iterator[Look]:
        asked = {"size": 1, "sort": [{"id": "asc"}], "track_total_hits": True}

        def look() -> tuple[int, int]:
            answer = http.post(f"/{table}/_search", json=asked)
            answer.raise_for_status()
            told = answer.json()
            assert told["_shards"]["failed"] == 0, told
            return _read((told["hits"]["total"]["value"], told["hits"]["hits"][0]["_source"]["name"]))

        with httpx.Client(base_url=under_test.options["url"], timeout=60) as http:
            yield look

    @contextmanager
    def index() -> Iterator[Look]:
        import tantivy

        path = Path(under_test.options["path"])

        def seen() -> tuple[int, int]:
            opened = tantivy.Index.open(str(path))
            searcher, term = opened.searcher(), tantivy.Query.term_query
            ((_, first),) = searcher.search(term(opened.schema, "_id", f"{ITEMS}/0"), 2).hits
            row = json.loads(bytes(searcher.doc(first).get_first("_source")))
            return _read((searcher.search(term(opened.schema, "_table", ITEMS), 1).count, row["name"]))

        yield lambda: _while_replaced(seen, path.resolve, (ValueError,))

    @contextmanager
    def topics() -> Iterator[Look]:
        from support.topic_rows import reader_of

        reader = reader_of(under_test)

        def seen() -> tuple[int, int]:
            rows = {row["id"]: row for row in reader.turned().rows(ITEMS)}
            return _read((len(rows), rows[0]["name"]))

        yield lambda: _while_replaced(seen, reader.turned, (AssertionError, KeyError))

    looks = {"sqlite": sqlite, "postgres": postgres, "redis": redis_server, "tantivy": index, "kafka": topics}
    return looks.get(under_test.name, search)


def _while_replaced(
    look: Callable[[], tuple[int, int]], place: Callable[[], object], gone: tuple[type[Exception], ...]
) -> tuple[int, int]:
    """Looks again, if what it looked at went meanwhile: replaced by another one, and dropped."""
    while True:
        before = place()
        try:
            return look()
        except gone:
            if place() == before:
                raise


def _read(row: Any) -> tuple[int, int]:
    return int(row[0]), int(row[1])


def filled(relay: ScriptedRelay, under_test: SinkUnderTest, source: ModelSource) -> None:
    """A sink that has the rows, and the checkpoint behind them."""
    fill(source)
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 9, name="behind the snapshot"))


def config_for(under_test: SinkUnderTest, **options: object) -> ConsumerConfig:
    """The section of the consumer `test`."""
    return ConsumerConfig(sink=under_test.name, **{"tables": ("public.*",), **under_test.options, **options})


def rebuilt(relay: ScriptedRelay, under_test: SinkUnderTest, **options: object) -> Position:
    """Rebuilds it; where it was swapped."""
    config, folder = config_for(under_test, **options), under_test.place.folder
    swapped = rebuild("test", config, relay_url=relay.url, folder=folder, stop=threading.Event())
    assert swapped is not None
    return swapped


def stopped_while_it_reads(relay: ScriptedRelay, under_test: SinkUnderTest) -> None:
    """A rebuild begins, reads some of the rows, and is stopped."""
    config, folder, stop = config_for(under_test), under_test.place.folder, threading.Event()
    asked = len(relay.asked("/v1/snapshot"))

    def stops() -> None:
        wait_for(lambda: len(relay.asked("/v1/snapshot")) > asked)
        stop.set()

    relay.seeding = True
    stopping = threading.Thread(target=stops)
    stopping.start()
    assert rebuild("test", config, relay_url=relay.url, folder=folder, stop=stop) is None
    stopping.join()
    relay.seeding = False


def dropped(under_test: SinkUnderTest) -> bool:
    """Whether there was something to drop of what a rebuild replaced; it is dropped."""
    return drop_kept("test", config_for(under_test), under_test.place.folder)


def differing(relay: ScriptedRelay, under_test: SinkUnderTest) -> list[int]:
    """How many rows of each table are not as they should be."""
    folder = under_test.place.folder
    return [one.differing for one in verify_sink("test", config_for(under_test), relay_url=relay.url, folder=folder)]


def verified(relay: ScriptedRelay, under_test: SinkUnderTest, **chosen: Any) -> TableVerdict:
    """How its one table compares."""
    config, folder = config_for(under_test), under_test.place.folder
    (verdict,) = verify_sink("test", config, relay_url=relay.url, folder=folder, **chosen)
    return verdict


def config_of(relay: ScriptedRelay, under_test: SinkUnderTest, folder: Path) -> Path:
    """A walbus.toml whose consumer `test` is the one under test."""
    options = {key: str(value) for key, value in under_test.options.items()}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    config = folder / "walbus.toml"
    config.write_text(
        f'data_dir = "{folder}/data"\n[source]\ndsn = "postgresql://nobody@localhost/none"\n'
        f'[consumer.test]\nsink = "{under_test.name}"\ntables = ["public.*"]\nrelay = "{relay.url}"\n{lines}'
    )
    return config
