"""Whether the source can be captured at all, and which database it is. Read-only; for the start of a process."""

from __future__ import annotations

from typing import LiteralString, cast

from psycopg import sql

from walbus.capture.publication import check_tables
from walbus.capture.replication import Walsender
from walbus.capture.sessions import Session, open_session, place_of, refused
from walbus.config import SourceConfig
from walbus.errors import SourceMisconfigured
from walbus.log import SourceIdentity

OLDEST_VERSION = 140_000

#: Whether a role (`r`) may replicate. Amazon RDS gives that by membership, and leaves the attribute as it is.
MAY_REPLICATE: LiteralString = """
    (r.rolreplication OR EXISTS (
        SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER')))"""

_FACTS: LiteralString = """
    SELECT current_setting('wal_level'), pg_is_in_recovery(), {may_replicate} OR r.rolsuper, r.rolname::text,
           current_database()::text, has_database_privilege(current_database(), 'CREATE'),
           EXISTS (SELECT FROM pg_publication WHERE pubname = %s), current_setting('server_encoding')
    FROM pg_roles r WHERE r.rolname = current_user"""


class StandbyAnswers(SourceMisconfigured):
    """A standby answers where the primary should; it may be promoted yet."""


def identify(source: SourceConfig) -> SourceIdentity:
    """Which database a log would belong to, after a check that it can be captured.

    Raises:
        ConfigError: the DSN cannot be parsed.
        SourceUnavailable: the server does not answer.
        SourceMisconfigured: a setting, privilege or table is missing; `mend` says what to do.
    """
    session = open_session(source.dsn)
    try:
        check_source(session, source)
        database = session.info.dbname
    finally:
        session.close()
    walsender = Walsender(source.dsn)
    try:
        return SourceIdentity(walsender.identify().system_identifier, database, source.slot)
    finally:
        walsender.close()


def check_source(session: Session, source: SourceConfig) -> None:
    """Whether the server, the role and the tables allow to capture.

    Raises:
        SourceMisconfigured: they do not.
    """
    where = place_of(source.dsn)
    version = session.info.server_version
    if version < OLDEST_VERSION:
        raise SourceMisconfigured(
            f"PostgreSQL {version // 10_000} is too old", where=where, mend="upgrade to 14 or later"
        )
    with refused("reading settings and privileges"):
        query = _FACTS.format(may_replicate=MAY_REPLICATE)
        row = session.execute(query.encode(), [source.publication]).fetchone()
    if row is None:
        raise SourceMisconfigured("the session's role is not in pg_roles", where=where)
    wal_level, in_recovery, may_replicate, role, database, may_create, has_publication, encoding = cast(_Facts, row)
    if in_recovery:
        raise StandbyAnswers("the server is a standby", where=where, mend="name the primary in source.dsn")
    if encoding == "SQL_ASCII":  # it converts nothing: texts would be in the log as whatever bytes somebody wrote
        mend = "move the data to a database with an encoding, such as UTF8"
        raise SourceMisconfigured(
            "the database is in SQL_ASCII: nobody knows what its texts mean", where=where, mend=mend
        )
    if wal_level != "logical":
        mend = "run ALTER SYSTEM SET wal_level = logical and restart the server"
        raise SourceMisconfigured(f"wal_level is {wal_level}", where=where, mend=mend)
    if not may_replicate:
        mend = f"run {_written('ALTER ROLE {} REPLICATION', role)}"
        raise SourceMisconfigured(f"role {role} lacks REPLICATION", where=where, mend=mend)
    if not has_publication and not may_create:
        grant = _written("GRANT CREATE ON DATABASE {} TO {}", database, role)
        mend = f"run {grant}, or create publication {source.publication}"
        raise SourceMisconfigured(f"role {role} may not create a publication", where=where, mend=mend)
    check_tables(session, source)


def _written(statement: LiteralString, *names: str) -> str:
    """A statement with names as SQL writes them."""
    return sql.SQL(statement).format(*map(sql.Identifier, names)).as_string()


_Facts = tuple[str, bool, bool, str, str, bool, bool, str]
