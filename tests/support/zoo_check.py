"""Whether a row in the log is the source's row, in each of the forms that a consumer may ask for."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping

import fastavro
import psycopg
import pytest

from support.zoo_values import Expected, Verbatim, identical
from walbus.events import Change
from walbus.values import avro_schema, row_texts

#: Types that a cast to text prints in another way than their output function; see docs/values.md.
OTHER_CASTS = {"boolean", "character", "inet", "xml", "zoo.code", "zoo.flag"}

Row = dict[str, tuple[str | None, str | None]]
Rows = dict[int, Row]


def problems(
    expected: Expected, types: Mapping[str, str], place: str, change: Change, line: bytes, row: Row
) -> Iterator[str]:
    """What of one row in the log is not what PostgreSQL printed: as text, in Python, in Avro, in JSON.

    Args:
        expected: works out what must be there.
        types: the type of each column.
        place: `after` or `before`.
        row: the source's output text and its cast to text, by column.
    """
    payload = change.raw.after if place == "after" else change.raw.before
    assert change.schema is not None and payload is not None
    texts = dict(zip([c.name for c in change.schema.columns], row_texts(change.schema, payload), strict=True))
    avro = fastavro.schemaless_reader(io.BytesIO(payload), avro_schema(change.schema), None)
    python, document = getattr(change, place), json.loads(line, parse_constant=pytest.fail)[place]
    for name, (text, cast) in row.items():
        kind = types[name]
        if place == "after" and name in change.unchanged:
            correct = {"left out": name not in python and name not in document}
        else:
            wanted = expected.json(kind, text)
            verbatim = isinstance(wanted, Verbatim)
            correct = {
                "text": texts[name] == text,
                "cast": text == cast or kind in OTHER_CASTS,
                "Python": identical(python[name], expected.python(kind, text)),
                "Avro": identical(avro[name], expected.avro(kind, text)),
                "JSON": f'"{name}":{wanted}'.encode() in line if verbatim else identical(document[name], wanted),
            }
        yield from (
            f"{kind}, {place} {change.op.name}, {form}: {text!r:.200}" for form, same in correct.items() if not same
        )


def types_of(connection: psycopg.Connection) -> dict[str, dict[str, str]]:
    """The type of each column by table, in schema `cage`."""
    query = (
        "SELECT relname::text, jsonb_object_agg(attname, format_type(atttypid, NULL)) FROM pg_attribute"
        " JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'cage'::regnamespace AND attnum > 0 GROUP BY 1"
    )
    return dict(connection.execute(query).fetchall())
