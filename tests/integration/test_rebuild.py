"""`walbus rebuild` against a scripted relay: a copy takes the live sink's place under load, and readers see no gap."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.rebuild_rig import (
    Load,
    Looks,
    config_for,
    config_of,
    differing,
    dropped,
    filled,
    looking_at,
    rebuilt,
    stopped_while_it_reads,
)
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import (
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from support.waiting import wait_for
from support.walbus_command import walbus
from walbus.config import ConsumerConfig
from walbus.consumers import rebuilding
from walbus.consumers.checkpoint import Checkpoint, last_done_of
from walbus.consumers.rebuilding import discard, rebuild
from walbus.consumers.sinks import open_copies
from walbus.consumers.sinks.copies import SinkCopies
from walbus.errors import SinkRefused, UsageError
from walbus.position import Position

pytestmark = pytest.mark.one_version


@pytest.fixture
def sqlite(tmp_path: Path) -> SinkUnderTest:
    return sqlite_under_test(tmp_path)


@pytest.fixture
def postgres(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)


@pytest.fixture
def redis_sink(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, request.getfixturevalue("redis_url"), "hash", pointer="items:live")


@pytest.fixture
def tantivy(tmp_path: Path) -> SinkUnderTest:
    return tantivy_under_test(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def sql_sink(request: pytest.FixtureRequest) -> SinkUnderTest:
    return request.getfixturevalue(request.param)


@pytest.fixture
def opensearch(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, request.getfixturevalue("opensearch_url"))


@pytest.fixture(params=["sqlite", "postgres", "redis_sink", "opensearch", "tantivy"])
def any_sink(request: pytest.FixtureRequest) -> SinkUnderTest:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["sqlite", "postgres", "redis_sink"])
def under_test(request: pytest.FixtureRequest) -> SinkUnderTest:
    return request.getfixturevalue(request.param)


def run(under_test: SinkUnderTest, *statements: str) -> list[tuple[object, ...]]:
    """By hand, in the sink's database; the rows of the last one."""
    if under_test.name == "sqlite":
        with closing(sqlite3.connect(under_test.options["path"])) as database:
            rows = [database.execute(statement).fetchall() for statement in statements][-1]
            database.commit()
        return rows
    with psycopg.connect(under_test.options["dsn"], autocommit=True) as connection:
        cursors = [connection.execute(statement) for statement in statements]
        return cursors[-1].fetchall() if cursors[-1].description else []


#: What a query of the whole table that was kept is called.
OLD = {"sqlite": '"items (old)"', "postgres": '"public~old".items'}


def test_a_rebuild_under_load_swaps_with_no_moment_without_an_answer(
    sql_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    seed = announced_seed("a rebuild under load")
    filled(relay, sql_sink, source)
    run(sql_sink, "UPDATE items SET name = 'by hand' WHERE id = 7", "DELETE FROM items WHERE id = 1999999")
    with Load(source, seed), Looks(looking_at(sql_sink)) as looks, consumer(relay, sql_sink) as running:
        swapped = rebuilt(relay, sql_sink)
        behind = looks.seen
        wait_for(lambda: looks.seen > behind, what="somebody looked behind the swap")
        wait_for(lambda: running.status().get("last_done") and source.end > swapped)
    with consumer(relay, sql_sink):
        source.commit([update(ITEMS, 1, name="goes on"), insert(ITEMS, 300)])
        equal(sql_sink, relay)
    assert differing(relay, sql_sink) == [0]
    assert run(sql_sink, f"SELECT name FROM {OLD[sql_sink.name]} WHERE id = 7") == [("by hand",)]
    assert dropped(sql_sink)
    assert not dropped(sql_sink)
    with consumer(relay, sql_sink):
        source.commit([delete(ITEMS, 300)])
        equal(sql_sink, relay)


class OneAhead:
    """Copies whose live sink has taken one transaction more whenever it is asked where it is, and a hundred at most."""

    def __init__(self, copies: SinkCopies, source: ModelSource, stop: threading.Event) -> None:
        self._copies, self._source, self._stop = copies, source, stop
        self.looks = 0

    def live(self) -> Checkpoint | None:
        self.looks += 1
        self._source.commit([update(ITEMS, 0, name=str(self.looks))])
        wait_for(lambda: last_done_of(self._copies.live()) >= self._source.end, what="the live sink goes ahead")
        if self.looks == 100:
            self._stop.set()
        return self._copies.live()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._copies, name)


def test_a_live_sink_that_is_ahead_at_each_look_is_swapped_all_the_same(
    any_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, any_sink, source)
    stop = threading.Event()
    made = list[OneAhead]()

    def ahead(*place: Any) -> Any:
        made.append(OneAhead(open_copies(*place), source, stop))
        return made[0]

    monkeypatch.setattr(rebuilding, "open_copies", ahead)
    with Looks(looking_at(any_sink)), consumer(relay, any_sink):
        swapped = rebuild("test", config_for(any_sink), relay_url=relay.url, folder=any_sink.place.folder, stop=stop)
        assert swapped == source.end, f"no swap after {made[0].looks} looks"
    assert any_sink.rows() == source.rows(ITEMS)


