"""Facts of the source, read in a handful of statements, whatever the number of tables.

Everything here is read-only and takes no lock that another session could notice. A statement that the role may not
run is noted in `Facts.unread`, and the rest is read all the same. Columns that only some versions have are read as
JSON of the whole row, so that one statement serves PostgreSQL 14 to 18. Columns of the statements have the names of
the facts' attributes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.rows import dict_row

from walbus.capture.doctor.facts import (
    ConnectionFacts,
    Facts,
    HistoryFacts,
    IdleSlot,
    LogFacts,
    NeverSent,
    PublicationFacts,
    RoleFacts,
    ServerFacts,
    Setting,
    SlotFacts,
    Transaction,
    Unread,
    Wanted,
)
from walbus.capture.doctor.reading_tables import read_never_sent, read_tables
from walbus.capture.identity import MAY_REPLICATE
from walbus.capture.refusals import refusal
from walbus.capture.replication import Walsender
from walbus.capture.sessions import Session, parameters_of, refused
from walbus.capture.slot import slot_state
from walbus.config import SourceConfig
from walbus.errors import SourceError

T = TypeVar("T")

_NAMES = (
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "max_slot_wal_keep_size",
    "idle_replication_slot_timeout",
    "wal_sender_timeout",
    "tcp_keepalives_idle",
    "fsync",
    "full_page_writes",
    "logical_decoding_work_mem",
    "output_plugin_libraries",
    "synchronized_standby_slots",
)
#: Settings that only a managed service has.
_MANAGED = {
    "rds.logical_replication": "Amazon RDS",
    "cloudsql.logical_decoding": "Google Cloud SQL",
    "azure.extensions": "Azure",
}

_SETTINGS: LiteralString = """
    SELECT name::text, setting::text AS value, unit::text, source::text, pending_restart
    FROM pg_settings WHERE name = ANY (%s)"""

_SERVER: LiteralString = """
    SELECT current_setting('server_version_num')::int4 AS version, pg_is_in_recovery() AS in_recovery,
           pg_encoding_to_char(d.encoding)::text AS encoding, d.datname::text AS database,
           extract(epoch FROM clock_timestamp())::float8 AS now,
           (SELECT count(*) FROM pg_replication_slots)::int4 AS slots_used,
           (SELECT count(*) FROM pg_stat_get_wal_senders())::int4 AS senders_used,
           EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'physical')
           OR EXISTS (SELECT FROM pg_stat_replication r
                      WHERE r.pid NOT IN (SELECT active_pid FROM pg_replication_slots WHERE active_pid IS NOT NULL)
                        AND r.application_name NOT IN ('pg_basebackup', 'pg_receivewal')
                        AND r.state = 'streaming') AS standbys,
           (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database)::int4 AS connections_used
    FROM pg_database d WHERE d.datname = current_database()"""

_ROLE: LiteralString = """
    SELECT r.rolname::text AS name, r.rolsuper AS superuser, {may_replicate} AS replication,
           r.rolbypassrls AS bypasses_row_security,
           has_database_privilege(current_database(), 'CREATE') AS creates,
           pg_has_role('pg_read_all_stats', 'USAGE') AS sees_sessions,
           nullif(r.rolconnlimit, -1) AS connection_limit,
           (SELECT coalesce(array_agg(c), '{{}}') FROM pg_db_role_setting s, unnest(s.setconfig) c
            WHERE s.setrole IN (0, r.oid) AND s.setdatabase IN (
                0, (SELECT oid FROM pg_database WHERE datname = current_database())))::text[] AS settings
    FROM pg_roles r WHERE r.rolname = current_user"""

_PUBLICATION: LiteralString = """
    SELECT p.oid::int8, to_jsonb(p) AS columns, pg_get_userbyid(p.pubowner)::text AS owner,
           pg_has_role(p.pubowner, 'USAGE') AS owned,
           to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL AS may_have_schemas
    FROM pg_publication p WHERE p.pubname = %s"""

_PUBLISHED_SCHEMAS: LiteralString = """
    SELECT n.nspname::text AS namespace
    FROM pg_publication_namespace s JOIN pg_namespace n ON n.oid = s.pnnspid
    JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = %s ORDER BY 1"""

_PUBLISHED: LiteralString = """
    SELECT n.nspname::text AS namespace, c.relname::text AS name,
           ARRAY(SELECT m.nspname || '.' || up.relname
                 FROM pg_partition_ancestors(c.oid) a JOIN pg_class up ON up.oid = a.relid
                 JOIN pg_namespace m ON m.oid = up.relnamespace) AS above
    FROM pg_publication p CROSS JOIN LATERAL pg_get_publication_tables(p.pubname) g
    JOIN pg_class c ON c.oid = g.relid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE p.pubname = %s ORDER BY 1, 2"""

_SLOTS: LiteralString = """
    SELECT to_jsonb(s) AS columns, coalesce(a.application_name, '')::text AS application,
           pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                           s.restart_lsn)::int8 AS retained,
           (SELECT spill_bytes FROM pg_stat_replication_slots t WHERE t.slot_name = s.slot_name)::int8 AS spilled
    FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
    WHERE s.slot_name = %s OR NOT s.active"""

_TRANSACTIONS: LiteralString = """
    SELECT a.pid::text AS name, coalesce(a.usename, '')::text AS owner, coalesce(a.datname, '')::text AS database,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds, false AS prepared,
           a.backend_xid IS NOT NULL AS writes
    FROM pg_stat_activity a
    WHERE a.xact_start IS NOT NULL AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)
      AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT p.gid::text, p.owner::text, p.database::text,
           extract(epoch FROM clock_timestamp() - p.prepared)::float8, true, true
    FROM pg_prepared_xacts p
    ORDER BY seconds DESC LIMIT 20"""

_OPERATIONS = ("insert", "update", "delete", "truncate")

_Row = dict[str, Any]
_NO_SLOTS: tuple[SlotFacts | None, tuple[IdleSlot, ...]] = (None, ())


def read_facts(
    session: Session, source: SourceConfig, wanted: Wanted, log: LogFacts | None, clock: Callable[[], float]
) -> Facts:
    """Everything that the rules look at.

    Args:
        session: on the source.
        source: where, for the replication connection.
        wanted: what the configuration asks for.
        log: of the log that exists.
        clock: Unix seconds.

    Raises:
        SourceError: the connection broke.
    """
    reader = _Reader(session)
    server, role = _server(reader, clock), _role(reader)
    publication = reader.attempt("the publication", lambda: _publication(reader, wanted), None)
    slot, idle = reader.attempt("the replication slots", lambda: _slots(reader, wanted.slot), _NO_SLOTS)
    history, refused_because = _history(source, role)
    return Facts(
        wanted=wanted,
        server=server,
        connection=_connection(session, source),
        role=role,
        publication=publication,
        tables=read_tables(session, source, log.known if log is not None else frozenset()),
        never_sent=reader.attempt("what is never sent", lambda: read_never_sent(session, source), NeverSent()),
        slot=slot,
        idle_slots=idle,
        transactions=reader.attempt("open transactions", lambda: _transactions(reader), ()),
        history=history,
        stream_refused=refused_because,
        log=log,
        unread=tuple(reader.unread),
    )


class _Reader:
    """Statements on one session, and what it may not read."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.unread: list[Unread] = []

    def rows(self, query: LiteralString, parameters: Sequence[object] = ()) -> list[_Row]:
        """All rows of a statement, by the names of its columns."""
        with self._session.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, parameters).fetchall()

    def row(self, query: LiteralString) -> _Row:
        """The one row of a statement that always has one."""
        with refused("reading the server's state"):
            return self.rows(query)[0]

    def attempt(self, what: str, read: Callable[[], T], otherwise: T) -> T:
        """What `read` gives; `otherwise`, and a note, where the role may not."""
        try:
            return read()
        except psycopg.errors.InsufficientPrivilege as error:
            self.unread.append(Unread(what, str(error).split("\n", 1)[0]))
            return otherwise
        except psycopg.Error as error:
            raise refusal(error, f"reading {what}") from None


