"""Every type that a column can have, with hard values, in a PostgreSQL sink."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from support.database import Database
from support.sinks_under_test import postgres_under_test
from support.zoo import Specimen, Zoo, build_zoo, rows_of
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink
from walbus.consumers.sinks.postgres_types import array_literal
from walbus.events import Change, Window
from walbus.keys import encode_key
from walbus.position import Position
from walbus.records import Kind, Op, RawChange, time_of
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.session import settings_sql
from walbus.values import row_encoder

pytestmark = [pytest.mark.one_version, pytest.mark.timeout(300)]

MARKS = Marks(1, 1)
#: Types whose cast to text is not what they print.
OTHER_CASTS = ("boolean", "inet", "character", '"char"')

Texts = dict[int, dict[str, tuple[str | None, str | None]]]


def layout_of(connection: psycopg.Connection, table: str, number: int, *, keyed: bool) -> TableSchema:
    rows = connection.execute(
        "SELECT attname::text, atttypid::int8, atttypid::regtype::text, atttypmod FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [f"cage.{table}"],
    ).fetchall()
    columns = tuple(Column(name, oid, kind, typmod, keyed and name == "id") for name, oid, kind, typmod in rows)
    return TableSchema(number, 50_000 + number, "cage", table, ReplicaIdentity.FULL, columns)


def change_of(layout: TableSchema, op: Op, id: int, seq: int, row: list[str | None]) -> Change:
    payload = row_encoder(layout).encode([None if text is None else text.encode() for text in row])
    key = encode_key([str(id).encode()], [23]) if layout.key_indexes else None
    after, before = (None, payload) if op is Op.DELETE else (payload, None)
    raw = RawChange(op, 0, layout.oid, layout.id, 0, 0, 0, key, None, b"", after, before)
    return Change(raw, layout, Position(1, 16 * seq, 1), seq)


def window_of(changes: list[Change]) -> Window:
    last = changes[-1]
    lsn = last.position.commit_lsn
    return Window(Kind.TRANSACTION, changes, 7, lsn, time_of(0), last.position, last.seq, begins=True, ends=True)


def write(sink: Sink, windows: list[Window]) -> None:
    sink.write(windows, MARKS)
    sink.commit(Following("log-a", MARKS, Point(windows[-1].last, windows[-1].last_seq)))


def printed(found: Texts) -> dict[int, list[str | None]]:
    return {id: [text for text, _ in row.values()] for id, row in found.items()}


@pytest.fixture
def zoo(database: Database) -> Zoo:
    zoo = build_zoo(database.connect())
    zoo.insert()
    return zoo


def test_every_type_is_held_as_the_source_prints_it(zoo: Zoo, target_database: Database, tmp_path: Path) -> None:
    sink = postgres_under_test(tmp_path, target_database.dsn).open()
    expected: dict[Specimen, dict[int, list[str | None]]] = {}
    seq = 0
    for number, specimen in enumerate(zoo.specimens, 1):
        layout = layout_of(zoo.connection, specimen.table, number, keyed=True)
        expected[specimen] = printed(rows_of(zoo.connection, specimen.table))
        changes = [
            change_of(layout, Op.INSERT, id, seq := seq + 1, row) for id, row in sorted(expected[specimen].items())
        ]
        if changes:
            write(sink, [window_of(changes)])
    sink.close()
    target = target_database.connect()
    target.execute(settings_sql())
    own = 0
    for specimen, rows in expected.items():
        if rows:
            found = printed(rows_of(target, specimen.table))
            assert {id: row[:-2] for id, row in found.items()} == rows, specimen.type_name
        if specimen.type_oid < 16384:
            own += target.execute(
                "SELECT count(*) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'v' AND atttypid = %s",
                [f"cage.{specimen.table}", specimen.type_oid],
            ).fetchone()[0]  # type: ignore[index]
    assert own > 40, "built-in types are their own"


def test_a_row_without_a_key_is_found_by_all_its_values(zoo: Zoo, target_database: Database, tmp_path: Path) -> None:
    """Also by those of types that have no equality: json, points, and what is held as text."""
    sink = postgres_under_test(tmp_path, target_database.dsn).open()
    seq, left = 0, {}
    for number, specimen in enumerate(zoo.specimens, 1):
        layout = layout_of(zoo.connection, specimen.table, number, keyed=False)
        rows = sorted(printed(rows_of(zoo.connection, specimen.table)).items())
        if not rows:
            continue
        inserts = [change_of(layout, Op.INSERT, id, seq := seq + 1, row) for id, row in rows * 2]
        deletes = [change_of(layout, Op.DELETE, id, seq := seq + 1, row) for id, row in rows]
        write(sink, [window_of(inserts), window_of(deletes)])
        left[specimen] = [row for _, row in rows]
    sink.close()
    target = target_database.connect()
    target.execute(settings_sql())
    for specimen, rows in left.items():
        found = printed(rows_of(target, specimen.table))
        assert [row[:-2] for _, row in sorted(found.items())] == rows, specimen.type_name


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ["", ""],
        [None],
        ["NULL", "null", None],
        ['"', '","', "\\", '\\"', "{", "}", ",", " ", " a ", "\n\t\r\b"],
        ["\U0010ffff", "\u2028", "a" * 100_000, None, "%s $1"],
    ],
)
def test_an_array_is_read_as_what_was_written(values: list[str | None], target_database: Database) -> None:
    found = target_database.execute("SELECT unnest(%s::text[])", [array_literal(values)])
    assert [value for (value,) in found] == values
