"""Changes of a record as Python has them, in Python. Pure; `changes.pxi` is its twin in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from walbus.native.reading import MakeChange
from walbus.position import ORIGIN, Position
from walbus.records import RecordHeader, located_changes
from walbus.schema import TableSchema

T = TypeVar("T")


def read_changes(
    make: MakeChange[T],
    header: RecordHeader,
    record: bytes,
    layout_of: Callable[[int], TableSchema | None],
    after: Position = ORIGIN,
) -> list[T]:
    """See `walbus.native.reading.ReadChanges`."""
    changes: list[T] = []
    first_seq, schema_id = header.first_seq, 0
    layout: TableSchema | None = None
    for position, raw in located_changes(header, record, after):
        if raw.schema_id != schema_id:
            schema_id = raw.schema_id
            layout = layout_of(schema_id) if schema_id else None
        changes.append(make(raw, layout, position, first_seq + raw.seq_delta))
    return changes
