"""Which changes a stream lets through, by patterns of table names. No I/O but the registry that is passed in.

A pattern is `schema.table`, either part of which may be `*`. Names are those of the layout that the row was written
with, so a renamed table is known by its old name before the rename. Messages belong to no table and pass only where
every table does; epochs always pass. What cannot be judged (a truncate of a table without a known layout) passes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from walbus.errors import DamagedRecord, UsageError
from walbus.log import SchemaRegistry
from walbus.native.reading import ALL_TABLES
from walbus.records import Op
from walbus.schema import TableSchema


class TableFilter:
    """A set of patterns, and what it says of tables and layouts.

    Args:
        patterns: as above; empty, or with `*.*`: everything.
        schemas: the log's layouts.
        ops: operations that pass; None: all. Layouts and epochs pass whatever they are.

    Raises:
        UsageError: a pattern has another form.
    """

    def __init__(self, patterns: Sequence[str], schemas: SchemaRegistry, ops: Collection[int] | None = None) -> None:
        self._patterns = [split_pattern(pattern) for pattern in patterns]
        self._schemas = schemas
        self._ops = None if ops is None else frozenset((*ops, Op.SCHEMA, Op.EPOCH, Op.HEARTBEAT))
        self._verdicts: dict[int, bool] = {}  # by schema id
        self._every_table = not self._patterns or ("*", "*") in self._patterns
        self.everything = self._every_table and self._ops is None
        self.bits = ALL_TABLES if self._every_table else 0  #: of tables that may pass, as in `RecordHeader.tables`
        if not self._every_table:
            self.learn()

    def learn(self) -> None:
        """Takes new layouts into account: to be called for each SCHEMA record."""
        for schema in self._schemas.all():
            passes = self._verdicts[schema.id] = self._matches(schema.namespace, schema.name)
            if passes:
                self.bits |= 1 << schema.oid % 64

    def wants_change(self, op: int, table: int, schema_id: int) -> bool:
        """Whether a change with this operation, relation OID and schema id passes.

        Raises:
            DamagedRecord: the log has no such layout.
        """
        if self._ops is not None and op not in self._ops:
            return False
        if self._every_table or op == Op.EPOCH:
            return True
        if schema_id:
            return self._verdict(schema_id)
        return bool(table) and self._wants_table(table)

    def _verdict(self, schema_id: int) -> bool:
        known = self._verdicts.get(schema_id)
        if known is None:
            schema = known_layout(self._schemas, schema_id)
            known = self._verdicts[schema_id] = self._matches(schema.namespace, schema.name)
        return known

    def _wants_table(self, oid: int) -> bool:
        """By the newest layout that the table has."""
        ids = [schema.id for schema in self._schemas.all() if schema.oid == oid]
        return self._verdict(ids[-1]) if ids else True

    def _matches(self, namespace: str, name: str) -> bool:
        return any(pattern_matches(pattern, namespace, name) for pattern in self._patterns)


def known_layout(schemas: SchemaRegistry, schema_id: int) -> TableSchema:
    """The layout that a change in the log names.

    Raises:
        DamagedRecord: there is none.
    """
    try:
        return schemas.get(schema_id)
    except KeyError:
        raise DamagedRecord(f"a change names layout {schema_id}, which the log does not have") from None


def split_pattern(pattern: str, where: str = "tables") -> tuple[str, str]:
    """Namespace and name of a pattern.

    Args:
        pattern: `schema.table`, either of which may be `*`.
        where: the parameter, for the error.

    Raises:
        UsageError: it has another form.
    """
    namespace, dot, name = pattern.partition(".")
    if not dot or not namespace or not name:
        what = f"{pattern[:80]!r} is not a table"
        raise UsageError(what, where=where, mend="write it as schema.table or schema.*")
    return namespace, name


def pattern_matches(pattern: tuple[str, str], namespace: str, name: str) -> bool:
    """Whether a pattern, split, names this table."""
    return pattern[0] in ("*", namespace) and pattern[1] in ("*", name)
