"""The OpenSearch sink on a real server: every type and every name that PostgreSQL has, and what a search finds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.compare import told
from support.database import Database
from support.model_source import ITEMS, Edit, ModelSource, column, delete, insert, items_layout, truncate, update
from support.odd_names import COLUMNS, SCHEMAS, fill_odd_tables, make_odd_tables
from support.opensearch_rows import OpenSearchRows
from support.single_rooms import SingleRooms
from support.sink_writing import MARKS, fill
from support.sinks_under_test import SinkUnderTest, opensearch_under_test
from support.whole_system import make_marker
from support.zoo import build_zoo
from support.zoo_herd import build_herd
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.steps import Sweep
from walbus.demo.compare import compare_sinks
from walbus.errors import ConfigError, SinkRefused
from walbus.events import window_of
from walbus.position import ORIGIN, Position
from walbus.records import Op
from walbus.schema import TableSchema

pytestmark = pytest.mark.one_version

KEY = column("id", 23, "int4", in_key=True)


class Search:
    """The server as those who search it see it."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)

    def get(self, path: str) -> Any:
        return self.http.get(path).json()

    def ids(self, alias: str, query: dict[str, Any]) -> set[str]:
        self.http.post(f"/{alias}/_refresh")
        found = self.http.post(f"/{alias}/_search", json={"query": query, "size": 100}).json()
        return {hit["_id"] for hit in found["hits"]["hits"]}

    def ranges(self, field: str, **bounds: object) -> set[str]:
        return self.ids(ITEMS, {"range": {field: bounds}})


@pytest.fixture
def search(opensearch_url: str) -> Iterator[Search]:
    made = Search(opensearch_url)
    yield made
    made.http.close()


@pytest.fixture
def under_test(opensearch_url: str, tmp_path: Path) -> SinkUnderTest:
    return opensearch_under_test(tmp_path, opensearch_url)


def written(under_test: SinkUnderTest, source: ModelSource, after: Position = ORIGIN, **options: Any) -> None:
    with closing(under_test.open(**options)) as sink:
        fill(sink, source, after)


def layout_of(*columns: tuple[str, int, str]) -> TableSchema:
    return items_layout("items", KEY, *(column(*told) for told in columns))


@pytest.mark.timeout(300)
def test_every_type_and_every_name_reach_the_index_with_zero_differences(
    database: Database, open_folder: Path, opensearch_url: str
) -> None:
    make_marker(database)
    zoo = build_zoo(database.connect())
    zoo.insert()
    for specimen in zoo.specimens:
        if specimen.type_name in ("json", "jsonb"):  # a document has one null for both
            zoo.connection.execute(f"UPDATE cage.{specimen.table} SET v = NULL WHERE v::text = 'null'")
    odd = make_odd_tables(zoo.connection)
    fill_odd_tables(zoo.connection, odd, 1)
    herd = build_herd(zoo)
    tables = {"tables": ["herd.*", "public.marker", *(f"{schema}.*" for schema in SCHEMAS)]}
    consumers = {"search": {"sink": "opensearch", "url": opensearch_url}}
    with SingleRooms(open_folder, database.dsn, consumers, source=tables) as system:
        system.start()
        system.wait_until_at_rest(database)  # the rows from before came by the bootstrap
        equal(database, opensearch_url)
        fill_odd_tables(zoo.connection, odd, 2)
        herd.update()
        herd.repeat()
        herd.delete()
        system.wait_until_at_rest(database)
        equal(database, opensearch_url)


def equal(database: Database, url: str) -> None:
    differences = compare_sinks(database.dsn, [OpenSearchRows(url)]).differences
    assert not differences, told(differences)


