"""`on_error`: rows that a sink or a mapping refuses are set aside, and everything else goes on."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.rebuild_rig import rebuilt
from support.running_consumer import RunningConsumer, consumer
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import (
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
)
from support.waiting import wait_for
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.letter_file import FILE_NAME, DeadLetter
from walbus.errors import SinkRefused, UsageError
from walbus.table_mapping import TableMapping

pytestmark = pytest.mark.one_version

POISON = "poison, which is long"
PARKS: dict[str, Any] = {"on_error": "dead-letter", "on_error_attempts": 2}


@dataclass(frozen=True)
class Choosy:
    """A sink that refuses names of ten signs and more, until it is mended."""

    under_test: SinkUnderTest
    options: dict[str, Any]

    def refuse(self) -> None:
        """Once its table is there."""
        match self.under_test.name:
            case "sqlite":
                self._sqlite(
                    "CREATE TRIGGER short BEFORE INSERT ON items WHEN length(NEW.name) > 9"
                    " BEGIN SELECT RAISE(ABORT, 'too long'); END"
                )
            case "postgres":
                self._postgres("ALTER TABLE public.items ADD CONSTRAINT short CHECK (length(name) < 10)")

    def mend(self) -> None:
        match self.under_test.name:
            case "sqlite":
                self._sqlite("DROP TRIGGER short")
            case "postgres":
                self._postgres("ALTER TABLE public.items DROP CONSTRAINT short")

    def _sqlite(self, statement: str) -> None:
        with closing(sqlite3.connect(self.under_test.options["path"], timeout=20)) as database:
            database.execute(statement)

    def _postgres(self, statement: str) -> None:
        with psycopg.connect(self.under_test.options["dsn"], autocommit=True) as connection:
            connection.execute(statement.encode())


@pytest.fixture(params=["sqlite", "postgres"])
def choosy(request: pytest.FixtureRequest, tmp_path: Path) -> Choosy:
    if request.param == "postgres":
        return Choosy(postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn), PARKS)
    return Choosy(sqlite_under_test(tmp_path), PARKS)


def letters(folder: Path) -> list[DeadLetter]:
    with closing(DeadLetters(folder / FILE_NAME)) as store:
        return store.letters()


def told(folder: Path) -> list[tuple[str, str]]:
    """(key, error or `behind`) of each letter, in the order of the log."""
    found = sorted(letters(folder), key=lambda letter: (letter.change.seq, letter.id))
    return [(str((letter.change.key or {})["id"]), letter.error) for letter in found]


def without(source: ModelSource, *ids: str) -> dict[str, Any]:
    return {id: row for id, row in source.rows().items() if id not in ids}


def test_a_poison_row_is_parked_with_later_changes_of_its_key_and_all_others_go_on(
    choosy: Choosy, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = choosy.under_test
    source.commit([insert(ITEMS, n, "fine") for n in range(200)])
    with consumer(relay, under_test, **choosy.options) as running:
        wait_for(lambda: under_test.rows() == source.rows())
        choosy.refuse()
        source.commit(
            [
                update(ITEMS, 6, name="before"),
                *[update(ITEMS, n, name="v2", body="b") for n in range(20, 150)],
                insert(ITEMS, 500, POISON),
                insert(ITEMS, 501, POISON),
                update(ITEMS, 5, name="other"),
            ]
        )
        wait_for(lambda: len(letters(tmp_path)) == 2)  # in one batch, a sink may write the last of a row's versions
        source.commit([update(ITEMS, 500, name="mended", body="b"), delete(ITEMS, 7), insert(ITEMS, 502)])
        wait_for(lambda: under_test.rows() == without(source, "500", "501"))
        source.commit([update(ITEMS, 500, new_id=600, name="moved", body="b")])
        source.commit([insert(ITEMS, 503)])
        wait_for(lambda: under_test.rows() == without(source, "500", "501", "600"))
        assert told(tmp_path) == [
            ("500", "RowRefused"), ("501", "RowRefused"), ("500", "behind"), ("600", "behind"),
        ]  # fmt: skip
        assert sorted(letter.attempts for letter in letters(tmp_path)) == [0, 0, 2, 2]
        wait_for(lambda: running.status().get("dead_letters") == 4)
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            assert store.retry() == 4
        wait_for(lambda: not any(letter.asked for letter in letters(tmp_path)))
        assert sorted(letter.attempts for letter in letters(tmp_path)) == [0, 0, 3, 3], "nothing was mended"
        choosy.mend()
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            store.retry()
        wait_for(lambda: under_test.rows() == source.rows())
        wait_for(lambda: letters(tmp_path) == [])
        source.commit([update(ITEMS, 600, name="after", body="b"), update(ITEMS, 501, name="after", body="b")])
        wait_for(lambda: under_test.rows() == source.rows())


def test_skipped_rows_are_counted_and_later_ones_of_their_key_go_on(
    choosy: Choosy, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = choosy.under_test
    source.commit([insert(ITEMS, n, "fine") for n in range(5)])
    with consumer(relay, under_test, on_error="skip", on_error_attempts=1) as running:
        wait_for(lambda: under_test.rows() == source.rows())
        choosy.refuse()
        source.commit([update(ITEMS, 1, name=POISON, body="b"), insert(ITEMS, 9)])
        wait_for(lambda: under_test.rows() == {**source.rows(), "1": under_test.rows()["1"]})
        assert under_test.rows()["1"]["name"] == "fine"
        source.commit([update(ITEMS, 1, name="ok", body="b")])
        wait_for(lambda: under_test.rows() == source.rows())
        wait_for(lambda: running.status().get("changes_skipped") == 1)
    assert not (tmp_path / FILE_NAME).exists()


def test_without_a_policy_a_refused_row_stops_the_consumer(
    choosy: Choosy, relay: ScriptedRelay, source: ModelSource
) -> None:
    under_test = choosy.under_test
    source.commit([insert(ITEMS, 1, "fine")])
    with consumer(relay, under_test):
        wait_for(lambda: under_test.rows() == source.rows())
    choosy.refuse()
    source.commit([insert(ITEMS, 2, POISON)])
    running = RunningConsumer(relay, under_test.name, under_test.options, under_test.place.folder)
    assert isinstance(running.ended(), SinkRefused)


def test_rows_of_a_snapshot_are_parked_and_a_truncate_makes_their_letters_void(
    choosy: Choosy, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = choosy.under_test
    source.commit([insert(ITEMS, n, "fine") for n in range(5)])
    with consumer(relay, under_test):
        wait_for(lambda: under_test.rows() == source.rows())
    choosy.refuse()
    source.commit([insert(ITEMS, 8, POISON), update(ITEMS, 1, name=POISON, body="b"), delete(ITEMS, 2)])
    source.trim(source.end)
    source.horizon = source.end
    with consumer(relay, under_test, **choosy.options):
        wait_for(lambda: sorted(told(tmp_path)) == [("1", "RowRefused"), ("8", "RowRefused")])
        wait_for(lambda: under_test.rows() == without(source, "1", "8"))
        source.commit([truncate(ITEMS), insert(ITEMS, 8, "anew")])
        wait_for(lambda: under_test.rows() == source.rows())
        assert letters(tmp_path) == []


def test_a_sweep_makes_the_letters_of_rows_that_are_gone_void(
    choosy: Choosy, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = choosy.under_test
    source.commit([insert(ITEMS, n, "fine") for n in range(5)])
    with consumer(relay, under_test, **choosy.options):
        wait_for(lambda: under_test.rows() == source.rows())
        choosy.refuse()
        source.commit([insert(ITEMS, 8, POISON), insert(ITEMS, 9, POISON)])
        wait_for(lambda: len(told(tmp_path)) == 2)
    source.commit([delete(ITEMS, 8), update(ITEMS, 9, name="short", body="b")])
    source.trim(source.end)
    source.horizon = source.end
    with consumer(relay, under_test, **choosy.options):
        wait_for(lambda: told(tmp_path) == [("9", "RowRefused"), ("9", "behind")])
        choosy.mend()
        wait_for(lambda: under_test.rows() == without(source, "9"))
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            store.retry()
        wait_for(lambda: under_test.rows() == source.rows())


def test_letters_and_another_policy_do_not_go_together(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    choosy = Choosy(sqlite_under_test(tmp_path), PARKS)
    source.commit([insert(ITEMS, 1, "fine")])
    with consumer(relay, choosy.under_test, **PARKS):
        wait_for(lambda: choosy.under_test.rows() == source.rows())
        choosy.refuse()
        source.commit([insert(ITEMS, 2, POISON)])
        wait_for(lambda: len(letters(tmp_path)) == 1)
    running = RunningConsumer(relay, "sqlite", choosy.under_test.options, tmp_path)
    error = running.ended()
    assert isinstance(error, UsageError) and "there are 1 dead letters" in str(error)


def test_a_document_that_does_not_fit_its_index_is_named_by_the_server_and_parked(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, opensearch_url: str
) -> None:
    under_test = opensearch_under_test(tmp_path, opensearch_url)
    fields = {ITEMS: {"name": {"type": "integer"}}}
    source.commit([insert(ITEMS, n, str(n)) for n in range(20)])
    with consumer(relay, under_test, fields=fields, **PARKS):
        wait_for(lambda: under_test.rows() == source.rows())
        source.commit([insert(ITEMS, 50, "no number"), insert(ITEMS, 51, "51"), update(ITEMS, 3, name="4", body="b")])
        wait_for(lambda: len(letters(tmp_path)) == 1)
        source.commit([update(ITEMS, 50, name="50", body="b"), insert(ITEMS, 52, "52")])
        wait_for(lambda: under_test.rows() == without(source, "50"))
        assert told(tmp_path) == [("50", "RowRefused"), ("50", "behind")]
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            store.drop([1])
            store.retry()
        wait_for(lambda: under_test.rows() == source.rows())


def test_a_document_of_a_snapshot_that_does_not_fit_is_parked_too(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, opensearch_url: str
) -> None:
    """It is refused when its table is swept: documents gather until then."""
    under_test = opensearch_under_test(tmp_path, opensearch_url)
    source.commit([insert(ITEMS, n, "no number" if n == 7 else str(n)) for n in range(20)])
    with consumer(relay, under_test, fields={ITEMS: {"name": {"type": "integer"}}}, **PARKS):
        wait_for(lambda: told(tmp_path) == [("7", "RowRefused")])
        wait_for(lambda: under_test.rows() == without(source, "7"))


@pytest.mark.parametrize("form", ["hash", "json", "string", "expiring"])
def test_a_redis_that_holds_something_else_where_a_version_belongs_refuses_that_row_alone(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, redis_url: str, form: str
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, form)
    source.commit([insert(ITEMS, n, "fine") for n in range(5)])
    with redis.Redis.from_url(redis_url) as client, consumer(relay, under_test, **PARKS):
        wait_for(lambda: under_test.rows() == source.rows())
        for n in (50, 51):
            client.rpush(f"walbus:test:v:{ITEMS}:{n}", "a list")
        source.commit([insert(ITEMS, 50), update(ITEMS, 3, name="new", body="b"), insert(ITEMS, 51)])
        wait_for(lambda: len(letters(tmp_path)) == 2)
        source.commit([update(ITEMS, 50, name="later", body="b"), delete(ITEMS, 4)])
        wait_for(lambda: under_test.rows() == without(source, "50", "51"))
        assert told(tmp_path) == [("50", "RowRefused"), ("51", "RowRefused"), ("50", "behind")]
        client.delete(*[f"walbus:test:v:{ITEMS}:{n}" for n in (50, 51)])
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            store.retry()
        wait_for(lambda: under_test.rows() == source.rows())
        wait_for(lambda: letters(tmp_path) == [])


def test_a_cached_key_whose_version_cannot_be_kept_is_skipped_alone(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, redis_url: str
) -> None:
    under_test = redis_under_test(tmp_path, redis_url, "hash", invalidate="delete")
    del under_test.options["format"]
    source.commit([insert(ITEMS, 1)])
    with redis.Redis.from_url(redis_url) as client, consumer(relay, under_test, on_error="skip") as running:
        wait_for(lambda: running.status().get("phase") == "online")
        source.commit([update(ITEMS, 1, name="behind the snapshot", body="b")])  # at whose end the cache is emptied
        wait_for(lambda: running.status().get("last_done") == str(source.end))
        client.rpush(f"walbus:test:v:{ITEMS}:50", "a list")
        client.mset({f"{ITEMS}:{n}": "cached" for n in (1, 50, 51)})
        source.commit([update(ITEMS, 1, name="b", body="b"), insert(ITEMS, 50), insert(ITEMS, 51)])
        wait_for(lambda: client.exists(f"{ITEMS}:1", f"{ITEMS}:51") == 0)
        wait_for(lambda: running.status().get("changes_skipped") == 1)
        assert client.get(f"{ITEMS}:50") == b"cached"


def test_a_row_that_a_mapping_function_raises_for_is_parked_whatever_the_sink_is(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    mapping = {ITEMS: {"function": "support.mapped_rows:no_seven"}}
    source.commit([insert(ITEMS, n, f"{n}") for n in range(10)])
    with consumer(relay, under_test, table=mapping, **PARKS):
        wait_for(lambda: under_test.rows() == without(source, "7"))
        assert told(tmp_path) == [("7", "RowRefused")]
        source.commit([update(ITEMS, 7, name="fine now", body="b"), insert(ITEMS, 20)])
        wait_for(lambda: under_test.rows() == without(source, "7"))
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            store.drop([1])
            store.retry()
        wait_for(lambda: under_test.rows() == source.rows())


CONSUME = """
import sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from walbus.config import ConsumerConfig
from walbus.consumers import run_consumer
config = ConsumerConfig(sink="sqlite", tables=("public.*",), **{options!r})
run_consumer("test", config, relay_url={url!r}, folder=Path({folder!r}), status_path=None, stop=threading.Event())
"""


def test_a_consumer_that_is_killed_again_and_again_has_each_letter_once(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    choosy = Choosy(sqlite_under_test(tmp_path), PARKS)
    under_test = choosy.under_test
    source.commit([insert(ITEMS, n, "fine") for n in range(100)])
    with consumer(relay, under_test, **PARKS):
        wait_for(lambda: under_test.rows() == source.rows())
    choosy.refuse()
    options = {**under_test.options, "path": str(under_test.options["path"]), **PARKS}
    code = CONSUME.format(tests=str(Path(__file__).parents[1]), options=options, url=relay.url, folder=str(tmp_path))
    poison = []
    for round_ in range(5):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        before = len(poison)
        for n in range(10):
            id = 1000 * (round_ + 1) + n
            poison.append(str(id))
            source.commit([update(ITEMS, n, name=f"r{round_}", body="b"), insert(ITEMS, id, POISON)])
            last = update(ITEMS, 50 + n, name=f"x{round_}", body="b")  # seen in the sink, as what comes before it is
            source.commit([update(ITEMS, id, name="short", body="b"), last])
        wait_for(lambda before=before: len(letters(tmp_path)) > 2 * before, 60, what="it parks")
        process.kill()
        process.wait()
    with consumer(relay, under_test, **PARKS):
        wait_for(lambda: under_test.rows() == without(source, *poison), 60)
        found = letters(tmp_path)
        assert len(found) == len({(letter.change.seq, letter.log_id) for letter in found})
        refused = sorted(key for key, error in told(tmp_path) if error == "RowRefused")
        assert refused == sorted(poison) and len(found) == 2 * len(poison)
        choosy.mend()
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            store.retry()
        wait_for(lambda: under_test.rows() == source.rows(), 60)
        wait_for(lambda: letters(tmp_path) == [])


def test_a_row_of_a_snapshot_that_changes_with_each_reading_holds_nobody_up(
    choosy: Choosy, relay: ScriptedRelay, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_test, read = choosy.under_test, source.snapshot
    source.commit([insert(ITEMS, n, "fine") for n in range(20)])
    with consumer(relay, under_test, **choosy.options):
        wait_for(lambda: under_test.rows() == source.rows())
    choosy.refuse()
    source.commit([update(ITEMS, 7, name=POISON, body="b"), delete(ITEMS, 3)])
    source.trim(source.end)
    source.horizon = source.end
    readings = iter(range(1_000_000))

    def hot(*arguments: Any, **named: Any) -> Any:
        source.commit([update(ITEMS, 7, name=POISON, body=f"{next(readings)}")])
        return read(*arguments, **named)

    monkeypatch.setattr(source, "snapshot", hot)
    with consumer(relay, under_test, **choosy.options):
        wait_for(lambda: len(letters(tmp_path)) > 0, what="it is parked")
        source.commit([insert(ITEMS, 99, "behind it")])
        wait_for(lambda: "99" in under_test.rows(), what="the log goes on")
    assert {one.change.key["id"] for one in letters(tmp_path) if one.change.key} == {7}
    assert under_test.rows() == without(source, "7")


@pytest.mark.parametrize("kind", ["mapping", "opensearch", "postgres"])
def test_a_row_that_a_rebuilt_copy_refuses_ends_the_rebuild_and_the_same_command_goes_on_once_it_is_mended(
    kind: str, request: pytest.FixtureRequest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    """Whatever `on_error` says; the live sink goes on meanwhile."""
    source.commit([insert(ITEMS, n, str(n)) for n in range(20)])
    more: dict[str, Any] = {}
    if kind == "opensearch":
        url = request.getfixturevalue("opensearch_url")
        under_test = opensearch_under_test(tmp_path, url, fields={ITEMS: {"name": {"type": "integer"}}})
    elif kind == "postgres":
        under_test = postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
    else:
        under_test = sqlite_under_test(tmp_path)
        more = {"table": {ITEMS: TableMapping(function="support.mapped_rows:no_seven")}}
        source.commit([update(ITEMS, 7, name="eight", body="b")])
    with consumer(relay, under_test, **PARKS, **more):
        wait_for(lambda: under_test.rows() == source.rows())
        if kind == "postgres":
            Choosy(under_test, {}).refuse()
        source.commit([update(ITEMS, 7, name="7" if more else POISON, body="b"), insert(ITEMS, 50, "50")])
        wait_for(lambda: told(tmp_path) != [] and "50" in under_test.rows())
        with pytest.raises(SinkRefused) as refused:
            rebuilt(relay, under_test, **PARKS, **more)
        assert ITEMS in str(refused.value).replace('"', "")
        assert POISON not in str(refused.value)
        source.commit([insert(ITEMS, 51, "51")])
        wait_for(lambda: "51" in under_test.rows(), what="the live sink goes on")
        source.commit([update(ITEMS, 7, name="70", body="b")])
        with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
            store.drop([one.id for one in store.letters()])
        rebuilt(relay, under_test, **PARKS, **more)
        source.commit([insert(ITEMS, 52, "52")])
        wait_for(lambda: under_test.rows() == source.rows(), what="the copy has all rows")


def test_triggers_of_an_sqlite_replica_judge_no_row_of_a_copy(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, n, "fine") for n in range(9)])
    with consumer(relay, under_test, **PARKS):
        wait_for(lambda: under_test.rows() == source.rows())
        Choosy(under_test, {}).refuse()
        source.commit([update(ITEMS, 7, name=POISON, body="b"), insert(ITEMS, 50, "fine")])
        wait_for(lambda: told(tmp_path) != [] and "50" in under_test.rows())
        rebuilt(relay, under_test, **PARKS)
        assert under_test.rows() == source.rows()
        source.commit([insert(ITEMS, 51, POISON), insert(ITEMS, 52, "fine")])
        wait_for(lambda: under_test.rows() == without(source, "51"), what="the trigger is there again")
