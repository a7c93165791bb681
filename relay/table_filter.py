"""Which changes a stream lets through, by patterns of table names. No I/O but the registry that is passed in.

A pattern is `schema.table`, either part of which may be `*`. Names are those of the layout that the row was written
with, so a renamed table is known by its old name before the rename. Messages belong to no table and pass only where
everything does; epochs always pass. What cannot be judged (a truncate of a table without a known layout) passes.
"""

from __future__ import annotations

from collections.abc import Sequence

from walbus.errors import UsageError
from walbus.log import SchemaRegistry
from walbus.records import Op, RawChange

_ALL_BITS = (1 << 64) - 1


class TableFilter:
    """A set of patterns, and what it says of tables and layouts.

    Args:
        patterns: as above; empty, or with `*.*`: everything.
        schemas: the log's layouts.

    Raises:
        UsageError: a pattern has another form.
    """

    def __init__(self, patterns: Sequence[str], schemas: SchemaRegistry) -> None:
        self._patterns = [_split(pattern) for pattern in patterns]
        self._schemas = schemas
        self._verdicts: dict[int, bool] = {}  # by schema id
        self.everything = not self._patterns or ("*", "*") in self._patterns
        self.bits = _ALL_BITS if self.everything else 0  #: of tables that may pass, as in `RecordHeader.tables`
        if not self.everything:
            self.learn()

    def learn(self) -> None:
        """Takes new layouts into account: to be called for each SCHEMA record."""
        for schema in self._schemas.all():
            if self._verdict(schema.id):
                self.bits |= 1 << schema.oid % 64

    def wants(self, change: RawChange) -> bool:
        """Whether a change passes."""
        return self.wants_change(change.op, change.table, change.schema_id)

    def wants_change(self, op: int, table: int, schema_id: int) -> bool:
        """Whether a change with this operation, relation OID and schema id passes."""
        if self.everything or op == Op.EPOCH:
            return True
        if schema_id:
            return self._verdict(schema_id)
        return bool(table) and self._wants_table(table)

    def _verdict(self, schema_id: int) -> bool:
        known = self._verdicts.get(schema_id)
        if known is None:
            schema = self._schemas.get(schema_id)
            known = self._verdicts[schema_id] = self._matches(schema.namespace, schema.name)
        return known

    def _wants_table(self, oid: int) -> bool:
        """By the newest layout that the table has."""
        ids = [schema.id for schema in self._schemas.all() if schema.oid == oid]
        return self._verdict(ids[-1]) if ids else True

    def _matches(self, namespace: str, name: str) -> bool:
        return any(space in ("*", namespace) and table in ("*", name) for space, table in self._patterns)


def _split(pattern: str) -> tuple[str, str]:
    namespace, dot, name = pattern.partition(".")
    if not dot or not namespace or not name:
        raise UsageError(f"{pattern!r} is not a table", where="tables", mend="write it as schema.table or schema.*")
    return namespace, name