def test_a_search_finds_values_by_their_types(under_test: SinkUnderTest, search: Search) -> None:
    columns = (
        ("big", 20, "int8"), ("price", 1700, "numeric"), ("day", 1082, "date"), ("at", 1114, "timestamp"),
        ("seen", 1184, "timestamptz"), ("note", 25, "text"), ("tag", 2950, "uuid"), ("host", 869, "inet"),
        ("many", 1007, "_int4"), ("extra", 3802, "jsonb"),
    )  # fmt: skip
    source = ModelSource(layouts=[layout_of(*columns)])
    names = [name for name, *_ in columns]
    low = ("9007199254740993", "1.50", "2024-01-31", "2024-01-31 12:00:00.5", "2024-01-31 12:00:00+00", "Hot Espresso",
           "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "10.0.0.1", "{1,2}", '{"a": {"b": 1}}')  # fmt: skip
    high = ("9007199254740995", "20.00", "2025-01-31", "2025-01-31 12:00:00", "2025-01-31 12:00:00+00", "cold water",
            "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "10.9.0.1", "{7}", '["a", 1]')  # fmt: skip
    odd = (None, "NaN", "infinity", "0044-03-15 12:00:00 BC", "-infinity", None, None, "::1/64", "{{1,2},{3,4}}", "5")
    for id_, values in enumerate((low, high, odd), 1):
        source.commit([insert(ITEMS, id_)])
        source.commit([update(ITEMS, id_, **dict(zip(names, values, strict=True)))])
    written(under_test, source)
    assert search.ranges("big", lte=9007199254740993) == {"1"}
    assert search.ranges("price", gte=1.4, lt=20) == {"1"}
    assert search.ranges("day", lt="2024-02-01") == {"1"}
    assert search.ranges("at", gt="2024-01-31 12:00:00.4", lt="2024-01-31 12:00:00.6") == {"1"}
    assert search.ranges("seen", gt="2024-06-01T00:00:00Z") == {"2"}
    assert search.ids(ITEMS, {"match": {"note": "espresso"}}) == {"1"}
    assert search.ids(ITEMS, {"term": {"note.keyword": "cold water"}}) == {"2"}
    assert search.ids(ITEMS, {"term": {"tag": low[6]}}) == {"1"}
    assert search.ids(ITEMS, {"term": {"host": "10.9.0.0/16"}}) == {"2"}
    assert search.ids(ITEMS, {"term": {"many": 2}}) == {"1"}
    kept = search.get(f"/{ITEMS}/_doc/3")["_source"]
    assert (kept["price"], kept["day"], kept["at"]) == ("NaN", "infinity", "0044-03-15 12:00:00 BC")
    assert search.get(f"/{ITEMS}/_doc/1")["_source"]["extra"] == {"a": {"b": 1}}
    assert search.get(f"/{ITEMS}/_doc/1")["_version"] == 2


def test_a_document_with_a_name_twice_keeps_the_last_as_jsonb_does(under_test: SinkUnderTest, search: Search) -> None:
    source = ModelSource(layouts=[layout_of(("doc", 114, "json"))])
    text = '{"a": 1, "b": [{"c": 1, "c": 1.000000000000000000001}], "a": {"x": 2}}'
    source.commit([insert(ITEMS, 1), update(ITEMS, 1, doc=text)])
    written(under_test, source)
    raw = search.http.get(f"/{ITEMS}/_source/1").text
    assert json.loads(raw)["doc"]["a"] == {"x": 2}
    assert "1.000000000000000000001" in raw


def test_a_column_that_was_json_and_is_text_is_no_object_any_more(under_test: SinkUnderTest, search: Search) -> None:
    """Its old values wait for the rows that come again: a server takes no object for a text."""
    source = ModelSource(layouts=[layout_of(("doc", 3802, "jsonb"))])
    texts = ['{"a": 1}', '[{"a": 1}]', "[1, 2]", '"{"', "null"]
    source.commit([insert(ITEMS, n) for n in range(len(texts))])
    source.commit([update(ITEMS, n, doc=text) for n, text in enumerate(texts)])
    written(under_test, source)
    done = source.end
    source.add_layout(layout_of(("doc", 25, "text")))
    source.commit([insert(ITEMS, 9), update(ITEMS, 9, doc="now")])
    written(under_test, source, done)
    kept = {id_: search.get(f"/{ITEMS}/_doc/{id_}")["_source"].get("doc", "none") for id_ in (0, 1, 2, 3, 4, 9)}
    assert kept == {0: "none", 1: "none", 2: [1, 2], 3: "{", 4: None, 9: "now"}


def test_columns_of_any_name_are_fields(under_test: SinkUnderTest, search: Search) -> None:
    names = [*COLUMNS, "_id", "_source", "_routing", "_walbus_mark", "a", "a.b", "a.keyword", "..", ".", "%2e", "_"]
    names = [name for name in dict.fromkeys(names) if name != "id"]
    source = ModelSource(layouts=[layout_of(*((name, 25, "text") for name in names))])
    source.commit([insert(ITEMS, 1), Edit(Op.UPDATE, ITEMS, "1", {name: f"of {name}" for name in names})])
    written(under_test, source)
    kept = search.get(f"/{ITEMS}/_doc/1")["_source"]
    assert sorted(kept.values(), key=str) == sorted([1, 1, *(f"of {name}" for name in names)], key=str)


def test_keys_of_any_text_are_ids(under_test: SinkUnderTest) -> None:
    layout = items_layout("items", column("id", in_key=True), column("name"), column("body"))
    source = ModelSource(layouts=[layout])
    keys = ["", " ", "%", "%empty", "a/b?c#d", "ü" * 400, "ü" * 401, "%sha256-0", '"', "\n", "_doc", "x" * 3000]
    for key in keys:
        source.commit([insert(ITEMS, key), update(ITEMS, key, name=f"of {key}"[:50])])  # type: ignore[arg-type]
    written(under_test, source)
    assert under_test.rows() == source.rows()
    done = source.end
    source.commit([delete(ITEMS, key) for key in keys])  # type: ignore[arg-type]
    written(under_test, source, done)
    assert under_test.rows() == {}


def test_documents_are_routed_by_a_column_of_the_key(opensearch_url: str, tmp_path: Path, search: Search) -> None:
    options = {"routing": {ITEMS: "id"}, "settings": {"number_of_shards": 3}}
    under_test = opensearch_under_test(tmp_path, opensearch_url, **options)
    source = ModelSource()
    source.commit([insert(ITEMS, n, "a", "toasted") for n in range(20)])
    source.commit([update(ITEMS, n, name="b") for n in range(5)] + [delete(ITEMS, 7), update(ITEMS, 8, new_id=80)])
    written(under_test, source)
    assert under_test.rows() == source.rows()
    assert search.get(f"/{ITEMS}/_doc/3?routing=3")["_routing"] == "3"
    done = source.end
    source.commit([truncate(ITEMS), insert(ITEMS, 3, "c")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
        marks = Marks(2, 1)
        fill(sink, source, source.end, marks)
        after = Following(source.log_id, marks, Point(source.end, source.last_seq))
        sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
        sink.commit(after)
    assert under_test.rows() == {}  # the snapshot of generation 2 had no row


def test_rows_from_before_a_rename_of_the_routing_column_are_routed_by_its_present_name(
    opensearch_url: str, tmp_path: Path, search: Search
) -> None:
    """A snapshot gives each row in the layout that it was last written in."""
    under_test = opensearch_under_test(tmp_path, opensearch_url, routing={ITEMS: "nr"})
    source = ModelSource()
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    rows = list(source.snapshot(ITEMS, None))
    source.add_layout(items_layout("items", column("nr", 23, "int4", in_key=True), column("name"), column("body")))
    with closing(under_test.open()) as sink:
        for records in (source.records[-1:], rows):
            sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in records], MARKS)
        sink.commit(Following(source.log_id, MARKS, Point(source.end, source.last_seq)))
    assert search.get(f"/{ITEMS}/_doc/2?routing=2")["_source"]["nr"] == 2


def test_a_consumer_whose_indices_are_more_than_an_address_takes_starts_again(
    opensearch_url: str, tmp_path: Path
) -> None:
    """A name of capitals is five times as long in an address, and servers take 4,096 bytes of one."""
    names = [f"{'T' * 50}{number:02d}" for number in range(18)]
    source = ModelSource(layouts=[items_layout(name, oid=number) for number, name in enumerate(names, 1)])
    source.commit([insert(f"public.{name}", 1) for name in names])
    under_test = opensearch_under_test(tmp_path, opensearch_url, refresh="commit")
    written(under_test, source)
    done = source.end
    source.commit([update(f"public.{names[-1]}", 1, name="after the start", body="b")])
    written(under_test, source, done)
    with httpx.Client(base_url=opensearch_url, timeout=30) as http:
        hits = http.post("/_search", json={"query": {"match_all": {}}, "size": 50}).json()["hits"]["hits"]
    assert sorted(hit["_source"]["name"] for hit in hits) == sorted([*["name"] * 17, "after the start"])


def test_routing_by_another_column_is_refused(opensearch_url: str, tmp_path: Path) -> None:
    under_test = opensearch_under_test(tmp_path, opensearch_url, routing={ITEMS: "name"})
    source = ModelSource()
    source.commit([insert(ITEMS, 1)])
    with pytest.raises(SinkRefused, match="route by one of id, or leave routing out"):
        written(under_test, source)


def test_settings_and_fields_are_the_operators_and_templates_apply(
    opensearch_url: str, tmp_path: Path, search: Search
) -> None:
    template = {"index_patterns": ["shop-*"], "template": {"settings": {"index.refresh_interval": "7s"}}}
    search.http.put("/_index_template/shop", json=template)
    fields = {ITEMS: {"name": {"type": "text", "analyzer": "whitespace"}}}
    settings = {"index": {"number_of_replicas": 0}}
    under_test = opensearch_under_test(tmp_path, opensearch_url, index="shop-{table}", fields=fields, settings=settings)
    source = ModelSource()
    source.commit([insert(ITEMS, 1, "Hot-Espresso")])
    written(under_test, source)
    told = search.get(f"/shop-{ITEMS}")[f"shop-{ITEMS}~1"]
    assert told["settings"]["index"]["refresh_interval"] == "7s"
    assert told["settings"]["index"]["number_of_replicas"] == "0"
    assert told["mappings"]["properties"]["name"]["analyzer"] == "whitespace"
    assert search.ids(f"shop-{ITEMS}", {"match": {"name": "Hot-Espresso"}}) == {"1"}
    search.http.delete("/_index_template/shop")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "redis://:hunter2canary@x"}, "url"),
        ({"index": "Shop-{table}"}, "index"),
        ({"index": "shop"}, "index"),
        ({"settings": {"index": {"gc_deletes": "1s"}}}, "settings"),
        ({"request_seconds": 60, "tombstone_seconds": 100}, "tombstone_seconds"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file"),
    ],
)
def test_an_option_that_cannot_be_is_named_without_its_secrets(
    options: dict[str, Any], named: str, under_test: SinkUnderTest
) -> None:
    with pytest.raises(ConfigError, match=named) as wrong:
        under_test.open(**options)
    assert "canary" not in str(wrong.value)


