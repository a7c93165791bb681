"""Whether a table that was attached as a partition brought rows along. I/O on the watch's session.

Rows from before an ATTACH are not in the log under the root's name, so the root must be seeded again, however large it
is. A partition manager attaches a table that it has just made, every night, and that table brings nothing. What counts
is not whether there are rows, but whether there were when it was attached: the rows since then are sent. The catalog
does not say so; what can be proved afterwards is this (measured on 14, 16 and 18, `docs/adr/0093-…`).

**It never had a row**: its file is the one that it was made with (`relfilenode` = OID), is empty, and VACUUM, which
might have cut rows off, was not here (`reltuples` < 0).

**No row is visible, and one (sub)transaction made the table and attached it**, in its first file. Rows that it brought
could only have gone by DELETE, whose events are sent and take nothing away that anybody has. Of a table that was
attached later than it was made this proves nothing: it may have been a partition before, and rows that went while it
was detached are in the log. The same holds for a partitioned table, whatever its own partitions are now.

**There are rows, and none of them can be from before**, where one (sub)transaction made and attached it. No other
transaction saw the table before that one's end, so only its own rows are in question, those of its savepoints too.
PostgreSQL numbers the commands of a transaction through all its savepoints, and keeps the number with each row
(`cmin`): rows from before the ATTACH have numbers between that of the table's making and that of the ATTACH. A row with
such a number may also be another transaction's, who knows; any other row came later. Five things would make the proof
untrue, and end it:

- `xmax` is set: deleting and updating write their own number over `cmin`, and may have been rolled back
- VACUUM was here, or is (`reltuples` >= 0, or its lock): it clears the `xmax` of what was rolled back, and the number
  stays overwritten
- values out of line: a row that it brought may have been updated since; then the whole row was sent, but for those
- updates are not published: an updated row has a new number, and was not sent
- the parent came too: rows may have come below it before the ATTACH of that one

PostgreSQL 14 is not asked: its walsender takes a table that was written before its ATTACH for one that is not
published, so that later rows of it may be missing too, until it is renewed (`walbus.capture.regrouped`).

All else is not proved, and seeded: unlogged and foreign tables, rows that our role may not read, tables too large to
be looked through. One thing is not seen: rows that the very transaction that made the table wrote through the root, and
took away by TRUNCATE, which keeps the file then, or while it had the table detached, stay in the log. With CREATE TABLE
… PARTITION OF it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from walbus.capture.definition import FileState
from walbus.capture.sessions import Session, refused

#: A table with more bytes is not looked through: about a tenth of a second.
LOOKED_THROUGH = 32 << 20

_ASKED_SINCE = 150_000
_HEAP = 2  # OID of the access method whose rows have a cmin

_ATTACHED: LiteralString = """
    SELECT c.oid::int8, n.nspname::text, c.relname::text, i.xmin::text::int8, c.relkind = 'p',
           c.relkind = 'r' AND c.relpersistence = 'p' AND c.relfilenode = c.oid,
           i.inhparent <> ALL (%(came)s::int8[]::oid[]),
           made.xmin = i.xmin,
           c.reltuples >= 0 OR EXISTS (
               SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
               WHERE l.relation = c.oid AND l.mode = 'ShareUpdateExclusiveLock' AND d.datname = current_database()),
           made.xmin = i.xmin AND i.xmax::text = '0' AND c.relam = %(heap)s
           AND coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) = 0,
           made.cmin::text::int8, i.cmin::text::int8, pg_relation_size(c.oid),
           has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
           AND NOT row_security_active(c.oid)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_inherits i ON i.inhrelid = c.oid
    JOIN pg_attribute made ON made.attrelid = c.oid AND made.attname = 'ctid'
    WHERE c.oid = ANY (%(came)s::int8[]::oid[])"""

_ANY_ROW: LiteralString = "SELECT FROM ONLY {table} LIMIT 1"
_SUSPECT_ROW: LiteralString = """
    SELECT FROM ONLY {table}
    WHERE xmax::text <> '0' OR (cmin::text::int8 > {made} AND cmin::text::int8 <= {attached}) LIMIT 1"""


class _Attached(NamedTuple):
    """What the catalog says of one of them now.

    Attributes:
        inherited: xmin of its row in pg_inherits.
        partitioned: it has no rows of its own.
        first_file: an ordinary, logged table in the file that it was made with.
        direct: its parent was there before.
        at_once: one (sub)transaction made and attached it.
        vacuumed: VACUUM was here, or is; or ANALYZE.
        numbered: the numbers of commands tell which rows are from before.
        made, attached: of the command that made it, and of the one that attached it.
        size: bytes of its main fork; None if it is gone.
        readable: our role may read all of its rows.
    """

    oid: int
    namespace: str
    name: str
    inherited: int
    partitioned: bool
    first_file: bool
    direct: bool
    at_once: bool
    vacuumed: bool
    numbered: bool
    made: int
    attached: int
    size: int | None
    readable: bool


def without_rows(session: Session, came: Mapping[int, FileState], *, updates: bool) -> frozenset[int]:
    """Those of them that brought no rows which the log lacks.

    Args:
        session: on the source, in autocommit.
        came: partitions that have come, by OID, as a look at the catalog saw them before this call.
        updates: whether they are published.

    Raises:
        SourceError: the source did not answer; a lock that is not to be had included.
    """
    if session.info.server_version < _ASKED_SINCE:
        return frozenset()
    with refused("reading partitions that were attached"):
        found = _read(session, came)
        proved = [row for row in found if _proved(session, came[row.oid], row, updates=updates)]
        still = {row._replace(size=0) for row in _read(session, came)} if proved else set()
    return frozenset(row.oid for row in proved if row._replace(size=0) in still)  # else another one was looked through


def _read(session: Session, came: Mapping[int, FileState]) -> list[_Attached]:
    return list(map(_Attached._make, session.execute(_ATTACHED, {"came": list(came), "heap": _HEAP}).fetchall()))


def _proved(session: Session, seen: FileState, now: _Attached, *, updates: bool) -> bool:
    if now.inherited != seen.inherited:
        return False  # it was detached meanwhile, and attached again
    if now.partitioned or (now.direct and seen.made_here):
        return now.at_once
    if not now.first_file or now.size is None:
        return False
    if now.size == 0:
        return now.at_once or not now.vacuumed
    if not now.at_once or not now.readable or now.size > LOOKED_THROUGH:
        return False
    return not _has_suspect(session, now, numbered=now.numbered and now.direct and updates and not now.vacuumed)


def _has_suspect(session: Session, now: _Attached, *, numbered: bool) -> bool:
    table = sql.Identifier(now.namespace, now.name)
    query = sql.SQL(_ANY_ROW).format(table=table)
    if numbered:
        query = sql.SQL(_SUSPECT_ROW).format(table=table, made=now.made, attached=now.attached)
    try:
        return session.execute(query).fetchone() is not None
    except psycopg.ProgrammingError:  # dropped, renamed or closed to us in this moment
        return True
