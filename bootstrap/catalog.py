"""What the source's catalog says about the publication: which tables, with which columns, key and row filter.

Read about every two seconds and again inside every chunk's transaction. It names tables and columns only; no user
table is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import psycopg

from walbus.bootstrap.state import PublishedTable
from walbus.bootstrap.visibility import Snapshot, parse_snapshot
from walbus.errors import SourceMisconfigured
from walbus.lsn import parse_lsn
from walbus.schema import TableSchema

_PUBLICATION = """
SELECT pubname, pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = %(publication)s
"""

# The key: the replica identity's index; under FULL the primary key; never a deferrable index.
_TABLES = """
SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, c.relreplident::text, k.indkey IS NOT NULL,
       (SELECT json_agg(json_build_array(a.attname, a.atttypid::bigint, a.atttypmod,
                                         COALESCE(a.attnum = ANY (k.indkey::int2[]), false)) ORDER BY a.attnum)
          FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND {columns}),
       {row_filter}, COALESCE(r.oid::bigint, 0),
       CASE WHEN c.relkind = 'p' THEN (
           WITH RECURSIVE tree (oid) AS (
               SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = c.oid AND NOT i.inhdetachpending
               UNION ALL
               SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending)
           SELECT json_agg(json_build_array(l.oid::bigint, s.nspname, l.relname, l.relkind) ORDER BY l.oid)
             FROM tree t JOIN pg_class l ON l.oid = t.oid JOIN pg_namespace s ON s.oid = l.relnamespace
            WHERE l.relkind <> 'p') END
  FROM pg_publication_tables p
  JOIN pg_namespace n ON n.nspname = p.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
  JOIN pg_publication b ON b.pubname = p.pubname
  LEFT JOIN pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid
  LEFT JOIN pg_index k ON k.indrelid = c.oid AND k.indisvalid AND k.indimmediate
       AND CASE c.relreplident WHEN 'i' THEN k.indisreplident WHEN 'n' THEN false ELSE k.indisprimary END
 WHERE p.pubname = %(publication)s AND (%(oid)s::bigint IS NULL OR c.oid::bigint = %(oid)s::bigint)
 ORDER BY c.oid
"""


_KEY_OPERATORS = """
SELECT a.attname::text, n.nspname::text, o.oprname::text
  FROM pg_index i
 CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k (attnum, opclass)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_opclass c ON c.oid = k.opclass
  JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3
       AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
  JOIN pg_operator o ON o.oid = m.amopopr
  JOIN pg_namespace n ON n.oid = o.oprnamespace
 WHERE i.indrelid = %s AND (i.indisprimary OR i.indisreplident) AND n.nspname <> 'pg_catalog'