def test_with_refresh_at_commit_a_search_finds_what_is_committed(
    opensearch_url: str, tmp_path: Path, search: Search
) -> None:
    settings = {"refresh_interval": "-1"}
    under_test = opensearch_under_test(tmp_path, opensearch_url, refresh="commit", settings=settings)
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(3)])
    written(under_test, source)
    assert search.get(f"/{ITEMS}/_count")["count"] == 3


# Tables that change their names


def renamed(source: ModelSource, name: str, oid: int, *columns: Any) -> TableSchema:
    return source.add_layout(items_layout(name, *columns, oid=oid))


def windows_by_turns(under_test: SinkUnderTest, source: ModelSource, steps: Sequence[Any]) -> None:
    done = ORIGIN
    for step in steps:
        step()
        written(under_test, source, done)
        done = source.end


def test_two_tables_change_places(under_test: SinkUnderTest, search: Search) -> None:
    """`orders_new` takes the place of `orders`: neither index loses a row, and each is found by its own name."""
    source = ModelSource(layouts=[items_layout("items", oid=1), items_layout("items_new", oid=2)])

    def fill() -> None:
        source.commit([insert(ITEMS, 1, "old"), insert("public.items_new", 1, "new"), insert("public.items_new", 2)])

    def exchange() -> None:
        renamed(source, "items_old", 1)
        source.commit([update("public.items_old", 1, name="older", body="b")])
        renamed(source, "items", 2)
        source.commit([update(ITEMS, 1, name="newer", body="b")])

    windows_by_turns(under_test, source, [fill, exchange])
    assert under_test.rows("public.items_old") == source.rows("public.items_old")
    assert under_test.rows() == source.rows()
    assert under_test.rows("public.items_new") == {}


