"""Facts of the captured tables, and of what the patterns match and PostgreSQL never sends.

Which tables are meant is asked of `walbus.capture.publication`, as capture itself does at its start. One more
statement reads the details of all of them and of their partitions: replica identities do not follow from a
partitioned table to its partitions, and it is the partition whose UPDATE would fail.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, LiteralString

from psycopg.rows import dict_row

from walbus.capture.doctor.facts import NeverSent, TableFacts
from walbus.capture.publication import MatchedTable, matched_tables
from walbus.capture.sessions import Session, refused
from walbus.config import SourceConfig

_DETAILS: LiteralString = """
    WITH roots AS (SELECT unnest(%(oids)s::int8[])::oid AS root),
    wanted AS (
        SELECT root, root AS oid FROM roots
        UNION
        SELECT root, t.relid::oid FROM roots JOIN pg_class c ON c.oid = root AND c.relkind = 'p',
               LATERAL pg_partition_tree(root) t)
    SELECT w.root::int8, c.oid::int8, n.nspname::text AS namespace, c.relname::text AS name,
           c.relkind = 'p' AS partitioned, c.relreplident::text AS identity, identity.columns AS identity_columns,
           pk.immediate IS NOT NULL AS primary_key, coalesce(NOT pk.immediate, false) AS deferrable,
           pg_get_userbyid(c.relowner)::text AS owner,
           has_table_privilege(c.oid, 'SELECT') AS readable, has_schema_privilege(n.oid, 'USAGE') AS usable_schema,
           row_security_active(c.oid) AS row_security, coalesce(member.filtered, false) AS filtered,
           member.columns AS listed_columns, member.depends AS filter_columns,
           generated.all_of_them AS generated, generated.virtual, able.index AS unique_index
    FROM wanted w JOIN pg_class c ON c.oid = w.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
        SELECT i.indimmediate AS immediate FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) pk ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(a.attname::text) AS columns
        FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = c.oid AND i.indimmediate
          AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE false END
    ) identity ON true
    LEFT JOIN LATERAL (
        SELECT named.relname::text AS index
        FROM pg_index i JOIN pg_class named ON named.oid = i.indexrelid
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND NOT i.indisprimary
          AND i.indpred IS NULL AND i.indexprs IS NULL
          AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attnotnull
                          AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
        ORDER BY i.indnkeyatts, 1 LIMIT 1) able ON true
    LEFT JOIN LATERAL (
        SELECT to_jsonb(r) ->> 'prqual' IS NOT NULL AS filtered,
               CASE WHEN to_jsonb(r) ->> 'prattrs' IS NOT NULL THEN (
                   SELECT array_agg(a.attname::text) FROM pg_attribute a WHERE a.attrelid = c.oid
                   AND a.attnum::text = ANY (string_to_array(to_jsonb(r) ->> 'prattrs', ' '))) END AS columns,
               (SELECT array_agg(DISTINCT a.attname::text) FROM pg_depend d
                JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid > 0) AS depends
        FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE r.prrelid = c.oid AND p.pubname = %(publication)s) member ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(a.attname::text) AS all_of_them,
               array_agg(a.attname::text) FILTER (WHERE a.attgenerated = 'v') AS virtual
        FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped) generated ON true
    ORDER BY namespace, name"""

# Equal values that print apart (numeric 1.0 and 1.00, citext) are no concern: an UPDATE from one to the other is sent
# as a change of the key. Of every type that can be a key, these alone print unequal values alike, or a name.
_KEY_TYPES: LiteralString = """
    WITH RECURSIVE within (relation, name, type) AS (
        SELECT c.oid, a.attname, a.atttypid
        FROM pg_class c
        JOIN pg_index i ON i.indrelid = c.oid AND i.indimmediate
             AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
        WHERE c.oid = ANY (%(oids)s::int8[]::oid[])
        UNION
        SELECT within.relation, within.name, part.oid
        FROM within CROSS JOIN LATERAL (
            SELECT unnest(ARRAY[t.typbasetype, t.typelem]) FROM pg_type t WHERE t.oid = within.type
            UNION ALL SELECT rngsubtype FROM pg_range WHERE to_jsonb(pg_range) ->> 'rngmultitypid' = within.type::text
                                                         OR rngtypid = within.type
            UNION ALL SELECT a.atttypid FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid
                      WHERE t.oid = within.type AND a.attnum > 0 AND NOT a.attisdropped) part (oid)
        WHERE part.oid <> 0),
    found AS (
        SELECT relation, within.name || ' ' || t.typname AS key,
               t.typname IN ('regproc', 'regoper', 'seg') AS merging
        FROM within JOIN pg_type t ON t.oid = within.type JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE n.nspname = 'pg_catalog' AND t.typname ~ '^reg' AND t.typtype = 'b'
           OR t.typname = 'seg' AND EXISTS (
               SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'seg'
               WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'))
    SELECT relation::int8, coalesce(array_agg(key) FILTER (WHERE merging), '{}'),
           coalesce(array_agg(key) FILTER (WHERE NOT merging), '{}')
    FROM found GROUP BY 1"""

_OTHER_RELATIONS: LiteralString = """
    SELECT n.nspname::text, c.relname::text,
           CASE WHEN c.relkind IN ('r', 'p') THEN 'unlogged' WHEN c.relkind = 'f' THEN 'foreign' ELSE 'view' END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (n.nspname = ANY (%(schemas)s) AND c.relkind IN ('r', 'p', 'f')
           OR n.nspname || '.' || c.relname = ANY (%(named)s) AND c.relkind IN ('r', 'p', 'f', 'v', 'm'))
      AND (c.relkind NOT IN ('r', 'p') OR c.relpersistence = 'u')
    ORDER BY 1, 2"""

_COUNTS: LiteralString = """
    SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = 'S' AND n.nspname = ANY (%(schemas)s))::int4,
           EXISTS (SELECT FROM pg_largeobject_metadata)"""

_MISSING: LiteralString = """
    SELECT wanted FROM unnest(%s::text[]) wanted
    WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname || '.*' = wanted)
      AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND n.nspname || '.' || c.relname = wanted)
    ORDER BY 1"""


def read_tables(session: Session, source: SourceConfig, known: Collection[int]) -> tuple[TableFacts, ...]:
    """The tables that the configuration means, partitions included.

    Args:
        session: on the source.
        source: names tables and publication.
        known: OIDs that the log knows.
    """
    matched = {table.oid: table for table in matched_tables(session, source)}
    parameters = {"oids": list(matched), "publication": source.publication}
    with refused("reading the tables"), session.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_DETAILS, parameters).fetchall()
        keys = _read_keys(session, [row["oid"] for row in rows])
    return tuple(_table(row, matched[row.pop("root")], known, keys.get(row["oid"], _FAITHFUL)) for row in rows)


_Keys = tuple[frozenset[str], frozenset[str]]
_FAITHFUL: _Keys = (frozenset(), frozenset())


def _read_keys(session: Session, oids: list[int]) -> dict[int, _Keys]:
    """`TableFacts.merging` and `renamed`, of the tables that have any."""
    rows: list[Any] = session.execute(_KEY_TYPES, {"oids": oids}).fetchall()
    return {oid: (frozenset(merging), frozenset(renamed)) for oid, merging, renamed in rows}


def _table(row: dict[str, Any], root: MatchedTable, known: Collection[int], keys: _Keys) -> TableFacts:
    identity, in_identity = row["identity"], row.pop("identity_columns")
    listed, depends = row.pop("listed_columns"), row.pop("filter_columns")
    generated, virtual = row.pop("generated"), row.pop("virtual")
    unique_index = row.pop("unique_index") or ""
    columns = None if listed is None else frozenset(listed)
    return TableFacts(
        **row,
        root=root.table,
        published=root.published,
        named=root.named,
        addable=root.addable,
        unique_index=unique_index,
        known=row["oid"] in known,
        identified=identity == "f" or in_identity is not None,
        identity_columns=frozenset(in_identity or ()),
        listed_columns=columns,
        # The catalog does not say which of the two a column is needed for; those of the list are safe either way.
        filter_columns=frozenset(depends or ()) - (columns or frozenset()) if row["filtered"] else frozenset(),
        generated=frozenset(generated or ()),
        virtual=frozenset(virtual or ()),
        merging=keys[0],
        renamed=keys[1],
    )


def read_never_sent(session: Session, source: SourceConfig) -> NeverSent:
    """What the patterns match and PostgreSQL never sends, and patterns that match nothing."""
    parameters = {
        "schemas": [pattern.removesuffix(".*") for pattern in source.tables if pattern.endswith(".*")],
        "named": [pattern for pattern in source.tables if not pattern.endswith(".*")],
    }
    kinds: dict[str, list[tuple[str, str]]] = {"unlogged": [], "foreign": [], "view": []}
    others: list[Any] = session.execute(_OTHER_RELATIONS, parameters).fetchall()
    for namespace, name, kind in others:
        kinds[kind].append((namespace, name))
    counts: Any = session.execute(_COUNTS, parameters).fetchone()
    missing: list[Any] = session.execute(_MISSING, [list(source.tables)]).fetchall()
    return NeverSent(
        unlogged=tuple(kinds["unlogged"]),
        foreign=tuple(kinds["foreign"]),
        views=tuple(kinds["view"]),
        sequences=counts[0],
        large_objects=counts[1],
        missing=tuple(row[0] for row in missing),
    )
