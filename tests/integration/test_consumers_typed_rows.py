"""Rows as objects: what fits, what does not and how that is told, by both clients and from a real log."""

from __future__ import annotations

import asyncio
import enum
import ipaddress
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

import walbus
from support.calling import Recorder, calling
from support.model_source import ITEMS, column, delete, insert, items_layout, truncate, update
from support.relay_log import SOURCE, FileEngine
from support.scripted_relay import ScriptedRelay
from support.serving_relay import ServingRelay
from support.waiting import wait_for
from support.well_formed_log import fill_well
from walbus.consumers import Delivery, Failures, MemoryCheckpointStore
from walbus.consumers.typed_rows import TypedRows
from walbus.errors import RowMismatch, UsageError, WalbusError
from walbus.events import Change
from walbus.position import Position
from walbus.records import Op, RawChange
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

pytestmark = pytest.mark.one_version


@dataclass
class Item:
    id: int
    name: str | None
    body: str | msgspec.UnsetType | None = msgspec.UNSET


class Renamed(msgspec.Struct, rename={"title": "name"}):
    id: int
    title: str | None


@dataclass
class Strict:
    id: int
    body: str | None = None


def class_of(type_: Any) -> type:
    return msgspec.defstruct("Row", [("v", type_)])


def changes(relay: ScriptedRelay, count: int, into: Any, **options: Any) -> list[Change]:
    """The next changes of rows."""
    found: list[Change] = []
    chosen = {"start": "earliest"} | options
    with walbus.connect(relay.url) as bus:
        subscription = bus.subscribe(name="typed", checkpoints=MemoryCheckpointStore(), into=into, **chosen)
        while len(found) < count:
            delivery = subscription.next(60)
            assert isinstance(delivery, Delivery)
            found += [change for change in delivery if change.op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE)]
    return found


def test_rows_are_objects_of_the_class(source, relay) -> None:
    source.commit([insert(ITEMS, 1, "one"), update(ITEMS, 1, name=None), delete(ITEMS, 1), truncate(ITEMS)])
    first, second, third, fourth = changes(relay, 4, Item)
    assert first.row == Item(1, "one", "body")
    assert second.row == Item(1, None, msgspec.UNSET), "what was not sent is no NULL"
    assert (third.row, fourth.row) == (None, None)
    assert [change.after for change in (first, second)] == [
        {"id": 1, "name": "one", "body": "body"}, {"id": 1, "name": None},
    ]  # fmt: skip
    assert second.old_row is None


def test_a_snapshots_rows_are_too_and_renamed_fields_count(source, relay) -> None:
    source.commit([insert(ITEMS, 1, "one")])
    source.trim(source.end)
    (change,) = changes(relay, 1, Renamed, start="snapshot")
    assert change.row == Renamed(1, "one")


def test_each_table_may_have_its_class(source, relay) -> None:
    source.add_layout(items_layout("others", oid=16500))
    source.add_layout(items_layout("nobodys", oid=16600))
    source.commit([insert(ITEMS, 1), insert("public.others", 2), insert("public.nobodys", 3)])
    one, other, nobodys = changes(relay, 3, {"public.items": Item, "public.others": Renamed})
    assert (type(one.row), type(other.row)) == (Item, Renamed)
    with pytest.raises(UsageError, match="no class for this table"):
        _ = nobodys.row


def test_a_value_that_was_not_sent_is_never_a_default(source, relay) -> None:
    source.commit([insert(ITEMS, 1), update(ITEMS, 1, name="x")])
    _, change = changes(relay, 2, Strict)
    with pytest.raises(RowMismatch) as lacking:
        _ = change.row
    assert lacking.value.where == "public.items.body"
    assert "UNSET" in str(lacking.value)
    _, change = changes(relay, 2, Strict, columns={ITEMS: ["id"]})
    with pytest.raises(RowMismatch, match=r"at public\.items\.body"):
        _ = change.row


def test_a_column_that_goes_is_named_at_its_first_row(source, relay) -> None:
    source.commit([insert(ITEMS, 1)])
    source.add_layout(items_layout("items", column("id", 23, "int4", in_key=True), column("body")))
    source.commit([insert(ITEMS, 2)])
    before, behind = changes(relay, 2, Renamed)
    assert before.row.title == "name"
    with pytest.raises(RowMismatch, match=r"no such column \(at public\.items\.name\)"):
        _ = behind.row


