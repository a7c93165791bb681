"""Rows out of their Avro form in Python: the twin of the native core's reader (`walbus.native.reading.RowReader`).

fastavro does the reading, with one of two parsed forms of the layout: the logical one gives `datetime`, `date` and
`time`; the raw one gives the numbers and bytes that canonical text is printed from.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from walbus.errors import DamagedRecord
from walbus.schema import Column, TableSchema
from walbus.values.schema_form import bare_schema
from walbus.values.types import NATIVE, NUMERIC, as_decimal

if TYPE_CHECKING:
    from fastavro.types import Schema

_Convert = Callable[[Any], Any]


class AvroRows:
    """Reads rows of one layout. Has no state of its own; safe in threads."""

    def __init__(self, schema: TableSchema) -> None:
        from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415  (who reads no row starts sooner)

        self._read_form = schemaless_reader
        self._where = f"{schema.table}, schema {schema.id}"
        self._logical = parse_schema(bare_schema(schema, logical=True))
        self._raw = parse_schema(bare_schema(schema, logical=False))
        self._names = [column.name for column in schema.columns]
        converted = ((c.name, _python_function(c)) for c in schema.columns)
        self._python = [(name, convert) for name, convert in converted if convert is not None]

    def raw(self, payload: bytes) -> list[Any]:
        """See the interface."""
        return list(self._read(payload, self._raw).values())

    def python(self, payload: bytes) -> dict[str, Any]:
        """See the interface."""
        values = self._read(payload, self._logical).values()
        row = dict(zip(self._names, values, strict=True))
        for name, convert in self._python:
            value = row[name]
            if value is not None:
                row[name] = convert(value)
        return row

    def _read(self, payload: bytes, form: Schema) -> dict[str, Any]:
        data = BytesIO(payload)
        try:
            row: dict[str, Any] = self._read_form(data, form, None)  # type: ignore[assignment]  # a record
        except (EOFError, ValueError, IndexError, OverflowError, TypeError):
            raise DamagedRecord("a row does not decode in its schema", where=self._where) from None
        if data.tell() != len(payload):
            raise DamagedRecord("a row does not end where its schema does", where=self._where)
        return row


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
