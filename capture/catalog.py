"""What the catalog says: layouts of the published tables, primary keys, names of types.

Layouts come from Relation messages too; `walbus.capture.layouts` says why both must be equal. All statements are
read-only, and names go in as parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import LiteralString, cast

from walbus.capture.layouts import FIRST_ANNOUNCED_TYPE, type_name
from walbus.capture.sessions import Session, refused
from walbus.schema import Column, ReplicaIdentity, TableSchema

_BUILTIN_TYPES: LiteralString = "SELECT oid::int8, typname::text FROM pg_type WHERE oid < %s"

_PRIMARY_KEY: LiteralString = """
    SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = %s::int8::oid AND i.indisprimary AND i.indimmediate"""

# pgoutput names the base type of a domain, however many domains lie between.
_LAYOUTS: LiteralString = """
    SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relreplident::text,
           a.attname::text, a.atttypid::int8, tn.nspname::text, t.typname::text, a.atttypmod,
           coalesce(a.attnum = ANY (identity.indkey), false)
    FROM pg_publication_tables p
    JOIN pg_namespace n ON n.nspname = p.schemaname
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND {sent}
    JOIN pg_type declared ON declared.oid = a.atttypid
    LEFT JOIN LATERAL (
        WITH RECURSIVE up (oid, typtype, typbasetype) AS (
            SELECT declared.oid, declared.typtype, declared.typbasetype
            UNION ALL
            SELECT b.oid, b.typtype, b.typbasetype FROM up JOIN pg_type b ON b.oid = up.typbasetype
            WHERE up.typtype = 'd')
        SELECT up.oid FROM up WHERE up.typtype <> 'd') base ON declared.typtype = 'd'
    JOIN pg_type t ON t.oid = coalesce(base.oid, declared.oid)
    JOIN pg_namespace tn ON tn.oid = t.typnamespace
    LEFT JOIN pg_index identity ON identity.indrelid = c.oid AND CASE c.relreplident
        WHEN 'i' THEN identity.indisreplident
        WHEN 'n' THEN false
        ELSE identity.indisprimary AND identity.indimmediate END
    WHERE p.pubname = %s
    ORDER BY c.oid, a.attnum"""


@dataclass(frozen=True)
class CatalogView:
    """What the catalog said at one moment.

    Attributes:
        publication: OID of the publication; None if there is none.
        layouts: unnumbered layouts of the published tables.
        xmax: the next transaction id, 64 bits.
    """

    publication: int | None
    layouts: tuple[TableSchema, ...]
    xmax: int


def read_catalog(session: Session, publication: str) -> CatalogView:
    """The catalog as it is now."""
    with refused("reading the catalog"):
        row = session.execute("SELECT oid::int8 FROM pg_publication WHERE pubname = %s", [publication]).fetchone()
        oid = None if row is None else cast(int, row[0])
        layouts = () if oid is None else _layouts(session, publication)
        return CatalogView(oid, layouts, _xmax(session))


def builtin_types(session: Session) -> dict[int, str]:
    """Names of the types that come without a Type message, by OID."""
    with refused("reading the names of types"):
        rows = session.execute(_BUILTIN_TYPES, [FIRST_ANNOUNCED_TYPE]).fetchall()
    return dict(cast(list[tuple[int, str]], rows))


def primary_key(session: Session, oid: int) -> frozenset[str]:
    """Columns of a table's primary key; empty without one, and for a table that is gone."""
    with refused(f"reading the primary key of table {oid}"):
        rows = session.execute(_PRIMARY_KEY, [oid]).fetchall()
    return frozenset(str(row[0]) for row in rows)


def _xmax(session: Session) -> int:
    row = session.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8").fetchone()
    return cast(int, row[0]) if row else 0


def _layouts(session: Session, publication: str) -> tuple[TableSchema, ...]:
    query = _LAYOUTS.format(sent=_sent_columns(session.info.server_version))
    rows = cast(list[_LayoutRow], session.execute(query.encode(), [publication]).fetchall())
    return tuple(_layout(list(columns)) for _, columns in groupby(rows, key=lambda row: row[0]))


def _sent_columns(server_version: int) -> str:
    """Which columns pgoutput sends. 15 brought column lists; until 18 it sends no generated column, listed or not."""
    conditions = []
    if server_version >= 150_000:
        conditions.append("a.attname = ANY (p.attnames)")
    if server_version < 180_000:
        conditions.append("a.attgenerated = ''")
    return " AND ".join(conditions)


_LayoutRow = tuple[int, str, str, str, str, int, str, str, int, bool]


def _layout(rows: list[_LayoutRow]) -> TableSchema:
    oid, namespace, name, identity = rows[0][:4]
    columns = tuple(
        Column(column, type_oid, type_name(type_namespace, type_), typmod, in_key)
        for *_, column, type_oid, type_namespace, type_, typmod, in_key in rows
    )
    return TableSchema(0, oid, namespace, name, ReplicaIdentity(identity), columns)