def test_asking_for_rows_without_a_class_says_so(source, relay) -> None:
    source.commit([insert(ITEMS, 1)])
    (change,) = changes(relay, 1, None)
    for name in ("row", "old_row"):
        with pytest.raises(UsageError, match="subscribe with into="):
            getattr(change, name)


@pytest.mark.parametrize("into", [dict, int, list[int], {"public.items": str}, "Item", class_of(datetime | str)])
def test_what_is_no_class_for_rows_is_refused_at_once(relay, into: Any) -> None:
    with walbus.connect(relay.url) as bus, pytest.raises(WalbusError):
        bus.subscribe(name="typed", checkpoints=MemoryCheckpointStore(), into=into)


def test_on_a_real_relay_by_asyncio_too(tmp_path: Path) -> None:
    class Order(msgspec.Struct):
        id: int

    async def read(url: str) -> list[Order | None]:
        found: list[Order | None] = []
        async with walbus.aconnect(url, folder=tmp_path) as bus:
            async for window in bus.subscribe(name="typed", start="earliest", into=Order):
                found += [change.row for change in window]
                if len(found) == 6:  # the layout's event is no row
                    break
        return found

    with closing(FileEngine(tmp_path / "log")) as engine, closing(engine.open_writer(SOURCE)) as writer:
        fill_well(writer, 2)
        with ServingRelay(engine.folder) as relay:
            rows = asyncio.run(read(relay.url))
    assert [row.id for row in rows if row is not None] == [1601, 1602, 3201, 3202, 3203]


@pytest.mark.parametrize("way", ["threads", "asyncio"])
def test_a_row_that_does_not_fit_is_the_callbacks_poison(source, relay, tmp_path: Path, way: str) -> None:
    class Named(msgspec.Struct):
        id: int
        name: str

    source.commit([insert(ITEMS, 1), insert(ITEMS, 2, None), insert(ITEMS, 3)])
    calls = Recorder(lambda change: not isinstance(change.row, Named))
    with calling(way, relay.url, tmp_path, calls, Failures("dead-letter", attempts=1), into=Named) as run:
        wait_for(lambda: calls.ids == [1, 3])
    assert run.error is None
    ((error, change),) = calls.errors
    assert isinstance(error, RowMismatch)
    assert change is not None
    assert error.where == "public.items.name"


# Values: one row of one column, by its type


def row_of(type_oid: int, text: str | None, into: type) -> Any:
    columns = (Column("v", type_oid, "x", -1, in_key=False),)
    schema = TableSchema(7, 16400, "public", "t", ReplicaIdentity.DEFAULT, columns)
    after = row_encoder(schema).encode([None if text is None else text.encode()])
    raw = RawChange(Op.INSERT, 0, 16400, 7, 0, 0, 0, None, None, b"", after, None)
    return TypedRows(into).typed(Change(raw, schema, Position(1, 1, 1), 1)).row.v


class Mood(enum.Enum):
    SAD = "sad"
    OK = "ok"


class Doc(msgspec.Struct):
    a: int
    tags: list[str] = []


class Priced(msgspec.Struct):
    price: Decimal
    of: datetime | None = None
    mood: Mood | None = None
    extra: dict[str, Any] = {}


@dataclass
class Net:
    first: ipaddress.IPv4Address
    totals: dict[str, Decimal]


LONG = "123456789012345678.012345678901234567890"


