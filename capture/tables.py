"""The tables of one connection: what it told of their layouts, and the layout that a table's rows use. Pure.

A SCHEMA record is written when a connection first needs a version, even if the log's registry knows it: nobody can say
whether the record itself got into the log before.

A table's versions rise in the log (`walbus.log.SchemaRegistry`). One kind of row is older than what was told before it:
a change of the publication's columns waits for no writer, so a transaction that began before another one may commit
behind it and hold rows in the layout that was before. They keep that version's number, and the table goes on with the
newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from walbus.capture.layouts import layout_of, type_name
from walbus.capture.messages import Relation, Row, Type
from walbus.capture.pieces import table_bit
from walbus.capture.rows import Table, lacks_key
from walbus.errors import ProtocolError
from walbus.log import SchemaRegistry
from walbus.native.interface import Transaction
from walbus.schema import ReplicaIdentity, TableSchema
from walbus.values import row_encoder

#: The primary key's columns of a table, by its OID and the columns of a layout.
PrimaryKey = Callable[[int, Collection[str]], Collection[str]]


@dataclass(frozen=True, slots=True)
class _Last:
    """The last layout of a table that a connection told.

    Attributes:
        schema: its version.
        transaction: the first one with rows in it.
    """

    schema: TableSchema
    transaction: Transaction


class Tables:
    """What a connection told, and the tables made of it.

    Args:
        schemas: the log's registry; registering is durable when it returns.
        builtin_types: names of the types that are not announced, by OID.
        transaction: gives the one that is open.
        primary_key: asked under REPLICA IDENTITY FULL alone (`walbus.capture.layouts.key_under_full`).
        tell: writes the SCHEMA record of a version that the connection needs for the first time.
        use: is told of each layout that rows use from now on.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (what it asks, and what it tells)
        self,
        schemas: SchemaRegistry,
        builtin_types: Mapping[int, str],
        transaction: Callable[[], Transaction],
        primary_key: PrimaryKey,
        tell: Callable[[TableSchema], None],
        use: Callable[[TableSchema], None],
    ) -> None:
        self._schemas = schemas
        self._transaction = transaction
        self._primary_key = primary_key
        self._tell = tell
        self._use = use
        self._types = dict(builtin_types)
        self._relations: dict[int, Relation] = {}
        self._tables: dict[int, Table] = {}
        self._told: dict[int, int] = {}  # version that the last SCHEMA record told of a table, by its OID
        self._last: dict[int, _Last] = {}

    def type_told(self, told: Type) -> None:
        """A Type message came."""
        self._types[told.oid] = type_name(told.namespace, told.name)

    def relation_told(self, relation: Relation) -> None:
        """A Relation message came: the table's next row uses that layout."""
        self._relations[relation.oid] = relation
        self.forget(relation.oid)

    def forget(self, oid: int) -> None:
        """The table's next row derives its layout anew, from the last Relation message."""
        self._tables.pop(oid, None)

    def begun_at(self, oid: int) -> int:
        """Commit LSN of the first transaction with rows in the table's present layout; 0 before there is any."""
        last = self._last.get(oid)
        return 0 if last is None else last.transaction.commit_lsn

    def get(self, oid: int) -> Table:
        """The table in its layout.

        Raises:
            ProtocolError: it was never told.
            LogFull: no room for a new layout; nothing has changed.
        """
        return self._tables.get(oid) or self._new(oid)

    def fitting(self, oid: int, *rows: Row) -> Table:
        """The table in a layout that fits the rows; errors as for `get`.

        Under REPLICA IDENTITY FULL the key is the catalog's, which may be younger or older than the rows. A row that
        has NULL in it shows that it is not the key here; the table has none until its next Relation message.
        """
        table = self.get(oid)
        schema = table.schema
        if schema.identity is ReplicaIdentity.FULL and any(lacks_key(table, row) for row in rows):
            return self._registered(replace(schema, columns=tuple(replace(c, in_key=False) for c in schema.columns)))
        return table

    def _new(self, oid: int) -> Table:
        relation = self._relations.get(oid)
        if relation is None:
            raise ProtocolError(f"a change of table {oid} came before its layout")
        names = [column.name for column in relation.columns]
        primary_key = self._primary_key(oid, names) if relation.identity == "f" else ()
        return self._registered(layout_of(relation, self._types, primary_key))

    def _registered(self, layout: TableSchema) -> Table:
        schema = self._version(layout)
        if self._told.get(schema.oid) != schema.id:
            self._tell(schema)
            self._told[schema.oid] = schema.id
        table = Table(schema, row_encoder(schema), len(schema.columns), table_bit(schema.oid))
        self._tables[schema.oid] = table
        self._use(schema)
        return table

    def _version(self, layout: TableSchema) -> TableSchema:
        last, transaction = self._last.get(layout.oid), self._transaction()
        if last is not None and last.schema.same_layout(layout):
            return last.schema
        if last is not None and transaction.xid < last.transaction.xid:
            versions = (known for known in self._schemas.all() if known.oid == layout.oid)
            earlier = [known for known in versions if known.id < last.schema.id and known.same_layout(layout)]
            if earlier:
                return earlier[-1]
        schema, _ = self._schemas.register(layout)
        self._last[layout.oid] = _Last(schema, transaction)
        return schema
