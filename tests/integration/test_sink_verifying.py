"""`verify_sink` against a scripted relay: what somebody did to a sink's rows is found, named and mended."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import SinkUnderTest, postgres_under_test, sqlite_under_test
from support.waiting import wait_for
from support.walbus_command import walbus
from walbus.config import ConsumerConfig
from walbus.consumers.row_spool import RowSpool
from walbus.consumers.sink_verifying import TableVerdict, verify_sink
from walbus.consumers.sinks.base import HeldRow
from walbus.errors import UsageError

pytestmark = pytest.mark.one_version


@pytest.fixture
def source() -> ModelSource:
    return ModelSource()


@pytest.fixture
def relay(source: ModelSource) -> Iterator[ScriptedRelay]:
    with ScriptedRelay(source) as relay:
        yield relay


@pytest.fixture(params=["sqlite", "postgres"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    if request.param == "postgres":
        return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
    return sqlite_under_test(tmp_path)


def verified(relay: ScriptedRelay, under_test: SinkUnderTest, **options: object) -> list[TableVerdict]:
    chosen = {name: options.pop(name) for name in ("repair", "tables") if name in options}
    config = ConsumerConfig(sink=under_test.name, **{"tables": ("public.*",), **under_test.options, **options})
    return verify_sink("test", config, relay_url=relay.url, folder=under_test.place.folder, **chosen)


def tamper(under_test: SinkUnderTest, *statements: str) -> None:
    """By hand, behind the sink's back."""
    if under_test.name == "sqlite":
        with closing(sqlite3.connect(under_test.options["path"])) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()
        return
    import psycopg

    with psycopg.connect(under_test.options["dsn"], autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def filled(relay: ScriptedRelay, under_test: SinkUnderTest, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(12)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        source.commit([update(ITEMS, 3, name="changed"), delete(ITEMS, 4), update(ITEMS, 5, new_id=50, name=None)])
        equal(under_test, relay)


TAMPERED = (
    "UPDATE items SET name = 'by hand' WHERE id = 1",
    "DELETE FROM items WHERE id = 2",
    "UPDATE items SET id = 99 WHERE id = 6",
)


def test_rows_that_somebody_changed_are_found_named_and_mended(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    (clean,) = verified(relay, under_test)
    assert (clean.table, clean.reason, clean.rows, clean.differing) == (ITEMS, None, 11, 0)
    tamper(under_test, *TAMPERED)
    (found,) = verified(relay, under_test)
    assert sorted(found.keys) == [("different", ["1"]), ("ghost", ["99"]), ("missing", ["2"]), ("missing", ["6"])]
    assert (found.differing, found.mended) == (4, 0)
    assert under_test.rows() != source.rows(), "without repair nothing is written"
    (mended,) = verified(relay, under_test, repair=True)
    assert (mended.differing, mended.mended) == (4, 4)
    assert under_test.rows() == source.rows()
    (again,) = verified(relay, under_test)
    assert again.differing == 0
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="goes on"), delete(ITEMS, 2)])
        equal(under_test, relay)


