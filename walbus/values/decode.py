"""Rows from Avro to Python values and to canonical text.

The native core does the reading, or its twin in Python (`avro_rows`); a text is printed from the raw value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from walbus.schema import Column, TableSchema
from walbus.values.layouts import PerLayout
from walbus.values.types import NATIVE

_Convert = Callable[[Any], Any]


class RowReader:
    """Reads rows of one layout. Has no state of its own; safe in threads.

    Attributes:
        raw, python: see `walbus.native.reading.RowReader`.
    """

    def __init__(self, schema: TableSchema) -> None:
        from walbus.native import new_row_reader  # noqa: PLC0415  (the native core imports this package)

        reader = new_row_reader(schema)
        self.raw, self.python = reader.raw, reader.python
        self._texts = [_text_function(column) for column in schema.columns]

    def texts(self, payload: bytes) -> list[str | None]:
        """Canonical text of each column; raises as `raw`."""
        return [
            value if value is None or type(value) is str else text(value)
            for text, value in zip(self._texts, self.raw(payload), strict=True)
        ]


def _text_function(column: Column) -> _Convert:
    native = NATIVE.get(column.type_oid)
    return str if native is None else native.text


#: The reader of a layout; the same one for every call with an equal layout.
row_reader = PerLayout(RowReader)


def decode_row(schema: TableSchema, payload: bytes) -> dict[str, Any]:
    """A row as Python values by column name.

    They are int, float, bool, str, bytes, Decimal, date, time, datetime, UUID, lists of these, and None. A value
    outside Python's range is its canonical text, a `str`.

    Raises:
        DamagedRecord: the payload is no row of this layout.
    """
    return row_reader(schema).python(payload)


def row_texts(schema: TableSchema, payload: bytes) -> list[str | None]:
    """A row as PostgreSQL's canonical text by column, as pgoutput and COPY print it; None is NULL.

    Raises:
        DamagedRecord: the payload is no row of this layout.
    """
    return row_reader(schema).texts(payload)
