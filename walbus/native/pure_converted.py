"""Rows as other systems want their values, in Python. Pure; `converted.pxi` is its twin in C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from walbus.records import Op
from walbus.schema import TableSchema
from walbus.values.avro_rows import AvroRows
from walbus.values.types import NATIVE

if TYPE_CHECKING:
    from walbus.events import Change

_PUTS = frozenset((int(Op.INSERT), int(Op.UPDATE)))


class ConvertedRows:
    """See `walbus.native.reading.ConvertedRows`."""

    def __init__(self, schema: TableSchema, functions: Sequence[Callable[[Any], Any] | None]) -> None:
        self._raw = AvroRows(schema).raw
        both = zip(schema.columns, functions, strict=True)
        texts = [(native := NATIVE.get(column.type_oid)) is None or native.text_like for column, _ in both]
        self._functions = [
            (index, function, text)
            for index, (function, text) in enumerate(zip(functions, texts, strict=True))
            if function is not None
        ]

    def values(self, payload: bytes) -> list[Any]:
        """See the interface."""
        values = self._raw(payload)
        for index, function, text in self._functions:
            value = values[index]
            if value is not None and (text or type(value) is not str):
                values[index] = function(value)
        return values

    def whole_puts(self, changes: Sequence[Change], at: int, behind: object) -> list[tuple[Any, ...]]:
        """See the interface."""
        layout, rows = changes[at].schema, []
        for index in range(at, len(changes)):
            change = changes[index]
            raw = change.raw
            if change.schema is not layout or raw.op not in _PUTS or raw.key is None or raw.old_key is not None:
                break
            if raw.after is None or raw.unchanged:
                break
            rows.append((*self.values(raw.after), change.seq, behind))
        return rows