"""


@dataclass(frozen=True, slots=True)
class SourceMoment:
    """Where the source stands at one moment.

    Attributes:
        snapshot: what is visible.
        w: WAL insert position, read behind the snapshot: every commit that the snapshot sees lies before it.
    """

    snapshot: Snapshot
    w: int


def read_moment(connection: psycopg.Connection[Any]) -> SourceMoment:
    """The current snapshot of the session's transaction, and the end of the WAL.

    Raises:
        SourceMisconfigured: the server is a standby.
    """
    try:
        row = connection.execute(
            "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text,"
            " current_setting('wal_block_size')::int"
        ).fetchone()
    except psycopg.errors.ObjectNotInPrerequisiteState:
        raise SourceMisconfigured(
            "the source is a standby, and seeding needs the primary", mend="point `dsn` of [source] at the primary"
        ) from None
    if row is None:
        raise AssertionError("a SELECT without FROM gives one row")
    return SourceMoment(parse_snapshot(row[0]), end_of_wal(parse_lsn(row[1]), row[2]))


def read_identity(connection: psycopg.Connection[Any]) -> tuple[str, str]:
    """System identifier of the cluster and name of the database, as `walbus.log.SourceIdentity` has them."""
    row = connection.execute(
        "SELECT system_identifier::text, current_database()::text FROM pg_control_system()"
    ).fetchone()
    if row is None:
        raise AssertionError("pg_control_system gives one row")
    return row[0], row[1]


def key_operators(connection: psycopg.Connection[Any], oid: int) -> dict[str, tuple[str, str]]:
    """Schema and name of the operator by which a key of a table is equal, of each column whose type has one of its own.

    Types of extensions do. No session of Walbus looks for an operator but in pg_catalog, where `=` is none for such a
    type, or another one's: that of text for citext, which its index does not have.
    """
    rows = connection.execute(_KEY_OPERATORS, [oid]).fetchall()
    return {column: (namespace, name) for column, namespace, name in rows}


class Sessions(NamedTuple):
    """Sessions of clients at the server; those of Walbus, whose `application_name` begins so, are left out.

    Attributes:
        active: run a statement now.
        hidden: this role is not shown what they do.
    """

    active: int
    hidden: int


def other_sessions(connection: psycopg.Connection[Any]) -> Sessions:
    """How many sessions of others there are."""
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE state = 'active' AND backend_type = 'client backend'),"
        " count(*) FILTER (WHERE backend_type IS NULL)"
        " FROM pg_stat_activity WHERE NOT starts_with(application_name, 'walbus')"
    ).fetchone()
    return Sessions(*row) if row else Sessions(0, 0)


def end_of_wal(insert_lsn: int, block_size: int) -> int:
    """Where the last record ends, when the insert position stands behind the header of a page that is still empty.

    An idle server can stand there for a long time, and neither its flush position nor the log would ever pass it.
    """
    offset = insert_lsn % block_size
    return insert_lsn - offset if offset in (24, 40) else insert_lsn


def read_published(
    connection: psycopg.Connection[Any], publication: str, oid: int | None = None
) -> dict[int, PublishedTable] | None:
    """The publication's tables by OID; only the named one where an OID is given. None if there is no publication."""
    row = connection.execute(_PUBLICATION, {"publication": publication}).fetchone()
    if row is None:
        return None
    unpublished = [name for name, on in zip(("insert", "update", "delete", "truncate"), row[1:], strict=True) if not on]
    query = _tables_query(connection.info.server_version)
    rows = connection.execute(query, {"publication": publication, "oid": oid}).fetchall()
    return {found[0]: _table(found, publication, unpublished) for found in rows}


def _tables_query(server_version: int) -> str:
    """The statement for a server's version: column lists and row filters came with 15, generated columns with 18."""
    columns = "a.attname = ANY (p.attnames)" if server_version >= 150000 else "true"
    if server_version < 180000:
        columns += " AND a.attgenerated = ''"
    return _TABLES.format(columns=columns, row_filter="p.rowfilter" if server_version >= 150000 else "NULL::text")


def _table(row: tuple[Any, ...], publication: str, unpublished: list[str]) -> PublishedTable:
    oid, namespace, name, kind, identity, has_key, columns, row_filter, membership, leaves = row
    table = PublishedTable(
        oid=oid,
        namespace=namespace,
        name=name,
        kind=kind,
        identity=identity,
        columns=tuple((column[0], column[1], column[2], column[3]) for column in columns or ()),
        row_filter=row_filter,
        membership=membership,
        leaves=tuple((leaf[0], leaf[1], leaf[2]) for leaf in leaves or ()),
    )
    elsewhere = next((f"{schema}.{name}" for _, schema, name, kind in leaves or () if kind != "r"), None)
    refusal = _refusal(table, publication, unpublished, has_key=has_key, elsewhere=elsewhere)
    return msgspec.structs.replace(table, refusal=refusal)


def _refusal(
    table: PublishedTable, publication: str, unpublished: list[str], *, has_key: bool, elsewhere: str | None
) -> str:
    if unpublished:
        return (
            f"publication {publication} does not publish {', '.join(unpublished)}:"
            " ALTER PUBLICATION ... SET (publish = 'insert, update, delete, truncate')"
        )
    if elsewhere is not None:
        return f"its partition {elsewhere} is not an ordinary table, so that changes of it are in no log"
    if table.kind not in ("r", "p"):
        return "it is not an ordinary table"
    if not has_key or not any(in_key for *_, in_key in table.columns):
        return "it has no key: add a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX"
    return ""


def describes(schema: TableSchema, table: PublishedTable) -> bool:
    """Whether a registered layout is that of the catalog's table."""
    return (schema.oid, schema.namespace, schema.name, schema.identity.value) == (
        table.oid,
        table.namespace,
        table.name,
        table.identity,
    ) and tuple((c.name, c.type_oid, c.typmod, c.in_key) for c in schema.columns) == table.columns
