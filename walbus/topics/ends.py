"""Ends of transactions: the records by which a reader of table topics knows which rows were committed together. No I/O.

A transaction's rows are in as many topics and partitions as its tables and keys have. Its end says how many records
each topic has of it; a reader that has met that many, by their header `walbus.position`, has the whole window.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import fastavro

from walbus.events import Window
from walbus.position import Position

Json = dict[str, Any]

_TEXT: Final = "string"
_COUNT: Final[Json] = {
    "type": "record",
    "name": "TopicCount",
    "fields": [{"name": "topic", "type": _TEXT}, {"name": "records", "type": "long"}],
}
#: Avro schema of the key: the log, and the position of the transaction without an ordinal.
END_KEY: Final[Json] = {
    "type": "record",
    "name": "TransactionKey",
    "namespace": "walbus",
    "fields": [{"name": "log_id", "type": _TEXT}, {"name": "transaction", "type": _TEXT}],
}
#: Avro schema of the value.
END_VALUE: Final[Json] = {
    "type": "record",
    "name": "TransactionEnd",
    "namespace": "walbus",
    "fields": [
        {"name": "position", "type": _TEXT},
        {"name": "last_seq", "type": "long"},
        {"name": "xid", "type": "long"},
        {"name": "commit_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "origin", "type": _TEXT},
        {"name": "net", "type": "boolean"},
        {"name": "topics", "type": {"type": "array", "items": _COUNT}},
    ],
}
_KEY, _VALUE = fastavro.parse_schema(END_KEY), fastavro.parse_schema(END_VALUE)


def transaction_of(position: Position) -> str:
    """What all records of a transaction have in common: the position without its ordinal."""
    return str(position).rpartition(":")[0]


def end_key(log_id: str, position: Position) -> bytes:
    """The key of the end of the transaction that a position is in, as Avro."""
    return _written(_KEY, {"log_id": log_id, "transaction": transaction_of(position)})


def end_value(last: Window, counts: Mapping[str, int]) -> bytes:
    """The end of a transaction, as Avro.

    Args:
        last: its last piece.
        counts: records of it by topic, those of all its pieces.
    """
    return _written(
        _VALUE,
        {
            "position": str(last.last),
            "last_seq": last.last_seq,
            "xid": last.xid,
            "commit_time": last.commit_time,
            "origin": last.origin,
            "net": last.net,
            "topics": [{"topic": topic, "records": count} for topic, count in sorted(counts.items())],
        },
    )


def _written(schema: Any, value: Json) -> bytes:  # noqa: ANN401  # fastavro's own form
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()
