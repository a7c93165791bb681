"""Rows as columns in Python. Bytes in, buffers out; `walbus.native.reading.RowColumns` says what it does."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

from walbus.errors import DamagedRecord
from walbus.native.reading import ColumnBuffers, Outside, TakenRows
from walbus.schema import TableSchema
from walbus.values.avro_rows import AvroRows
from walbus.values.column_form import ColumnForm, column_form
from walbus.values.merge import split_row

_PACKED = {
    "int16": struct.Struct("<h"), "int32": struct.Struct("<i"), "int64": struct.Struct("<q"),
    "float32": struct.Struct("<f"), "float64": struct.Struct("<d"),
}  # fmt: skip
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?\Z", re.ASCII)
_DECIMAL_BYTES = 16


class RowColumns:
    """See `walbus.native.reading.RowColumns`."""

    def __init__(self, schema: TableSchema) -> None:
        self._schema = schema
        self._forms = [column_form(column) for column in schema.columns]
        self._rows = AvroRows(schema)
        self._values: list[list[Any]] = [[] for _ in self._forms]
        self._outside: list[Outside] = []
        self._length = 0

    def add(self, rows: Sequence[bytes | None]) -> None:
        """See the interface."""
        for row in rows:
            self._add_row(row)
            self._length += 1

    def _add_row(self, row: bytes | None) -> None:
        if row is None:
            for values in self._values:
                values.append(None)
            return
        split_row(self._schema, row)  # stricter than fastavro
        for index, value in enumerate(self._rows.raw(row)):
            form = self._forms[index]
            kept = _kept(form, value)
            if kept is None and value is not None:
                self._outside.append(Outside(self._length, index, str(value)))
            self._values[index].append(kept)

    def take(self) -> TakenRows:
        """See the interface."""
        try:
            columns = [_buffers(form, values) for form, values in zip(self._forms, self._values, strict=True)]
        except struct.error:
            raise DamagedRecord("a number is larger than its type", where=f"{self._schema.table}") from None
        taken = TakenRows(self._length, columns, self._outside)
        self._values, self._outside, self._length = [[] for _ in self._forms], [], 0
        return taken


def _kept(form: ColumnForm, value: object) -> object:
    """The value as the form has it; None where it has none."""
    if form.kind == "decimal" and isinstance(value, str):
        return _scaled(form, value)
    return None if isinstance(value, str) and form.kind != "text" else value


def _scaled(form: ColumnForm, text: str) -> int | None:
    if not _NUMBER.match(text):
        return None
    whole, _, fraction = text.partition(".")
    if len(fraction) > form.scale or len(whole.lstrip("-").lstrip("0")) + form.scale > form.precision:
        return None
    return int(whole + fraction.ljust(form.scale, "0"))


def _bits(flags: Sequence[bool]) -> bytes:
    number = sum(1 << i for i, flag in enumerate(flags) if flag)
    return number.to_bytes((len(flags) + 7) // 8, "little")


def _buffers(form: ColumnForm, values: list[Any]) -> ColumnBuffers:
    valid = [value is not None for value in values]
    nulls = valid.count(False)
    validity = _bits(valid)
    if form.item is not None:
        items = [item for value in values if value is not None for item in value]
        return ColumnBuffers(len(values), nulls, (validity, _offsets(values)), _buffers(form.item, items))
    if form.kind in ("text", "bytes"):
        encoded = [value.encode() if isinstance(value, str) else value or b"" for value in values]
        return ColumnBuffers(len(values), nulls, (validity, _offsets(encoded), b"".join(encoded)), None)
    if form.kind == "bit":
        data = _bits([bool(value) for value in values])
    elif form.kind == "decimal":
        data = b"".join([(value or 0).to_bytes(_DECIMAL_BYTES, "little", signed=True) for value in values])
    else:
        pack = _PACKED[form.kind].pack
        data = b"".join([pack(0 if value is None else value) for value in values])
    return ColumnBuffers(len(values), nulls, (validity, data), None)


def _offsets(values: Sequence[Sequence[object] | None]) -> bytes:
    offsets, end = [0], 0
    for value in values:
        end += len(value or ())
        offsets.append(end)
    return struct.pack(f"<{len(offsets)}q", *offsets)
