"""Debezium's envelope: a change as before, after, source and op, in Avro as its PostgreSQL connector writes it. No I/O.

The names of records and fields are Debezium's, `PREFIX.SCHEMA.TABLE.Envelope`, so that sink connectors and readers
which know its topics read these. What differs, and why, stands in docs/kafka.md.
"""

from __future__ import annotations

import io
import re
from typing import Any, Final, NamedTuple

import fastavro

from walbus.schema import TableSchema
from walbus.topics.debezium_rows import key_fields, row_fields
from walbus.values.schema_form import safe_name

Json = dict[str, Any]

#: What is told as the connector: readers look for it.
CONNECTOR: Final = "postgresql"
_NONE, _SOME = b"\x00", b"\x02"
_INVALID = re.compile(r"[^A-Za-z0-9_.]", re.ASCII)
_OPTIONAL_LONG: Final = ["null", "long"]
_SNAPSHOTS: Final = "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"
_SNAPSHOT: Final[Json] = {
    "type": "string",
    "connect.version": 1,
    "connect.parameters": {"allowed": _SNAPSHOTS},
    "connect.default": "false",
    "connect.name": "io.debezium.data.Enum",
}


def _optional(name: str, avro: object) -> Json:
    return {"name": name, "type": avro, "default": None}


_SOURCE: Final[Json] = {
    "type": "record",
    "name": "Source",
    "namespace": "io.debezium.connector.postgresql",
    "fields": [
        {"name": "version", "type": "string"},
        {"name": "connector", "type": "string"},
        {"name": "name", "type": "string"},
        {"name": "ts_ms", "type": "long"},
        {"name": "snapshot", "type": [_SNAPSHOT, "null"], "default": "false"},
        {"name": "db", "type": "string"},
        _optional("sequence", ["null", "string"]),
        _optional("ts_us", _OPTIONAL_LONG),
        _optional("ts_ns", _OPTIONAL_LONG),
        {"name": "schema", "type": "string"},
        {"name": "table", "type": "string"},
        _optional("txId", _OPTIONAL_LONG),
        _optional("lsn", _OPTIONAL_LONG),
        _optional("xmin", _OPTIONAL_LONG),
    ],
    "connect.name": "io.debezium.connector.postgresql.Source",
}
_BLOCK: Final[Json] = {
    "type": "record",
    "name": "block",
    "namespace": "event",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "total_order", "type": "long"},
        {"name": "data_collection_order", "type": "long"},
    ],
    "connect.version": 1,
    "connect.name": "event.block",
}
_SOURCE_SCHEMA = fastavro.parse_schema(_SOURCE)


def _namespace(layout: TableSchema, prefix: str) -> str:
    parts = (*_INVALID.sub("_", prefix).split("."), layout.namespace, layout.name)
    return ".".join(safe_name(part) for part in parts)


def envelope_form(layout: TableSchema, prefix: str) -> Json:
    """The Avro schema of a topic's values."""
    namespace = _namespace(layout, prefix)
    row: Json = {"type": "record", "name": "Value", "fields": row_fields(layout), "connect.name": f"{namespace}.Value"}
    return {
        "type": "record",
        "name": "Envelope",
        "namespace": namespace,
        "fields": [
            _optional("before", ["null", row]),
            _optional("after", ["null", "Value"]),
            {"name": "source", "type": _SOURCE},
            _optional("transaction", ["null", _BLOCK]),
            {"name": "op", "type": "string"},
            _optional("ts_ms", _OPTIONAL_LONG),
            _optional("ts_us", _OPTIONAL_LONG),
            _optional("ts_ns", _OPTIONAL_LONG),
        ],
        "connect.version": 2,
        "connect.name": f"{namespace}.Envelope",
    }


def envelope_key_form(layout: TableSchema, prefix: str) -> Json:
    """The Avro schema of a topic's keys; without fields for a table without a key."""
    namespace = _namespace(layout, prefix)
    return {
        "type": "record",
        "name": "Key",
        "namespace": namespace,
        "fields": key_fields(layout),
        "connect.name": f"{namespace}.Key",
    }


class EnvelopeSource(NamedTuple):
    """What an envelope says of where it is from.

    Attributes:
        version: of Walbus.
        name: prefix of the topics.
        database: of the source.
        micros: Unix microseconds of the commit; 0 where there is none.
        snapshot: whether it is a row as it was read.
        xid: of the transaction; 0 without one.
        lsn: of its commit.
    """

    version: str
    name: str
    database: str
    micros: int
    snapshot: bool
    xid: int
    lsn: int


class Enveloped(NamedTuple):
    """An envelope's bytes.

    Attributes:
        avro: all of it.
        after: offset of the row in `after`.
    """

    avro: bytes
    after: int


def envelope(
    layout: TableSchema, op: str, before: bytes | None, after: bytes | None, source: EnvelopeSource
) -> Enveloped:
    """A change as Avro.

    Args:
        layout: of the rows.
        op: `c`, `u`, `d` or `r`.
        before: the old row, in Debezium's types; None: it is not told.
        after: the new row; None for a delete.
        source: where it is from.
    """
    head = (_NONE if before is None else _SOME + before) + (_NONE if after is None else _SOME)
    out = io.BytesIO()
    micros = source.micros
    fastavro.schemaless_writer(
        out,
        _SOURCE_SCHEMA,
        {
            "version": source.version,
            "connector": CONNECTOR,
            "name": source.name,
            "ts_ms": micros // 1000,
            "snapshot": "true" if source.snapshot else "false",
            "db": source.database,
            "ts_us": micros,
            "ts_ns": micros * 1000,
            "schema": layout.namespace,
            "table": layout.name,
            "txId": source.xid or None,
            "lsn": source.lsn,
        },
    )
    fastavro.schemaless_writer(out, ["null", _BLOCK], None)
    fastavro.schemaless_writer(out, "string", op)
    for value in (micros // 1000, micros, micros * 1000):
        fastavro.schemaless_writer(out, _OPTIONAL_LONG, value)
    return Enveloped(b"".join((head, after or b"", out.getvalue())), len(head))
