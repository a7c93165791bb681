"""What others added to a replica's tables in PostgreSQL, and what becomes of it when a copy takes their place.

Indexes, constraints and privileges are made on the copy as well. Views are bound to a table, whatever it is called:
they are replaced by their own text, which then means the copy. All else that would stay behind with the old table, or
hold on to it, is refused by name before a copy is begun.
"""

from __future__ import annotations

from dataclasses import dataclass

from walbus.consumers.sinks.postgres_session import PostgresSession
from walbus.consumers.sinks.postgres_table import ReplicaTable, quoted
from walbus.errors import SinkRefused

#: Whatever depends on a table, but for what goes with it (its type, TOAST) and what is made anew.
_HINDRANCES = """
SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_catalog.pg_depend d
LEFT JOIN pg_catalog.pg_class r ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND r.oid = d.objid
LEFT JOIN pg_catalog.pg_constraint k
    ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.oid = d.objid
LEFT JOIN pg_catalog.pg_rewrite w ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND w.oid = d.objid
LEFT JOIN pg_catalog.pg_class v ON v.oid = w.ev_class
WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND d.refobjid = $1::text::pg_catalog.regclass
    AND d.classid <> 'pg_catalog.pg_type'::pg_catalog.regclass
    AND r.relkind IS DISTINCT FROM 'i' AND r.relkind IS DISTINCT FROM 't'
    AND (k.contype IS NULL OR k.contype NOT IN ('p', 'u', 'c', 'x', 'n'))
    AND NOT (coalesce(v.relkind, ' ') = 'v' AND pg_catalog.pg_has_role(v.relowner, 'USAGE'))
UNION ALL
SELECT 'column ' || a.attname FROM pg_catalog.pg_attribute a
WHERE a.attrelid = $1::text::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped
    AND NOT a.attname::text = ANY ($2::text[])
UNION ALL
SELECT 'row level security' FROM pg_catalog.pg_class WHERE oid = $1::text::pg_catalog.regclass AND relrowsecurity
ORDER BY 1 LIMIT 1
"""
#: Indexes of their own: those of constraints are made with these.
_INDEXES = """
SELECT i.relname::text, pg_catalog.pg_get_indexdef(i.oid), pg_catalog.format(' ON %I.%I ', n.nspname, c.relname)
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_class c ON c.oid = x.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE x.indrelid = $1::text::pg_catalog.regclass AND x.indisvalid
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.oid AND k.conrelid = x.indrelid)
ORDER BY 1
"""
_CONSTRAINTS = """
SELECT conname::text, pg_catalog.pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint
WHERE conrelid = $1::text::pg_catalog.regclass AND contype IN ('u', 'c', 'x') ORDER BY 1
"""
_PRIVILEGES = """
SELECT a.privilege_type, a.is_grantable, r.rolname::text, NULL::text
FROM pg_catalog.pg_class c
CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE c.oid = $1::text::pg_catalog.regclass AND a.grantee <> c.relowner
UNION ALL
SELECT a.privilege_type, a.is_grantable, r.rolname::text, t.attname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid
CROSS JOIN LATERAL pg_catalog.aclexplode(t.attacl) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE c.oid = $1::text::pg_catalog.regclass AND t.attnum > 0 AND NOT t.attisdropped
"""
_VIEWS = """
SELECT DISTINCT pg_catalog.format('%I.%I', n.nspname, v.relname), pg_catalog.pg_get_viewdef(v.oid),
    pg_catalog.array_to_string(v.reloptions, ', ')
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_rewrite w ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND w.oid = d.objid
JOIN pg_catalog.pg_class v ON v.oid = w.ev_class AND v.relkind = 'v'
JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace
WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND d.refobjid = ANY ($1::text[]::pg_catalog.regclass[])
"""


@dataclass(frozen=True, slots=True)
class View:
    """A view as it stands: its name in SQL, its text, and its options in SQL."""

    name: str
    text: str
    options: str


def require_movable(session: PostgresSession, table: ReplicaTable) -> None:
    """Sees to it that a table's place can be taken by another one.

    Raises:
        psycopg.Error
        SinkRefused: something would be lost, or would go on reading the old one; names it.
    """
    found = session.run(_HINDRANCES, [table.sql, table.names])
    if found:
        raise SinkRefused(
            f"the table has what a rebuilt one would not have: {found[0][0]}",
            where=f"table {table.sql}, {session.where}",
            mend="drop it before the rebuild, and make it again behind the swap",
        )


def furnish(session: PostgresSession, live: ReplicaTable, copy: ReplicaTable) -> None:
    """Makes on a copy what others added to the live table, and the copy does not have yet.

    Raises:
        psycopg.Error
        SinkRefused: an index whose text is not understood.
    """
    there = {name for name, *_ in session.run(_INDEXES, [copy.sql])}
    for name, text, on in session.run(_INDEXES, [live.sql]):
        if name not in there:
            head, found, tail = str(text).partition(str(on))
            if not found:
                raise SinkRefused(f"the index {name} cannot be made on a copy", where=session.where)
            session.run(f"{head} ON {copy.sql} {tail}")
    there = {name for name, _ in session.run(_CONSTRAINTS, [copy.sql])}
    for name, text in session.run(_CONSTRAINTS, [live.sql]):
        if name not in there:
            session.run(f"ALTER TABLE {copy.sql} ADD CONSTRAINT {quoted(str(name))} {text}")
    for privilege, grantable, role, column in session.run(_PRIVILEGES, [live.sql]):
        of = f"{privilege} ({quoted(str(column))})" if column is not None else str(privilege)
        to = "PUBLIC" if role is None else quoted(str(role))
        session.run(f"GRANT {of} ON {copy.sql} TO {to}{' WITH GRANT OPTION' if grantable else ''}")


def views_on(session: PostgresSession, tables: list[ReplicaTable]) -> list[View]:
    """The views that read tables directly, as they stand.

    Raises:
        psycopg.Error
    """
    found = session.run(_VIEWS, [[table.sql for table in tables]])
    return [View(str(name), str(text), str(options or "")) for name, text, options in found]


def bind_views(session: PostgresSession, views: list[View]) -> None:
    """Has views read what bears the names that their texts have; rights on them stay as they are.

    Raises:
        psycopg.Error
    """
    for view in views:
        options = f" WITH ({view.options})" if view.options else ""
        session.run(f"CREATE OR REPLACE VIEW {view.name}{options} AS {view.text}")


__all__ = ["View", "bind_views", "furnish", "require_movable", "views_on"]
