"""What counts as the same value when a sink is compared with its source."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from walbus.demo.value_match import same_value

TSTZ = "timestamp with time zone"


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("text", None, None),
        ("text", "", ""),
        ("boolean", "t", 1),
        ("boolean", "f", False),
        ("boolean", "f", "f"),
        ("bigint", "-9223372036854775808", -9223372036854775808),
        ("double precision", "0.1", 0.1),
        ("double precision", "NaN", float("nan")),
        ("double precision", "-Infinity", "-Infinity"),
        ("numeric", "1.50", "1.50"),
        ("bytea", "\\x00ff", b"\x00\xff"),
        ("bytea", "\\x", b""),
        (TSTZ, "2026-01-01 12:00:00.5+00", "2026-01-01T12:00:00.500000Z"),
        (TSTZ, "2026-01-01 12:00:00+00", "2026-01-01T12:00:00+00:00"),
        (TSTZ, "2026-01-01 12:00:00.1+00", datetime(2026, 1, 1, 12, 0, 0, 100_000, tzinfo=UTC)),
        (TSTZ, "infinity", "infinity"),
        ("timestamp without time zone", "2026-01-01 12:00:10", "2026-01-01T12:00:10"),
        ("jsonb", '{"a": [1, null]}', '{"a":[1,null]}'),
        ("jsonb", '{"a": 1}', {"a": 1}),
        ("text[]", '{a,NULL,"NULL","x y\\"\\\\"}', ["a", None, "NULL", 'x y"\\']),
        ("text[]", "{}", "[]"),
        ("integer[]", "{1,NULL}", [1, None]),
        ("text[]", "{a}", "{a}"),
    ],
)
def test_forms_that_mean_the_same_value_match(type_name, text, value):
    assert same_value(type_name, text, value)


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("text", None, ""),
        ("text", "", None),
        ("text", "a", "a "),
        ("boolean", "t", 0),
        ("bigint", "1", True),
        ("bigint", "1", 1.0),
        ("double precision", "0", -0.0),
        ("double precision", "0.1", 0.10000000000000002),
        ("numeric", "1.50", 1.5),
        ("numeric", "1.50", "1.5"),
        ("bytea", "\\x00", b""),
        (TSTZ, "2026-01-01 12:00:00+00", "2026-01-01T12:00:00.000001Z"),
        (TSTZ, "2026-01-01 12:00:10+00", "2026-01-01T12:00:01Z"),
        (TSTZ, "2026-01-01 12:00:00+00", "2026-01-01T12:00:00"),
        ("jsonb", '{"a": 1}', '{"a": 2}'),
        ("jsonb", '{"a": 1}', '{"a": true}'),
        ("text[]", "{a,NULL}", ["a", "NULL"]),
        ("text[]", "{a}", ["a", "b"]),
        ("text[]", "{a}", "not json"),
    ],
)
def test_any_other_form_is_a_difference(type_name, text, value):
    assert not same_value(type_name, text, value)
