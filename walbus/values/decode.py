"""Rows from Avro to Python values and to canonical text.

fastavro does the reading, in C, with one of two parsed forms of the layout: the logical one gives `datetime`,
`date` and `time`; the raw one gives the numbers and bytes that canonical text is printed from.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from walbus.errors import DamagedRecord
from walbus.schema import Column, TableSchema
from walbus.values.layouts import PerLayout
from walbus.values.schema_form import bare_schema
from walbus.values.types import NATIVE, NUMERIC, as_decimal

if TYPE_CHECKING:
    from fastavro.types import Schema

_Convert = Callable[[Any], Any]


class RowReader:
    """Reads rows of one layout. Has no state of its own; safe in threads."""

    def __init__(self, schema: TableSchema) -> None:
        from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415  (who reads no row starts sooner)

        self._read_form = schemaless_reader
        self._where = f"{schema.table}, schema {schema.id}"
        self._logical = parse_schema(bare_schema(schema, logical=True))
        self._raw = parse_schema(bare_schema(schema, logical=False))
        self._names = [column.name for column in schema.columns]
        self._texts = [_text_function(column) for column in schema.columns]
        converted = ((c.name, _python_function(c)) for c in schema.columns)
        self._python = [(name, convert) for name, convert in converted if convert is not None]

    def raw(self, payload: bytes) -> list[Any]:
        """The raw Avro value of each column; a `str` in place of another type is a text outside the native range."""
        return list(self._read(payload, self._raw).values())

    def python(self, payload: bytes) -> dict[str, Any]:
        """Python values by column name."""
        values = self._read(payload, self._logical).values()
        row = dict(zip(self._names, values, strict=True))
        for name, convert in self._python:
            value = row[name]
            if value is not None:
                row[name] = convert(value)
        return row

    def texts(self, payload: bytes) -> list[str | None]:
        """Canonical text of each column."""
        values = self._read(payload, self._raw).values()
        return [
            value if value is None or type(value) is str else text(value)
            for text, value in zip(self._texts, values, strict=True)
        ]

    def _read(self, payload: bytes, form: Schema) -> dict[str, Any]:
        try:
            row: dict[str, Any] = self._read_form(BytesIO(payload), form, None)  # type: ignore[assignment]  # a record
        except (EOFError, ValueError, IndexError, OverflowError, TypeError):
            raise DamagedRecord("a row does not decode in its schema", where=self._where) from None
        return row


def _text_function(column: Column) -> _Convert:
    native = NATIVE.get(column.type_oid)
    return str if native is None else native.text


def _python_function(column: Column) -> _Convert | None:
    if column.type_oid == NUMERIC:
        return as_decimal
    native = NATIVE.get(column.type_oid)
    if native is None or native.python is None:
        return None
    convert = native.python
    if native.text_like:
        return convert
    return lambda value: value if type(value) is str else convert(value)


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