def _server(reader: _Reader, clock: Callable[[], float]) -> ServerFacts:
    names = [*_NAMES, *_MANAGED]
    rows: list[_Row] = reader.attempt("settings", lambda: reader.rows(_SETTINGS, [names]), [])
    settings = {row["name"]: Setting(**row) for row in rows}
    before = clock()
    row = reader.row(_SERVER)
    after = clock()
    ahead = row.pop("now") - (before + after) / 2
    managed = next((name for setting, name in _MANAGED.items() if setting in settings), None)
    return ServerFacts(**row, clock_ahead=ahead, clock_error=(after - before) / 2, managed=managed, settings=settings)


def _role(reader: _Reader) -> RoleFacts:
    row = reader.row(_ROLE.format(may_replicate=MAY_REPLICATE))
    settings: list[str] = row.pop("settings")
    return RoleFacts(**row, settings=dict(entry.split("=", 1) for entry in settings))


def _publication(reader: _Reader, wanted: Wanted) -> PublicationFacts | None:
    rows = reader.rows(_PUBLICATION, [wanted.publication])
    if not rows:
        return None
    columns: _Row = rows[0]["columns"]
    schemas = reader.rows(_PUBLISHED_SCHEMAS, [wanted.publication]) if rows[0]["may_have_schemas"] else []
    published = reader.rows(_PUBLISHED, [wanted.publication])
    return PublicationFacts(
        oid=rows[0]["oid"],
        owner=rows[0]["owner"],
        owned=rows[0]["owned"],
        all_tables=columns["puballtables"],
        schemas=tuple(row["namespace"] for row in schemas),
        operations=frozenset(name for name in _OPERATIONS if columns[f"pub{name}"]),
        via_root=columns["pubviaroot"],
        generated={"s": "stored", "n": "none"}.get(columns.get("pubgencols", "")),
        others=tuple(_unmatched(published, wanted.tables)),
    )


