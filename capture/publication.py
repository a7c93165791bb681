"""The publication: made from the configured tables, completed when tables are added, and never mended in silence.

What is not in the publication is not captured, and PostgreSQL says nothing about it. So:

- A table that matches `source.tables` and that the log never knew is added, at the start and while running. Its
  earlier rows are not in the log; bootstrap seeds them.
- A table that the log knows and that was taken out has lost changes: that stops capture until an operator puts it
  back (and seeds it again) or takes it out of the configuration. One that was in by other ways than its own entry (a
  partition that was detached, a table that left a published schema) is added, and must be seeded again
  (`walbus.capture.silent`): nobody took it out on purpose.
- A publication that is gone while the log depends on it stops capture: PostgreSQL decodes with the publication as it
  was when a change was written, so making it again does not bring those changes back.
- An operator's publication that leaves out operations is taken as it is, with a warning.
- A table without replica identity would make the application's own UPDATE and DELETE fail once it is published, and
  one of another owner cannot be added. One that a wildcard matches is left out with a warning, once; one that is
  named is an error. Both say the SQL that mends it.

Partitions are published through their topmost matching parent, so that partitions made later are in. Each has a
replica identity of its own, and all of them must have one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import LiteralString, cast

import structlog
from psycopg import sql

from walbus.capture.definition import CatalogState
from walbus.capture.refusals import publication_gone
from walbus.capture.sessions import Session, refused
from walbus.config import SourceConfig
from walbus.errors import SourceMisconfigured

logger = structlog.get_logger(__name__)

_MATCHED: LiteralString = """
    WITH wanted AS (
        SELECT c.oid, n.oid AS nspoid, n.nspname, c.relname, c.relkind, c.relowner,
               n.nspname || '.' || c.relname = ANY (%(named)s) AS named
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname !~ '^pg_'
          AND n.nspname <> 'information_schema'
          AND (n.nspname = ANY (%(schemas)s) OR n.nspname || '.' || c.relname = ANY (%(named)s)))
    SELECT w.oid::int8, w.nspname::text, w.relname::text, w.named,
           NOT EXISTS (
               SELECT FROM pg_class t
               WHERE t.oid IN (WITH RECURSIVE part (oid) AS (
                                   SELECT w.oid UNION ALL
                                   SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
                                   WHERE w.relkind = 'p')
                               SELECT part.oid FROM part)
                 AND t.relreplident <> 'f' AND NOT EXISTS (
                   SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indimmediate AND CASE t.relreplident
                       WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE false END)),
           EXISTS (SELECT FROM pg_publication p WHERE p.pubname = %(publication)s AND p.puballtables)
           OR EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                      WHERE r.prrelid = w.oid AND p.pubname = %(publication)s)
           {or_schema}
           OR EXISTS (SELECT FROM pg_publication_tables t
                      WHERE t.pubname = %(publication)s AND (t.schemaname, t.tablename) = (w.nspname, w.relname)),
           pg_has_role(w.relowner, 'USAGE')
           AND coalesce((SELECT pg_has_role(p.pubowner, 'USAGE') FROM pg_publication p
                         WHERE p.pubname = %(publication)s), true),
           pg_get_userbyid(w.relowner)::text
    FROM wanted w
    WHERE NOT EXISTS (SELECT FROM pg_partition_ancestors(w.oid) up JOIN wanted ON wanted.oid = up WHERE up <> w.oid)
    ORDER BY 2, 3"""

_OR_SCHEMA: LiteralString = """
           OR EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid
                      WHERE s.pnnspid = w.nspoid AND p.pubname = %(publication)s)"""

_UNKNOWN: LiteralString = """
    SELECT wanted FROM unnest(%s::text[]) wanted WHERE NOT EXISTS (
        SELECT FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
        WHERE n.nspname || '.*' = wanted OR n.nspname || '.' || c.relname = wanted)"""

_MEND_IDENTITY = "add a primary key, or ALTER TABLE … REPLICA IDENTITY FULL"
_OPERATIONS = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, slots=True)
class MatchedTable:
    """A table that `source.tables` matches.

    Attributes:
        named: by its own name, not only by a wildcard.
        identified: its UPDATE and DELETE can be published, and those of each of its partitions.
        published: in the publication already.
        addable: our role may add it: it has the privileges of the owners of the table and of the publication.
        owner: of the table.
    """

    oid: int
    namespace: str
    name: str
    named: bool
    identified: bool
    published: bool
    addable: bool
    owner: str

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
        query = _MATCHED.format(or_schema=_OR_SCHEMA if session.info.server_version >= 150_000 else "")
        rows = cast(list[_MatchedRow], session.execute(query.encode(), parameters).fetchall())
    return [MatchedTable(*row) for row in rows]


_MatchedRow = tuple[int, str, str, bool, bool, bool, bool, str]


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
        if table.named and not table.identified and not table.published:
            what = f"table {table.table} has no replica identity: published, its UPDATE and DELETE would fail"
            raise SourceMisconfigured(what, mend=_MEND_IDENTITY)


def ensure_publication(
    session: Session,
    completion: Completion,
    *,
    log_is_empty: bool,
    known: Collection[int],
    remembered: CatalogState | None = None,
) -> int:
    """Makes the publication or completes it; its OID.

    Args:
        session: on the source.
        completion: of the process.
        log_is_empty: whether nothing depends on the publication yet.
        known: OIDs of the tables that the log knows.
        remembered: the catalog as it was told last; None if nothing is known.

    Raises:
        SourceMisconfigured: a privilege or a table is missing, or a known table was taken out.
        SourceGap: the publication is gone, or another one by now, while the log depends on it.
    """
    source = completion.source
    oid = _find(session, source.publication)
    if not log_is_empty:
        _check_identity(source.publication, oid, remembered)
    tables = matched_tables(session, source)
    if oid is None:
        completion.create(session, tables)
        oid = _find(session, source.publication)
    else:
        _warn_of_unpublished_operations(session, source.publication)
        completion.complete(session, tables, known, remembered)
    if oid is None:
        raise publication_gone(f"publication {source.publication} vanished while it was made", "start of capture")
    return oid


def _check_identity(publication: str, oid: int | None, remembered: CatalogState | None) -> None:
    if oid is None:
        raise publication_gone(f"publication {publication} is gone, and changes with it", "start of capture")
    if remembered is not None and remembered.publication.oid != oid:
        what = f"publication {publication} was dropped and made again, and changes in between are lost"
        raise publication_gone(what, "start of capture")


class Completion:
    """Adds tables to the publication, and warns once of each that it must leave out. Lives as long as the process.

    Args:
        source: names the publication and its tables.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self._warned: set[tuple[int, str]] = set()

    def create(self, session: Session, tables: Collection[MatchedTable]) -> None:
        """Makes the publication with all tables that can be in it.

        Raises:
            SourceMisconfigured: a privilege is missing, or a named table cannot be in it.
        """
        _create(session, self.source.publication, self._possible(tables))

    def complete(
        self,
        session: Session,
        tables: Collection[MatchedTable],
        known: Collection[int],
        before: CatalogState | None = None,
    ) -> None:
        """Adds tables that are not in the publication.

        Args:
            session: on the source.
            tables: that match.
            known: OIDs of the tables that the log knows.
            before: as they were seen last.

        Raises:
            SourceMisconfigured: one that the log knows was taken out, or a named one cannot be added.
        """
        publication = self.source.publication
        missing = [table for table in tables if not table.published]
        for table in missing:
            if table.identified and table.oid in known and _taken_out(table, before):
                what = f"table {table.table} was taken out of publication {publication}: changes of it are lost"
                mend = (
                    "put it back with ALTER PUBLICATION … ADD TABLE and seed it again, or take it out of source.tables"
                )
                raise SourceMisconfigured(what, mend=mend)
        for table in tables:
            if table.published and not table.identified:
                reason = "it or a partition of it has no replica identity: its own UPDATE and DELETE fail"
                self._warn("publication.identity_missing", table, reason, _MEND_IDENTITY)
        wanted = self._possible(missing)
        if not wanted:
            return
        statement = _adding(publication, wanted)
        with refused(f"adding tables to publication {publication} (its owner must own the tables)"):
            session.execute(statement)
        logger.info("publication.tables_added", publication=publication, tables=[t.table for t in wanted])

    def _possible(self, tables: Collection[MatchedTable]) -> list[MatchedTable]:
        """Those that can be in the publication; the others are told."""
        possible = []
        for table in tables:
            if not table.identified:
                reason = "it has no replica identity, so its own UPDATE and DELETE would fail once published"
                self._warn("publication.table_left_out", table, reason, _MEND_IDENTITY)
            elif not table.addable:
                reason = f"it belongs to role {table.owner}, and only the owner of publication and table may add it"
                adding = _adding(self.source.publication, [table]).as_string()
                granting = sql.SQL("GRANT {}").format(sql.Identifier(table.owner)).as_string()
                mend = f"as a superuser run {adding}; or {granting} TO the role of source.dsn"
                if table.named:
                    raise SourceMisconfigured(f"table {table.table} cannot be published: {reason}", mend=mend)
                self._warn("publication.table_left_out", table, reason, mend)
            else:
                possible.append(table)
        return possible

    def _warn(self, event: str, table: MatchedTable, reason: str, mend: str) -> None:
        if (table.oid, reason) not in self._warned:
            self._warned.add((table.oid, reason))
            logger.warning(event, table=table.table, reason=reason, mend=mend)


def _taken_out(table: MatchedTable, before: CatalogState | None) -> bool:
    """Whether somebody may have removed a table's own entry since a look: not of one that had none, published or not.

    One that was not published any more then has been told as that: it had left by itself, and cannot be added.
    """
    if before is None:
        return True
    was = before.tables.get(table.oid)
    return table.oid not in before.others if was is None else bool(was.listed)


def _create(session: Session, publication: str, tables: list[MatchedTable]) -> None:
    statement = sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(publication))
    if tables:
        statement += sql.SQL(" FOR TABLE ") + _listed(tables)
    with refused(f"creating publication {publication} (it takes CREATE on the database and ownership of the tables)"):
        session.execute(statement)
    logger.info("publication.created", publication=publication, tables=[table.table for table in tables])


def _adding(publication: str, tables: Collection[MatchedTable]) -> sql.Composed:
    return sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(publication), _listed(tables))


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
        altering = sql.SQL("ALTER PUBLICATION {}").format(sql.Identifier(publication)).as_string()
        logger.warning(
            "publication.operations_left_out",
            publication=publication,
            operations=missing,
            mend=f"{altering} SET (publish = '{', '.join(_OPERATIONS)}')",
        )
