"""Names that need quotes, and names that mean something elsewhere: of schemas, tables, columns and types."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import fastavro

from support.capturing import captured, capturing
from support.database import Database
from support.odd_names import SCHEMAS, fill_odd_tables, make_odd_tables
from support.oracle import Oracle
from support.zoo_log import row_changes_in
from walbus.values import avro_schema
from walbus.values.schema_form import field_names


def test_every_name_comes_whole_in_the_log_in_avro_and_in_json(
    database: Database, oracle: Callable[..., Oracle], open_folder: Path
) -> None:
    session = database.connect()
    tables = make_odd_tables(session)
    with capturing(database.dsn, open_folder / "relay", tables=tuple(f"{s}.*" for s in SCHEMAS)) as capture:
        truth = oracle()
        fill_odd_tables(session, tables, 1)
        capture.caught_up()
    assert captured(open_folder / "relay") == truth.transactions()
    changes = list(row_changes_in(open_folder / "relay"))
    assert [(c.schema.namespace, c.schema.name) for c, _ in changes if c.schema] == tables
    for change, line in changes:
        assert change.schema is not None and change.raw.after is not None
        names = [column.name for column in change.schema.columns]
        values = [1, *(f"{name} {number}" for number, name in enumerate(names[1:-1])), "x"]
        assert list((change.after or {}).items()) == list(zip(names, values, strict=True))
        document = json.loads(line)
        assert document["table"] == ".".join(tables[changes.index((change, line))])
        assert list(document["after"].items()) == list(zip(names, values, strict=True))
        assert document["key"] == {names[0]: 1}
        avro = avro_schema(change.schema)
        assert [field.get("pgName", field["name"]) for field in avro["fields"]] == names
        assert avro["pgTable"] == document["table"]
        assert (
            change.schema.columns[-1].type_name
            == f"{change.schema.namespace}.type {change.schema.name}"[: len(change.schema.namespace) + 41]
        )
        row = fastavro.schemaless_reader(io.BytesIO(change.raw.after), avro, None)
        assert row == dict(zip(field_names(change.schema), values, strict=True))


def test_a_table_has_as_many_columns_as_postgresql_allows(
    database: Database, oracle: Callable[..., Oracle], open_folder: Path
) -> None:
    columns = ", ".join(f"c{number} int" for number in range(1599))
    database.execute(f"CREATE TABLE wide (id int PRIMARY KEY, {columns})")
    with capturing(database.dsn, open_folder / "relay") as capture:
        truth = oracle()
        database.execute("INSERT INTO wide (id, c0, c1598) VALUES (1, 2, 3)")
        database.execute("UPDATE wide SET c800 = 4; DELETE FROM wide")
        capture.caught_up()
    assert captured(open_folder / "relay") == truth.transactions()
