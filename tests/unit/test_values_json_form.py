"""Rows as JSON."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.events import Change
from walbus.position import ORIGIN
from walbus.records import Op, RawChange
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import json_puts, row_encoder, row_json
from walbus.values.json_form import json_of_text


def line(*columns: tuple[int, str | None], unchanged: bytes = b"") -> str:
    schema = TableSchema(
        1, 16400, "public", "t", ReplicaIdentity.DEFAULT,
        tuple(Column(f"c{i}", oid, f"t{oid}", -1, in_key=False) for i, (oid, _) in enumerate(columns)),
    )  # fmt: skip
    payload = row_encoder(schema).encode([None if text is None else text.encode() for _, text in columns])
    return msgspec.json.encode(row_json(schema, payload, unchanged)).decode()


@pytest.mark.parametrize(
    ("oid", "text", "expected"),
    [
        (23, "-5", "-5"),
        (20, "9223372036854775807", "9223372036854775807"),
        (16, "t", "true"),
        (701, "0.1", "0.1"),
        (701, "NaN", '"NaN"'),
        (701, "-Infinity", '"-Infinity"'),
        (700, "0.1", "0.1"),
        (700, "NaN", '"NaN"'),
        (1700, "1.50", '"1.50"'),
        (25, "NULL", '"NULL"'),
        (17, "\\x00ff", '"\\\\x00ff"'),
        (1082, "2024-01-31", '"2024-01-31"'),
        (1082, "infinity", '"infinity"'),
        (1083, "12:00:00.5", '"12:00:00.5"'),
        (1114, "2024-01-31 12:00:00.5", '"2024-01-31 12:00:00.5"'),
        (1184, "2024-01-31 12:00:00.5+00", '"2024-01-31T12:00:00.5Z"'),
        (1184, "0044-03-15 12:00:00+00 BC", '"0044-03-15 12:00:00+00 BC"'),
        (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
        (1007, "{1,NULL}", "[1,null]"),
        (1007, "{{1},{2}}", '"{{1},{2}}"'),
        (1009, '{a,"NULL",NULL}', '["a","NULL",null]'),
        (1185, '{"2024-01-31 12:00:00+00"}', '["2024-01-31T12:00:00Z"]'),
        (1022, "{NaN,1.5}", '["NaN",1.5]'),
        (3802, '{"a": [1e400, null]}', '{"a": [1e400, null]}'),
        (114, '{"a":1,\n "a":2}', '{"a":1,  "a":2}'),
        (114, '"\u2028"', '"\u2028"'),
        (16500, "so so", '"so so"'),
    ],
)
def test_each_type_has_its_json_form(oid: int, text: str, expected: str) -> None:
    assert line((oid, text)) == f'{{"c0":{expected}}}'
    assert msgspec.json.encode(json_of_text(oid, text)).decode() == expected


def test_null_is_null_and_an_unchanged_column_is_left_out() -> None:
    assert line((25, None), (25, None), (23, "1"), unchanged=b"\x01") == '{"c1":null,"c2":1}'


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_a_json_document_with_line_breaks_stays_on_one_line_and_means_the_same(document: object) -> None:
    text = json.dumps(document, indent=1).replace("\n", "\r\n")
    out = line((114, text))
    assert "\n" not in out
    assert "\r" not in out
    assert json.loads(out) == {"c0": document}


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_any_text_comes_back_from_one_line(text: str) -> None:
    out = line((25, text))
    assert "\n" not in out
    assert json.loads(out) == {"c0": text}


def test_whole_rows_that_come_together_are_as_each_by_itself() -> None:
    oids = (20, 25, 1700, 1184, 3802, 701)
    columns = tuple(Column(f"c{i}", oid, f"t{oid}", -1, in_key=i == 0) for i, oid in enumerate(oids))
    schema = TableSchema(1, 16400, "public", "t", ReplicaIdentity.DEFAULT, columns)
    rows = [
        row_encoder(schema).encode(texts)
        for texts in (
            [b"1", b"text", b"1.50", b"2024-01-31 12:00:00.5+00", b'{"a": [1, null]}', b"0.5"],
            [b"2", None, None, b"infinity", None, b"NaN"],
            [b"3", "ü\n".encode(), b"NaN", b"0044-03-15 12:00:00+00 BC", b'"s"', None],
        )
    ]
    parts = [{"after": row} for row in rows] + [{"after": rows[0], "unchanged": b"\x02"}, {"after": rows[0]}]
    raw = RawChange(Op.INSERT, 0, 1, 1, 0, 0, 0, b"k", None, b"", None, None)
    changes = [Change(raw._replace(**part), schema, ORIGIN, 1) for part in parts]
    alone = [msgspec.json.encode(row_json(schema, row)) for row in rows]
    for at in range(3):
        assert [msgspec.json.encode(row) for row in json_puts(schema, changes, at)] == alone[at:]
    assert json_puts(schema, changes, 3) == []
