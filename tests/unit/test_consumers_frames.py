"""Windows as data frames of pandas and Polars: no value changes on the way."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from support.model_source import ModelSource, insert, items_layout
from walbus.consumers import Batches, Delivered
from walbus.consumers.arrow import record_batches
from walbus.errors import UsageError
from walbus.events import Change, Window, window_of
from walbus.position import Position
from walbus.records import Kind, Op, RawChange
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

COLUMNS = {
    "id": (20, "int8", -1), "total": (1700, "numeric", (10 << 16 | 2) + 4), "day": (1082, "date", -1),
    "at": (1184, "timestamptz", -1), "ok": (16, "bool", -1), "raw": (17, "bytea", -1), "tags": (1009, "_text", -1),
    "note": (25, "text", -1),
}  # fmt: skip
ROWS = [
    ["9007199254740993", "1.50", "2026-11-29", "2026-11-29 03:04:05.000001+00", "t", r"\x00ff", "{a,NULL}", "\u00e9"],
    [None, None, None, None, None, None, None, None],
    ["1", "-0.01", "0001-01-01", "infinity", "f", r"\x", "{}", ""],
]
VALUES = {
    "id": [9007199254740993, None, 1],
    "total": [Decimal("1.50"), None, Decimal("-0.01")],
    "day": [date(2026, 11, 29), None, date(1, 1, 1)],
    "at": [datetime(2026, 11, 29, 3, 4, 5, 1, tzinfo=UTC), None, None],
    "ok": [True, None, False],
    "raw": [b"\x00\xff", None, b""],
    "note": ["\u00e9", None, ""],
}


def window() -> Window:
    columns = tuple(Column(name, oid, kind, typmod, in_key=False) for name, (oid, kind, typmod) in COLUMNS.items())
    schema = TableSchema(1, 16400, "public", "t", ReplicaIdentity.DEFAULT, columns)
    encode = row_encoder(schema).encode
    changes = []
    for number, row in enumerate(ROWS, 1):
        after = encode([None if text is None else text.encode() for text in row])
        raw = RawChange(Op.INSERT, 0, 16400, 1, 0, 0, 0, None, None, b"", after, None)
        changes.append(Change(raw, schema, Position(1, 16, number), number))
    now = datetime(2026, 11, 29, tzinfo=UTC)
    return Window(Kind.TRANSACTION, changes, 700, 16, now, Position(1, 16, 3), 3, begins=True, ends=True)


def test_polars_has_every_value() -> None:
    import polars as pl

    ((table, frame),) = Delivered(window(), "online", None).to_polars()
    assert table == "public.t"
    assert isinstance(frame, pl.DataFrame)
    assert {name: frame[name].to_list() for name in VALUES} == VALUES
    assert frame["tags"].to_list() == [["a", None], None, []]
    assert frame["_walbus_seq"].to_list() == [1, 2, 3]
    assert frame["_walbus_texts"].to_list()[2] in ({"at": "infinity"}, [{"key": "at", "value": "infinity"}])


def test_pandas_has_every_value_and_no_float_in_place_of_an_integer() -> None:
    import pandas as pd

    ((table, frame),) = Delivered(window(), "online", None).to_pandas()
    assert table == "public.t"
    assert isinstance(frame, pd.DataFrame)
    for name, values in VALUES.items():
        got = [None if pd.isna(value) else value for value in frame[name]]
        assert got == values, name
    assert frame["_walbus_op"].tolist() == ["insert"] * 3


def test_batches_have_a_frame_for_each_layout() -> None:
    source = ModelSource()
    source.add_layout(items_layout("others", oid=16500))
    source.commit([insert("public.items", 1), insert("public.others", 2), insert("public.items", 3)])
    batches = Batches(record_batches([window_of(*source.records[-1], source.layouts.__getitem__)]), [])
    for frames in (batches.to_polars(), batches.to_pandas()):
        assert [(table, frame["id"].to_list()) for table, frame in frames] == [
            ("public.items", [1, 3]), ("public.others", [2]),
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    delivered = Delivered(window(), "online", None)
    with pytest.raises(UsageError, match=rf"walbus\[{name}\]"):
        getattr(delivered, f"to_{name}")()
