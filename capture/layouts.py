"""From what PostgreSQL says of a table to the one `TableSchema` that Walbus numbers. Pure.

A layout is learned in two ways: from the Relation message before a row, and from the catalog about every second (for
tables without changes). Both must give equal layouts, or every poll would make a new version, so both end here:

- a type's name is that of pgoutput's Type message, the base type's for a domain; types of pg_catalog go by bare name;
- the key is the replica identity's columns, and under REPLICA IDENTITY FULL (where pgoutput flags every column) the
  primary key, which only the catalog knows. A primary key that is DEFERRABLE is none, as PostgreSQL has it too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from walbus.capture.messages import Relation
from walbus.errors import ProtocolError
from walbus.schema import Column, ReplicaIdentity, TableSchema

#: Types below this OID come without a Type message; their names are the same in every database of the server.
FIRST_ANNOUNCED_TYPE = 10_000

_CATALOG = ("", "pg_catalog")


def type_name(namespace: str, name: str) -> str:
    """A type's name as layouts hold it: bare for pg_catalog, else `namespace.name`."""
    return name if namespace in _CATALOG else f"{namespace}.{name}"


def layout_of(relation: Relation, types: Mapping[int, str], primary_key: Collection[str]) -> TableSchema:
    """The unnumbered layout (id 0) of a Relation message.

    Args:
        relation: the message.
        types: names by type OID.
        primary_key: columns of the primary key; looked at under REPLICA IDENTITY FULL alone.

    Raises:
        ProtocolError: a type's name is not known.
    """
    identity = ReplicaIdentity(relation.identity)
    full = identity is ReplicaIdentity.FULL
    columns = []
    for column in relation.columns:
        name = types.get(column.type_oid)
        if name is None:
            what = f"column {column.name!r} has type {column.type_oid}, which was never announced"
            raise ProtocolError(what, where=f"table {relation.namespace}.{relation.name}")
        in_key = column.name in primary_key if full else column.in_identity
        columns.append(Column(column.name, column.type_oid, name, column.typmod, in_key))
    namespace = relation.namespace or "pg_catalog"
    return TableSchema(0, relation.oid, namespace, relation.name, identity, tuple(columns))
