"""What sinks get of a table under a mapping."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from walbus.consumers.mapped_sink import RememberedMapping, load_mapper
from walbus.consumers.mapping import Mapper, TableMapper, encoded
from walbus.consumers.mapping_values import TYPES, text_of
from walbus.consumers.sinks import SinkPlace
from walbus.errors import ConfigError, SinkRefused
from walbus.events import Change, Window, window_of
from walbus.keys import key_texts
from walbus.position import ORIGIN, Position
from walbus.records import Op
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.table_mapping import TableMapping
from walbus.values import decode_row

KEY = column("id", 23, "int4", in_key=True)
Function = Callable[[dict[str, Any]], Mapping[str, Any] | None]


def mapped(
    source: ModelSource, function: Function | None = None, after: Position = ORIGIN, **keys: Any
) -> list[Window]:
    if function is not None:
        keys["function"] = "some:function"
    mapper = Mapper({ITEMS: TableMapper(TableMapping(**keys), "key consumer.test.table", function)})
    windows = [window_of(h, r, source.layouts.__getitem__, after=after) for h, r in source.after(after)]
    return [mapper.window(window) for window in windows]


def only(windows: list[Window]) -> Change:
    (change,) = [change for window in windows for change in window]
    return change


# Columns


def test_columns_are_chosen_ordered_and_renamed(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "one", None)])
    change = only(mapped(source, columns=["body", "id"], rename={"body": "text"}))
    assert change.after == {"text": None, "id": 1}
    assert change.key == {"id": 1}
    assert change.schema is not None and [c.name for c in change.schema.columns] == ["text", "id"]


def test_what_is_not_mapped_passes_as_it_is(source: ModelSource) -> None:
    source.add_layout(items_layout("others", oid=16_401))
    source.commit([insert(ITEMS, 1), insert("public.others", 1)])
    changes = [change for window in mapped(source, columns=["id"]) for change in window]
    assert [list(change.after or ()) for change in changes if change.op is Op.INSERT] == [
        ["id"],
        ["id", "name", "body"],
    ]


def test_constants_stand_in_every_row(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    constants = {"region": "eu", "shard": 7, "live": True, "weight": 0.5}
    change = only(mapped(source, columns=["id"], constants=constants))
    assert change.after == {"id": 1, **constants}


def test_the_id_orders_the_key_and_may_have_constants(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    source.commit([update(ITEMS, 1, new_id=2, name="n", body="b"), delete(ITEMS, 2)])
    windows = mapped(source, constants={"region": "eu"}, rename={"id": "no"}, id=["region", "no"])
    insert_, update_, delete_ = [change for window in windows for change in window]
    assert insert_.schema is not None and [c.name for c in insert_.schema.columns] == ["region", "no", "name", "body"]
    assert [key_texts(c.raw.key or b"") for c in (insert_, update_, delete_)] == [("eu", "1"), ("eu", "2"), ("eu", "2")]
    assert update_.old_key == {"region": "eu", "no": 1}
    assert delete_.key == {"region": "eu", "no": 2}


def test_a_key_follows_the_order_of_its_columns(source: ModelSource) -> None:
    layout = TableSchema(
        0, 16_400, "public", "items", ReplicaIdentity.DEFAULT, (KEY, column("name", in_key=True), column("body"))
    )
    mapping = TableMapping(columns=("name", "id"))
    found = TableMapper(mapping, "key", None).layout(layout)
    from walbus.keys import encode_key

    assert found.key(encode_key([b"7", b"n"], [23, 25])) == encode_key([b"n", b"7"], [25, 23])


def test_values_that_were_not_sent_stay_so(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    done = source.end
    source.commit([update(ITEMS, 1, name="new")])
    change = only(mapped(source, after=done, columns=["body", "id", "name"], rename={"body": "text"}))
    assert change.unchanged == {"text"}
    assert change.after == {"id": 1, "name": "new"}
    assert not only(mapped(source, after=done, columns=["id", "name"])).unchanged


def test_truncates_and_layouts_are_told_in_the_mapped_layout(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    done = source.end
    source.add_layout(items_layout("items", KEY, column("name"), column("body"), column("more")))
    source.commit([truncate(ITEMS)])
    for change in [change for window in mapped(source, after=done, columns=["id"]) for change in window]:
        assert change.schema is not None and [c.name for c in change.schema.columns] == ["id"]


def test_a_mapped_table_that_is_renamed_does_not_come_unmapped(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    source.add_layout(items_layout("things"))
    source.commit([insert("public.things", 2, "canary")])
    with pytest.raises(
        SinkRefused, match=r"public\.items, which has a mapping, is called public\.things now"
    ) as caught:
        mapped(source, columns=["id"])
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"columns": ["id", "nmae"]}, "no column 'nmae'.*its columns are id, name, body"),
        ({"rename": {"nmae": "x"}}, "no column 'nmae'"),
        ({"columns": ["name"]}, "leaves out 'id', which is in the table's key"),
        ({"rename": {"name": "body"}}, "two columns are called 'body'"),
        ({"constants": {"name": 1}}, "two columns are called 'name'"),
        ({"id": ["name"]}, "id names 'name', which is neither"),
        ({"constants": {"region": "eu"}, "id": ["region"]}, "id leaves out 'id': two rows would be one"),
    ],
)
def test_a_mapping_that_does_not_fit_names_the_column(keys: dict[str, Any], told: str, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    with pytest.raises(ConfigError, match=told):
        mapped(source, **keys)


def test_a_table_without_a_key_has_no_id() -> None:
    layout = TableSchema(1, 1, "public", "t", ReplicaIdentity.FULL, (column("a"),))
    with pytest.raises(ConfigError, match="the table has no key"):
        TableMapper(TableMapping(constants={"c": 1}, id=("c",)), "key", None).layout(layout)


@pytest.mark.parametrize(
    "keys",
    [
        {"fields": {"x": "text"}},
        {"function": "no function"},
        {"colums": ["id"]},
        {"fields": {"x": "enum"}, "function": "m:f"},
        {"columns": ["id"], "rename": {"name": "title"}},
        {"constants": {"x": [1]}},
    ],
)
def test_a_mapping_that_says_nothing_sensible_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TableMapping(**keys)


# The function


def test_a_function_sets_columns_and_fields_and_leaves_the_rest(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1, "one", "body")])

    def function(row: dict[str, Any]) -> dict[str, Any]:
        assert row == {"id": 1, "name": "one", "text": "body", "region": "eu"}
        return {**row, "name": row["name"].upper(), "size": len(row["text"]), "parts": {"a": [1, None]}}

    change = only(
        mapped(
            source,
            function,
            rename={"body": "text"},
            constants={"region": "eu"},
            fields={"size": "int8", "parts": "jsonb", "never": "text"},
        )
    )
    assert change.after == {
        "id": 1, "name": "ONE", "text": "body", "region": "eu", "size": 4, "parts": '{"a":[1,null]}', "never": None,
    }  # fmt: skip


def test_what_a_function_leaves_out_of_a_row_that_is_not_whole_stays(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    done = source.end
    source.commit([update(ITEMS, 1, name="new")])

    def function(row: dict[str, Any]) -> dict[str, Any]:
        return {"size": len(row["body"])} if "body" in row else {}

    change = only(mapped(source, function, after=done, fields={"size": "int8"}))
    assert change.unchanged == {"body", "size"}
    change = only(mapped(source, lambda row: {"body": "set", "size": 3}, after=done, fields={"size": "int8"}))
    assert change.unchanged == frozenset() and change.after == {"id": 1, "name": "new", "body": "set", "size": 3}


def test_a_row_that_is_not_wanted_is_deleted_under_both_its_keys(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    done = source.end
    source.commit([update(ITEMS, 1, new_id=2, name="n", body="b")])
    deletes = [change for window in mapped(source, lambda _: None, after=done) for change in window]
    assert [(change.op, change.key) for change in deletes] == [(Op.DELETE, {"id": 1}), (Op.DELETE, {"id": 2})]
    assert len({change.seq for change in deletes}) == 1
    assert all(change.raw.after is None and change.raw.old_key is None for change in deletes)


def test_a_snapshots_row_that_is_not_wanted_does_not_come(source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    mapping = TableMapping(function="m:f")
    mapper = Mapper({ITEMS: TableMapper(mapping, "key", lambda row: None if row["id"] == 1 else {})})
    windows = [window_of(h, r, source.layouts.__getitem__) for h, r in source.snapshot(ITEMS, None)]
    assert [change.key for window in windows for change in mapper.window(window)] == [{"id": 2}]


def raises(row: dict[str, Any]) -> dict[str, Any]:
    raise KeyError(row["name"])


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (raises, "the function raised KeyError"),
        (lambda _: sys.exit("canary"), "the function raised SystemExit"),
        (lambda _: 7, "the function returned int"),
        (lambda _: {"sise": 1}, "set 'sise', which is no column; declare it in fields"),
        (lambda _: {"id": 7}, "set 'id', which identifies the row"),
        (lambda _: {"size": "canary"}, r"column 'size' \(int8\) does not take a str"),
        (lambda _: {"size": 1 << 63}, "does not take a int"),
        (lambda _: {"name": b"canary"}, r"column 'name' \(text\) does not take a bytes"),
        (lambda _: {"name": "nul\0"}, "does not take a str"),
    ],
)
def test_what_a_function_must_not_do_names_table_and_position_and_no_value(
    function: Function, told: str, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "canary")])
    with pytest.raises(SinkRefused, match=rf"{told}.*public\.items at {re.escape(str(source.end))}") as caught:
        mapped(source, function, fields={"size": "int8"})
    assert "canary" not in str(caught.value) + repr(caught.value)


# Values of Python

_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "bytea": st.binary(),
    "date": st.dates(),
    "float8": st.floats(allow_nan=False),
    "int4": st.integers(-(1 << 31), (1 << 31) - 1),
    "int8": st.integers(-(1 << 63), (1 << 63) - 1),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False),
    "text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    "timestamp": st.datetimes(),
    "timestamptz": st.datetimes(timezones=st.just(UTC)),
    "uuid": st.uuids(),
}


@pytest.mark.parametrize("kind", _VALUES)
@given(data=st.data())
def test_values_of_a_type_come_back(kind: str, data: st.DataObject) -> None:
    value = data.draw(_VALUES[kind])
    oid, name = TYPES[kind]
    alone = Column("c", oid, name, -1, in_key=False)
    layout = TableSchema(1, 1, "public", "t", ReplicaIdentity.DEFAULT, (alone,))
    assert decode_row(layout, encoded(alone, text_of(value, oid))) == {"c": value}


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("numeric", Decimal("1E+3"), "1000"),
        ("numeric", Decimal("NaN"), "NaN"),
        ("numeric", Decimal("-Infinity"), "-Infinity"),
        ("float8", 3, "3"),
        ("float8", float("inf"), "Infinity"),
        ("timestamptz", datetime(2026, 1, 2, 3, 4, 5, 600_000, UTC), "2026-01-02 03:04:05.6+00"),
        ("timestamp", datetime(2026, 1, 2, 3, 4, 50), "2026-01-02 03:04:50"),
        ("date", date(1, 1, 1), "0001-01-01"),
        ("json", [1, {"a": None}], '[1,{"a":null}]'),
        ("json", '{"as": "it is"}', '{"as": "it is"}'),
        ("uuid", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("text", None, None),
    ],
)
def test_values_become_canonical_text(kind: str, value: object, text: str | None) -> None:
    assert text_of(value, TYPES[kind][0]) == text


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int8", True), ("int8", 1.0), ("float8", True), ("numeric", 0.1), ("bool", 1), ("date", datetime(2026, 1, 1)),
        ("timestamp", datetime(2026, 1, 1, tzinfo=UTC)), ("timestamptz", datetime(2026, 1, 1)), ("text", 1),
        ("json", "{"), ("json", float("nan")), ("json", {1, 2}), ("uuid", "x"), ("bytea", "x"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_not_guessed(kind: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        text_of(value, TYPES[kind][0])


# What is remembered, and found


def test_another_mapping_is_refused_by_a_sink_that_has_begun(tmp_path: Path) -> None:
    one, other = {ITEMS: TableMapping(columns=("id",))}, {ITEMS: TableMapping(columns=("id", "name"))}
    RememberedMapping(tmp_path, {}, "test").check(begun=True)
    with pytest.raises(SinkRefused, match=r"filled under another mapping.*consumer\.test\.table"):
        RememberedMapping(tmp_path, one, "test").check(begun=True)
    RememberedMapping(tmp_path, one, "test").check(begun=False)
    RememberedMapping(tmp_path, one, "test").check(begun=True)
    for changed in (other, {}):
        with pytest.raises(SinkRefused, match="filled under another mapping"):
            RememberedMapping(tmp_path, changed, "test").check(begun=True)
    RememberedMapping(tmp_path, other, "test").check(begun=False)
    RememberedMapping(tmp_path, other, "test").check(begun=True)


@pytest.mark.parametrize(
    ("table", "function", "told"),
    [
        ("public.items", "no_such_module:f", "cannot be imported.*no_such_module"),
        ("public.items", "support.mapped_rows:nothing", "cannot be imported.*nothing"),
        ("public.items", "support.mapped_rows:no_function", "is no function"),
        ("public.*", None, "none of the consumer's tables"),
        ("sales.items", None, "none of the consumer's tables"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_told_at_the_start(
    table: str, function: str | None, told: str, tmp_path: Path
) -> None:
    place = SinkPlace("test", tmp_path, ("public.*",))
    with pytest.raises(ConfigError, match=told) as caught:
        load_mapper({table: TableMapping(function=function)}, place)
    assert f'consumer.test.table."{table}"' in str(caught.value.where)