def test_a_table_takes_the_name_of_one_that_is_quiet(under_test: SinkUnderTest, search: Search) -> None:
    """What the other one is called now is not known yet: its index is out of the way of searches until it is."""
    source = ModelSource(layouts=[items_layout("items", oid=1), items_layout("items_new", oid=2)])
    source.commit([insert(ITEMS, 1, "old", "b"), insert("public.items_new", 7, "new", "b")])
    written(under_test, source)
    done, old = source.end, source.rows()
    source.add_layout(items_layout("items_old", oid=1))  # said in the log, but not to this consumer
    hidden = source.records.pop()
    renamed(source, "items", 2)
    source.commit([update(ITEMS, 7, name="newer", body="b")])
    written(under_test, source, done)
    assert under_test.rows() == source.rows()
    assert search.ids("public.*", {"match_all": {}}) == {"7"}
    done = source.end
    source.commit([update("public.items_old", 1, name="old", body="c")])
    written(under_test, source, done)
    assert hidden
    assert set(under_test.rows("public.items_old")) == set(old)
    assert search.ids("public.*", {"match_all": {}}) == {"1", "7"}


def test_another_table_of_the_same_name_has_an_index_of_its_own(under_test: SinkUnderTest) -> None:
    source = ModelSource(layouts=[items_layout("items", oid=1)])
    source.commit([insert(ITEMS, n) for n in range(3)])
    written(under_test, source)
    done = source.end
    source.state[ITEMS].clear()  # dropped
    source.add_layout(items_layout("items", oid=2))
    source.commit([insert(ITEMS, 9)])
    written(under_test, source, done)
    assert under_test.rows() == source.rows()


