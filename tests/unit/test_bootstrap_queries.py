"""What clients of the bootstrap server may ask for, and how what they may not is refused."""

from __future__ import annotations

import pytest

from support.model_source import column, items_layout
from walbus.bootstrap.queries import (
    COUNTED,
    DELTA_PARAMETERS,
    ROW_PARAMETERS,
    format_of,
    key_of,
    limit_of,
    partition_of,
    patterns_of,
    refuse_unknown,
    row_key,
    since_of,
)
from walbus.errors import UsageError
from walbus.keys import encode_key
from walbus.native.reading import WHOLE, Partition
from walbus.position import Position

TWO = items_layout(
    "two", column("id", 23, "int4", in_key=True), column("at", 1184, "timestamptz", in_key=True), column("name")
)


@pytest.mark.parametrize(
    ("query", "since"),
    [
        ({"after": "1:16/B3:4"}, (Position(1, 0x16000000B3, 4), None)),
        ({"after": "1:16/B3:4", "seq": "42"}, (Position(1, 0x16000000B3, 4), 42)),
        ({"after": "seq:42"}, (None, 42)),
    ],
)
def test_a_delta_begins_at_a_position_with_or_without_its_seq_or_at_a_seq(
    query: dict[str, str], since: tuple[Position | None, int | None]
) -> None:
    assert since_of(query) == since


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ({}, "after"),
        ({"after": ""}, "after"),
        ({"after": "yesterday"}, "after"),
        ({"after": "seq:"}, "after"),
        ({"after": "seq:-1"}, "after"),
        ({"after": "seq:99999999999999999"}, "after"),
        ({"after": f"seq:{1 << 53}"}, "after"),
        ({"after": "1:16/B3:4", "seq": "٣"}, "seq"),
    ],
)
def test_a_beginning_that_makes_no_sense_is_refused_by_name(query: dict[str, str], where: str) -> None:
    with pytest.raises(UsageError) as refused:
        since_of(query)
    assert refused.value.where == where


def test_a_count_has_a_limit() -> None:
    assert limit_of({}) is None
    assert limit_of({"count": "false", "limit": "5"}) is None
    assert limit_of({"count": "true"}) == COUNTED
    assert limit_of({"count": "true", "limit": "5"}) == 5
    for wrong in ({"count": "yes"}, {"count": "true", "limit": "0"}, {"count": "true", "limit": "1e9"}):
        with pytest.raises(UsageError):
            limit_of(wrong)


def test_unknown_parameters_are_refused_by_name() -> None:
    refuse_unknown({"table": "", "after": ""}, DELTA_PARAMETERS)
    refuse_unknown({"table": "", "key.id": ""}, ROW_PARAMETERS, prefix="key.")
    for query in ({"tabel": ""}, {"key.id": ""}):
        with pytest.raises(UsageError, match=r"tabel|key\.id"):
            refuse_unknown(query, DELTA_PARAMETERS)
    with pytest.raises(UsageError):
        refuse_unknown({"key.": ""}, ROW_PARAMETERS, prefix="key.")


def test_the_form_is_that_of_the_parameter_or_of_the_header() -> None:
    assert format_of({}, "", ("binary", "json")) == "binary"
    assert format_of({}, "application/x-ndjson, */*", ("binary", "json")) == "json"
    assert format_of({"format": "binary"}, "application/x-ndjson", ("binary", "json")) == "binary"
    assert format_of({}, "application/vnd.apache.arrow.stream", ("binary", "json", "arrow")) == "arrow"
    with pytest.raises(UsageError, match="arrow"):
        format_of({"format": "arrow"}, "", ("binary", "json"))


def test_partitions_patterns_and_keys_are_read_as_elsewhere() -> None:
    assert partition_of({}) == WHOLE
    assert partition_of({"partition": "2/5"}) == Partition(2, 5)
    assert patterns_of({"tables": "public.a,shop.*"}) == ("public.a", "shop.*")
    assert (key_of({}), key_of({"after_key": "01ff"})) == (b"", b"\x01\xff")
    for reads, query in (
        (partition_of, {"partition": "5/5"}),
        (patterns_of, {"tables": "orders"}),
        (key_of, {"after_key": "0g"}),
    ):
        with pytest.raises(UsageError):
            reads(query)  # type: ignore[operator]


@pytest.mark.parametrize(
    "query",
    [
        {"key": '{"id": 7, "at": "2026-01-31T12:00:00.5Z"}'},
        {"key": '{"id": "7", "at": "2026-01-31 12:00:00.5+00"}'},
        {"key.id": "007", "key.at": "2026-01-31 12:00:00.5+00"},
        {"key": '{"id": 7}', "key.at": "2026-01-31T12:00:00.5Z"},
    ],
)
def test_a_key_is_told_by_columns_in_json_or_one_by_one(query: dict[str, str]) -> None:
    assert row_key(query, TWO) == encode_key([b"7", b"2026-01-31 12:00:00.5+00"], [23, 1184])


def test_a_number_of_a_key_keeps_every_digit() -> None:
    layout = items_layout("wide", column("id", 1700, "numeric", in_key=True))
    assert row_key({"key": '{"id": 1.50000000000000000001}'}, layout) == encode_key([b"1.50000000000000000001"], [1700])


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"key": "7"},
        {"key": "{"},
        {"key": "[" * 100_000},
        {"key": '{"id": 7}'},
        {"key": '{"id": 7, "at": null}'},
        {"key": '{"id": 7, "at": "x", "name": "y"}'},
        {"key.id": "7", "key.name": "x"},
        {"key.id": "7", "key.at": "\udc80"},
    ],
)
def test_a_key_that_is_none_of_the_table_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        row_key(query, TWO)