def _unmatched(published: list[_Row], patterns: Sequence[str]) -> list[str]:
    """Published tables that no pattern means."""
    meant = set(patterns)
    named = [(row, f"{row['namespace']}.{row['name']}") for row in published]
    return [name for row, name in named if not meant & {f"{row['namespace']}.*", name, *row["above"]}]


def _slots(reader: _Reader, name: str) -> tuple[SlotFacts | None, tuple[IdleSlot, ...]]:
    rows = reader.rows(_SLOTS, [name])
    ours = [_slot(row) for row in rows if row["columns"]["slot_name"] == name]
    others = [row for row in rows if row["columns"]["slot_name"] != name and row["retained"] is not None]
    idle = tuple(IdleSlot(row["columns"]["slot_name"], row["retained"]) for row in others)
    return (ours[0] if ours else None), idle


def _slot(row: _Row) -> SlotFacts:
    columns: _Row = row["columns"]
    pid = columns["active_pid"]
    return SlotFacts(
        state=slot_state(columns),
        temporary=columns["temporary"],
        reader=None if pid is None else (pid, row["application"]),
        retained=row["retained"],
        safe=columns["safe_wal_size"],
        synced=columns.get("synced"),
        spilled=row["spilled"],
    )


def _transactions(reader: _Reader) -> tuple[Transaction, ...]:
    return tuple(Transaction(**row) for row in reader.rows(_TRANSACTIONS))


def _history(source: SourceConfig, role: RoleFacts) -> tuple[HistoryFacts | None, SourceError | None]:
    """Which cluster this is, over a connection like that of capture; neither where the role may not open one."""
    if not (role.replication or role.superuser):
        return None, None
    try:
        walsender = Walsender(source.dsn)
    except SourceError as error:
        return None, error
    try:
        system = walsender.identify()
        return HistoryFacts(system, walsender.timelines(system.timeline)), None
    finally:
        walsender.close()


def _connection(session: Session, source: SourceConfig) -> ConnectionFacts:
    host = session.info.host
    remote = not (host.startswith(("/", "@")) or _is_loopback(session.info.hostaddr or host))
    given = parameters_of(source.dsn)
    sslmode = session.info.get_parameters().get("sslmode") or given.get("sslmode") or "prefer"
    return ConnectionFacts(host, remote, session.pgconn.ssl_in_use, str(sslmode), str(given["application_name"]))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