def test_a_second_rebuild_waits_until_what_the_first_replaced_is_dropped(
    any_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, any_sink, source)
    assert rebuilt(relay, any_sink) == source.end
    with pytest.raises(UsageError, match="is there yet"):
        rebuilt(relay, any_sink)
    assert dropped(any_sink)
    source.commit([delete(ITEMS, 5)])
    rebuilt(relay, any_sink)
    assert any_sink.rows() == source.rows(ITEMS)


def test_a_consumer_that_rests_goes_on_with_the_copy_at_its_next_write(
    any_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, any_sink, source)
    with consumer(relay, any_sink) as running:
        wait_for(lambda: running.status().get("phase") == "online", what="it rests")
        for number in range(3):  # nothing is written meanwhile, so it knows of none of them
            rebuilt(relay, any_sink)
            assert dropped(any_sink), number
        source.commit([delete(ITEMS, 2)])
        equal(any_sink, relay)
        source.commit([update(ITEMS, 3, name="behind three swaps")])
        equal(any_sink, relay)
    assert differing(relay, any_sink) == [0]


def test_empty_tables_are_swapped_and_tables_that_the_bootstrap_has_not_stay(
    any_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    gone = source.add_layout(items_layout("gone", oid=16500)).table
    empty = source.add_layout(items_layout("empty", oid=16600)).table
    source.commit([insert(gone, 1), insert(empty, 1)])
    filled(relay, any_sink, source)
    relay.unlisted.add(gone)
    source.commit([delete(empty, 1)])
    rebuilt(relay, any_sink)
    assert [any_sink.rows(table).keys() for table in (gone, empty)] == [{"1"}, set()]
    with consumer(relay, any_sink):
        source.commit([insert(empty, 2), insert(gone, 2)])
        wait_for(lambda: any_sink.rows(empty) == source.rows(empty))
        wait_for(lambda: any_sink.rows(gone).keys() == {"1", "2"})


@pytest.mark.parametrize("name", ["name", "title"])
def test_a_layout_that_changes_meanwhile_is_that_of_the_copy(
    name: str, any_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, any_sink, source)
    columns = [column("id", 23, "int4", in_key=True), column(name), column("body"), column("note")]
    source.add_layout(items_layout("items", *columns, schema_id=2))
    source.commit([update(ITEMS, 1, **{name: "anew"}, note="with it")])
    rebuilt(relay, any_sink)
    assert any_sink.rows()["1"]["note"] == "with it"
    with consumer(relay, any_sink):
        source.commit([update(ITEMS, 2, note="too")])
        wait_for(lambda: any_sink.rows()["2"].get("note") == "too")
    assert differing(relay, any_sink) == [0]


def test_a_copy_that_is_dropped_leaves_the_live_rows(
    any_sink: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, any_sink, source)
    config, folder = config_for(any_sink), any_sink.place.folder
    assert not discard("test", config, folder)
    stopped_while_it_reads(relay, any_sink)
    assert any_sink.rows() == source.rows(ITEMS)
    assert discard("test", config, folder) or any_sink.name == "opensearch", "which may have made no index yet"
    assert not discard("test", config, folder)
    assert any_sink.rows() == source.rows(ITEMS)
    rebuilt(relay, any_sink)
    assert any_sink.rows() == source.rows(ITEMS)


def test_indexes_privileges_and_views_are_those_of_the_live_table(
    postgres: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, postgres, source)
    run(
        postgres,
        "CREATE INDEX by_name ON items (lower(name)) WHERE name <> 'nobody'",
        "ALTER TABLE items ADD CONSTRAINT named CHECK (name IS NOT NULL)",
        "CREATE VIEW names WITH (security_barrier = true) AS SELECT id, name FROM items WHERE name <> ''",
        "CREATE VIEW first_names AS SELECT * FROM names WHERE id < 10",
        "GRANT SELECT ON items TO PUBLIC",
    )
    with Load(source, 1), Looks(looking_at(postgres, "names")), consumer(relay, postgres):
        rebuilt(relay, postgres)
    definition = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname = 'by_name'"
    assert "lower(name)" in str(run(postgres, definition))
    assert run(postgres, "SELECT conname FROM pg_constraint WHERE conrelid = 'items'::regclass AND contype = 'c'")
    assert run(postgres, "SELECT has_table_privilege('pg_monitor', 'items', 'SELECT')") == [(True,)]
    assert run(postgres, "SELECT reloptions FROM pg_class WHERE relname = 'names'") == [(["security_barrier=true"],)]
    with consumer(relay, postgres):
        source.commit([update(ITEMS, 3, name="by the view")])
        equal(postgres, relay)
    assert run(postgres, "SELECT name FROM first_names WHERE id = 3") == [("by the view",)]
    assert dropped(postgres), "nothing holds on to what was replaced"
    assert run(postgres, "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%~%'") == []


def test_indexes_triggers_and_views_of_a_file_are_those_of_the_live_table(
    sqlite: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, sqlite, source)
    run(
        sqlite,
        "CREATE INDEX by_name ON items (name)",
        "CREATE TABLE told (id INTEGER)",
        "CREATE TRIGGER tells AFTER UPDATE ON items BEGIN INSERT INTO told VALUES (new.id); END",
        "CREATE VIEW names AS SELECT id, name FROM items",
    )
    with Looks(looking_at(sqlite, "names")):
        rebuilt(relay, sqlite)
    assert run(sqlite, "SELECT name FROM sqlite_master WHERE tbl_name = 'items' ORDER BY name")[:2] == [
        ("by_name",),
        ("items",),
    ]
    with consumer(relay, sqlite):
        source.commit([update(ITEMS, 3, name="by the view")])
        equal(sqlite, relay)
    assert run(sqlite, "SELECT name FROM names WHERE id = 3") == [("by the view",)]
    assert run(sqlite, "SELECT id FROM told") == [(3,)]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("ALTER TABLE items ADD COLUMN extra int", "column extra"),
        ("CREATE MATERIALIZED VIEW sums AS SELECT count(name) FROM items", "materialized view public.sums"),
        ("CREATE TABLE of_items (item int REFERENCES items)", "constraint of_items_item_fkey"),
        ("CREATE POLICY seen ON items USING (id > 0)", "policy seen"),
        ("CREATE PUBLICATION onward FOR TABLE items", "publication"),
    ],
)
def test_what_a_swap_would_break_is_named_before_anything_is_read(
    postgres: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, statement: str, named: str
) -> None:
    filled(relay, postgres, source)
    run(postgres, statement)
    with pytest.raises(SinkRefused, match=named):
        rebuilt(relay, postgres)
    assert not discard("test", config_for(postgres), postgres.place.folder)


