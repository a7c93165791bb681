"""The tables of one connection: what it told of their layouts, and the layout that a table's rows use. Pure.

A SCHEMA record is written when a connection first needs a version, even if the log's registry knows it: nobody can say
whether the record itself got into the log before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from walbus.capture.layouts import layout_of, type_name
from walbus.capture.messages import Relation, Row, Type
from walbus.capture.pieces import table_bit
from walbus.capture.rows import Table, lacks_key
from walbus.errors import ProtocolError
from walbus.log import SchemaRegistry
from walbus.schema import ReplicaIdentity, TableSchema
from walbus.values import row_encoder

#: The primary key's columns of a table, by its OID and the columns of a layout.
PrimaryKey = Callable[[int, Collection[str]], Collection[str]]


class Tables:
    """What a connection told, and the tables made of it.

    Args:
        schemas: the log's registry; registering is durable when it returns.
        builtin_types: names of the types that are not announced, by OID.
        primary_key: asked under REPLICA IDENTITY FULL alone (`walbus.capture.layouts.key_under_full`).
        tell: writes the SCHEMA record of a version that the connection needs for the first time.
        use: is told of each layout that rows use from now on.
    """

    def __init__(
        self,
        schemas: SchemaRegistry,
        builtin_types: Mapping[int, str],
        primary_key: PrimaryKey,
        tell: Callable[[TableSchema], None],
        use: Callable[[TableSchema], None],
    ) -> None:
        self._schemas = schemas
        self._primary_key = primary_key
        self._tell = tell
        self._use = use
        self._types = dict(builtin_types)
        self._relations: dict[int, Relation] = {}
        self._tables: dict[int, Table] = {}
        self._told: dict[int, int] = {}  # version that the last SCHEMA record told of a table, by its OID

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
        schema, _ = self._schemas.register(layout)
        if self._told.get(schema.oid) != schema.id:
            self._tell(schema)
            self._told[schema.oid] = schema.id
        table = Table(schema, row_encoder(schema), len(schema.columns), table_bit(schema.oid))
        self._tables[schema.oid] = table
        self._use(schema)
        return table