def test_a_sweep_meets_the_table_that_has_the_name_now(under_test: SinkUnderTest) -> None:
    """A table is dropped and made again in one life of the consumer: the old one's index is not what is swept."""
    source = ModelSource(layouts=[items_layout("items", oid=1)])
    source.commit([insert(ITEMS, 1)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        source.state[ITEMS].clear()  # dropped
        source.add_layout(items_layout("items", oid=2))
        source.commit([insert(ITEMS, 9)])
        fill(sink, source, done)
        marks = Marks(2, 1)
        after = Following(source.log_id, marks, Point(source.end, source.last_seq))
        sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
        sink.commit(after)
    assert under_test.rows() == {}  # the snapshot of generation 2 had no row


def test_an_index_that_was_put_aside_asks_for_nothing(under_test: SinkUnderTest) -> None:
    """Its table is no more, or has a name that is not known yet: there is none that could be read again."""
    source = ModelSource(layouts=[items_layout("items", oid=1)])
    source.commit([insert(ITEMS, 1, "a", "toasted")])
    done = source.end
    source.commit([update(ITEMS, 1, name="b")])
    with closing(under_test.open()) as sink:
        fill(sink, source, done)  # the insert never came
        assert sink.incomplete() == (ITEMS,)
        done = source.end
        source.state[ITEMS].clear()  # dropped
        source.add_layout(items_layout("items", oid=2))
        source.commit([insert(ITEMS, 9)])
        fill(sink, source, done)
        assert sink.incomplete() == ()
    with closing(under_test.open()) as sink:
        assert sink.incomplete() == ()


def test_a_snapshot_from_before_a_truncate_brings_no_row_back(under_test: SinkUnderTest) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(3)])
    older, done = list(source.snapshot(ITEMS, None)), source.end
    source.commit([truncate(ITEMS)])
    source.commit([insert(ITEMS, 9)])
    newer = list(source.snapshot(ITEMS, None))
    with closing(under_test.open()) as sink:
        fill(sink, source, done)  # the TRUNCATE finds none of the rows that the snapshot has
        for records in (older, newer):
            sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in records], MARKS)
        sink.commit(Following(source.log_id, MARKS, Point(source.end, source.last_seq)))
    assert under_test.rows() == source.rows()


def test_documents_under_another_key_are_read_again(under_test: SinkUnderTest) -> None:
    source = ModelSource(layouts=[items_layout("items", oid=1)])
    source.commit([insert(ITEMS, n, f"key {n}") for n in range(3)])
    written(under_test, source)
    done = source.end
    by_name = (column("id", 23, "int4"), column("name", in_key=True), column("body"))
    source.add_layout(items_layout("items", *by_name, oid=1))
    with closing(under_test.open()) as sink:
        fill(sink, source, done)
        assert sink.incomplete() == (ITEMS,)
    with closing(under_test.open()) as sink:
        assert sink.incomplete() == (ITEMS,)
        marks = Marks(2, 1)
        after = Following(source.log_id, marks, Point(source.end, source.last_seq))
        sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
        sink.commit(after)
        assert sink.incomplete() == ()
    assert under_test.rows() == {}


def test_a_rows_document_follows_from_one_log_to_the_next(under_test: SinkUnderTest) -> None:
    """Versions never fall, though the seqs of another log may: how many logs there were stands above them."""
    for number, first in enumerate((10_000, 5_000, 1), 1):
        source = ModelSource(f"log-{number}", first_seq=first)
        source.commit([insert(ITEMS, 1, f"of log {number}"), insert(ITEMS, 10 + number)])
        marks = Marks(number, number)
        with closing(under_test.open()) as sink:
            sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.snapshot(ITEMS, None)], marks)
            after = Following(source.log_id, marks, Point(source.end, source.last_seq))
            sink.sweep(Sweep(ITEMS, source.last_seq, marks, after))
            sink.commit(after)
        assert under_test.rows() == source.rows()