def test_a_reader_that_holds_a_table_delays_the_swap_and_nobody_else(
    postgres: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, postgres, source)
    done: list[Position] = []
    rebuilding = threading.Thread(target=lambda: done.append(rebuilt(relay, postgres)))

    def gave_up() -> int:
        """How often a swap waited for the reader, which takes no longer than a look at the locks may."""
        waits = [log["reason"] for log in list(logs) if log["event"] == "rebuild.swap_waits"]
        return sum("lock timeout" in reason for reason in waits)

    with capture_logs() as logs, Load(source, 2), Looks(looking_at(postgres)) as looks, consumer(relay, postgres):
        with psycopg.connect(postgres.options["dsn"]) as holder:
            holder.execute("SELECT count(*) FROM items").fetchone()  # the transaction stays open
            rebuilding.start()
            wait_for(lambda: gave_up() >= 2, what="a swap waits for the reader, and gives up, twice")
            seen = looks.seen
            wait_for(lambda: looks.seen > seen + 5, what="others read on")
            assert done == []
        rebuilding.join(60)
    assert len(done) == 1
    assert differing(relay, postgres) == [0]


def test_sinks_that_cannot_be_rebuilt_and_those_without_all_rows_are_refused(
    sqlite: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    folder = sqlite.place.folder
    stop = threading.Event()
    able = "sqlite, postgres, tantivy, redis, kafka, opensearch, elasticsearch can"
    with pytest.raises(UsageError, match=f"the sink stdout cannot be rebuilt beside itself; {able}"):
        rebuild("test", ConsumerConfig(sink="stdout"), relay_url=relay.url, folder=folder, stop=stop)
    with pytest.raises(UsageError, match="begins at latest"):
        rebuilt(relay, sqlite, start="latest")
    with pytest.raises(UsageError, match="has no rows yet"):
        rebuilt(relay, sqlite)
    filled(relay, sqlite, source)
    relay.refused.add(ITEMS)
    with pytest.raises(UsageError, match=r"does not serve public\.items"):
        rebuilt(relay, sqlite)
    relay.refused.clear()
    with pytest.raises(SinkRefused, match="another mapping"):
        rebuilt(relay, sqlite, table={ITEMS: {"columns": ["id", "name"]}})


def test_the_command_rebuilds_drops_and_says_where(
    sqlite: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    filled(relay, sqlite, source)
    config = str(config_of(relay, sqlite, tmp_path))
    done = walbus("rebuild", "test", "-c", config)
    assert done.code == 0, done.stderr
    assert done.stdout == f"test was swapped at {source.end}; `walbus rebuild test --drop-old` drops what it replaced\n"
    assert "is there yet" in walbus("rebuild", "test", "-c", config).one_line()
    assert walbus("rebuild", "test", "--drop-old", "-c", config).stdout == "test: what was replaced is dropped\n"
    assert walbus("rebuild", "test", "--drop-old", "-c", config).stdout == "test: nothing was kept\n"
    assert walbus("rebuild", "test", "--discard", "-c", config).stdout == "test: there is no copy\n"
    both = walbus("rebuild", "test", "--discard", "--drop-old", "-c", config)
    assert both.code == 2
    unknown = walbus("rebuild", "tst", "-c", config)
    assert "did you mean test?" in unknown.one_line()