@pytest.mark.parametrize(
    ("oid", "text", "type_", "value"),
    [
        (16, "t", bool, True),
        (17, r"\x00ff", bytes, b"\x00\xff"),
        (20, "9007199254740993", int, 9007199254740993),
        (25, "é", str, "é"),
        (25, "sad", Mood, Mood.SAD),
        (701, "1.5", float, 1.5),
        (700, "0.1", float, 0.10000000149011612),
        (1700, "1.50", Decimal, Decimal("1.50")),
        (1700, "1.50", float, 1.5),
        (1082, "2026-11-29", date, date(2026, 11, 29)),
        (1083, "03:04:05.6", time, time(3, 4, 5, 600_000)),
        (1114, "2026-11-29 03:04:05", datetime, datetime(2026, 11, 29, 3, 4, 5)),
        (1184, "2026-11-29 03:04:05+00", datetime, datetime(2026, 11, 29, 3, 4, 5, tzinfo=UTC)),
        (1184, "infinity", Any, "infinity"),
        (2950, "6f1e1a56-25f8-4f5b-8f0e-0f4a1a1f0001", UUID, UUID("6f1e1a56-25f8-4f5b-8f0e-0f4a1a1f0001")),
        (3802, '{"a": 1, "tags": ["x"]}', Doc, Doc(1, ["x"])),
        (3802, '{"a": 1}', dict[str, int], {"a": 1}),
        (114, '{"a":  1}', str, '{"a":  1}'),
        (3802, LONG, Decimal, Decimal(LONG)),
        (3802, f"[{LONG}, null]", list[Decimal | None], [Decimal(LONG), None]),
        (3802, f'{{"price": {LONG}, "extra": {{"x": 0.1}}}}', Priced, Priced(Decimal(LONG), extra={"x": 0.1})),
        (
            114,
            '{"price": 1, "of": "2026-11-29T03:04:05Z", "mood": "ok"}',
            Priced | None | msgspec.UnsetType,
            Priced(Decimal(1), datetime(2026, 11, 29, 3, 4, 5, tzinfo=UTC), Mood.OK),
        ),
        (
            114,
            f'{{"first": "10.0.0.1", "totals": {{"a": {LONG}}}}}',
            Net,
            Net(ipaddress.IPv4Address("10.0.0.1"), {"a": Decimal(LONG)}),
        ),
        (3802, "null", Priced | None, None),
        (3802, '{"1": 2}', dict[int, int], {1: 2}),
        (20, "9007199254740992", float, 9007199254740992.0),
        (20, "9007199254740993", float | int, 9007199254740993),
        (20, "9007199254740993", Decimal, Decimal(9007199254740993)),
        (1016, "{9007199254740993}", list[int | float], [9007199254740993]),
        (1001, r'{"\\x00ff"}', list[bytes], [b"\x00\xff"]),
        (1186, "1 day 02:03:04.5", timedelta, timedelta(days=1, hours=2, minutes=3, seconds=4.5)),
        (1186, "-1 days +02:03:04", timedelta, timedelta(days=-1, hours=2, minutes=3, seconds=4)),
        (1186, "-00:00:01", timedelta, timedelta(seconds=-1)),
        (1186, "3 days", timedelta, timedelta(days=3)),
        (1186, "1 mon", str, "1 mon"),
        (869, "10.0.0.1", ipaddress.IPv4Address, ipaddress.IPv4Address("10.0.0.1")),
        (1009, "{a,NULL}", list[str | None], ["a", None]),
        (1007, "{1,2}", list[int], [1, 2]),
        (25, None, str | None, None),
    ],
)
def test_values_have_pythons_types(oid: int, text: str | None, type_: Any, value: object) -> None:
    got = row_of(oid, text, class_of(type_))
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("oid", "text", "type_", "told"),
    [
        (25, "secret", int, "expected `int`, got `str`"),
        (25, None, str, "expected `str`, got `null`"),
        (25, "secret", Mood, "does not fit"),
        (20, "123456789", str, "expected `str`, got `int`"),
        (3802, '{"a": "secret"}', Doc, "expected `int`, got `str`"),
        (3802, '{"tags": []}', Doc, "does not fit"),
        (3802, '{"price": "secret"}', Priced, "does not fit"),
        (3802, '{"price": [12345]}', Priced, "got `array`"),
        (25, "c2VjcmV0", bytes, "a text is no bytes"),
        (25, "secret", bytearray | None, "a text is no bytes"),
        (1009, "{c2VjcmV0}", list[bytes], "a text is no bytes"),
        (20, "9007199254740993", float, "has not the digits"),
        (20, "-9007199254740993", float | None, "has not the digits"),
        (1016, "{1,9007199254740993}", list[float], "has not the digits"),
        (1186, "1 mon", timedelta, "no timedelta"),
        (1186, "2147483647 days", timedelta, "beyond what a timedelta holds"),
        (869, "secret", ipaddress.IPv4Address, "does not fit"),
        (1184, "infinity", datetime, "does not fit"),
        (1009, "{secret,NULL}", list[str], "expected `str`, got `null`"),
    ],
)
def test_a_value_that_does_not_fit_is_told_by_its_column_alone(
    oid: int, text: str | None, type_: Any, told: str
) -> None:
    with pytest.raises(RowMismatch) as mismatch:
        row_of(oid, text, class_of(type_))
    assert mismatch.value.where == "public.t.v"
    assert told in str(mismatch.value)
    assert text is None or text not in str(mismatch.value)
    assert "secret" not in str(mismatch.value)
    assert mismatch.value.__suppress_context__ or not mismatch.value.__context__, (
        "the values that msgspec quotes are not in the traceback"
    )
