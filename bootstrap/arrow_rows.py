"""A table's rows as an Arrow stream: its columns in the present layout, and `_walbus_seq` behind them.

A value that its column's type does not have (`infinity`, a date before Christ) is null, and stands with its text in
`_walbus_texts`, as in `walbus.consumers.arrow`. Rows of another layout are brought to this one by their columns' names.
A column that they do not have is null; a value of theirs that has no place here, since the column has another type or
name there, or came later, stands with its text in `_walbus_texts` too: the other formats have it.

A stream that was broken off has no end mark, and its HTTP response no end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from walbus.arrow_arrays import arrays_of, pyarrow
from walbus.bootstrap.serving import ServedRow
from walbus.native import new_row_columns
from walbus.schema import TableSchema
from walbus.values import merge_unchanged, row_encoder, row_texts

_ROWS = 16_384  # of one batch


class _Outlet:
    """A file that gives away what was written."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: object) -> int:
        part = bytes(data)  # type: ignore[call-overload]  # a buffer
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """All is here."""

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


def arrow_stream(
    layout: TableSchema, rows: Iterator[ServedRow], layout_of: Callable[[int], TableSchema]
) -> Iterator[bytes]:
    """The bytes of an Arrow IPC stream.

    Args:
        layout: the columns.
        rows: in any layout of the table.
        layout_of: a layout by its number.

    Raises:
        UsageError: pyarrow is not installed.
    """
    pa = pyarrow()
    outlet = _Outlet()
    columns = [column.name for column in layout.columns]
    fitted = _Fitting(layout, layout_of)
    first = _batch(pa, layout, columns, [], fitted)
    writer = pa.ipc.new_stream(pa.PythonFile(outlet, mode="w"), first.schema)
    while part := list(islice(rows, _ROWS)):
        writer.write_batch(_batch(pa, layout, columns, part, fitted))
        yield outlet.take()
    writer.close()
    yield outlet.take()


class _Fitting:
    """Brings rows to one layout."""

    def __init__(self, layout: TableSchema, layout_of: Callable[[int], TableSchema]) -> None:
        self._layout, self._layout_of = layout, layout_of
        count = len(layout.columns)
        self._empty = row_encoder(layout).encode([None] * count)
        self._all = ((1 << count) - 1).to_bytes((count + 7) // 8, "little")
        self._without_place: dict[int, list[tuple[int, str]]] = {}  # columns of a layout: index and name

    def __call__(self, row: ServedRow) -> tuple[bytes, list[tuple[str, str]]]:
        """The row, and the columns and texts of values that have no place in it."""
        if row.schema_id == self._layout.id:
            return row.row, []
        stored = self._layout_of(row.schema_id)
        fitted, missing = merge_unchanged(self._layout, self._empty, self._all, stored, row.row)
        left = self._without_place.get(row.schema_id)
        if left is None:
            left = self._without_place[row.schema_id] = self._left_of(stored, int.from_bytes(missing, "little"))
        if not left:
            return fitted, []
        texts = row_texts(stored, row.row)
        return fitted, [(name, text) for index, name in left if (text := texts[index]) is not None]

    def _left_of(self, stored: TableSchema, missing: int) -> list[tuple[int, str]]:
        taken = {column.name for index, column in enumerate(self._layout.columns) if not missing >> index & 1}
        return [(index, column.name) for index, column in enumerate(stored.columns) if column.name not in taken]


def _batch(  # pyarrow is an extra, and has no types here
    pa: Any,  # noqa: ANN401
    layout: TableSchema,
    names: list[str],
    rows: list[ServedRow],
    fitted: _Fitting,
) -> Any:  # noqa: ANN401
    collected = new_row_columns(layout)
    brought = [fitted(row) for row in rows]
    collected.add([row for row, _ in brought])
    taken = collected.take()
    texts = [left for _, left in brought]
    for outside in taken.outside:
        texts[outside.row].append((names[outside.column], outside.text))
    told = {
        "_walbus_seq": pa.array([row.seq for row in rows], pa.int64()),
        "_walbus_texts": pa.array(texts, pa.map_(pa.string(), pa.string())),
    }
    arrays = [*arrays_of(layout, taken), *told.values()]
    fields = [pa.field(name, array.type) for name, array in zip([*names, *told], arrays, strict=True)]
    metadata = {"walbus.table": layout.table, "walbus.schema_id": str(layout.id)}
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))
