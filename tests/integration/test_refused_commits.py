"""`on_error` where a sink refuses only what a transaction comes to: deferred constraints, and TRUNCATE."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.database import Database
from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.running_consumer import RunningConsumer, consumer
from support.scripted_relay import ScriptedRelay
from support.sink_writing import fill, following
from support.sinks_under_test import SinkUnderTest, postgres_under_test
from support.waiting import wait_for
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.letter_file import FILE_NAME
from walbus.consumers.refused_rows import RowRefused
from walbus.consumers.sinks.base import WatchfulSink
from walbus.errors import SinkRefused

pytestmark = pytest.mark.one_version

NOTES = "public.notes"
PARKS: dict[str, Any] = {"on_error": "dead-letter", "on_error_attempts": 2}
DEFERRED = "DEFERRABLE INITIALLY DEFERRED"


@pytest.fixture
def source() -> ModelSource:
    """Items, and notes whose `name` is the id of an item."""
    source = ModelSource()
    columns = (column("id", 23, "int4", in_key=True), column("name", 23, "int4"), column("body"))
    source.add_layout(items_layout("notes", *columns, oid=16500))
    source.commit([insert(ITEMS, n, f"{n}") for n in range(1, 6)])
    source.commit([insert(NOTES, 1, "1")])
    return source


@pytest.fixture
def under_test(tmp_path: Path, target_database: Database) -> SinkUnderTest:
    return postgres_under_test(tmp_path, target_database.dsn)


@pytest.fixture
def keep(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, target_database: Database
) -> Callable[[str], None]:
    """Fills the replica, and gives it a constraint."""
    with consumer(relay, under_test):
        wait_for(lambda: all(under_test.rows(table) == source.rows(table) for table in (ITEMS, NOTES)))

    def add(statement: str) -> None:
        target_database.execute(statement)

    return add


def told(folder: Path) -> list[tuple[str, str]]:
    """Table and key, or `TRUNCATE`, of each letter, in the order of the log."""
    with closing(DeadLetters(folder / FILE_NAME)) as store:
        found = sorted(store.letters(), key=lambda letter: letter.change.seq)
        return [(one.change.table, str((one.change.key or {"id": one.change.op.name})["id"])) for one in found]


def retry(folder: Path) -> None:
    with closing(DeadLetters(folder / FILE_NAME)) as store:
        store.retry()


def without(source: ModelSource, table: str, *ids: str) -> dict[str, Any]:
    return {id: row for id, row in source.rows(table).items() if id not in ids}


def foreign_key(keep: Callable[[str], None]) -> None:
    keep(f"ALTER TABLE public.notes ADD CONSTRAINT of_item FOREIGN KEY (name) REFERENCES public.items {DEFERRED}")


def test_a_row_without_its_parent_is_set_aside_and_rows_that_come_before_theirs_are_not(
    keep: Callable[[str], None], relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, tmp_path: Path
) -> None:
    foreign_key(keep)
    with consumer(relay, under_test, **PARKS):
        source.commit([insert(NOTES, 2, "20"), insert(NOTES, 3, "99"), insert(ITEMS, 20), update(ITEMS, 1, name="b")])
        source.commit([insert(NOTES, 4, "98"), insert(ITEMS, 21)])
        wait_for(lambda: told(tmp_path) == [(NOTES, "3"), (NOTES, "4")], what="both are parked")
        wait_for(lambda: under_test.rows(NOTES) == without(source, NOTES, "3", "4"))
        wait_for(lambda: under_test.rows() == source.rows())
        source.commit([insert(ITEMS, 99), insert(ITEMS, 98)])
        wait_for(lambda: under_test.rows() == source.rows())
        retry(tmp_path)
        wait_for(lambda: under_test.rows(NOTES) == source.rows(NOTES))
        wait_for(lambda: told(tmp_path) == [])


def test_the_change_that_takes_away_the_parent_of_an_older_row_is_set_aside(
    keep: Callable[[str], None], relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, tmp_path: Path
) -> None:
    foreign_key(keep)
    with consumer(relay, under_test, **PARKS):
        source.commit([delete(ITEMS, 2), delete(ITEMS, 1), insert(ITEMS, 20)])
        wait_for(lambda: told(tmp_path) == [(ITEMS, "1")], what="the parent's delete is parked")
        wait_for(lambda: set(under_test.rows()) == {*source.rows(), "1"})
        source.commit([delete(NOTES, 1)])
        wait_for(lambda: under_test.rows(NOTES) == {})
        retry(tmp_path)
        wait_for(lambda: under_test.rows() == source.rows())
        source.commit([insert(NOTES, 5, "3")])
        source.commit([update(ITEMS, 3, new_id=30, name="moved", body="b"), insert(ITEMS, 22)])
        wait_for(lambda: told(tmp_path) == [(ITEMS, "30")], what="so is what gives it another key")
        source.commit([truncate(ITEMS), insert(ITEMS, 4, "anew")])
        wait_for(lambda: (ITEMS, "TRUNCATE") in told(tmp_path), what="and a TRUNCATE")


def test_the_later_of_two_rows_that_may_not_both_be_there_is_skipped_and_a_swap_is_not(
    keep: Callable[[str], None], relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest
) -> None:
    keep(f"ALTER TABLE public.items ADD CONSTRAINT once UNIQUE (name) {DEFERRED}")
    with consumer(relay, under_test, on_error="skip", on_error_attempts=1) as running:
        source.commit([update(ITEMS, 1, name="2", body="b"), update(ITEMS, 2, name="1", body="b")])
        wait_for(lambda: under_test.rows() == source.rows())
        source.commit([insert(ITEMS, 7, "seven"), insert(ITEMS, 8, "3"), update(ITEMS, 4, name="four", body="b")])
        wait_for(lambda: under_test.rows() == without(source, ITEMS, "8"))
        wait_for(lambda: running.status().get("changes_skipped") == 1)


def test_rows_of_a_snapshot_that_a_deferred_constraint_refuses_are_set_aside(
    keep: Callable[[str], None], relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, tmp_path: Path
) -> None:
    keep(f"ALTER TABLE public.items ADD CONSTRAINT once EXCLUDE USING btree (name WITH =) {DEFERRED}")
    source.commit([insert(ITEMS, 7, "1"), insert(ITEMS, 8, "eight")])
    source.trim(source.end)
    source.horizon = source.end
    with consumer(relay, under_test, **PARKS):
        wait_for(lambda: told(tmp_path) == [(ITEMS, "7")])
        wait_for(lambda: under_test.rows() == without(source, ITEMS, "7"))


def test_a_checkpoint_that_is_stored_before_refused_changes_come_again_does_not_end_their_watch(
    source: ModelSource, under_test: SinkUnderTest, target_database: Database
) -> None:
    with closing(under_test.open()) as sink:
        assert isinstance(sink, WatchfulSink)
        fill(sink, source)
        before = following(source)
        target_database.execute(f"ALTER TABLE public.items ADD CONSTRAINT once UNIQUE (name) {DEFERRED}")
        source.commit([insert(ITEMS, 7, "1")])
        with pytest.raises(RowRefused) as unnamed:
            fill(sink, source, before.point.last_done)
        assert unnamed.value.row is None
        assert sink.watch()
        sink.rollback()
        assert sink.checkpoint() == before
        sink.commit(before)
        with pytest.raises(RowRefused) as named:
            fill(sink, source, before.point.last_done)
        assert named.value.row is not None
        assert named.value.row.seq == source.last_seq
        sink.rollback()
        source.commit([update(ITEMS, 7, name="seven", body="b")])
        fill(sink, source, before.point.last_done)
        assert sink.watch(), "a commit of changes ended it"
    assert under_test.rows() == source.rows()


@pytest.mark.parametrize("code", ["23514", "P0001"])
def test_a_deferred_trigger_that_names_no_row_stops_the_consumer_which_says_which_trigger_it_is(
    code: str,
    keep: Callable[[str], None],
    relay: ScriptedRelay,
    source: ModelSource,
    under_test: SinkUnderTest,
    tmp_path: Path,
) -> None:
    keep(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.name = 'poison' THEN RAISE EXCEPTION '%', NEW.name USING ERRCODE = '{code}'; END IF;"
        " RETURN NULL; END $$"
    )
    keep(f"CREATE CONSTRAINT TRIGGER no AFTER INSERT ON public.items {DEFERRED} FOR EACH ROW EXECUTE FUNCTION no()")
    source.commit([insert(ITEMS, 7, "seven"), insert(ITEMS, 8, "poison")])
    keep(
        "CREATE FUNCTION fine() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        f" CREATE CONSTRAINT TRIGGER a AFTER INSERT ON public.items {DEFERRED} FOR EACH ROW EXECUTE FUNCTION fine();"
        f" CREATE CONSTRAINT TRIGGER no AFTER INSERT ON public.notes {DEFERRED} FOR EACH ROW EXECUTE FUNCTION fine()"
    )
    running = RunningConsumer(relay, under_test.name, {**under_test.options, **PARKS}, tmp_path)
    error = running.ended()
    assert isinstance(error, SinkRefused)
    assert set(under_test.rows()) == {"1", "2", "3", "4", "5"}
    assert "the deferred trigger no (function fine, no) raises it" in str(error)
    assert "table public.items or public.notes" in str(error)
    assert "let it allow what the source allows" in str(error)
    assert "poison" not in str(error)


def test_letters_stay_where_the_truncate_that_would_make_them_void_is_refused(
    keep: Callable[[str], None],
    relay: ScriptedRelay,
    source: ModelSource,
    under_test: SinkUnderTest,
    target_database: Database,
    tmp_path: Path,
) -> None:
    keep("ALTER TABLE public.items ADD CONSTRAINT short CHECK (length(name) < 10)")
    keep("CREATE TABLE public.mine (id int REFERENCES public.items); INSERT INTO public.mine VALUES (1)")
    with consumer(relay, under_test, **PARKS):
        source.commit([insert(ITEMS, 50, "poison, which is long")])
        wait_for(lambda: told(tmp_path) == [(ITEMS, "50")])
        source.commit([truncate(ITEMS), insert(ITEMS, 9, "nine")])
        source.commit([insert(NOTES, 7, "1")])
        wait_for(lambda: under_test.rows(NOTES) == source.rows(NOTES), what="what follows goes on")
        assert told(tmp_path) == [(ITEMS, "50"), (ITEMS, "TRUNCATE"), (ITEMS, "9")]
        target_database.execute("DROP TABLE public.mine; ALTER TABLE public.items DROP CONSTRAINT short")
        retry(tmp_path)
        wait_for(lambda: under_test.rows() == {"9": source.rows()["9"]})
