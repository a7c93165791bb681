"""Windows as Arrow record batches: the rows of each table as columns, with what the change says beside them.

A batch has the columns of one layout of one table, in order, and behind them:

    _walbus_op           insert, update, delete or truncate
    _walbus_seq          int64: the change's version
    _walbus_epoch        uint32, and _walbus_commit_lsn, uint64, and _walbus_ordinal, uint32: its position
    _walbus_commit_time  timestamp[us, UTC]
    _walbus_unsent       list of the columns whose null means "not sent", and not NULL
    _walbus_texts        map of columns to the canonical text of a value that their type does not have, which is null

An update of the key is two rows at one seq: the delete of the old key, and the update. A delete carries the old row
where the replica identity gives it, and its key otherwise. Messages, layouts and epochs are no rows of a table, and not
here.

Buffers come from the native core and are not copied (`walbus.arrow_arrays`). pyarrow is an extra, `walbus[arrow]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from walbus.arrow_arrays import arrays_of, pyarrow
from walbus.events import Change, Window
from walbus.keys import key_texts
from walbus.native import new_row_columns
from walbus.records import Op
from walbus.schema import TableSchema
from walbus.values import row_encoder

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_OPS = frozenset((Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE))
_ROWS_AT_ONCE = 4096


def record_batches(windows: Iterable[Window]) -> list[pa.RecordBatch]:
    """The changes of windows as batches, one for each layout, in the order in which their first changes come.

    Rows are in commit order in each batch; `_walbus_seq` orders them across batches.

    Raises:
        UsageError: pyarrow is not installed.
        DamagedRecord: a row is none of its layout.
    """
    tables: dict[int, _Table] = {}
    for window in windows:
        micros = round(window.commit_time.timestamp() * 1_000_000)
        for change in window.changes:
            if change.schema is not None and change.raw.op in _ROW_OPS:
                table = tables.get(change.schema.id)
                if table is None:
                    table = tables[change.schema.id] = _Table(change.schema)
                table.add(change, micros)
    return [table.batch() for table in tables.values()]


@dataclass
class _Table:
    """The changes of one layout that were added so far."""

    schema: TableSchema

    def __post_init__(self) -> None:
        self._columns = new_row_columns(self.schema)
        self._rows: list[bytes | None] = []
        self._told = _Told()
        self._names = [column.name for column in self.schema.columns]

    def add(self, change: Change, commit_time: int) -> None:
        raw = change.raw
        if raw.op == Op.TRUNCATE:
            self._put(change, raw.op, commit_time, None, [])
        elif raw.op == Op.DELETE:
            self._delete(change, commit_time, raw.key)
        else:
            if raw.old_key is not None:
                self._delete(change, commit_time, raw.old_key)
            unsent = sorted(change.unchanged | change.left_out) if raw.unchanged else []
            self._put(change, raw.op, commit_time, raw.after, unsent)

    def _delete(self, change: Change, commit_time: int, key: bytes | None) -> None:
        if change.raw.before is not None:
            self._put(change, Op.DELETE, commit_time, change.raw.before, sorted(change.left_out))
            return
        texts: list[bytes | None] = [None] * len(self._names)
        for index, text in zip(self.schema.key_indexes, key_texts(key or b""), strict=True):
            texts[index] = text.encode()
        unsent = [name for name, text in zip(self._names, texts, strict=True) if text is None]
        self._put(change, Op.DELETE, commit_time, row_encoder(self.schema).encode(texts), unsent)

    def _put(self, change: Change, op: int, commit_time: int, row: bytes | None, unsent: list[str]) -> None:
        self._rows.append(row)
        self._told.add(change, op, commit_time, unsent)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._columns.add(self._rows)
        self._rows = []

    def batch(self) -> pa.RecordBatch:
        pa = pyarrow()
        self._flush()
        taken = self._columns.take()
        arrays = arrays_of(self.schema, taken)
        texts: list[list[tuple[str, str]]] = [[] for _ in range(taken.length)]
        for outside in taken.outside:
            texts[outside.row].append((self._names[outside.column], outside.text))
        told = self._told.arrays(pa, texts)
        metadata = {"walbus.table": self.schema.table, "walbus.schema_id": str(self.schema.id)}
        schema = pa.schema(
            [
                pa.field(name, array.type)
                for name, array in zip([*self._names, *told], [*arrays, *told.values()], strict=True)
            ],
            metadata=metadata,
        )
        return pa.RecordBatch.from_arrays([*arrays, *told.values()], schema=schema)


@dataclass
class _Told:
    """What changes say beside their rows."""

    ops: list[str] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    unsent: list[list[str]] = field(default_factory=list)

    def add(self, change: Change, op: int, commit_time: int, unsent: list[str]) -> None:
        self.ops.append(_NAMES[op])
        self.seqs.append(change.seq)
        self.positions.append(change.position)
        self.times.append(commit_time)
        self.unsent.append(unsent)

    def arrays(self, pa: Any, texts: list[list[tuple[str, str]]]) -> dict[str, Any]:  # noqa: ANN401
        epochs, lsns, ordinals = zip(*self.positions, strict=True) if self.positions else ((), (), ())
        return {
            "_walbus_op": pa.array(self.ops, pa.string()),
            "_walbus_seq": pa.array(self.seqs, pa.int64()),
            "_walbus_epoch": pa.array(epochs, pa.uint32()),
            "_walbus_commit_lsn": pa.array(lsns, pa.uint64()),
            "_walbus_ordinal": pa.array(ordinals, pa.uint32()),
            "_walbus_commit_time": pa.array(self.times, pa.timestamp("us", "UTC")),
            "_walbus_unsent": pa.array(self.unsent, pa.list_(pa.string())),
            "_walbus_texts": pa.array(texts, pa.map_(pa.string(), pa.string())),
        }


_NAMES = {op.value: op.name.lower() for op in _ROW_OPS}


__all__ = ["record_batches"]
