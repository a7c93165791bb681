"""Snapshots, deltas and rows over HTTP: as of one position, to be gone on with anywhere, and refused with a reason."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import quote

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.relay_log import FileEngine, progress, transaction
from support.serving_bootstrap import ServingBootstrap
from walbus.bootstrap.horizon import HORIZON, Horizon
from walbus.bootstrap.seq_at import seq_at
from walbus.bootstrap.state import encode
from walbus.bootstrap.store import WriteSet
from walbus.consumers.checkpoint import Point
from walbus.errors import LogUnreachable
from walbus.log import Bounds, LogCursor, LogReader
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, Op

pytestmark = pytest.mark.one_version

OTHERS, KEYLESS = "public.others", "public.keyless"


@pytest.fixture
def source() -> ModelSource:
    return ModelSource(layouts=(items_layout(), items_layout("others", oid=16500)))


@pytest.fixture
def bootstrap(source: ModelSource) -> Iterator[ServingBootstrap]:
    with ServingBootstrap(source) as serving:
        yield serving


def place(source: ModelSource) -> Point:
    return Point(source.end, source.last_seq)


def since(table: str, point: Point) -> str:
    return f"/v1/delta?table={table}&after={point.last_done}&seq={point.seq}"


# Snapshots


def test_several_tables_come_in_one_answer_as_of_one_position(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2), insert(OTHERS, 7)])
    bootstrap.follow()
    for tables in (f"{OTHERS},{ITEMS}", "public.*", "*.*"):
        records = bootstrap.records(f"/v1/snapshot?tables={tables}")
        assert [change.table for _, changes in records for change in changes] == [ITEMS, ITEMS, OTHERS]
        assert {(header.kind, header.last) for header, _ in records} == {(Kind.SNAPSHOT, source.end)}
        assert sum(bool(header.flags & Flag.BEGIN) for header, _ in records) == 2
        assert [bool(header.flags & Flag.END) for header, _ in records] == [False] * (len(records) - 1) + [True]
    status, headers, _ = bootstrap.get(f"/v1/snapshot?tables={ITEMS}")
    assert (status, headers["Walbus-Position"], headers["Walbus-Log-Id"]) == (200, str(source.end), source.log_id)


def test_a_snapshot_of_several_tables_goes_on_behind_any_key(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(table, n) for table in (ITEMS, OTHERS) for n in range(4)])
    bootstrap.follow()
    whole = [c for _, changes in bootstrap.records("/v1/snapshot?tables=public.*") for c in changes]
    for done, last in enumerate(whole, 1):
        assert last.raw.key is not None
        behind = f"&after_table={last.table}&after_key={last.raw.key.hex()}"
        rest = [c for _, changes in bootstrap.records(f"/v1/snapshot?tables=public.*{behind}") for c in changes]
        assert [(c.table, c.raw.key) for c in rest] == [(c.table, c.raw.key) for c in whole[done:]]


def test_the_parts_of_all_keys_are_the_whole(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(ITEMS, n) for n in range(40)])
    bootstrap.follow()

    def keys(path: str) -> list[bytes | None]:
        return [change.raw.key for _, changes in bootstrap.records(path) for change in changes]

    for path in (f"/v1/snapshot?table={ITEMS}", f"/v1/delta?table={ITEMS}&after=1:0/1:0&seq=0"):
        parts = [keys(f"{path}&partition={part}/3") for part in range(3)]
        assert all(parts)
        assert sorted(key for part in parts for key in part) == sorted(keys(path))


def test_a_table_comes_as_an_arrow_stream_in_its_present_layout(
    source: ModelSource, bootstrap: ServingBootstrap
) -> None:
    pa = pytest.importorskip("pyarrow")
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(3)])
    source.commit([delete(ITEMS, 1)])
    bootstrap.follow()
    accept = {"Accept": "application/vnd.apache.arrow.stream"}
    status, headers, body = bootstrap.get(f"/v1/snapshot?table={ITEMS}", **accept)
    assert (status, headers["Walbus-Position"]) == (200, str(source.end))
    table = pa.ipc.open_stream(body).read_all()
    assert table.schema.metadata[b"walbus.table"] == ITEMS.encode()
    rows = table.select(["id", "name", "_walbus_seq"]).to_pylist()
    assert rows == [{"id": 0, "name": "n0", "_walbus_seq": 1}, {"id": 2, "name": "n2", "_walbus_seq": 3}]
    _, _, empty = bootstrap.get(f"/v1/snapshot?table={OTHERS}&format=arrow")
    assert pa.ipc.open_stream(empty).read_all().num_rows == 0
    status, refused = bootstrap.json("/v1/snapshot?tables=public.*&format=arrow")
    assert (status, refused["where"]) == (400, "tables")


def test_rows_of_an_earlier_layout_stand_under_their_columns_in_arrow(
    source: ModelSource, bootstrap: ServingBootstrap
) -> None:
    pa = pytest.importorskip("pyarrow")
    source.commit([insert(ITEMS, 1, "one")])
    wider = items_layout("items", column("name"), column("note"), column("id", 23, "int4", in_key=True))
    layout = source.add_layout(wider)
    source.commit([insert(ITEMS, 2, "two")])
    bootstrap.follow()
    bootstrap.relayout(layout)
    source.commit([insert(ITEMS, 3, "three")])
    bootstrap.follow()
    _, _, body = bootstrap.get(f"/v1/snapshot?table={ITEMS}&format=arrow")
    rows = pa.ipc.open_stream(body).read_all().select(["name", "note", "id"]).to_pylist()
    assert rows == [{"name": n, "note": None, "id": i} for i, n in enumerate(("one", "two", "three"), 1)]


def test_what_has_no_place_in_the_layout_of_an_arrow_stream_stands_there_as_text(
    source: ModelSource, bootstrap: ServingBootstrap
) -> None:
    """A table whose columns changed is served by the layout that it was seeded in until it is seeded again."""
    pa = pytest.importorskip("pyarrow")
    source.commit([insert(ITEMS, 1, "one")])
    key = column("id", 23, "int4", in_key=True)
    source.add_layout(items_layout("items", key, column("name", 23, "int4"), column("body_new")))
    source.commit([insert(ITEMS, 2, "42"), update(ITEMS, 2, name="43", body_new="b")])
    bootstrap.follow()
    _, _, body = bootstrap.get(f"/v1/snapshot?table={ITEMS}&format=arrow")
    rows = pa.ipc.open_stream(body).read_all().select(["id", "name", "body", "_walbus_texts"]).to_pylist()
    assert rows == [
        {"id": 1, "name": "one", "body": "body", "_walbus_texts": []},
        {"id": 2, "name": None, "body": None, "_walbus_texts": [("name", "43"), ("body_new", "b")]},
    ]


# Deltas


def test_a_delta_has_the_last_version_of_each_key_that_changed(
    source: ModelSource, bootstrap: ServingBootstrap
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    point = place(source)
    for n in range(30):
        source.commit([update(ITEMS, 1, name=f"n{n}")])
    source.commit([delete(ITEMS, 2), insert(OTHERS, 9)])
    bootstrap.follow()
    records = bootstrap.records(since(ITEMS, point))
    changes = [change for _, changes in records for change in changes]
    assert {(header.kind, header.last) for header, _ in records} == {(Kind.DELTA, source.end)}
    assert [(c.op, c.key, c.seq) for c in changes] == [
        (Op.INSERT, {"id": 1}, source.last_seq - 2),
        (Op.DELETE, {"id": 2}, source.last_seq - 1),
    ]
    assert dict(changes[0].after or {})["body"] == "body", "a value that was not sent with the last change is there"
    told = bootstrap.lines(since(ITEMS, point))
    assert told.pop()["op"] == "delta_end"
    assert [(line["op"], line["delta"]) for line in told] == [("insert", True), ("delete", True)]
    status, count = bootstrap.json(f"{since(ITEMS, point)}&count=true")
    assert (status, count["more"], count["rows"]) == (200, False, 4)
    assert 2 <= count["changes_at_most"] <= 31
    assert bootstrap.json(f"{since(ITEMS, point)}&count=true&limit=1")[1]["more"] is True


def test_a_delta_begins_with_the_tables_truncate(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(ITEMS, 1)])
    point = place(source)
    source.commit([truncate(ITEMS), insert(ITEMS, 3)])
    bootstrap.follow()
    assert [line["op"] for line in bootstrap.lines(since(ITEMS, point))] == ["truncate", "insert", "delta_end"]


def test_a_delta_that_would_not_be_complete_is_refused_with_the_horizon(
    source: ModelSource, bootstrap: ServingBootstrap
) -> None:
    source.commit([insert(ITEMS, 1)])
    bootstrap.follow()
    point = place(source)
    bootstrap.seed(source.current[ITEMS])
    source.commit([insert(ITEMS, 2)])
    bootstrap.follow()
    status, refused = bootstrap.json(since(ITEMS, point))
    assert (status, refused["where"]) == (410, "after")
    assert refused["horizon"] == {"position": str(point.last_done), "seq": point.seq}
    assert f"/v1/snapshot?table={ITEMS}" in refused["mend"]
    assert bootstrap.get(since(ITEMS, place(source)))[0] == 200
    assert bootstrap.get(since(OTHERS, point))[0] == 200, "its generation is the same"
    assert bootstrap.json(f"/v1/delta?table={ITEMS}&after=seq:{point.seq}")[0] == 410
    assert bootstrap.get(f"/v1/delta?table={ITEMS}&after=seq:{point.seq + 1}")[0] == 200


def test_a_delta_from_where_tombstones_are_gone_is_refused(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(ITEMS, 1)])
    point = place(source)
    source.commit([delete(ITEMS, 1)])
    bootstrap.follow()
    for log_id, status in (("another", 200), (source.log_id, 410)):
        purged = Horizon(log_id, source.last_seq, *source.end)
        bootstrap.ledger.store.write(WriteSet(documents={HORIZON: encode(purged)}))
        assert bootstrap.get(since(ITEMS, point))[0] == status


def test_a_store_that_is_not_there_yet_is_waited_for(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(ITEMS, 1)])
    status, headers, _ = bootstrap.get(since(ITEMS, place(source)))
    assert (status, headers["Retry-After"]) == (503, "1")
    bootstrap.follow()
    assert bootstrap.get(since(ITEMS, place(source)))[0] == 200


def test_a_position_will_do_as_long_as_the_log_holds_it(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(ITEMS, 1)])
    point = place(source)
    source.commit([insert(ITEMS, 2)])
    bootstrap.follow()
    path = f"/v1/delta?table={ITEMS}&after={point.last_done}"
    assert [line["key"] for line in bootstrap.lines(path) if "key" in line] == [{"id": 2}]
    source.trim(source.end)
    status, refused = bootstrap.json(path)
    assert (status, refused["where"]) == (410, "after")
    assert "give its seq too" in refused["mend"]
    assert bootstrap.get(since(ITEMS, point))[0] == 200


def test_a_position_whose_seq_a_cluster_does_not_tell_now_is_to_be_asked_for_again(
    source: ModelSource, bootstrap: ServingBootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(reader: object) -> Bounds:
        raise LogUnreachable("no answer")

    source.commit([insert(ITEMS, 1)])
    bootstrap.follow()
    point = place(source)
    monkeypatch.setattr("support.serving_bootstrap._Reader.bounds", away)
    status, headers, body = bootstrap.get(f"/v1/delta?table={ITEMS}&after={point.last_done}")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "the log does not answer" in body.decode()
    assert bootstrap.get(since(ITEMS, point))[0] == 200


def test_a_place_that_the_store_has_not_come_to_is_not_called_complete(
    source: ModelSource, bootstrap: ServingBootstrap
) -> None:
    source.commit([insert(ITEMS, 1)])
    bootstrap.follow()
    beyond = Position(99, 0xFF, 0)
    for query in (f"after={beyond}", f"after={beyond}&seq=1", "after=seq:99999"):
        status, headers, body = bootstrap.get(f"/v1/delta?table={ITEMS}&{query}")
        assert (status, headers["Retry-After"], json.loads(body)["where"]) == (503, "1", "after")


def test_the_seq_of_a_position_is_found_in_the_log_as_long_as_it_is_held(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path)
    writer = engine.open_writer()
    for lsn in (16, 32, 64):
        writer.append(transaction(lsn, changes=3))
    writer.append(progress(96))
    writer.sync()
    reader = engine.open_reader()
    last = reader.bounds().last_seq
    places = ((16, 3), (32, 1), (32, 2), (40, 0), (64, 3), (96, 0), (200, 0))
    found = [seq_at(reader, Position(1, *place)) for place in places]
    assert found == [last - 6, last - 5, last - 4, last - 3, last, last, last]
    assert seq_at(reader, ORIGIN) == last - 9
    engine.close()


def test_a_position_that_retention_passes_while_it_is_looked_for_is_not_held(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path, segment_bytes=16 << 10)
    writer = engine.open_writer()
    for lsn in range(16, 16 * 2000, 16):
        writer.append(transaction(lsn, changes=3))
    writer.sync()
    reader = engine.open_reader()
    begun = reader.bounds()
    trimmed = writer.trim(time.time() + 1e9)
    assert trimmed > Position(1, 32, 3) > begun.trimmed

    class Overtaken:
        """A reader whose first look was before retention passed."""

        def bounds(self) -> Bounds:
            return begun

        def cursor(self, after: Position) -> LogCursor:
            return reader.cursor(after)

    assert seq_at(cast(LogReader, Overtaken()), Position(1, 32, 3)) is None
    engine.close()


# Rows


def test_one_row_comes_by_its_key_with_its_version(source: ModelSource, bootstrap: ServingBootstrap) -> None:
    source.commit([insert(ITEMS, 7, "seven")])
    bootstrap.follow()
    for key in (f"key={quote(json.dumps({'id': 7}))}", "key.id=7"):
        status, row = bootstrap.json(f"/v1/row?table={ITEMS}&{key}")
        assert (status, row["row"]) == (200, {"id": 7, "name": "seven", "body": "body"})
        assert (row["seq"], row["position"], row["log_id"]) == (1, str(source.end), source.log_id)
    source.commit([delete(ITEMS, 7)])
    bootstrap.follow()
    status, gone = bootstrap.json(f"/v1/row?table={ITEMS}&key.id=7")
    assert (status, gone["deleted"], gone["seq"], gone["position"]) == (404, True, 2, str(source.end))
    status, never = bootstrap.json(f"/v1/row?table={ITEMS}&key.id=8")
    assert (status, never["deleted"], never["seq"]) == (404, False, None)
    status, wrong = bootstrap.json(f"/v1/row?table={ITEMS}&key.name=x")
    assert (status, wrong["where"]) == (400, "key")


# Refusals


@pytest.mark.parametrize("route", ["/v1/snapshot?", "/v1/delta?after=1:0/1:1&seq=1&", "/v1/row?key.id=1&"])
def test_what_cannot_be_served_is_refused_in_the_same_way_everywhere(
    source: ModelSource, bootstrap: ServingBootstrap, route: str
) -> None:
    bootstrap.refuse(items_layout("keyless", oid=16600), "it has no key")
    for query, status in (
        ("table=public.nothing", 404),
        (f"table={KEYLESS}", 409),
        (f"table={ITEMS}&log_id=another", 409),
        ("", 400),
        ("table=", 400),
        (f"table={ITEMS}&tabel=x", 400),
    ):
        found, body = bootstrap.json(route + query)
        assert (found, set(body) >= {"error", "where", "mend"}) == (status, True), query
    with bootstrap.ledger.lock:
        run = bootstrap.ledger.tables[source.current[OTHERS].oid]
        bootstrap.ledger.reopen(run)
    status, headers, body = bootstrap.get(f"{route}table={OTHERS}")
    assert (status, headers["Retry-After"], json.loads(body)["state"]) == (503, "1", "seeding")


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("tables=orders", "tables"),
        ("tables=", "tables"),
        ("tables=public.nothing", "tables"),
        (f"tables={ITEMS}&table={ITEMS}", "tables"),
        ("tables=public.*&after_key=01", "after_table"),
        (f"tables={ITEMS}&after_table={OTHERS}", "after_table"),
        (f"table={ITEMS}&after_key=0", "after_key"),
        (f"tables={ITEMS}&tables={OTHERS}", "tables"),
        (f"table={ITEMS}&partition=3/3", "partition"),
        (f"table={ITEMS}&format=sse", "format"),
    ],
)
def test_a_snapshot_that_cannot_be_is_refused_by_its_parameter(
    bootstrap: ServingBootstrap, query: str, where: str
) -> None:
    status, body = bootstrap.json(f"/v1/snapshot?{query}")
    assert (status, body["where"]) in {(400, where), (404, where)}


def test_patterns_leave_out_tables_without_a_key_that_are_not_named(
    source: ModelSource, bootstrap: ServingBootstrap
) -> None:
    source.commit([insert(ITEMS, 1)])
    bootstrap.follow()
    bootstrap.refuse(items_layout("keyless", oid=16600), "it has no key")
    assert len(bootstrap.lines("/v1/snapshot?tables=*.*")) == 2
    assert bootstrap.json(f"/v1/snapshot?tables=public.*,{KEYLESS}")[0] == 409


# Complete changes; on a real source: test_bootstrap_complete_changes


def test_a_table_without_a_key_is_refused_by_name_and_passed_over_under_a_pattern(source: ModelSource) -> None:
    with ServingBootstrap(source, complete=["public.*"]) as bootstrap:
        bootstrap.refuse(source.current[OTHERS], "it has no key")
        status, told = bootstrap.json(f"/v1/stream?complete=true&tables={OTHERS}")
        assert (status, told["where"], told["mend"]) == (400, "tables", "it has no key")
        assert bootstrap.json("/v1/stream?complete=true&tables=public.*")[0] == 503  # this log has no files
        assert bootstrap.json("/v1/tables")[1]["complete_since"] == "0:0/0:0"