def test_a_column_that_came_since_the_sink_stopped_is_no_difference(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    columns = [*source.layouts[1].columns, column("note")]
    source.add_layout(items_layout("items", *columns, schema_id=2))
    source.commit([update(ITEMS, 1, name="anew")])
    (found,) = verified(relay, under_test)
    assert (found.reason, found.rows, found.differing) == (None, 11, 0)


def test_what_was_written_since_the_sink_stopped_is_no_difference(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    source.commit([update(ITEMS, 1, name="while it was down"), delete(ITEMS, 2), insert(ITEMS, 70)])
    source.commit([insert(ITEMS, 80 + n) for n in range(6)], pieces=3)
    assert [one.differing for one in verified(relay, under_test)] == [0]


def test_a_row_of_an_older_version_is_stale(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    tamper(under_test, "UPDATE items SET name = 'n3', _walbus_seq = 1 WHERE id = 3")
    (found,) = verified(relay, under_test, repair=True)
    assert (found.keys, found.mended) == ([("stale", ["3"])], 1)


def test_each_table_is_compared_for_itself_and_only_those_that_are_named(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    others = source.add_layout(items_layout("others", oid=16500)).table
    source.commit([insert(others, n) for n in range(3)])
    filled(relay, under_test, source)
    tamper(under_test, "DELETE FROM others WHERE id = 1")
    assert [(one.table, one.differing) for one in verified(relay, under_test)] == [(ITEMS, 0), (others, 1)]
    assert [one.table for one in verified(relay, under_test, tables=[ITEMS])] == [ITEMS]
    with pytest.raises(UsageError, match="is no table that the consumer reads"):
        verified(relay, under_test, tables=["public.nothing"])


def test_a_mapping_stands_between(relay: ScriptedRelay, source: ModelSource, tmp_path: Path) -> None:
    under_test = sqlite_under_test(tmp_path)
    mapping = {ITEMS: {"columns": ["id", "name"], "rename": {"name": "title"}, "constants": {"shop": "a"}}}
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(5)])
    with consumer(relay, under_test, table=mapping) as running:
        source.commit([update(ITEMS, 4, name="behind the snapshot")])
        wait_for(lambda: running.status().get("last_done") == str(source.end), what="its checkpoint is stored")
    assert [one.differing for one in verified(relay, under_test, table=mapping)] == [0]
    tamper(under_test, "UPDATE items SET title = 'x' WHERE id = 2")
    (found,) = verified(relay, under_test, table=mapping, repair=True)
    assert (found.keys, found.mended) == ([("different", ["2"])], 1)


def test_a_sink_without_rows_and_one_that_cannot_be_read_are_refused(relay: ScriptedRelay, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the sink has no rows yet"):
        verified(relay, sqlite_under_test(tmp_path))
    unreadable = SinkUnderTest("stdout", {}, sqlite_under_test(tmp_path).place, lambda _: {})
    with pytest.raises(UsageError, match="the sink stdout cannot be read back"):
        verified(relay, unreadable)
    with pytest.raises(UsageError, match="begins at latest"):
        verified(relay, sqlite_under_test(tmp_path), start="latest")


def test_a_spool_tells_what_differs_whatever_the_order() -> None:
    with closing(RowSpool()) as spool:
        rows = [HeldRow((str(n),), n, (n, "x")) for n in range(5_000)]
        assert spool.expect(rows) == 5_000
        spool.hold(reversed([*rows[1:-1], HeldRow(("ghost",), 1, ()), rows[-1]._replace(seq=1, values=(None,))]))
        assert sorted(spool.differences()) == [("ghost", ["ghost"]), ("missing", ["0"]), ("stale", ["4999"])]


def test_the_command_names_mends_and_tells_by_its_exit_code(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    filled(relay, under_test, source)
    config = tmp_path / "walbus.toml"
    config.write_text(
        f'data_dir = "{tmp_path}/data"\n[source]\ndsn = "postgresql://nobody@localhost/none"\n'
        f'[consumer.test]\nsink = "sqlite"\ntables = ["public.*"]\npath = "{under_test.options["path"]}"\n'
        f'relay = "{relay.url}"\n'
    )
    tamper(under_test, *TAMPERED)
    found = walbus("verify", "--sink", "test", "-c", str(config))
    assert found.code == 3, found.stderr
    assert found.stdout.startswith("public.items: 11 rows, 4 differ\n")
    assert '  ghost     ["99"]' in found.stdout
    mended = walbus("verify", "--sink", "test", "--repair", "--json", "-c", str(config))
    assert mended.code == 0, mended.stderr
    (table,) = json.loads(mended.stdout)["tables"]
    assert (table["differing"], table["mended"]) == (4, 4)
    assert walbus("verify", "--sink", "test", "-c", str(config)).stdout == "public.items: 11 rows, 0 differ\n"
    unknown = walbus("verify", "--sink", "tst", "-c", str(config))
    assert unknown.code == 2
    assert "did you mean test?" in unknown.one_line()
