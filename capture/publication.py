"""The publication: made from the configured tables, completed when tables are added, and never mended in silence.

What is not in the publication is not captured, and PostgreSQL says nothing about it. So:

- A table that matches `source.tables` and that the log never knew is added, at the start and while running. Its
  earlier rows are not in the log; bootstrap seeds them.
- A table that the log knows and that was taken out has lost changes: that stops capture until an operator puts it
  back (and seeds it again) or takes it out of the configuration.
- A publication that is gone while the log depends on it stops capture: PostgreSQL decodes with the publication as it
  was when a change was written, so making it again does not bring those changes back.
- An operator's publication that leaves out operations is taken as it is, with a warning.
- A table without replica identity would make the application's own UPDATE and DELETE fail once it is published. One
  that a wildcard matches is left out with a warning; one that is named is an error.

Partitions are published through their topmost matching parent, so that partitions made later are in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import LiteralString, cast

import structlog
from psycopg import sql

from walbus.capture.refusals import publication_gone
from walbus.capture.sessions import Session, refused
from walbus.config import SourceConfig
from walbus.errors import SourceMisconfigured

logger = structlog.get_logger(__name__)

_MATCHED: LiteralString = """
    WITH wanted AS (
        SELECT c.oid, n.nspname, c.relname, c.relreplident, n.nspname || '.' || c.relname = ANY (%(named)s) AS named
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname !~ '^pg_'
          AND n.nspname <> 'information_schema'
          AND (n.nspname = ANY (%(schemas)s) OR n.nspname || '.' || c.relname = ANY (%(named)s)))
    SELECT w.oid::int8, w.nspname::text, w.relname::text, w.named,
           w.relreplident = 'f' OR EXISTS (
               SELECT FROM pg_index i WHERE i.indrelid = w.oid AND i.indimmediate AND CASE w.relreplident
                   WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE false END),
           EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                   WHERE r.prrelid = w.oid AND p.pubname = %(publication)s)
           OR EXISTS (SELECT FROM pg_publication_tables t
                      WHERE t.pubname = %(publication)s AND (t.schemaname, t.tablename) = (w.nspname, w.relname))
           OR EXISTS (SELECT FROM pg_publication p WHERE p.pubname = %(publication)s AND p.puballtables)
    FROM wanted w
    WHERE NOT EXISTS (SELECT FROM pg_partition_ancestors(w.oid) up JOIN wanted ON wanted.oid = up WHERE up <> w.oid)
    ORDER BY 2, 3"""

_UNKNOWN: LiteralString = """
    SELECT wanted FROM unnest(%s::text[]) wanted WHERE NOT EXISTS (
        SELECT FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
        WHERE n.nspname || '.*' = wanted OR n.nspname || '.' || c.relname = wanted)"""

_OPERATIONS = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, slots=True)
class MatchedTable:
    """A table that `source.tables` matches.

    Attributes:
        named: by its own name, not only by a wildcard.
        identified: its UPDATE and DELETE can be published.
        published: in the publication already.
    """

    oid: int
    namespace: str
    name: str
    named: bool
    identified: bool
    published: bool

    @property
    def table(self) -> str:
        """`namespace.name`."""
        return f"{self.namespace}.{self.name}"


def matched_tables(session: Session, source: SourceConfig) -> list[MatchedTable]:
    """The tables that the configuration means and that exist."""
    schemas = [pattern.removesuffix(".*") for pattern in source.tables if pattern.endswith(".*")]
    named = [pattern for pattern in source.tables if not pattern.endswith(".*")]
    with refused("reading the tables"):
        parameters = {"named": named, "schemas": schemas, "publication": source.publication}
        rows = cast(list[tuple[int, str, str, bool, bool, bool]], session.execute(_MATCHED, parameters).fetchall())
    return [MatchedTable(*row) for row in rows]


def check_tables(session: Session, source: SourceConfig) -> None:
    """Whether what the configuration names can be captured.

    Raises:
        SourceMisconfigured: a named table or schema is missing, or a named table has no replica identity.
    """
    with refused("reading the tables"):
        row = session.execute(_UNKNOWN, [list(source.tables)]).fetchone()
    if row is not None:
        thing = str(row[0])
        thing = f"schema {thing.removesuffix('.*')}" if thing.endswith(".*") else f"table {thing}"
        raise SourceMisconfigured(f"{thing} does not exist", mend="create it, or correct source.tables")
    for table in matched_tables(session, source):
        if table.named and not table.identified:
            what = f"table {table.table} has no replica identity: published, its UPDATE and DELETE would fail"
            raise SourceMisconfigured(what, mend="add a primary key, or ALTER TABLE … REPLICA IDENTITY FULL")


def ensure_publication(session: Session, source: SourceConfig, *, log_is_empty: bool, known: Collection[int]) -> int:
    """Makes the publication or completes it; its OID.

    Args:
        session: on the source.
        source: names the publication and its tables.
        log_is_empty: whether nothing depends on the publication yet.
        known: OIDs of the tables that the log knows.

    Raises:
        SourceMisconfigured: a privilege or a table is missing, or a known table was taken out.
        SourceGap: the publication is gone while the log depends on it.
    """
    oid = _find(session, source.publication)
    if oid is None and not log_is_empty:
        raise publication_gone(f"publication {source.publication} is gone, and changes with it", "start of capture")
    tables = matched_tables(session, source)
    if oid is None:
        _create(session, source.publication, [table for table in tables if table.identified])
        oid = _find(session, source.publication)
    else:
        _warn_of_unpublished_operations(session, source.publication)
        complete_publication(session, source, tables, known)
    _warn_of_unidentified(tables)
    if oid is None:
        raise publication_gone(f"publication {source.publication} vanished while it was made", "start of capture")
    return oid


def complete_publication(
    session: Session, source: SourceConfig, tables: Collection[MatchedTable], known: Collection[int]
) -> None:
    """Adds tables that are new to the log.

    Raises:
        SourceMisconfigured: one that the log knows is no longer published, or a privilege is missing.
    """
    missing = [table for table in tables if table.identified and not table.published]
    for table in missing:
        if table.oid in known:
            what = f"table {table.table} was taken out of publication {source.publication}: changes of it are lost"
            mend = "put it back with ALTER PUBLICATION … ADD TABLE and seed it again, or take it out of source.tables"
            raise SourceMisconfigured(what, mend=mend)
    if not missing:
        return
    statement = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(
        sql.Identifier(source.publication), _listed(missing)
    )
    with refused(f"adding tables to publication {source.publication} (its owner must own the tables)"):
        session.execute(statement)
    logger.info("publication.tables_added", publication=source.publication, tables=[t.table for t in missing])


def _create(session: Session, publication: str, tables: list[MatchedTable]) -> None:
    statement = sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(publication))
    if tables:
        statement += sql.SQL(" FOR TABLE ") + _listed(tables)
    with refused(f"creating publication {publication} (it takes CREATE on the database and ownership of the tables)"):
        session.execute(statement)
    logger.info("publication.created", publication=publication, tables=[table.table for table in tables])


def _listed(tables: Collection[MatchedTable]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(table.namespace, table.name) for table in tables)


def _find(session: Session, publication: str) -> int | None:
    with refused("reading the publication"):
        row = session.execute("SELECT oid::int8 FROM pg_publication WHERE pubname = %s", [publication]).fetchone()
    return None if row is None else cast(int, row[0])


def _warn_of_unpublished_operations(session: Session, publication: str) -> None:
    """An operator's publication may leave operations out; the log then looks whole and is not."""
    query = "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = %s"
    with refused("reading the publication"):
        row = session.execute(query, [publication]).fetchone()
    missing = [name for name, published in zip(_OPERATIONS, row or (), strict=False) if not published]
    if missing:
        logger.warning(
            "publication.operations_left_out",
            publication=publication,
            operations=missing,
            mend=f"ALTER PUBLICATION {publication} SET (publish = '{', '.join(_OPERATIONS)}')",
        )


def _warn_of_unidentified(tables: Collection[MatchedTable]) -> None:
    for table in tables:
        if not table.identified and not table.published:
            logger.warning(
                "publication.table_left_out",
                table=table.table,
                reason="it has no replica identity, so its own UPDATE and DELETE would fail once published",
                mend="add a primary key, or ALTER TABLE … REPLICA IDENTITY FULL",
            )
