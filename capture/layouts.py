"""From what PostgreSQL says of a table to the one `TableSchema` that Walbus numbers. Pure.

A layout is learned in two ways: from the Relation message before a row, and from the catalog about every second (for
tables without changes). Both must give equal layouts, or every poll would make a new version, so both end here:

- a type's name is that of pgoutput's Type message, the base type's for a domain; types of pg_catalog go by bare name;
- the key is the replica identity's columns, and under REPLICA IDENTITY FULL (where pgoutput flags every column) the
  primary key, which only the catalog knows. A primary key that is DEFERRABLE is none, as PostgreSQL has it too.

The catalog knows today's primary key, and the row may be of yesterday. `key_under_full` therefore keeps to the key that
was told last: it changes at one place of the log, the event that says so (`walbus.capture.silent`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

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


def key_under_full(
    columns: Collection[str], told: Collection[str] | None, today: Callable[[], Collection[str]]
) -> Collection[str]:
    """The key's columns of a table under REPLICA IDENTITY FULL.

    Args:
        columns: those of the Relation message.
        told: the primary key as the log was told last; None if it knows nothing of the table.
        today: asks the catalog.

    Returns:
        What was told, if the row has those columns (one may have been dropped or renamed); else today's primary key,
        if it has those; else none.
    """
    if told is not None and set(told) <= set(columns):
        return told
    found = today()
    return found if set(found) <= set(columns) else ()
