"""Rows as Arrow arrays: which type a column becomes, and buffers of the native core taken as they are. Pure.

pyarrow is imported when the first array is made: it is an extra, `walbus[arrow]`. `walbus.values.column_form` says
which type becomes what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from walbus.errors import UsageError
from walbus.native.reading import ColumnBuffers, TakenRows
from walbus.schema import TableSchema
from walbus.values.column_form import ColumnForm, column_form

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_type(form: ColumnForm) -> pa.DataType:
    """The Arrow type of a column's form."""
    pa = pyarrow()
    if form.item is not None:
        return pa.large_list(arrow_type(form.item))
    if form.kind == "decimal":
        return pa.decimal128(form.precision, form.scale)
    times = {
        "date": pa.date32(),
        "time": pa.time64("us"),
        "timestamp": pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", "UTC"),
    }
    names = {"bit": "bool", "bytes": "large_binary", "text": "large_string", "float32": "float", "float64": "double"}
    return times.get(form.name) or pa.type_for_alias(names.get(form.kind, form.kind))


def arrays_of(schema: TableSchema, taken: TakenRows) -> list[pa.Array]:
    """The columns of a layout as Arrow arrays over the same memory."""
    pa = pyarrow()
    forms = (column_form(column) for column in schema.columns)
    return [_array(pa, form, column) for form, column in zip(forms, taken.columns, strict=True)]


def _array(pa: Any, form: ColumnForm, column: ColumnBuffers) -> pa.Array:  # noqa: ANN401
    children = [_array(pa, form.item, column.items)] if form.item is not None and column.items is not None else []
    buffers = [pa.py_buffer(data) for data in column.buffers]
    return pa.Array.from_buffers(arrow_type(form), column.length, buffers, null_count=column.nulls, children=children)


def pyarrow() -> Any:  # noqa: ANN401
    """The library.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import pyarrow as found  # noqa: PLC0415  (an extra)
    except ImportError:
        raise UsageError("pyarrow is not installed", mend="pip install 'walbus[arrow]'") from None
    return found
