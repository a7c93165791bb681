"""Leaves columns out of rows that a stream did not ask for. Bytes in, bytes out.

In the binary form a row keeps its layout: a column that is left out is NULL in it, and marked in the change's bitmap of
columns that were not sent, as a TOASTed value is that PostgreSQL left out. Keys are never touched. In JSON such a
column is just not there.
"""

from __future__ import annotations

from collections.abc import Sequence

from walbus.errors import UsageError
from walbus.log import SchemaRegistry
from walbus.records import Op, iter_changes, pack_change
from walbus.relay.selection import ColumnChoice
from walbus.relay.table_filter import pattern_matches, split_pattern
from walbus.schema import TableSchema
from walbus.values.merge import split_row

_ROWS = frozenset((int(Op.INSERT), int(Op.UPDATE), int(Op.DELETE)))
_NULL = b"\0"


class Projection:
    """The choices of one stream, and what they mean for each layout.

    Args:
        choices: which columns of which tables.
        schemas: the log's layouts.

    Raises:
        UsageError: a table that a choice names has no layout with one of its columns.
    """

    def __init__(self, choices: Sequence[ColumnChoice], schemas: SchemaRegistry) -> None:
        self._choices = [(split_pattern(choice.pattern, "columns"), choice.columns) for choice in choices]
        self._schemas = schemas
        self._left_out: dict[int, int] = {}  # by schema id: bit i for column i
        self._check(schemas.all())

    @property
    def everything(self) -> bool:
        """Whether no column is ever left out."""
        return not self._choices

    def columns(self, schema: TableSchema) -> frozenset[str] | None:
        """The columns of a layout that pass, by name; None: all of them."""
        return next((names for pattern, names in self._choices if _names(pattern, schema)), None)

    def project(self, change: bytes, op: int, schema_id: int) -> bytes:
        """One change, as it lies in a record, without the columns that are left out.

        Raises:
            DamagedRecord: its row makes no sense.
        """
        if not self._choices or op not in _ROWS or not schema_id or not (mask := self._mask(schema_id)):
            return change
        (raw,) = iter_changes(change)
        schema = self._schemas.get(schema_id)
        size = (len(schema.columns) + 7) // 8
        unsent = int.from_bytes(raw.unchanged, "little") | mask
        return pack_change(
            raw.op, table=raw.table, schema_id=raw.schema_id, seq_delta=raw.seq_delta, ordinal_delta=raw.ordinal_delta,
            flags=raw.flags, key=raw.key, old_key=raw.old_key,
            unchanged=raw.unchanged if raw.after is None else unsent.to_bytes(size, "little"),
            after=_without(schema, raw.after, mask), before=_without(schema, raw.before, mask),
        )  # fmt: skip

    def _mask(self, schema_id: int) -> int:
        known = self._left_out.get(schema_id)
        if known is None:
            schema = self._schemas.get(schema_id)
            names = self.columns(schema)
            known = 0 if names is None else sum(1 << i for i, c in enumerate(schema.columns) if c.name not in names)
            self._left_out[schema_id] = known
        return known

    def _check(self, schemas: Sequence[TableSchema]) -> None:
        for pattern, names in self._choices:
            named = [schema for schema in schemas if _names(pattern, schema)]
            unknown = names - {column.name for schema in named for column in schema.columns}
            if named and unknown:
                what = f"{'.'.join(pattern)} has no column {min(unknown)[:80]!r}"
                raise UsageError(what, where="columns", mend="list the layouts with /v1/schemas")


def _names(pattern: tuple[str, str], schema: TableSchema) -> bool:
    return pattern_matches(pattern, schema.namespace, schema.name)


def _without(schema: TableSchema, row: bytes | None, mask: int) -> bytes | None:
    if row is None:
        return None
    return b"".join(_NULL if mask >> i & 1 else part for i, part in enumerate(split_row(schema, row)))
