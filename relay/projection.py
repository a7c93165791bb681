"""Which columns of rows a stream asked for. No I/O but the registry that is passed in.

In the binary form a row keeps its layout, and the change says which columns were left out (`ChangeFlag.PROJECTED`). In
JSON such a column is just not there. Columns of the key always pass: without them nobody knows which row it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from walbus.errors import UsageError
from walbus.log import SchemaRegistry
from walbus.relay.selection import ColumnChoice
from walbus.relay.table_filter import known_layout, pattern_matches, split_pattern
from walbus.schema import TableSchema


class Projection:
    """The choices of one stream, and what they mean for each layout.

    Args:
        choices: which columns of which tables.
        schemas: the log's layouts.
        tables: patterns of the tables that the stream is of; empty: all. Of others nothing is told, not even whether
            they have a column.

    Raises:
        UsageError: no layout of the tables that a choice names has one of its columns.
    """

    def __init__(self, choices: Sequence[ColumnChoice], schemas: SchemaRegistry, tables: Sequence[str] = ()) -> None:
        self._choices = [(split_pattern(choice.pattern, "columns"), choice.columns) for choice in choices]
        self._schemas = schemas
        if choices:
            asked = [split_pattern(pattern) for pattern in tables or ("*.*",)]
            self._check([schema for schema in schemas.all() if any(_names(pattern, schema) for pattern in asked)])

    @property
    def everything(self) -> bool:
        """Whether no column is ever left out."""
        return not self._choices

    def columns(self, schema: TableSchema) -> frozenset[str] | None:
        """The columns of a layout that pass, by name; None: all of them."""
        chosen = next((names for pattern, names in self._choices if _names(pattern, schema)), None)
        return None if chosen is None else chosen.union(schema.columns[index].name for index in schema.key_indexes)

    def left_out(self, schema_id: int) -> tuple[TableSchema, int]:
        """A layout, and a bit i for each column i of it that does not pass.

        Raises:
            DamagedRecord: the log has no such layout.
        """
        schema = known_layout(self._schemas, schema_id)
        names = self.columns(schema)
        return schema, 0 if names is None else sum(1 << i for i, c in enumerate(schema.columns) if c.name not in names)

    def _check(self, schemas: Sequence[TableSchema]) -> None:
        for pattern, names in self._choices:
            named = [schema for schema in schemas if _names(pattern, schema)]
            unknown = names - {column.name for schema in named for column in schema.columns}
            if named and unknown:
                what = f"{'.'.join(pattern)} has no column {min(unknown)[:80]!r}"
                raise UsageError(what, where="columns", mend="list the layouts with /v1/schemas")


def _names(pattern: tuple[str, str], schema: TableSchema) -> bool:
    return pattern_matches(pattern, schema.namespace, schema.name)
