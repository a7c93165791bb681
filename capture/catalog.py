"""What the catalog says, read at a price that allows to ask every second.

`fingerprint` is one number for everything that `read_state` would give: it changes whenever a catalog row of a table,
column, type, partition, key or of the publication is another one (xmin), so that the whole state is read only then.
Temporary tables do not count: some applications make them all the time.

`read_state` reads in one snapshot. Statements that saw different moments could show a new file with old columns, which
looks like VACUUM FULL, and the columns a second later, which look like nothing.

Layouts come from Relation messages too; `walbus.capture.layouts` says why both must be equal. All statements are
read-only, and names go in as parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString, cast

import msgspec
import psycopg

from walbus.capture.definition import CatalogState, ColumnState, FileState, PublicationState, TableState, TypeState
from walbus.capture.layouts import FIRST_ANNOUNCED_TYPE
from walbus.capture.sessions import Session, refused

_BUILTIN_TYPES: LiteralString = "SELECT oid::int8, typname::text FROM pg_type WHERE oid < %s"

_PRIMARY_KEY: LiteralString = """
    SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = %s::int8::oid AND i.indisprimary AND i.indimmediate"""

# An insert position behind the header of a page that is still empty is where the page before it ends: an idle server
# can stand there for a long time, and no position that it flushes or sends would ever pass it.
_MOMENT: LiteralString = """
    SELECT lsn - CASE WHEN lsn %% size IN (24, 40) THEN lsn %% size ELSE 0 END, snapshot::text,
           pg_snapshot_xmax(snapshot)::text::int8, pg_snapshot_xmin(snapshot) = pg_snapshot_xmax(snapshot),
           (SELECT oid::int8 FROM pg_publication WHERE pubname = %(publication)s)
    FROM (SELECT (pg_current_wal_insert_lsn() - '0/0')::int8 AS lsn, current_setting('wal_block_size')::int8 AS size,
                 pg_current_snapshot() AS snapshot) now"""

_TABLES_OF_USERS: LiteralString = "relkind IN ('r', 'p', 'c') AND relpersistence <> 't' AND oid >= 16384"

_FINGERPRINT: LiteralString = """
    SELECT concat_ws(' ',
        (SELECT concat_ws(' ', oid, xmin) FROM pg_publication WHERE pubname = %(publication)s),
        (SELECT concat_ws(' ', count(*), bit_xor(hash_record_extended((r.oid, r.prrelid), 0)))
         FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %(publication)s),
        {schemas},
        (SELECT concat_ws(' ', count(*), bit_xor(hash_record_extended((oid, xmin, relfilenode), 0)))
         FROM pg_class WHERE {of_users}),
        (SELECT concat_ws(' ', count(*), bit_xor(hash_record_extended((attrelid, attnum, xmin), 0)))
         FROM pg_attribute WHERE attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE {of_users})),
        (SELECT bit_xor(hash_record_extended((inhrelid, inhparent, xmin), 0)) FROM pg_inherits),
        (SELECT bit_xor(hash_record_extended((indexrelid, xmin), 0)) FROM pg_index
         WHERE (indisprimary OR indisreplident) AND indrelid IN (SELECT oid FROM pg_class WHERE {of_users})),
        (SELECT bit_xor(hash_record_extended((oid, xmin), 0)) FROM pg_type
         WHERE oid >= 16384 AND typtype <> 'c' AND typelem = 0),
        (SELECT bit_xor(hash_record_extended((oid, xmin), 0)) FROM pg_enum),
        (SELECT bit_xor(hash_record_extended((oid, xmin), 0)) FROM pg_namespace WHERE nspname !~ '^pg_'))"""
_SCHEMAS: LiteralString = """
    (SELECT concat_ws(' ', count(*), bit_xor(hashoidextended(s.oid, 0)))
     FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = %(publication)s)"""

_PUBLICATION: LiteralString = """
    SELECT oid::int8, xmin::text::int8, pubowner::int8, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate,
           pubviaroot, {generated},
           ARRAY(SELECT r.oid::int8 FROM pg_publication_rel r WHERE r.prpubid = p.oid ORDER BY 1) || {schemas}
    FROM pg_publication p WHERE pubname = %(publication)s"""
_PUBLISHED_SCHEMAS: LiteralString = (
    "ARRAY(SELECT s.oid::int8 FROM pg_publication_namespace s WHERE s.pnpubid = p.oid ORDER BY 1)"
)

# A table's columns of the system are never touched again: their xmin and cmin are those of its making.
_MADE_HERE: LiteralString = """
    coalesce(i.xmin = made.xmin AND EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = made.attrelid AND a.attnum > 0 AND a.xmin = made.xmin AND a.cmin = made.cmin), false)"""

_TRACES: LiteralString = """
    (SELECT json_agg(json_build_array(a.attnum, a.xmin::text::int8, a.atthasmissing))
     FROM pg_attribute a WHERE a.attrelid = made.attrelid AND a.attnum > 0 AND NOT a.attisdropped)::text"""

_TABLES: LiteralString = """
    SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relreplident::text,
           coalesce(r.oid, 0)::int8, {by_schema}, {row_filter},
           t.xmin = made.xmin AND c.relfilenode IN (0, c.oid),
           (SELECT json_agg(json_build_array(
                a.attnum, a.attname, a.atttypid::int8, a.atttypmod,
                coalesce(a.attnum = ANY (identity.indkey), false), coalesce(a.attnum = ANY (primary_key.indkey), false),
                {sent}, a.atthasmissing, a.xmin::text::int8) ORDER BY a.attnum)
            FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)::text,
           c.relfilenode::int8, c.reltoastrelid::int8, coalesce(i.xmin::text::int8, 0), {made_here}, t.xmin::text::int8
    FROM pg_get_publication_tables(%(publication)s) g
    JOIN pg_class c ON c.oid = g.relid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_publication p ON p.pubname = %(publication)s
    JOIN pg_attribute made ON made.attrelid = c.oid AND made.attname = 'ctid'
    JOIN pg_type t ON t.oid = c.reltype
    LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND c.relispartition
    LEFT JOIN pg_index primary_key ON primary_key.indrelid = c.oid
         AND primary_key.indisprimary AND primary_key.indimmediate
    LEFT JOIN pg_index identity ON identity.indrelid = c.oid AND CASE c.relreplident
         WHEN 'i' THEN identity.indisreplident
         WHEN 'n' THEN false
         ELSE identity.indisprimary AND identity.indimmediate END
    {schemas}
    ORDER BY c.oid"""
_BY_SCHEMA: LiteralString = "LEFT JOIN pg_publication_namespace s ON s.pnpubid = p.oid AND s.pnnspid = c.relnamespace"

# Not pg_partition_tree, which locks all of them: a look must neither wait for a partition nor hold one.
_PARTITIONS: LiteralString = """
    WITH RECURSIVE tree (root, relid) AS (
        SELECT c.oid, i.inhrelid
        FROM pg_get_publication_tables(%(publication)s) g
        JOIN pg_class c ON c.oid = g.relid AND c.relkind = 'p'
        JOIN pg_inherits i ON i.inhparent = c.oid
        UNION ALL
        SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.relid)
    SELECT tree.root::int8, m.oid::int8, m.relfilenode::int8, m.reltoastrelid::int8, i.xmin::text::int8, {made_here},
           {traces}
    FROM tree
    JOIN pg_class m ON m.oid = tree.relid
    JOIN pg_inherits i ON i.inhrelid = m.oid
    JOIN pg_attribute made ON made.attrelid = m.oid AND made.attname = 'ctid'
    ORDER BY 1, 2"""

# The tables above a partition that is published as itself.
_ABOVE: LiteralString = """
    WITH RECURSIVE above (relid, parent, level) AS (
        SELECT c.oid, i.inhparent, 1
        FROM pg_get_publication_tables(%(publication)s) g
        JOIN pg_class c ON c.oid = g.relid AND c.relispartition
        JOIN pg_inherits i ON i.inhrelid = c.oid
        UNION ALL
        SELECT above.relid, i.inhparent, above.level + 1 FROM above JOIN pg_inherits i ON i.inhrelid = above.parent)
    SELECT above.relid::int8, array_remove(array_agg(r.oid::int8), NULL) || array_remove(array_agg({by_schema}), 0),
           coalesce(array_agg(i.xmin::text::int8 ORDER BY level) FILTER (WHERE i.xmin IS NOT NULL AND NOT {made_here}),
                    '{{}}')
    FROM above
    JOIN pg_class c ON c.oid = above.parent
    JOIN pg_publication p ON p.pubname = %(publication)s
    JOIN pg_attribute made ON made.attrelid = above.parent AND made.attname = 'ctid'
    LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = above.parent
    LEFT JOIN pg_inherits i ON i.inhrelid = above.parent
    {schemas}
    GROUP BY 1"""

_TYPES: LiteralString = """
    WITH RECURSIVE used (oid) AS (
        SELECT DISTINCT a.atttypid
        FROM pg_get_publication_tables(%(publication)s) g
        JOIN pg_attribute a ON a.attrelid = g.relid AND a.attnum > 0 AND a.atttypid >= %(first)s
        UNION
        SELECT part.oid FROM used CROSS JOIN LATERAL (
            SELECT unnest(ARRAY[t.typbasetype, t.typelem]) FROM pg_type t WHERE t.oid = used.oid
            UNION ALL SELECT rngsubtype FROM pg_range WHERE rngtypid = used.oid {or_multirange}
            UNION ALL SELECT a.atttypid FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid
                      WHERE t.oid = used.oid AND a.attnum > 0 AND NOT a.attisdropped) part (oid)
        WHERE part.oid >= %(first)s)
    SELECT t.oid::int8, n.nspname::text, t.typname::text, t.typbasetype::int8, t.typtype = 'e',
           array_remove(ARRAY[t.typelem::int8, (SELECT rngsubtype::int8 FROM pg_range
                                                WHERE rngtypid = t.oid {or_multirange_of_type})], NULL)
           || ARRAY(SELECT a.atttypid::int8 FROM pg_attribute a
                    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped),
           coalesce((SELECT json_object_agg(e.oid::int8, e.enumlabel) FROM pg_enum e WHERE e.enumtypid = t.oid),
                    (SELECT json_object_agg(a.attnum, a.atttypid::int8::text) FROM pg_attribute a
                     WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '{{}}')::text
    FROM used JOIN pg_type t ON t.oid = used.oid JOIN pg_namespace n ON n.oid = t.typnamespace"""

_OTHERS: LiteralString = """
    SELECT oid::int8 FROM pg_class WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND oid >= 16384
    EXCEPT SELECT relid::int8 FROM pg_get_publication_tables(%(publication)s)"""

# By what is committed now, and not by the snapshot, as `pg_get_publication_tables` answers: a table that was dropped
# behind the snapshot is in pg_class, and not in the publication.
_GONE: LiteralString = """
    SELECT oid FROM unnest(%(oids)s::int8[]) oid WHERE pg_table_is_visible(oid::oid) IS NULL"""

_Parameters = dict[str, str | int]
_TRIES = 3
_OPERATIONS = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the source stands.

    Attributes:
        lsn: every commit that this session has seen lies before it.
        snapshot: text of `pg_current_snapshot()`.
        xmax: the next transaction id, 64 bits.
        quiet: no transaction that has an id runs.
        publication: OID of the publication; None if there is none.
    """

    lsn: int
    snapshot: str
    xmax: int
    quiet: bool
    publication: int | None


def read_moment(session: Session, publication: str) -> Moment:
    """Where the source stands now; one cheap statement."""
    with refused("reading the catalog"):
        row = session.execute(_MOMENT, {"publication": publication}).fetchone()
    if row is None:
        raise AssertionError("a SELECT without rows to choose from gives one")
    return Moment(*cast(tuple[int, str, int, bool, int | None], row))


def fingerprint(session: Session, publication: str) -> str:
    """One short text that is another one as soon as `read_state` could give anything else."""
    query = _FINGERPRINT.format(
        of_users=_TABLES_OF_USERS, schemas=_SCHEMAS if session.info.server_version >= 150_000 else "NULL"
    )
    with refused("reading the catalog"):
        row = session.execute(query.encode(), {"publication": publication}).fetchone()
    return str(row[0]) if row else ""


def read_state(session: Session, publication: str) -> CatalogState | None:
    """The published tables, in one snapshot; None if there is no publication.

    Publication functions see what is committed now, and not the snapshot. So what has changed meanwhile is read again,
    lest new and old stand side by side; a catalog that never rests is taken as it was at the last try.
    """
    with refused("reading the catalog"):
        for _ in range(_TRIES):
            with _one_snapshot(session):
                seen, state = fingerprint(session, publication), _read_state(session, publication)
            if fingerprint(session, publication) == seen:
                break
    return state


def _read_state(session: Session, publication: str) -> CatalogState | None:
    found = _read_publication(session, publication)
    if found is None:
        return None
    parameters: _Parameters = {"publication": publication, "first": FIRST_ANNOUNCED_TYPE}
    others = _oids(session.execute(_OTHERS, parameters))
    tables = _read_tables(session, parameters)
    types = _read_types(session, parameters)
    gone = _oids(session.execute(_GONE, {"oids": list(others)}))
    return CatalogState(found, tables, types, others - gone)


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


def _oids(rows: psycopg.Cursor[tuple[object, ...]]) -> frozenset[int]:
    return frozenset(cast(int, row[0]) for row in rows)


@contextmanager
def _one_snapshot(session: Session) -> Iterator[None]:
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not session.closed:
            session.execute("ROLLBACK")


def _read_publication(session: Session, publication: str) -> PublicationState | None:
    version = session.info.server_version
    generated = "pubgencols::text" if version >= 180_000 else "''"
    query = _PUBLICATION.format(
        generated=generated, schemas=_PUBLISHED_SCHEMAS if version >= 150_000 else "'{}'::int8[]"
    )
    row = session.execute(query.encode(), {"publication": publication}).fetchone()
    if row is None:
        return None
    oid, xmin, owner, all_tables, *published, via_root, gencols, entries = cast(_PublicationRow, row)
    operations = tuple(name for name, on in zip(_OPERATIONS, published, strict=True) if on)
    return PublicationState(oid, xmin, owner, all_tables, operations, via_root, gencols, tuple(entries))


_PublicationRow = tuple[int, int, int, bool, bool, bool, bool, bool, bool, str, list[int]]


def _read_tables(session: Session, parameters: _Parameters) -> dict[int, TableState]:
    version = session.info.server_version
    by_schema = "coalesce(s.oid, 0)::int8" if version >= 150_000 else "0::int8"
    schemas = _BY_SCHEMA if version >= 150_000 else ""
    query = _TABLES.format(
        by_schema=by_schema,
        schemas=schemas,
        row_filter="pg_get_expr(g.qual, g.relid)" if version >= 150_000 else "NULL::text",
        sent=_sent(version),
        made_here=_MADE_HERE,
    )
    rows = cast(list[_TableRow], session.execute(query.encode(), parameters).fetchall())
    partitions: dict[int, list[FileState]] = {}
    above: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
    if any(row[3] == "p" for row in rows):
        partitions = _read_partitions(session, parameters)
    if any(row[12] for row in rows):  # partitions that are published as themselves
        query = _ABOVE.format(by_schema=by_schema, schemas=schemas, made_here=_MADE_HERE)
        found = session.execute(query.encode(), parameters).fetchall()
        above = {oid: (entries, attached) for oid, entries, attached in cast(list[_AboveRow], found)}
    return {row[0]: _table(row, partitions.get(row[0], []), *above.get(row[0], ((), ()))) for row in rows}


_AboveRow = tuple[int, list[int], list[int]]


def _sent(server_version: int) -> str:
    """Which columns pgoutput sends. 15 brought column lists; until 18 it sends no generated column, listed or not."""
    conditions = []
    if server_version >= 150_000:
        conditions.append("coalesce(a.attnum = ANY (g.attrs), true)")
    if server_version < 180_000:
        conditions.append("a.attgenerated = ''")
    return " AND ".join(conditions)


_TableRow = tuple[int, str, str, str, str, int, int, str | None, bool, str | None, int, int, int, bool, int]
_columns = msgspec.json.Decoder(tuple[ColumnState, ...]).decode
_traces = msgspec.json.Decoder(tuple[tuple[int, int, bool], ...]).decode
_members = msgspec.json.Decoder(dict[str, str]).decode


def _table(
    row: _TableRow, partitions: list[FileState], entries_above: Sequence[int], attached_above: Sequence[int]
) -> TableState:
    oid, namespace, name, kind, identity, listed, by_schema, row_filter, fresh, columns_json = row[:10]
    filenode, toast, inherited, made_here, row_type_xmin = row[10:]
    columns = _columns(columns_json or "[]")
    files = tuple(partitions)
    if kind != "p":
        traces = tuple((column.number, column.xmin, column.missing) for column in columns)
        files = (FileState(oid, filenode, toast, inherited, made_here, traces),)
    return TableState(
        oid=oid,
        namespace=namespace,
        name=name,
        kind=kind,
        identity=identity,
        listed=listed,
        by_schema=by_schema,
        row_filter=row_filter,
        fresh=fresh,
        columns=columns,
        files=files,
        entries=tuple(sorted({*entries_above, listed, by_schema} - {0})),
        attached_above=tuple(attached_above),
        row_type_xmin=row_type_xmin,
    )


def _read_partitions(session: Session, parameters: _Parameters) -> dict[int, list[FileState]]:
    query = _PARTITIONS.format(made_here=_MADE_HERE, traces=_TRACES)
    found: dict[int, list[FileState]] = {}
    rows = session.execute(query.encode(), parameters).fetchall()
    for root, oid, filenode, toast, inherited, made_here, traces in cast(list[_PartitionRow], rows):
        file = FileState(oid, filenode, toast, inherited, made_here, _traces(traces or "[]"))
        found.setdefault(root, []).append(file)
    return found


_PartitionRow = tuple[int, int, int, int, int, bool, str | None]


def _read_types(session: Session, parameters: _Parameters) -> dict[int, TypeState]:
    query = _TYPES.format(or_multirange="OR rngmultitypid = used.oid", or_multirange_of_type="OR rngmultitypid = t.oid")
    rows = session.execute(query.encode(), parameters).fetchall()
    return {
        oid: TypeState(namespace, name, base, tuple(parts), _members(members), labels)
        for oid, namespace, name, base, labels, parts, members in cast(list[_TypeRow], rows)
    }


_TypeRow = tuple[int, str, str, int, bool, list[int], str]
