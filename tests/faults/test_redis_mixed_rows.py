"""Rows in Redis that could be taken for those of another table, for a sink's own keys, or for rows that stay."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import SinkUnderTest, redis_under_test
from walbus.consumers.checkpoint import Following, Point
from walbus.consumers.refused_rows import RowRefused
from walbus.consumers.sinks import Sink, SinkPlace, open_sink
from walbus.consumers.steps import Sweep
from walbus.errors import ConfigError, SinkRefused
from walbus.events import window_of

pytestmark = pytest.mark.one_version

THINGS = "public.things"
TEXT_KEY = (column("id", 25, "text", in_key=True), column("name"), column("body"))
RENAMED = (column("name"), column("text"))  # which was `body`


@pytest.fixture
def hashes(redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, "hash")


# Another table's


@pytest.mark.parametrize(
    ("key", "named"), [("{table}:{key}", {"name": "items:b"}), ("{key}:{table}", {"namespace": "b:public"})]
)
def test_tables_whose_names_let_their_keys_mix_are_refused(
    key: str, named: dict[str, str], redis_url: str, tmp_path: Path, client: redis.Redis
) -> None:
    """A TRUNCATE of `items` would take the rows of `items:b`, since both are looked for by one pattern."""
    other = replace(items_layout(oid=16401), **named)
    source = ModelSource(layouts=[items_layout(), other])
    place = SinkPlace("test", tmp_path, ("public.*", "b:public.*"))
    source.commit([insert(ITEMS, 1), insert(other.table, 2)])
    with (
        closing(open_sink("redis", {"url": redis_url, "key": key}, place)) as sink,
        pytest.raises(SinkRefused, match=r"begin and end alike, and could be one key"),
    ):
        fill(sink, source)
    assert client.keys("*:2*") == []


def two_tables() -> ModelSource:
    source = ModelSource(layouts=[items_layout(), items_layout("things", oid=16401)])
    source.commit([*(insert(ITEMS, n, f"item {n}") for n in range(4)), *(insert(THINGS, n) for n in range(2, 6))])
    return source


def made_again(source: ModelSource) -> None:
    """`items` is dropped, and another table of its name has other rows."""
    source.state[ITEMS] = {}
    source.add_layout(items_layout("items", oid=16499))
    source.commit([insert(ITEMS, 3, "anew"), insert(ITEMS, 4)])


@pytest.mark.parametrize("options", [{}, {"keys": {ITEMS: "item:{id}"}}], ids=["general", "own"])
def test_a_table_that_is_dropped_and_made_again_has_no_row_of_the_first(
    options: dict[str, Any], redis_url: str, tmp_path: Path, client: redis.Redis
) -> None:
    source = two_tables()
    under_test = redis_under_test(tmp_path, redis_url, "hash", **options)
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        made_again(source)
        fill(sink, source, done)
    begins = "item:" if options else f"{ITEMS}:"
    assert {key.removeprefix(begins) for key in client.scan_iter(f"{begins}*")} == {"3", "4"}
    with closing(under_test.open()) as sink:  # and it goes on so
        sink.checkpoint()
        done = source.end
        source.commit([truncate(ITEMS), insert(ITEMS, 9)])
        fill(sink, source, done)
    assert client.keys(f"{begins}*") == [f"{begins}9"]
    assert under_test.rows(THINGS) == source.rows(THINGS)


def test_a_table_that_is_made_again_has_no_cached_value_of_the_first(
    redis_url: str, tmp_path: Path, client: redis.Redis
) -> None:
    source = two_tables()
    options = {"url": redis_url, "invalidate": "delete"}
    with closing(open_sink("redis", options, SinkPlace("test", tmp_path, ("public.*",)))) as sink:
        fill(sink, source)
        client.mset({f"{ITEMS}:1": "of the first", f"{THINGS}:3": "fresh"})
        epoch, done = client.get("walbus:test:epoch"), source.end
        made_again(source)
        fill(sink, source, done)
    assert not client.exists(f"{ITEMS}:1")
    assert client.get("walbus:test:epoch") != epoch
    assert client.get(f"{THINGS}:3") == "fresh"


# A sink's own


@pytest.mark.parametrize("invalidate", [None, "delete"])
@pytest.mark.parametrize("options", [{"keys": {ITEMS: "{id}"}}, {"key": "{key}:{table}"}], ids=["own", "general"])
def test_a_row_whose_key_would_be_a_sinks_own_is_refused(
    options: dict[str, Any], invalidate: str | None, redis_url: str, tmp_path: Path, client: redis.Redis
) -> None:
    source = ModelSource(layouts=[items_layout("items", *TEXT_KEY)])
    source.commit([insert(ITEMS, 1)])
    given = {"url": redis_url, **options, **({} if invalidate is None else {"invalidate": invalidate})}
    with closing(open_sink("redis", given, SinkPlace("test", tmp_path, (ITEMS,)))) as sink:
        fill(sink, source)
        stored, done = client.get("walbus:test:checkpoint"), source.end
        source.commit([insert(ITEMS, "walbus:test:checkpoint")])  # type: ignore[arg-type]  # a key that is a text
        with pytest.raises(RowRefused, match="would begin with walbus:") as refused:
            fill(sink, source, done)
        assert refused.value.row is not None
    assert client.get("walbus:test:checkpoint") == stored


def test_a_template_that_begins_as_the_sinks_own_keys_is_refused(redis_url: str, tmp_path: Path) -> None:
    """Rows below `walbus:test:` would never be found again."""
    options = {"url": redis_url, "key": "walbus:test:{table}:{key}"}
    with pytest.raises(ConfigError, match=r"keys that begin with walbus: are the sinks' own"):
        open_sink("redis", options, SinkPlace("test", tmp_path, ("public.*",)))


def test_a_column_that_is_called_as_the_version_is_refused_of_hashes_alone(
    redis_url: str, tmp_path: Path, client: redis.Redis
) -> None:
    """Its value would stand where the version belongs, and no row would be found again."""
    source = ModelSource(layouts=[items_layout("items", *TEXT_KEY, column("_walbus"))])
    source.commit([insert(ITEMS, 1)])
    with (
        closing(redis_under_test(tmp_path, redis_url, "hash").open()) as sink,
        pytest.raises(SinkRefused, match="this table has a column _walbus"),
    ):
        fill(sink, source)
    assert client.keys(f"{ITEMS}:*") == []
    with closing(redis_under_test(tmp_path, redis_url, "json", key="json:{table}:{key}").open()) as sink:
        fill(sink, source)
    assert client.exists(f"json:{ITEMS}:1")


# What stays


def test_rows_that_are_to_expire_are_not_gone_on_with_as_rows_that_stay(
    hashes: SinkUnderTest, source: ModelSource
) -> None:
    """They would go one by one, and nobody would write them again."""
    source.commit([insert(ITEMS, 1)])
    with closing(hashes.open(ttl={ITEMS: 600})) as sink:
        fill(sink, source)
    with pytest.raises(SinkRefused, match=rf"rows of {ITEMS} were written with a time to live"):
        hashes.open()
    with closing(hashes.open(ttl={ITEMS: 60, THINGS: 60})) as sink:
        assert sink.checkpoint() == following(source)
    with closing(hashes.open(ttl={"public.perhaps": 60})) as sink:  # its new name
        done = source.end
        source.commit([insert(ITEMS, 2)])
        fill(sink, source, done)
    with pytest.raises(SinkRefused, match=rf"rows of {ITEMS} were written with a time to live"):
        hashes.open(ttl={})


# Values that stay


def lacking(sink: Sink, source: ModelSource) -> None:
    """Row 1 is there without its body, which only the first state of the table has."""
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    sink.write(windows(source, done), MARKS)
    sink.commit(following(source))
    assert sink.incomplete() == (ITEMS,)


def test_a_table_that_is_renamed_is_known_to_lack_a_value_by_its_new_name(
    hashes: SinkUnderTest, source: ModelSource
) -> None:
    with closing(hashes.open()) as sink:
        lacking(sink, source)
        done = source.end
        source.add_layout(items_layout("things"))
        source.commit([insert(THINGS, 2)])
        fill(sink, source, done)
        assert sink.incomplete() == (THINGS,)
        done = source.end
        source.commit([delete(THINGS, 1)])
        fill(sink, source, done)
        assert sink.incomplete() == ()
    assert hashes.rows(THINGS) == source.rows(THINGS)


def test_a_sweep_behind_a_crash_leaves_no_row_without_its_value(hashes: SinkUnderTest, source: ModelSource) -> None:
    """The snapshot is older than the row; whoever was killed before he stored it whole left no trace of that."""
    with closing(hashes.open()) as sink:
        lacking(sink, source)
        position, seq, _ = source.history[1]
        rows = [window_of(h, r, source.layouts.__getitem__) for h, r in source.snapshot(ITEMS, None, 1)]
        marks = MARKS._replace(generation=2)
        sink.write(rows, marks)  # and is killed
    with closing(hashes.open()) as sink:
        sink.checkpoint()
        assert sink.incomplete() == (ITEMS,)
        sink.write(rows, marks)
        swept = Following(source.log_id, marks, Point(position, seq))
        sink.sweep(Sweep(ITEMS, seq, marks, swept))
        sink.commit(swept)
        fill(sink, source, position, marks)
        assert sink.incomplete() == ()
    assert hashes.rows() == source.rows()


@pytest.mark.parametrize("form", ["hash", "json"])
def test_a_value_that_is_left_out_is_taken_from_a_column_that_was_renamed_in_the_same_batch(
    form: str, redis_url: str, tmp_path: Path, source: ModelSource
) -> None:
    """The row was read, with others, before the new name came."""
    under_test = redis_under_test(tmp_path, redis_url, form)
    source.commit([insert(ITEMS, n, "a", f"toasted {n}") for n in range(3)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.commit([update(ITEMS, 0, name="b")])
        fill(sink, source, done)
        source.add_layout(items_layout("items", column("id", 23, "int4", in_key=True), *RENAMED))
        source.commit([update(ITEMS, n, name="c") for n in range(3)])
        sink.checkpoint()
        fill(sink, source, done)  # the first update comes again, and changes nothing
    texts = {id: (row["name"], row["text"]) for id, row in under_test.rows().items()}
    assert texts == {f"{n}": ("c", f"toasted {n}") for n in range(3)}
